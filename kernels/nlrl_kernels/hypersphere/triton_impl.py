"""nGPT's steps in Triton, with gradients, as operations that torch.compile takes whole; defined by ``reference``.

Each is one launch forward, and backward one with the sum over partial gradients of a scale behind it. float64 is
computed in float64, everything else in float32.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl

from nlrl_kernels.hypersphere import kernels

_MULTIPROCESSORS = 132
"""Of an H100. On another GPU the programs of a backward pass are too many or too few, never wrong."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a kernel is launched.

    Attributes:
        entries: of a row or tile, for each thread; with the block this gives the warps.
        stages: rows of a backward pass that are on their way from memory at once.
        programs: of a backward pass, for each multiprocessor: as many as fit, so that none waits for a second turn.
        registers: a thread may have at most so many; None leaves it to the compiler.
        tile: entries of a program that takes several vectors.
    """

    entries: int
    stages: int = 1
    programs: int = 4
    registers: int | None = None
    tile: int = 0


SETTINGS: dict[str, Setting] = {
    "residual_forward": Setting(16),
    "residual_backward": Setting(8, stages=3, programs=3),
    "qk_forward": Setting(16, tile=2048),
    "qk_backward": Setting(8, stages=3, programs=6, tile=1024),
    "swiglu_forward": Setting(8),
    "swiglu_backward": Setting(8, stages=3, programs=8),
    "normalize_rows": Setting(32, tile=4096),
    # Without the limit one program fills a multiprocessor, and nothing is loaded while it sums and stores.
    "normalize_columns": Setting(64, registers=64, tile=32768),
}
"""Kernel to its setting. Registers, and what fits, were read from machine code for sm_90 at the widths of nGPT 1B;
``nlrl_kernels.bench.sweep`` compares others on a GPU."""


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
    """See ``nlrl_kernels.normalize_vectors_``; one launch for all rows, one for all columns, of a dtype and length."""
    groups: dict[tuple[torch.dtype, torch.device, int, bool], list[torch.Tensor]] = {}
    for matrix, axis in zip(matrices, axes, strict=True):
        if matrix.is_contiguous() and matrix.numel():
            by_column = axis % 2 == 0
            groups.setdefault((matrix.dtype, matrix.device, matrix.shape[axis], by_column), []).append(matrix)
        elif matrix.numel():
            whole = matrix.contiguous()
            normalize_vectors_([whole], [axis])
            matrix.copy_(whole)
    for (dtype, device, length, by_column), members in groups.items():
        setting = SETTINGS["normalize_columns" if by_column else "normalize_rows"]
        block = 1 << (length.bit_length() - 1)
        rest = 0 if block == length else triton.next_power_of_2(length - block)
        wide = triton.next_power_of_2(length)
        # Wider than 64 columns a tile gains nothing: its lines are whole.
        count = min(64, max(1, setting.tile // wide))
        parts = tuple((m.data_ptr(), m.numel() // length) for m in members)
        owner, table = _program_table(parts, count, device)
        aligned = all(at % 16 == 0 and (vectors % 16 == 0 or not by_column) for at, vectors in parts)
        kernels.normalize_all[(len(owner),)](
            owner, table, torch.empty(0, dtype=dtype, device=device), length,
            BY_COLUMN=by_column, ALIGNED=aligned, WIDE=_wide(dtype), BLOCK_E=block, BLOCK_X=rest, COUNT=count,
            num_warps=_warps(count * wide, setting.entries),
            maxnreg=None if dtype == torch.float64 else setting.registers,
        )  # fmt: skip
        torch.autograd.graph.increment_version(members)


@lru_cache(maxsize=16)
def _program_table(
    parts: tuple[tuple[int, int], ...], count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(owner, table) of ``normalize_all``, kept: the weights of a model in training stay where they are."""
    owner, table = [], []
    for index, (address, vectors) in enumerate(parts):
        table.append((address, vectors, len(owner)))
        owner += [index] * triton.cdiv(vectors, count)
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
            WIDE=_wide(h.dtype), BLOCK_E=block, num_warps=_warps(block, SETTINGS["residual_forward"].entries),
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::residual_step_backward", mutates_args=())
def _residual_backward(
    dy: torch.Tensor, h: torch.Tensor, o: torch.Tensor, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h_RE, o_RE = _rows(h), _rows(o)
    rows, width = h_RE.shape
    setting = SETTINGS["residual_backward"]
    programs = min(rows, setting.programs * _MULTIPROCESSORS)
    dh, do = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (h, o))
    partial = torch.empty(programs, width, dtype=_sums(h.dtype), device=h.device)
    if rows:
        block = triton.next_power_of_2(width)
        kernels.residual_backward[(programs,)](
            h_RE, o_RE, alpha.contiguous(), dy.contiguous(), dh, do, partial,
            rows, width, h_RE.stride(0), o_RE.stride(0),
            WIDE=_wide(h.dtype), BLOCK_E=block, STAGES=setting.stages, num_warps=_warps(block, setting.entries),
        )  # fmt: skip
    return dh, do, partial.sum(0).to(alpha.dtype)


