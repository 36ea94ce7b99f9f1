"""How far the Triton scan may be from the reference, relative to the largest entry of the reference.

Both compute in float32 and differ in the order of sums and the last bit of exp. Gradients sum over up to batch x time
terms. For 16-bit input the output is rounded once: half a unit in the last place, 2^-9 (bfloat16) and 2^-12 (float16).
"""

import torch

FORWARD = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
BACKWARD = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
