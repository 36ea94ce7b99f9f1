"""The binary layer in Triton; equations and axes in ``reference.py``, kernels in ``kernels.py`` and ``training.py``.

Three ways through the product, by rows, none of which ever stores a sign of a small batch:

- few rows: one launch, in which each program also scales x, since reading the bits is what costs;
- more: x is scaled once, then multiplied by bits that become numbers in registers;
- very many: the matrix is unpacked once into 16-bit numbers for cuBLAS, where its faster product pays for that.

16-bit products take scale times x, rounded once, and signs, which are exact, and add up in float32. float32 products
are IEEE. One way takes the same sums in the same order at every run.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nlrl_kernels.binary import kernels, training


@dataclass(frozen=True, slots=True)
class Few:
    """How ``few_rows`` is cut.

    Attributes:
        outputs: of a program.
        slices: of the inputs.
        warps, stages: as Triton counts them.
        early: bits are asked for before the kernel that makes x has ended (programmatic dependent launch).
        fused: x is scaled by the product itself, and rounded to 16 bits as elsewhere; else a launch before it turns
            x into integers, whose product is exact and takes half the instructions. That launch also takes the norm.
    """

    outputs: int
    slices: int
    warps: int
    stages: int
    early: bool = False
    fused: bool = True


@dataclass(frozen=True, slots=True)
class Many:
    """How ``many_rows`` is cut: rows and outputs of a program."""

    rows: int
    outputs: int
    warps: int
    stages: int


FEW = 8
"""Up to so many rows ``few_rows`` runs; a power of two."""

DENSE = 4096
"""From so many rows on the matrix is unpacked."""


def few_tile(rows: int, outputs: int, inputs: int) -> Few:
    """What ``few_rows`` is launched with. At least 16 columns of (row, slice), or the product is a slower one."""
    slices = {1: 4, 2: 4, 4: 4}.get(rows, 2)
    per_program = 128 // slices if outputs >= 8192 else 64 // slices
    return Few(per_program, slices, 4, 4)


def many_tile(rows: int, outputs: int) -> Many:
    """What ``many_rows`` is launched with: large tiles where they fill the multiprocessors of an H100 (132)."""
    if rows >= 1024:
        return Many(256, 128, 8, 3)
    if rows >= 256:
        return Many(128, 128, 8, 3)
    return Many(64, 64, 4, 4) if rows > 64 and outputs >= 8192 else Many(32, 64, 4, 4)


def takes_dense(rows: int, dtype: torch.dtype) -> bool:
    """Whether this many rows go through an unpacked matrix."""
    return rows >= DENSE and dtype in (torch.float16, torch.bfloat16)


def binary_linear(
    x: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.binary_linear``."""
    return _binary_linear(x, packed_OJ, scale_I, shift_I, zeros_Z2)


