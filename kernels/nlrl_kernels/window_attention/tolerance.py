"""How far the Triton attention may be from the reference in float64, relative to the largest entry of the reference.

float32 dot products are IEEE, not TF32. 16-bit inputs: the softmax weights are rounded to the input's dtype before they
meet the values (2^-9 for bfloat16, 2^-12 for float16), and the output is rounded once more.
"""

import torch

FORWARD = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

# float32: sums over keys in another order, and one exp2 more. 16 bits: weights and their gradients are rounded to the
# inputs' dtype before each product, and ``delta`` is a sum over an output that was rounded. The same roundings in
# float64 give 6e-3 for bfloat16 and 5e-4 for float16 at Hymba's shape; short rows three times that.
BACKWARD = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
