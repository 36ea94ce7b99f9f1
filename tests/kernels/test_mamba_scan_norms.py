"""Hymba's norms in Triton against float64: results, gradients, and what torch.compile asks of an operation."""

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.hymba_norms.tolerance import BACKWARD, FORWARD
from nlrl_kernels.testing import assert_near, poisoned
from tests.support.interpreted_scan import poison

triton_impl = pytest.importorskip("nlrl_kernels.hymba_norms.triton_impl")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
EPS = 1e-6
NAMES = {"mean_of_norms": 2, "selection_norms": 1}
"""Operator to how many of its inputs are data; the others are weights."""


@pytest.fixture(autouse=True)
def _unwritten_is_nan(monkeypatch):
    poison(monkeypatch)


def inputs(name, *leading, width=37, rank=5, states=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*leading, width)] * 2 + [(width,)] * 2
    if name == "selection_norms":
        shapes = [(*leading, rank + 2 * states), (rank,), (states,), (states,)]
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def run(implementation, name, given, gradients=True):
    """Results, then gradients of a fixed sum of them; the reference computes in float64."""
    kind = {"dtype": torch.float64} if implementation == "reference" else {}
    leaves = [x.detach().to(**kind).requires_grad_(gradients) for x in given]
    with nlrl_kernels.use_implementation(implementation):
        found = getattr(nlrl_kernels, name)(*leaves, EPS)
    found = found if isinstance(found, tuple) else (found,)
    if not gradients:
        return found, ()
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in found]
    return tuple(x.detach() for x in found), torch.autograd.grad(found, leaves, weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("leading", [(1,), (2, 3), (9,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if GPU else [torch.float32])
def test_results_and_gradients_equal_float64(name, leading, dtype, monkeypatch):
    monkeypatch.setattr(triton_impl, "_PROGRAMS", 2)  # so that programs have several rows
    given = inputs(name, *leading, dtype=dtype)
    (found, gradients), (expected, exact) = run("triton", name, given), run("reference", name, given)
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert_near(x, y, FORWARD[dtype], f"result {i}")
    for i, (x, y) in enumerate(zip(gradients, exact, strict=True)):
        assert_near(x, y, BACKWARD[dtype], f"gradient {i}")
    assert found[0].dtype == dtype
    assert all(x.dtype == torch.float32 for x in found[1:]), "what the scan reads is float32"


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_and_rows_of_something_wider(name):
    given = inputs(name, 0)
    found, gradients = run("triton", name, given)
    assert all(x.shape[0] == 0 for x in found)
    assert all(bool((x == 0).all()) for x in gradients[NAMES[name] :])
    given = inputs(name, 4)
    expected, _ = run("reference", name, given, False)
    around = poisoned(4, given[0].shape[1] + 2, device=DEVICE)
    around[:, 1:-1] = given[0]
    found, _ = run("triton", name, [around[:, 1:-1], *given[1:]], False)
    for x, y in zip(found, expected, strict=True):
        assert_near(x, y, FORWARD[torch.float32])


@pytest.mark.parametrize("name", NAMES)
def test_they_are_operations_that_torch_compile_takes_whole(name, monkeypatch):
    monkeypatch.undo()  # it compares strides of what is made, with and without data
    operation = {"mean_of_norms": triton_impl._mean, "selection_norms": triton_impl._selection}[name]
    given = [x.requires_grad_() for x in inputs(name, 3)]
    with nlrl_kernels.use_implementation("triton"):
        checked = torch.library.opcheck(operation, (*given, EPS))
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_the_formula(name):
    given = [x.double() for x in inputs(name, 2, 3)]
    with nlrl_kernels.use_implementation("reference"):
        found = getattr(nlrl_kernels, name)(*given, EPS)

    def rms(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    if name == "mean_of_norms":
        assert_near(found, (rms(given[0], given[2]) + rms(given[1], given[3])) / 2, 1e-12)
        return
    for x, part, weight in zip(found, given[0].split([5, 3, 3], dim=-1), given[1:], strict=True):
        assert_near(x, rms(part, weight), 1e-12)
