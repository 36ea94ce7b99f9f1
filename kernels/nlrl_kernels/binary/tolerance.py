"""How far the Triton product may be from the reference in float32, relative to the largest entry of the reference.

float32 products are IEEE, never TF32; what differs is the order of the sum. The reference multiplies s x in float32
for every dtype. With few rows so does the kernel, and a 16-bit result is rounded once. With many rows it rounds s x to
the dtype of x before the tensor core's product, as a dense layer would round its weights: half a unit in the last
place of each term, which over a sum of random signs stays below one unit of the result.
"""

import torch

FORWARD = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
