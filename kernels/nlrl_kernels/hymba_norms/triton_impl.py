"""Hymba's norms in Triton, with gradients, as operations that torch.compile takes whole; defined by ``reference``.

float64 is computed in float64, everything else in float32.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false

from typing import Any

import torch
import triton
import triton.language as tl

from nlrl_kernels.hymba_norms import kernels

_PROGRAMS = 528
"""Programs that share the rows of a backward pass: four for each multiprocessor of an H100."""

_ROWS = 4
"""Tokens of a program of the small norms: one warp each."""


def mean_of_norms(
    x_C: torch.Tensor, z_C: torch.Tensor, x_weight_C: torch.Tensor, z_weight_C: torch.Tensor, eps: float
) -> torch.Tensor:
    """See ``nlrl_kernels.mean_of_norms``."""
    return _mean(x_C, z_C, x_weight_C, z_weight_C, eps)


def selection_norms(
    x_P: torch.Tensor, dt_weight_R: torch.Tensor, B_weight_N: torch.Tensor, C_weight_N: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``nlrl_kernels.selection_norms``."""
    return _selection(x_P, dt_weight_R, B_weight_N, C_weight_N, eps)


def _wide(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[..., C] as [rows, C] with adjacent entries, without a copy where it can be."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))


@torch.library.custom_op("nlrl_kernels::mean_of_norms", mutates_args=())
def _mean(x: torch.Tensor, z: torch.Tensor, x_weight: torch.Tensor, z_weight: torch.Tensor, eps: float) -> torch.Tensor:
    x_RC, z_RC = _rows(x), _rows(z)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, width = x_RC.shape
    if rows:
        block = triton.next_power_of_2(width)
        kernels.mean_forward[(rows,)](
            x_RC, z_RC, x_weight.contiguous(), z_weight.contiguous(), y, width, eps, x_RC.stride(0), z_RC.stride(0),
            WIDE=_wide(x.dtype), BLOCK_C=block, num_warps=_warps(block),
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::mean_of_norms_backward", mutates_args=())
def _mean_backward(
    dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor, x_weight: torch.Tensor, z_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x_RC, z_RC = _rows(x), _rows(z)
    rows, width = x_RC.shape
    programs = min(rows, _PROGRAMS)
    dx, dz = (torch.empty(x.shape, dtype=part.dtype, device=x.device) for part in (x, z))
    partial = torch.empty(2, programs, width, dtype=_sums(x.dtype), device=x.device)
    if rows:
        block = triton.next_power_of_2(width)
        kernels.mean_backward[(programs,)](
            x_RC, z_RC, x_weight.contiguous(), z_weight.contiguous(), dy.contiguous(), dx, dz, partial[0], partial[1],
            rows, width, eps, x_RC.stride(0), z_RC.stride(0),
            WIDE=_wide(x.dtype), BLOCK_C=block, num_warps=_warps(block),
        )  # fmt: skip
    return dx, dz, partial[0].sum(0).to(x_weight.dtype), partial[1].sum(0).to(z_weight.dtype)


@torch.library.custom_op("nlrl_kernels::selection_norms", mutates_args=())
def _selection(
    x: torch.Tensor, dt_weight: torch.Tensor, B_weight: torch.Tensor, C_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_TP = _rows(x)
    rank, states = len(dt_weight), len(B_weight)
    dt = torch.empty(*x.shape[:-1], rank, dtype=x.dtype, device=x.device)
    B, C = (torch.empty(*x.shape[:-1], states, dtype=_sums(x.dtype), device=x.device) for _ in range(2))
    if len(x_TP):
        kernels.selection_forward[(triton.cdiv(len(x_TP), _ROWS),)](
            x_TP, dt_weight.contiguous(), B_weight.contiguous(), C_weight.contiguous(), dt, B, C,
            len(x_TP), rank, states, eps, x_TP.stride(0), **_small(x.dtype, rank, states),
        )  # fmt: skip
    return dt, B, C


@torch.library.custom_op("nlrl_kernels::selection_norms_backward", mutates_args=())
def _selection_backward(
    ddt: torch.Tensor,
    dB: torch.Tensor,
    dC: torch.Tensor,
    x: torch.Tensor,
    dt_weight: torch.Tensor,
    B_weight: torch.Tensor,
    C_weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x_TP = _rows(x)
    rank, states = len(dt_weight), len(B_weight)
    programs = min(triton.cdiv(len(x_TP), _ROWS), _PROGRAMS)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, x.shape[-1], dtype=_sums(x.dtype), device=x.device)
    if programs:
        kernels.selection_backward[(programs,)](
            x_TP, dt_weight.contiguous(), B_weight.contiguous(), C_weight.contiguous(),
            ddt.contiguous(), dB.contiguous(), dC.contiguous(), dx, partial,
            len(x_TP), rank, states, eps, x_TP.stride(0), **_small(x.dtype, rank, states),
        )  # fmt: skip
    dweights = partial.sum(0).split([rank, states, states])
    weights = (dt_weight, B_weight, C_weight)
    of_dt, of_B, of_C = (d.to(weight.dtype).clone() for d, weight in zip(dweights, weights, strict=True))
    return dx, of_dt, of_B, of_C


def _small(dtype: torch.dtype, rank: int, states: int) -> dict[str, Any]:
    blocks = {"BLOCK_R": triton.next_power_of_2(rank), "BLOCK_N": triton.next_power_of_2(states)}
    return {"WIDE": _wide(dtype), "ROWS": _ROWS, "num_warps": 4} | blocks


@_mean.register_fake
def _(x: torch.Tensor, z: torch.Tensor, x_weight: torch.Tensor, z_weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@_mean_backward.register_fake
def _(
    dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor, x_weight: torch.Tensor, z_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx, dz = (torch.empty(x.shape, dtype=part.dtype, device=x.device) for part in (x, z))
    return dx, dz, torch.empty_like(x_weight), torch.empty_like(z_weight)


@_selection.register_fake
def _(
    x: torch.Tensor, dt_weight: torch.Tensor, B_weight: torch.Tensor, C_weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dt = torch.empty(*x.shape[:-1], len(dt_weight), dtype=x.dtype, device=x.device)
    B, C = (torch.empty(*x.shape[:-1], len(w), dtype=_sums(x.dtype), device=x.device) for w in (B_weight, C_weight))
    return dt, B, C


@_selection_backward.register_fake
def _(
    ddt: torch.Tensor,
    dB: torch.Tensor,
    dC: torch.Tensor,
    x: torch.Tensor,
    dt_weight: torch.Tensor,
    B_weight: torch.Tensor,
    C_weight: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dx, torch.empty_like(dt_weight), torch.empty_like(B_weight), torch.empty_like(C_weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


_mean.register_autograd(lambda ctx, dy: (*_mean_backward(dy, *ctx.saved_tensors, ctx.eps), None), setup_context=_keep)
_selection.register_autograd(
    lambda ctx, ddt, dB, dC: (*_selection_backward(ddt, dB, dC, *ctx.saved_tensors, ctx.eps), None), setup_context=_keep
)
