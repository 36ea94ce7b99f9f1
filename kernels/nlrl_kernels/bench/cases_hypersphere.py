"""nGPT's steps at the shapes of its 1B model: width 1,280, 20 heads of 64, feed-forward 5,120, 36 layers."""

# torch exports no foreach function by name:
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterator, Sequence

import torch

import nlrl_kernels
from nlrl_kernels import use_implementation
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.hypersphere import reference
from nlrl_kernels.hypersphere.tolerance import BACKWARD, FORWARD


def widths(size: Size) -> tuple[int, int, int]:
    """Width, heads and feed-forward width of the 1B model."""
    return (64, 2, 128) if size.tiny else (1280, 20, 5120)


def shapes_of(name: str, rows: int, width: int, heads: int, inner: int) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of a step's inputs, and how many of them have the model's dtype; scales and tables are float32."""
    head = width // heads
    return {
        "residual_step": ([(rows, width), (rows, width), (width,)], 2),
        "qk_step": ([(rows, heads, head), (heads, head), (rows, 1, head)], 1),
        "scaled_swiglu": ([(rows, 2 * inner), (2 * inner,)], 1),
    }[name]


def plans(size: Size) -> Iterator[Plan]:
    """Each step forward and backward, from decoding to 64k tokens; the normalisation of a large and a small model."""
    width, heads, inner = widths(size)
    for rows in size.pick([16384, 64, 256, 1024, 2048, 8192, 65536], [5]):
        for name in ("residual_step", "qk_step", "scaled_swiglu"):
            shapes, wide = shapes_of(name, rows, width, heads, inner)
            label = f"{rows} rows of {shapes[0][-1]}" + (f" x {heads}" if name == "qk_step" else "")
            yield Plan(name, label, lambda name=name, s=shapes, wide=wide: forward(size, name, s, wide))
            if rows >= 2048 or size.tiny:
                build = lambda name=name, s=shapes, wide=wide: backward(size, name, s, wide)  # noqa: E731
                yield Plan(f"{name}_backward", label, build)
    for layers, width, inner in [(2, 64, 128)] if size.tiny else [(36, 1280, 5120), (12, 768, 3072)]:
        label = f"{layers} layers of {width}"
        build = lambda n=layers, w=width, i=inner: normalize(size, n, w, i)  # noqa: E731
        yield Plan("normalize_vectors_", label, build)


def _inputs(size: Size, shapes: Sequence[tuple[int, ...]], wide: int) -> list[torch.Tensor]:
    return [size.normal(*shape, dtype=size.dtype if i < wide else torch.float32) for i, shape in enumerate(shapes)]


def forward(size: Size, name: str, shapes: Sequence[tuple[int, ...]], wide: int) -> Case:
    """One step."""
    inputs = _inputs(size, shapes, wide)
    operator: Callable[..., torch.Tensor] = getattr(nlrl_kernels, name)
    definition: Callable[..., torch.Tensor] = getattr(reference, name)

    def check() -> Iterator[Check]:
        yield "result", operator(*inputs), definition(*(x.double() for x in inputs)), FORWARD[size.dtype]

    return Case(
        lambda: operator(*inputs),
        check,
        nbytes(*inputs, definition(*inputs)),
        alternatives={"torch.compile": lambda: _compiled(definition, inputs)},
    )


def _compiled(function: Callable[..., object], inputs: list[torch.Tensor]) -> Run:
    compiled = torch.compile(function, dynamic=False)
    return lambda: compiled(*inputs)


def backward(size: Size, name: str, shapes: Sequence[tuple[int, ...]], wide: int) -> Case:
    """Forward and backward together: torch.compile cuts the work between the two as it likes."""
    inputs = _inputs(size, shapes, wide)
    trained = inputs[:2] if name == "qk_step" else inputs
    for x in trained:
        x.requires_grad_()
    operator, definition = getattr(nlrl_kernels, name), getattr(reference, name)
    dy = torch.randn_like(definition(*inputs).detach())

    def step(function: Callable[..., torch.Tensor], arguments: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(*arguments), arguments[: len(trained)], dy.to(arguments[0].dtype))

    def check() -> Iterator[Check]:
        exact = step(definition, [x.detach().double().requires_grad_(x.requires_grad) for x in inputs])
        for i, (found, expected) in enumerate(zip(step(operator, inputs), exact, strict=True)):
            yield f"gradient {i}", found, expected, BACKWARD[size.dtype]

    def alternative() -> Run:
        compiled = torch.compile(definition, dynamic=False)
        return lambda: step(compiled, inputs)

    # Inputs are read twice; the result and all gradients are written, dy is read.
    moved = nbytes(*inputs, *inputs, dy, dy) + nbytes(*trained)
    return Case(lambda: step(operator, inputs), check, moved, alternatives={"torch.compile": alternative})


def normalize(size: Size, layers: int, width: int, inner: int, only: int | None = None) -> Case:
    """All matrices of a model, or only those that are normalised along axis ``only``."""
    vocabulary = 100 if size.tiny else 50304
    rows = [(vocabulary, width)] * 2 + [(width, width)] * (3 * layers) + [(2 * inner, width)] * layers
    columns = [(width, width)] * layers + [(width, inner)] * layers
    chosen = [(shape, 1) for shape in rows if only != 0] + [(shape, 0) for shape in columns if only != 1]
    matrices = [size.normal(*shape, dtype=torch.float32) for shape, _ in chosen]
    axes = [axis for _, axis in chosen]

    def check() -> Iterator[Check]:
        some = sorted({0, len(axes) // 2, max(0, axes.count(1) - 1), len(axes) - 1})  # of rows and of columns
        before = {i: matrices[i].clone() for i in some}
        nlrl_kernels.normalize_vectors_(matrices, axes)
        for i in some:
            with use_implementation("reference"):
                nlrl_kernels.normalize_vectors_([before[i]], [axes[i]])
            yield f"matrix {i}", matrices[i], before[i], FORWARD[torch.float32]

    def foreach() -> Run:
        def run() -> None:
            lengths = [torch.linalg.vector_norm(m, dim=a, keepdim=True) for m, a in zip(matrices, axes, strict=True)]
            torch._foreach_div_(matrices, lengths)

        return run

    def compiled() -> Run:
        def one(matrix: torch.Tensor, axis: int) -> None:
            matrix.div_(torch.linalg.vector_norm(matrix, dim=axis, keepdim=True))

        fused = torch.compile(one, dynamic=False)

        def run() -> None:
            for matrix, axis in zip(matrices, axes, strict=True):
                fused(matrix, axis)

        return run

    return Case(
        lambda: nlrl_kernels.normalize_vectors_(matrices, axes),
        check,
        2 * nbytes(*matrices),
        alternatives={"torch._foreach_div_": foreach, "torch.compile": compiled},
    )
