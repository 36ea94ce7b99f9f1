"""How far another form of differential attention may be from the reference, relative to the reference's largest entry.

The difference of two maps cancels, and the head norm raises what is left to size 1: the rounding of the maps is then
divided by the size of their difference. Over the cases of the tests that costs one decimal beyond plain attention.
"""

import torch

FORWARD = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}

# Relative to the largest entry of each gradient. float32: sums over keys in another order, and one exp2 more; 16 bits:
# maps and their gradients are rounded to the inputs' dtype before each product.
BACKWARD = {torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1.2e-1}
