"""The tables of nGPT's position step on queries and keys, for ``nlrl_kernels.hypersphere.position_step``.

Two kinds. "official" is what the published file computes, and what its checkpoints need; it is not rotary embedding
(NVIDIA/ngpt issue 10): a pair (a, b) becomes (-b c, a s), each product alone, and s and c are the two halves of a table
that interleaves sines and cosines. "rotary" is the textbook's (Su et al. 2021, arXiv 2104.09864) on the same pairs and
frequencies: (a cos - b sin, a sin + b cos).
"""

import torch

_BASE = 10000.0


def position_tables(
    positions_T: torch.Tensor, head_dim: int, kind: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``cross`` and ``keep`` [..., T, 1, D], the 1 for the heads; ``keep`` is None where the step has no such part.

    Args:
        positions_T: position of each token, any leading axes.
        head_dim: D, even.
        kind: "official" or "rotary".
        dtype: of the tables, float32 or wider.
    """
    steps = torch.arange(0, head_dim, 2, dtype=dtype, device=positions_T.device)
    angles = positions_T[..., None, None].to(dtype) * _BASE ** (-steps / head_dim)
    sine, cosine = angles.sin(), angles.cos()
    if kind == "rotary":
        return _interleave(-sine, sine), _interleave(cosine, cosine)
    s, c = _interleave(sine, cosine).chunk(2, dim=-1)
    return _interleave(-c, s), None


def _interleave(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    return torch.stack([even, odd], dim=-1).flatten(-2)
