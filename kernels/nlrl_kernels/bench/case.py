"""What the benchmark is made of: a planned case, a built one, and what came of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], Any]
Check = tuple[str, torch.Tensor, torch.Tensor, float]
"""Name, found, expected (by the reference, on the same inputs), tolerance."""


class UnavailableError(RuntimeError):
    """An alternative cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one shape, its inputs made.

    Attributes:
        run: launches the kernel; is timed, and may be captured in a CUDA graph.
        check: compares it with the reference; called before any timing.
        moved: bytes that must be read or written at least, every input and output once.
        flops: operations on the tensor cores; 0 for a kernel that is bound by memory.
        alternatives: name to a function that prepares it and returns what is timed; may raise UnavailableError.
    """

    run: Run
    check: Callable[[], Iterable[Check]]
    moved: int
    flops: int = 0
    alternatives: dict[str, Callable[[], Run]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A case that is built, with its inputs, when its turn comes."""

    kernel: str
    shape: str
    build: Callable[[], Case]


@dataclass(frozen=True, slots=True)
class Size:
    """Which shapes: those of real models, a few of them (``quick``), or tiny ones without a GPU."""

    device: str
    quick: bool = False
    tiny: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """16-bit products are wrong in Triton's interpreter."""
        return torch.float32 if self.tiny else torch.bfloat16

    def pick(self, full: list[int], tiny: list[int]) -> list[int]:
        """Of a list of sizes all, for ``quick`` the first, or the tiny ones."""
        return tiny if self.tiny else full[:1] if self.quick else full

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Fresh random numbers."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)


def nbytes(*tensors: torch.Tensor) -> int:
    """Bytes of the entries of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
