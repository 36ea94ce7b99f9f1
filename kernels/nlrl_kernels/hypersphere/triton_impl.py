"""nGPT's steps in Triton, with gradients, as operations that torch.compile takes whole; defined by ``reference``.

Each is one launch forward, and backward one with the sum over partial gradients of a scale behind it. float64 is
computed in float64, everything else in float32.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl

from nlrl_kernels.hypersphere import kernels

_PROGRAMS = 528
"""Programs that share the rows of a backward pass: four for each multiprocessor of an H100."""

_TILE_ENTRIES = 32768
"""Entries of a tile of vectors to normalise: 64 registers in each of 512 threads."""


def residual_step(h_E: torch.Tensor, o_E: torch.Tensor, alpha_E: torch.Tensor) -> torch.Tensor:
    """See ``nlrl_kernels.residual_step``."""
    return _residual(h_E, o_E, alpha_E)


def qk_step(
    x_HD: torch.Tensor, scale_HD: torch.Tensor, cross_D: torch.Tensor, keep_D: torch.Tensor | None = None
) -> torch.Tensor:
    """See ``nlrl_kernels.qk_step``.

    Raises:
        ValueError: a table asks for its gradient, or a scale of more axes than heads and width does.
    """
    tables = (cross_D,) if keep_D is None else (cross_D, keep_D)
    if torch.is_grad_enabled() and any(table.requires_grad for table in tables):
        raise ValueError("The Triton step on queries and keys has no gradient of its position tables: detach them.")
    if torch.is_grad_enabled() and scale_HD.requires_grad and scale_HD.shape != x_HD.shape[-2:]:
        raise ValueError(f"A scale of shape {list(scale_HD.shape)} has no gradient: give one of heads by width.")
    return _qk(x_HD, scale_HD, cross_D, keep_D)


def scaled_swiglu(uv_F: torch.Tensor, scale_F: torch.Tensor) -> torch.Tensor:
    """See ``nlrl_kernels.scaled_swiglu``."""
    return _swiglu(uv_F, scale_F)


@torch.no_grad()
def normalize_vectors_(matrices: Sequence[torch.Tensor], axes: Sequence[int]) -> None:
    """See ``nlrl_kernels.normalize_vectors_``; one launch for each dtype, device and length among the matrices."""
    groups: dict[tuple[torch.dtype, torch.device, int], list[tuple[torch.Tensor, int]]] = {}
    for matrix, axis in zip(matrices, axes, strict=True):
        if matrix.is_contiguous() and matrix.numel():
            groups.setdefault((matrix.dtype, matrix.device, matrix.shape[axis]), []).append((matrix, axis % 2))
        elif matrix.numel():
            whole = matrix.contiguous()
            normalize_vectors_([whole], [axis])
            matrix.copy_(whole)
    for (dtype, device, length), members in groups.items():
        block = triton.next_power_of_2(length)
        rows, columns = max(1, _TILE_ENTRIES // 2 // block), max(1, _TILE_ENTRIES // block)
        parts = tuple((m.data_ptr(), m.shape[1 - axis], int(axis == 0)) for m, axis in members)
        owner, table = _program_table(parts, rows, columns, device)
        aligned = all(at % 16 == 0 and (count % 16 == 0 or not by_column) for at, count, by_column in parts)
        kernels.normalize_all[(len(owner),)](
            owner, table, torch.empty(0, dtype=dtype, device=device), length,
            ALIGNED=aligned, WIDE=_wide(dtype), BLOCK_E=block, ROWS=rows, COLUMNS=columns,
            num_warps=16 if any(by_column for _, _, by_column in parts) else 8,
        )  # fmt: skip
        torch.autograd.graph.increment_version([matrix for matrix, _ in members])


@lru_cache(maxsize=16)
def _program_table(
    parts: tuple[tuple[int, int, int], ...], rows: int, columns: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(owner, table) of ``normalize_all``, kept: the weights of a model in training stay where they are."""
    owner, table = [], []
    for index, (address, count, by_column) in enumerate(parts):
        table.append((address, count, by_column, len(owner)))
        owner += [index] * triton.cdiv(count, columns if by_column else rows)
    return torch.tensor(owner, dtype=torch.int32, device=device), torch.tensor(table, device=device)


