"""How far Triton may be from the reference in float64, relative to the largest entry of the reference.

float32 products are IEEE, never TF32; what differs is the order of the sum. A 16-bit product rounds scale times x to
its dtype before the tensor core multiplies, as a dense layer would round its weights: half a unit in the last place of
each term, which over a sum of random signs stays below one unit of the result; then the result is rounded once. Signs
are exact, sums are float32. Few rows may go by integers instead, which round nothing that float32 would have kept.

Training multiplies by the effective matrix in the dtype of x, like any linear layer; these tolerances are of float32
and float64 against the reference in the same dtype.
"""

import torch

FORWARD = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
BACKWARD = {torch.float32: 3e-6, torch.float64: 1e-14}
