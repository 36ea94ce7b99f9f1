"""nGPT's steps on the unit sphere in plain torch, differentiable in every argument.

Source: Loshchilov et al. 2024, arXiv 2410.01131, section 2; the order of the steps is that of the published
``model.py`` (NVIDIA/ngpt). Arithmetic is float32, or float64 when the first argument is; results have its dtype.

Lengths are divided by as they are, without an epsilon: a zero vector has no direction and gives NaN, in its own row
alone. Scales are effective ones, of about 1; checkpoints store them divided by a constant.

Axes: E model width, H heads, D head width, F feed-forward width. Each function takes any leading axes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def unit(x_E: torch.Tensor) -> torch.Tensor:
    """``x / ||x||`` over the last axis."""
    return _unit(_wide(x_E)).to(x_E.dtype)


def residual_step(h_E: torch.Tensor, o_E: torch.Tensor, alpha_E: torch.Tensor) -> torch.Tensor:
    """``unit(A + alpha (unit(o) - A))`` with ``A = unit(h)``: from h towards o along the sphere."""
    a, b = _unit(_wide(h_E)), _unit(_wide(o_E))
    return _unit(torch.addcmul(a, alpha_E.to(a.dtype), b - a)).to(h_E.dtype)


def position_step(x_HD: torch.Tensor, cross_D: torch.Tensor, keep_D: torch.Tensor | None = None) -> torch.Tensor:
    """``keep * x + cross * swapped(x)``, where ``swapped`` exchanges the two entries of each pair (2j, 2j+1).

    With the cosine as ``keep`` and (-sine, sine) as ``cross`` this is a rotation; without ``keep`` it is the published
    file's step, which is none. The tables broadcast over the heads.
    """
    return _position_step(_wide(x_HD), cross_D, keep_D).to(x_HD.dtype)


def qk_step(
    x_HD: torch.Tensor, scale_HD: torch.Tensor, cross_D: torch.Tensor, keep_D: torch.Tensor | None = None
) -> torch.Tensor:
    """``scale * unit(position_step(x))``: what is done to a query or key."""
    moved = _unit(_position_step(_wide(x_HD), cross_D, keep_D))
    return (moved * scale_HD.to(moved.dtype)).to(x_HD.dtype)


def scaled_swiglu(uv_F: torch.Tensor, scale_F: torch.Tensor) -> torch.Tensor:
    """``u * SiLU(v)`` of the halves [u, v] of ``scale * uv``, half as wide as its input."""
    wide = _wide(uv_F)
    u, v = (wide * scale_F.to(wide.dtype)).chunk(2, dim=-1)
    return (u * F.silu(v)).to(uv_F.dtype)


@torch.no_grad()
def normalize_vectors_(matrices: Sequence[torch.Tensor], axes: Sequence[int]) -> None:
    """Divide each matrix, in place, by its lengths along its axis."""
    for matrix, axis in zip(matrices, axes, strict=True):
        wide = _wide(matrix)
        matrix.copy_(wide / torch.linalg.vector_norm(wide, dim=axis, keepdim=True))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _position_step(x_HD: torch.Tensor, cross_D: torch.Tensor, keep_D: torch.Tensor | None) -> torch.Tensor:
    swapped = x_HD.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    moved = swapped * cross_D.to(x_HD.dtype)
    return moved if keep_D is None else torch.addcmul(moved, x_HD, keep_D.to(x_HD.dtype))
