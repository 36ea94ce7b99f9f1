"""How far a step in 16 bits, or in another order of sums, may be from the same step in float64.

Relative to the largest entry of the float64 result. Arithmetic inside is float32 whatever the dtype, so 16-bit results
are rounded once: at most half a unit in the last place, 2^-8 (bfloat16) and 2^-11 (float16) of the entry itself.
"""

import torch

FORWARD = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}

# Gradients of scales are sums over all rows, in another order; those of 16-bit inputs meet the rounding of dy as well.
BACKWARD = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