def normed_binary_linear(
    x: torch.Tensor,
    weight_I: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None = None,
    *,
    eps: float,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.normed_binary_linear``."""
    return _normed(x, weight_I, packed_OJ, scale_I, shift_I, zeros_Z2, eps, gate, residual, dtype)


def latent_linear(
    x: torch.Tensor, weight_OI: torch.Tensor, scale_I: torch.Tensor, shift_I: torch.Tensor
) -> torch.Tensor:
    """See ``nlrl_kernels.latent_linear``."""
    return training.latent_linear(x, weight_OI, scale_I, shift_I)


@torch.library.custom_op("nlrl_kernels::binary_linear", mutates_args=())
def _binary_linear(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    return run(x, packed, scale, shift, zeros)


@_binary_linear.register_fake
def _(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@torch.library.custom_op("nlrl_kernels::normed_binary_linear", mutates_args=())
def _normed(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    zeros: torch.Tensor | None,
    eps: float,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    return run(x, packed, scale, shift, zeros, weight, eps, gate, residual, dtype)


@_normed.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    zeros: torch.Tensor | None,
    eps: float,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    kept = dtype or x.dtype if residual is None else residual.dtype
    return x.new_empty(*x.shape[:-1], packed.shape[0], dtype=kept)


def run(
    x: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None,
    weight_I: torch.Tensor | None = None,
    eps: float = 0.0,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Both operators, outside of the dispatcher: for who has an operation of their own around it, as vLLM's views do.

    ``dtype`` is that of the product, x's if None; a residual sets the dtype of the result.
    """
    outputs = len(packed_OJ)
    dtype = dtype or x.dtype
    x_TI, gate_TI, residual_TO = (None if a is None else _rows(a) for a in (x, gate, residual))
    assert x_TI is not None
    out_TO = torch.empty(len(x_TI), outputs, dtype=dtype if residual is None else residual.dtype, device=x.device)
    parts = _Parts(x_TI, packed_OJ, scale_I, shift_I, zeros_Z2, weight_I, eps, gate_TI, residual_TO, dtype, out_TO)
    if not len(x_TI):
        pass
    elif len(x_TI) <= FEW:
        _run_few(parts)
    elif takes_dense(len(x_TI), dtype):
        _run_dense(parts)
    else:
        _run_many(parts)
    return out_TO.view(*x.shape[:-1], outputs)


class _Parts:
    """The operands as kernels take them, an absent one standing for by another that is not looked at."""

    def __init__(
        self,
        x_TI: torch.Tensor,
        packed_OJ: torch.Tensor,
        scale_I: torch.Tensor,
        shift_I: torch.Tensor,
        zeros_Z2: torch.Tensor | None,
        weight_I: torch.Tensor | None,
        eps: float,
        gate_TI: torch.Tensor | None,
        residual_TO: torch.Tensor | None,
        dtype: torch.dtype,
        out_TO: torch.Tensor,
    ) -> None:
        packed_OJ = packed_OJ.contiguous()
        self.rows, self.inputs = x_TI.shape
        self.outputs, self.width = packed_OJ.shape
        self.row_bytes = self.width
        self.aligned = self.width % 2 == 0 and packed_OJ.data_ptr() % 2 == 0
        self.packed = self.bytes = packed_OJ
        if self.aligned:
            self.packed, self.width = packed_OJ.view(torch.int16), self.width // 2
        self.x, self.out, self.dtype, self.eps = x_TI, out_TO, dtype, eps
        self.scale, self.shift = scale_I.contiguous(), shift_I.contiguous()
        self.zeros = packed_OJ if zeros_Z2 is None else zeros_Z2.contiguous()
        self.zero_count = 0 if zeros_Z2 is None else len(zeros_Z2)
        self.weight = self.scale if weight_I is None else weight_I.contiguous()
        self.gate = x_TI if gate_TI is None else gate_TI
        self.residual = out_TO if residual_TO is None else residual_TO
        self.norms, self.gates, self.adds = weight_I is not None, gate_TI is not None, residual_TO is not None
        # Where the tensor cannot be on a GPU it is the interpreter that runs, which knows no assembly.
        self.words = {
            "ALIGNED": self.aligned,
            "DTYPE": {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(dtype, tl.float32),
            "ASSEMBLY": x_TI.is_cuda and dtype in (torch.float16, torch.bfloat16),
        }


def _run_few(p: _Parts) -> None:
    rows = triton.next_power_of_2(p.rows)
    tile = few_tile(rows, p.outputs, p.inputs)
    sectors = triton.next_power_of_2(triton.cdiv(tile.outputs * p.row_bytes, 32)) if tile.early and p.x.is_cuda else 0
    how = {"EARLY": sectors, "ADD": p.adds, "SLICES": tile.slices, "BLOCK_O": tile.outputs}
    how |= {"num_warps": tile.warps, "num_stages": tile.stages} | ({"launch_pdl": True} if sectors else {})
    grid = (triton.cdiv(p.outputs, tile.outputs),)
    # The tensor cores' fast products take 16 columns or more.
    if tile.fused and not (p.norms or p.gates):
        kernels.few_rows[grid](
            p.x, p.packed, p.scale, p.shift, p.zeros, p.residual, p.out,
            p.rows, p.inputs, p.outputs, p.width, p.zero_count, p.x.stride(0), p.residual.stride(0), p.out.stride(0),
            **p.words, **how, ROWS=max(rows, 16 // tile.slices),
        )  # fmt: skip
        return
    width = triton.cdiv(p.inputs, 128 * tile.slices) * 128 * tile.slices
    digits = torch.empty(4 * p.rows, width, dtype=torch.int8, device=p.x.device)
    unit_T, shared_T = (torch.empty(p.rows, dtype=torch.float32, device=p.x.device) for _ in range(2))
    block = triton.next_power_of_2(width)
    kernels.prepare_digits[(p.rows,)](
        p.x, p.scale, p.shift, p.gate, p.weight, digits, unit_T, shared_T,
        p.inputs, p.x.stride(0), p.gate.stride(0), width, p.eps,
        NORM=p.norms, GATE=p.gates, EARLY=sectors > 0, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    kernels.few_digits[grid](
        digits, unit_T, shared_T, p.bytes, p.zeros, p.residual, p.out,
        p.rows, p.inputs, p.outputs, p.row_bytes, p.zero_count, width, p.residual.stride(0), p.out.stride(0),
        ASSEMBLY=p.x.is_cuda, **how, ROWS=max(rows, 4 // tile.slices),
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _prepare(p: _Parts, width: int, *, dense: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale times x in the order of the product, ``width`` entries a row, and the number that a row's outputs share."""
    ready_TI = torch.empty(p.rows, width, dtype=p.dtype, device=p.x.device)
    shared_T = torch.empty(p.rows, dtype=torch.float32, device=p.x.device)
    block = max(128, triton.next_power_of_2(width))
    kernels.prepare_rows[(p.rows,)](
        p.x, p.scale, p.shift, p.gate, p.weight, ready_TI, shared_T,
        p.inputs, p.x.stride(0), p.gate.stride(0), width, p.eps,
        NORM=p.norms, GATE=p.gates, DENSE=dense, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return ready_TI, shared_T


def _run_many(p: _Parts) -> None:
    ready_TI, shared_T = _prepare(p, triton.cdiv(p.inputs, 128) * 128)
    # float32 products run on the ordinary cores, whose operands fill registers and shared memory.
    tile = Many(32, 64, 4, 3) if p.dtype == torch.float32 else many_tile(p.rows, p.outputs)
    kernels.many_rows[(triton.cdiv(p.outputs, tile.outputs), triton.cdiv(p.rows, tile.rows))](
        ready_TI, shared_T, p.packed, p.zeros, p.residual, p.out,
        p.rows, p.outputs, p.width, p.zero_count, ready_TI.stride(0), p.residual.stride(0), p.out.stride(0),
        **p.words, ADD=p.adds,
        BLOCK_T=tile.rows, BLOCK_O=tile.outputs, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _run_dense(p: _Parts) -> None:
    width = triton.cdiv(p.inputs + 3, 8) * 8
    ready_TI, _ = _prepare(p, width, dense=True)
    signs_OI = torch.empty(p.outputs, width, dtype=p.dtype, device=p.x.device)
    kernels.unpack_rows[(triton.cdiv(p.outputs, 4), triton.cdiv(width, 16 * 32))](
        p.packed, p.zeros, signs_OI, p.inputs, p.outputs, p.width, p.zero_count, width,
        ALIGNED=p.aligned, BLOCK_O=4, BLOCK_Q=32, num_warps=4,
    )  # fmt: skip
    if p.adds:
        p.out.copy_(torch.mm(ready_TI, signs_OI.T)).add_(p.residual)
    else:
        torch.mm(ready_TI, signs_OI.T, out=p.out)


def _rows(a: torch.Tensor) -> torch.Tensor:
    """[rows, last axis], adjacent entries along the last."""
    a = a.reshape(-1, a.shape[-1])
    return a if a.stride(-1) == 1 else a.contiguous()