@torch.library.custom_op("nlrl_kernels::qk_step", mutates_args=())
def _qk(x: torch.Tensor, scale: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    x4 = _four_axes(x, x.shape)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (_, n1, n2, width), tables = x4.shape, [None if t is None else _four_axes(t, x.shape) for t in (scale, cross, keep)]
    rows = prod(x4.shape[:3])
    if rows:
        setting, block = SETTINGS["qk_forward"], triton.next_power_of_2(width)
        per_program = max(1, setting.tile // block)
        strides = [s for t in tables for s in ((0, 0, 0) if t is None else t.stride()[:3])]
        kernels.qk_forward[(triton.cdiv(rows, per_program),)](
            x4, *(x4 if t is None else t for t in tables), y, rows, n1, n2, *x4.stride()[:3], *strides,
            WIDTH=width, HAS_KEEP=keep is not None, WIDE=_wide(x.dtype), ROWS=per_program, BLOCK_D=block,
            num_warps=_warps(per_program * block, setting.entries),
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::qk_step_backward", mutates_args=())
def _qk_backward(
    dy: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    x4, scale_HD = _four_axes(x, x.shape), scale.expand(x.shape[-2:]).contiguous()
    n0, n1, heads, width = x4.shape
    setting, tokens, block = SETTINGS["qk_backward"], n0 * n1, triton.next_power_of_2(width)
    # A power of two that divides the heads: else the last block of heads would work for nothing.
    per_program = min(heads & -heads, max(1, setting.tile // block))
    head_blocks = triton.cdiv(heads, max(1, per_program))
    # The smaller a program, the more of them fit; 32 at most.
    programs_each = min(32, setting.programs * max(1, setting.tile // max(1, per_program * block)))
    programs = min(tokens, triton.cdiv(programs_each * _MULTIPROCESSORS, max(1, head_blocks)))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, heads, width, dtype=_sums(x.dtype), device=x.device)
    if tokens and heads:
        tables = [None if t is None else _four_axes(t, x.shape) for t in (cross, keep)]
        strides = [s for t in tables for s in ((0, 0, 0) if t is None else t.stride()[:3])]
        kernels.qk_backward[(programs, head_blocks)](
            x4, scale_HD, *(x4 if t is None else t for t in tables), dy.contiguous(), dx, partial,
            tokens, heads, n1, *x4.stride()[:3], *strides,
            WIDTH=width, HAS_KEEP=keep is not None, WIDE=_wide(x.dtype), ROWS=per_program, BLOCK_D=block,
            STAGES=setting.stages, num_warps=_warps(per_program * block, setting.entries),
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
            WIDE=_wide(uv.dtype), BLOCK_F=block, num_warps=_warps(block, SETTINGS["swiglu_forward"].entries),
        )  # fmt: skip
    return y


@torch.library.custom_op("nlrl_kernels::scaled_swiglu_backward", mutates_args=())
def _swiglu_backward(dy: torch.Tensor, uv: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    uv_RF = _rows(uv)
    rows, width = len(uv_RF), uv.shape[-1] // 2
    block = min(1024, triton.next_power_of_2(max(1, width)))
    blocks = triton.cdiv(width, block)
    setting = SETTINGS["swiglu_backward"]
    programs = min(rows, triton.cdiv(setting.programs * _MULTIPROCESSORS, max(1, blocks)))
    duv = torch.empty(uv.shape, dtype=uv.dtype, device=uv.device)
    partial = torch.empty(programs, 2 * width, dtype=_sums(uv.dtype), device=uv.device)
    if rows and width:
        kernels.swiglu_backward[(programs, blocks)](
            uv_RF, scale.contiguous(), dy.contiguous(), duv, partial, rows, width, uv_RF.stride(0),
            WIDE=_wide(uv.dtype), BLOCK_F=block, STAGES=setting.stages, num_warps=_warps(block, setting.entries),
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
