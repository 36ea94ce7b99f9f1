"""Bi-Mamba 2.7B: projections of 2,560 inputs to 10,576 outputs, and of 5,120 to 2,560."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.binary import reference
from nlrl_kernels.binary.tolerance import FORWARD


def plans(size: Size) -> Iterator[Plan]:
    """One row to a long prefill, against the dense product."""
    shapes = [(24, 20)] if size.tiny else [(2560, 10576), (5120, 2560)]
    for rows in [1, 20] if size.tiny else [1, 2048] if size.quick else [1, 8, 32, 128, 2048, 8192]:
        for inputs, outputs in shapes:
            label = f"{rows} x {inputs} to {outputs}"
            yield Plan("binary_linear", label, lambda r=rows, i=inputs, o=outputs: _product(size, r, i, o))


def _product(size: Size, rows: int, inputs: int, outputs: int) -> Case:
    x, scale, shift = size.normal(rows, inputs), size.normal(inputs), size.normal(inputs)
    packed = torch.randint(0, 256, (outputs, -(-inputs // 8)), dtype=torch.uint8, device=size.device)
    run = lambda: nlrl_kernels.binary_linear(x, packed, scale, shift)  # noqa: E731

    def check() -> Iterator[Check]:
        few = slice(0, min(rows, 64))
        exact = reference.binary_linear(x[few].double(), packed, scale.double(), shift.double())
        yield "first rows", run()[few], exact, FORWARD[size.dtype]

    def cublas() -> Run:
        weight = size.normal(outputs, inputs)
        return lambda: F.linear(x, weight)

    moved = nbytes(x, packed, scale, shift) + rows * outputs * x.element_size()
    return Case(run, check, moved, 2 * rows * inputs * outputs, {"cuBLAS, dense": cublas})
