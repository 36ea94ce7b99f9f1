"""Bi-Mamba 2.7B: projections of 2,560 inputs to 10,576 outputs, and of 5,120 to 2,560.

One small product takes less than it costs to launch a graph, and its matrix would stay in the cache from one replay to
the next. So up to 32 rows what is timed is such a product in each of 16 layers, one after the other, each with its own
matrix; of the alternatives too.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.binary import reference
from nlrl_kernels.binary.straight_through import binary_weight
from nlrl_kernels.binary.tolerance import BACKWARD, FORWARD

_ROWS = [1, 2, 4, 8, 16, 32, 128, 512, 2048, 8192]
_QUICK = [1, 2048]
_LAYERS = 16
_EPS = 1e-5


def plans(size: Size) -> Iterator[Plan]:
    """One row to a long prefill: alone, within norm, gate and residual, and in training."""
    for rows in [1, 20] if size.tiny else _QUICK if size.quick else _ROWS:
        for inputs, outputs in shapes(size):
            yield plan("binary_linear", size, rows, inputs, outputs)
    for rows in [1, 20] if size.tiny else _QUICK if size.quick else [1, 8, 32, 2048]:
        for inputs, outputs in shapes(size):
            yield plan("normed_binary_linear", size, rows, inputs, outputs)
    inputs, outputs = shapes(size)[0]
    rows = 20 if size.tiny else 16384
    label = f"{rows} x {inputs} to {outputs}, forward and backward"
    yield Plan("latent_linear", label, lambda: _training(size, rows, inputs, outputs))


def shapes(size: Size) -> list[tuple[int, int]]:
    """(inputs, outputs) of in_proj and of out_proj."""
    return [(24, 20)] if size.tiny else [(2560, 10576), (5120, 2560)]


def plan(kernel: str, size: Size, rows: int, inputs: int, outputs: int, layers: int | None = None) -> Plan:
    """The product, or what stands around it in a layer as well."""
    layers = layers or (_LAYERS if rows <= 32 and not size.tiny else 1)
    label = f"{rows} x {inputs} to {outputs}" + (f", {layers} layers" if layers > 1 else "")
    build = _product if kernel == "binary_linear" else _block
    return Plan(kernel, label, lambda: build(size, rows, inputs, outputs, layers))


def _matrices(size: Size, inputs: int, outputs: int, layers: int) -> list[torch.Tensor]:
    width = -(-inputs // 8)
    return [torch.randint(0, 256, (outputs, width), dtype=torch.uint8, device=size.device) for _ in range(layers)]


def _product(size: Size, rows: int, inputs: int, outputs: int, layers: int) -> Case:
    x, packed = size.normal(rows, inputs), _matrices(size, inputs, outputs, layers)
    scale, shift = (size.normal(inputs, dtype=torch.float32) for _ in range(2))
    run = lambda: [nlrl_kernels.binary_linear(x, bits, scale, shift) for bits in packed]  # noqa: E731

    def check() -> Iterator[Check]:
        few = slice(0, min(rows, 64))
        exact = reference.binary_linear(x[few].double(), packed[-1], scale.double(), shift.double())
        yield "first rows", run()[-1][few], exact, FORWARD[size.dtype]

    moved = layers * (nbytes(x, packed[0], scale, shift) + rows * outputs * x.element_size())
    return Case(run, check, moved, 2 * layers * rows * inputs * outputs, {"cuBLAS, dense": _dense(size, x, packed)})


def _dense(size: Size, x: torch.Tensor, packed: list[torch.Tensor]) -> Callable[[], Run]:
    def prepare() -> Run:
        weights = [size.normal(len(bits), x.shape[-1]) for bits in packed]
        return lambda: [F.linear(x, weight) for weight in weights]

    return prepare


def _block(size: Size, rows: int, inputs: int, outputs: int, layers: int) -> Case:
    """Of in_proj a float32 stream and its norm; of out_proj, which is narrower, gate and stream too."""
    is_last, dtype = outputs < inputs and not size.tiny, size.dtype
    packed = _matrices(size, inputs, outputs, layers)
    scale, shift, gain = (size.normal(inputs, dtype=torch.float32) for _ in range(3))
    x = size.normal(rows, inputs, dtype=dtype if is_last else torch.float32)
    gate = size.normal(rows, inputs) if is_last else None
    residual = size.normal(rows, outputs, dtype=torch.float32) if is_last else None
    how = {"eps": _EPS, "gate": gate, "residual": residual, "dtype": dtype}
    run = lambda: [nlrl_kernels.normed_binary_linear(x, gain, bits, scale, shift, **how) for bits in packed]  # noqa: E731

    def check() -> Iterator[Check]:
        few = slice(0, min(rows, 64))
        cut = [None if part is None else part[few].double() for part in (gate, residual)]
        wide = [part.double() for part in (scale, shift)]
        exact = reference.normed_binary_linear(
            x[few].double(), gain.double(), packed[-1], *wide, eps=_EPS, gate=cut[0], residual=cut[1]
        )
        yield "first rows", run()[-1][few], exact, FORWARD[dtype]

    def composed() -> Run:
        weights = [size.normal(outputs, inputs) for _ in packed]
        return lambda: [_composed(x, gain, weight, gate, residual) for weight in weights]

    parts = [part for part in (x, packed[0], scale, shift, gain, gate, residual) if part is not None]
    written = rows * outputs * (4 if is_last else x.new_empty(0, dtype=dtype).element_size())
    flops = 2 * layers * rows * inputs * outputs
    return Case(run, check, layers * (nbytes(*parts) + written), flops, {"compiled norm, cuBLAS": composed})


@torch.compile(dynamic=False)
def _composed(
    x: torch.Tensor,
    gain: torch.Tensor,
    weight: torch.Tensor,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """The same block with a dense matrix, as torch compiles it."""
    wide = x.float() if gate is None else x.float() * F.silu(gate.float())
    wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + _EPS) * gain
    y = F.linear(wide.to(weight.dtype), weight)
    return y if residual is None else residual + y


def _training(size: Size, rows: int, inputs: int, outputs: int) -> Case:
    x, dy = size.normal(rows, inputs), size.normal(rows, outputs)
    parts = [size.normal(*shape, dtype=torch.float32) for shape in ((outputs, inputs), (inputs,), (inputs,))]
    leaves = [tensor.requires_grad_() for tensor in (x, *parts)]

    def step(product: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        y = product(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    def in_torch(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return F.linear(x, binary_weight(weight, scale, shift).to(x.dtype))

    def check() -> Iterator[Check]:
        tolerance = BACKWARD[torch.float32] if size.tiny else FORWARD[size.dtype]
        names = ("y", "dx", "dweight", "dscale", "dshift")
        for name, found, expected in zip(names, step(run), step(in_torch), strict=True):
            yield name, found, expected, tolerance

    def run(*arguments: torch.Tensor) -> torch.Tensor:
        return nlrl_kernels.latent_linear(*arguments)

    moved = 2 * nbytes(x, dy) + 4 * nbytes(*parts)
    return Case(
        lambda: step(run), check, moved, 6 * rows * inputs * outputs, {"torch, eager": lambda: lambda: step(in_torch)}
    )
