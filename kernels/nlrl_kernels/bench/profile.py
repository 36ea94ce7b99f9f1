"""What a kernel takes of a multiprocessor, from the objects that Triton compiled: why a figure is what it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_REGISTERS, _WARPS, _BLOCKS = 65536, 64, 32
_SHARED, _RESERVED = 228 * 1024, 1024
"""Of one multiprocessor with compute capability 9.0: registers, warps, blocks, shared memory; and what a block's shared
memory takes beyond what it asks for (CUDA programming guide, tables of compute capabilities)."""
_REGISTERS_AT_ONCE = 256
"""Registers are given to a warp in steps of so many."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a compiled kernel.

    Attributes:
        kernel: its name.
        programs: of the grid.
        warps: of a program.
        registers: of a thread.
        spills: registers of a thread that lie in memory.
        shared: bytes of a program.
        occupancy: share of a multiprocessor's warps that can be resident at once.
    """

    kernel: str
    programs: int
    warps: int
    registers: int
    spills: int
    shared: int
    occupancy: float

    def __str__(self) -> str:
        return (
            f"{self.kernel}: {self.programs} programs of {self.warps} warps, {self.registers} registers, "
            f"{self.spills} spilled, {self.shared} bytes shared, occupancy {self.occupancy:.0%}"
        )


def occupancy(registers: int, warps: int, shared: int) -> float:
    """Share of the warps of a multiprocessor (compute capability 9.0) that can be resident at once."""
    of_warp = -(-max(1, registers) * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    limits = (_BLOCKS, _WARPS // warps, _REGISTERS // (of_warp * warps), _SHARED // (shared + _RESERVED))
    return min(limits) * warps / _WARPS


def launches(run: Callable[[], object]) -> list[Launch]:
    """The kernels of ours that ``run`` launches, each once; empty in the interpreter, which compiles none."""
    with _recorded() as found:
        run()
    return list(dict.fromkeys(found))


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    """Notes every launch; ``JITFunction.run`` has returned what it launched in every Triton 3."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []
    launch = JITFunction.run

    def noted(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = launch(self, *arguments, grid=grid, warmup=warmup, **options)
        if compiled is not None and not warmup and not callable(grid):
            found.append(of(compiled, grid))
        return compiled

    JITFunction.run = noted
    try:
        yield found
    finally:
        JITFunction.run = launch


def of(compiled: Any, grid: tuple[int, ...]) -> Launch:
    """The figures of a kernel that has been launched with this grid."""
    about, programs = compiled.metadata, 1
    for size in grid:
        programs *= size
    share = occupancy(compiled.n_regs, about.num_warps, about.shared)
    return Launch(about.name, programs, about.num_warps, compiled.n_regs, compiled.n_spills, about.shared, share)
