"""How far the Triton norms may be from float64, relative to the largest entry.

Sums over at most some thousands of entries in float32; 16-bit outputs are rounded once: 2^-9 (bfloat16), 2^-12
(float16). Gradients of weights add up all rows.
"""

import torch

FORWARD = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
BACKWARD = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