@torch.library.custom_op("nlrl_kernels::residual_step", mutates_args=())
def _residual(h: torch.Tensor, o: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    h_RE, o_RE = _rows(h), _rows(o)
    y = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    rows, width = h_RE.shape
    if rows:
        block = triton.next_power_of_2(width)
        kernels.residual_forward[(rows,)](
            h_RE, o_RE, alpha.contiguous(), y, width, h_RE.stride(0), o_RE.stride(0),
            WIDE=_wide(h.dtype), BLOCK_E=block, num_warps=_warps(block, 16),
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::residual_step_backward", mutates_args=())
def _residual_backward(
    dy: torch.Tensor, h: torch.Tensor, o: torch.Tensor, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h_RE, o_RE = _rows(h), _rows(o)
    rows, width = h_RE.shape
    programs = min(rows, _PROGRAMS)
    dh, do = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (h, o))
    partial = torch.empty(programs, width, dtype=_sums(h.dtype), device=h.device)
    if rows:
        block = triton.next_power_of_2(width)
        kernels.residual_backward[(programs,)](
            h_RE, o_RE, alpha.contiguous(), dy.contiguous(), dh, do, partial,
            rows, width, h_RE.stride(0), o_RE.stride(0),
            WIDE=_wide(h.dtype), BLOCK_E=block, num_warps=_warps(block, 8),
        )  # fmt: skip
    return dh, do, partial.sum(0).to(alpha.dtype)


@torch.library.custom_op("nlrl_kernels::qk_step", mutates_args=())
def _qk(x: torch.Tensor, scale: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    x4 = _four_axes(x, x.shape)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (_, n1, n2, width), tables = x4.shape, [None if t is None else _four_axes(t, x.shape) for t in (scale, cross, keep)]
    rows = prod(x4.shape[:3])
    if rows:
        block = triton.next_power_of_2(width)
        per_program = max(1, 2048 // block)
        strides = [s for t in tables for s in ((0, 0, 0) if t is None else t.stride()[:3])]
        kernels.qk_forward[(triton.cdiv(rows, per_program),)](
            x4, *(x4 if t is None else t for t in tables), y, rows, n1, n2, *x4.stride()[:3], *strides,
            WIDTH=width, HAS_KEEP=keep is not None, WIDE=_wide(x.dtype), ROWS=per_program, BLOCK_D=block, num_warps=4,
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::qk_step_backward", mutates_args=())
def _qk_backward(
    dy: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    x4, scale_HD = _four_axes(x, x.shape), scale.expand(x.shape[-2:]).contiguous()
    n0, n1, heads, width = x4.shape
    tokens, block = n0 * n1, triton.next_power_of_2(width)
    per_program = min(triton.next_power_of_2(heads), max(1, 1024 // block))
    head_blocks = triton.cdiv(heads, per_program)
    programs = min(tokens, triton.cdiv(_PROGRAMS, head_blocks))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, heads, width, dtype=_sums(x.dtype), device=x.device)
    if tokens and heads:
        tables = [None if t is None else _four_axes(t, x.shape) for t in (cross, keep)]
        strides = [s for t in tables for s in ((0, 0, 0) if t is None else t.stride()[:3])]
        kernels.qk_backward[(programs, head_blocks)](
            x4, scale_HD, *(x4 if t is None else t for t in tables), dy.contiguous(), dx, partial,
            tokens, heads, n1, *x4.stride()[:3], *strides,
            WIDTH=width, HAS_KEEP=keep is not None, WIDE=_wide(x.dtype), ROWS=per_program, BLOCK_D=block, num_warps=4,
        )  # fmt: skip
    return dx, partial.sum(0).to(scale.dtype)


@torch.library.custom_op("nlrl_kernels::scaled_swiglu", mutates_args=())
def _swiglu(uv: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    uv_RF = _rows(uv)
    rows, width = len(uv_RF), uv.shape[-1] // 2
    y = torch.empty(*uv.shape[:-1], width, dtype=uv.dtype, device=uv.device)
    if rows and width:
        block = min(1024, triton.next_power_of_2(width))
        kernels.swiglu_forward[(rows, triton.cdiv(width, block))](
            uv_RF, scale.contiguous(), y, width, uv_RF.stride(0),
            WIDE=_wide(uv.dtype), BLOCK_F=block, num_warps=_warps(block, 8),
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::scaled_swiglu_backward", mutates_args=())
def _swiglu_backward(dy: torch.Tensor, uv: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    uv_RF = _rows(uv)
    rows, width = len(uv_RF), uv.shape[-1] // 2
    block = min(1024, triton.next_power_of_2(max(1, width)))
    blocks = triton.cdiv(width, block)
    programs = min(rows, triton.cdiv(_PROGRAMS, max(1, blocks)))
    duv = torch.empty(uv.shape, dtype=uv.dtype, device=uv.device)
    partial = torch.empty(programs, 2 * width, dtype=_sums(uv.dtype), device=uv.device)
    if rows and width:
        kernels.swiglu_backward[(programs, blocks)](
            uv_RF, scale.contiguous(), dy.contiguous(), duv, partial, rows, width, uv_RF.stride(0),
            WIDE=_wide(uv.dtype), BLOCK_F=block, num_warps=_warps(block, 8),
        )  # fmt: skip
    return duv, partial.sum(0).to(scale.dtype)


@_residual.register_fake
def _(h: torch.Tensor, o: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return h.new_empty(h.shape)


@_residual_backward.register_fake
def _(
    dy: torch.Tensor, h: torch.Tensor, o: torch.Tensor, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return h.new_empty(h.shape), o.new_empty(o.shape), alpha.new_empty(alpha.shape)


@_qk.register_fake
def _(x: torch.Tensor, scale: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape)


@_qk_backward.register_fake
def _(
    dy: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), scale.new_empty(x.shape[-2:])


@_swiglu.register_fake
def _(uv: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return uv.new_empty(*uv.shape[:-1], uv.shape[-1] // 2)


@_swiglu_backward.register_fake
def _(dy: torch.Tensor, uv: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return uv.new_empty(uv.shape), scale.new_empty(scale.shape)


def _keep_inputs(ctx: Any, inputs: tuple[torch.Tensor | None, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


_residual.register_autograd(
    lambda ctx, dy: _residual_backward(dy, *ctx.saved_tensors),
    setup_context=_keep_inputs,
)
_qk.register_autograd(
    lambda ctx, dy: (*_qk_backward(dy, *ctx.saved_tensors), None, None),
    setup_context=_keep_inputs,
)
_swiglu.register_autograd(
    lambda ctx, dy: _swiglu_backward(dy, *ctx.saved_tensors),
    setup_context=_keep_inputs,
)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[rows, width] with adjacent entries; a copy only where the strides of the leading axes do not fold."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _four_axes(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """``x`` as broadcast to ``shape``, with three leading axes and adjacent entries."""
    x = x.expand(shape)
    x = x if x.stride(-1) == 1 or shape[-1] == 1 else x.contiguous()
    return x[(None,) * (4 - x.ndim)] if x.ndim <= 4 else x.flatten(0, -4)


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _warps(block: int, entries: int) -> int:
    """Warps for so many entries a thread."""
    return min(16, max(1, block // (32 * entries)))
