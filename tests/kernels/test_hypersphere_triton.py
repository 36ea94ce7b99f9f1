"""nGPT's steps in Triton against their definition, forward and backward, in float64 and float32 (16 bits on a GPU)."""

from dataclasses import replace

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.hypersphere.tolerance import BACKWARD, FORWARD
from nlrl_kernels.testing import assert_near, poisoned

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float64, torch.float32]
SIXTEEN = [pytest.param(dtype, marks=pytest.mark.gpu) for dtype in (torch.bfloat16, torch.float16)] if GPU else []


@pytest.fixture(autouse=True)
def fresh_seed(record_property):
    """Other inputs in every run; the seed stands in the report."""
    seed = torch.seed() % 2**31
    record_property("seed", seed)
    torch.manual_seed(seed)
    print(f"seed {seed}")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What a kernel leaves unwritten is NaN."""
    empty = torch.empty

    def poisoned_empty(*shape, **settings):
        made = empty(*shape, **settings)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned_empty)


def draw(*shape, dtype):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(DEVICE)


def agree(operator, inputs, dtype):
    """Same result and same gradients of the arguments that ask for one, from both implementations.

    A gradient is judged by the size it has in the worst of eight directions: normalisation projects, and in one
    direction alone what it leaves may be a thousandth of what was subtracted: rounding is all one would compare then.
    """
    outcomes = {}
    for implementation in ("triton", "reference"):
        leaves = [None if x is None else x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        with nlrl_kernels.use_implementation(implementation):
            result = operator(*leaves)
            torch.manual_seed(0)
            wanted = [x for x in leaves if x is not None and x.requires_grad]
            directions = torch.randn(8, *result.shape, dtype=torch.float64).to(result)
            used = directions if implementation == "reference" else directions[:1]
            gradients = [torch.autograd.grad((result * way).sum(), wanted, retain_graph=True) for way in used]
        outcomes[implementation] = (result, gradients)
    (found, (found_gradients,)), (expected, expected_gradients) = outcomes["triton"], outcomes["reference"]
    assert found.dtype == expected.dtype
    assert_near(found, expected, FORWARD[dtype])
    for i, (one, *others) in enumerate(zip(found_gradients, *expected_gradients, strict=True)):
        assert one.dtype == others[0].dtype
        assert_near(torch.stack([one, *others[1:]]), torch.stack(others), BACKWARD[dtype], f"gradient {i}")


@pytest.mark.parametrize("dtype", [*DTYPES, *SIXTEEN])
@pytest.mark.parametrize("shape", [(2,), (1, 3), (3, 17), (2, 3, 96), (5, 130)], ids=str)
def test_residual_step(shape, dtype):
    alpha = draw(shape[-1], dtype=torch.promote_types(dtype, torch.float32)).abs()
    agree(
        nlrl_kernels.residual_step,
        [x.requires_grad_() for x in (draw(*shape, dtype=dtype), draw(*shape, dtype=dtype), alpha)],
        dtype,
    )


def test_residual_step_takes_rows_that_are_not_adjacent_and_two_dtypes():
    h, o = draw(4, 3, 20, dtype=torch.float32)[:, 1], draw(4, 20, dtype=torch.float64)
    agree(
        nlrl_kernels.residual_step,
        [h.requires_grad_(), o.requires_grad_(), draw(20, dtype=torch.float32)],
        torch.float32,
    )


def test_more_rows_than_programs_share_the_backward_pass(monkeypatch):
    from nlrl_kernels.hypersphere import triton_impl

    monkeypatch.setattr(triton_impl, "_MULTIPROCESSORS", 1)
    for name, setting in triton_impl.SETTINGS.items():
        monkeypatch.setitem(triton_impl.SETTINGS, name, replace(setting, programs=3, tile=16))
    inputs = [draw(11, 12, dtype=torch.float64), draw(11, 12, dtype=torch.float64), draw(12, dtype=torch.float64)]
    agree(nlrl_kernels.residual_step, [x.requires_grad_() for x in inputs], torch.float64)
    inputs = [draw(11, 12, dtype=torch.float64), draw(12, dtype=torch.float64)]
    agree(nlrl_kernels.scaled_swiglu, [x.requires_grad_() for x in inputs], torch.float64)
    inputs = [draw(11, 3, 12, dtype=torch.float64), draw(3, 12, dtype=torch.float64)]
    cross = draw(11, 1, 12, dtype=torch.float64)
    agree(nlrl_kernels.qk_step, [*(x.requires_grad_() for x in inputs), cross], torch.float64)


@pytest.mark.parametrize("dtype", [*DTYPES, *SIXTEEN])
@pytest.mark.parametrize("with_keep", [False, True])
@pytest.mark.parametrize(
    ("shape", "table"),
    [((3, 2), (1, 2)), ((2, 5, 3, 6), (1, 5, 1, 6)), ((2, 4, 5, 64), (2, 4, 1, 64)), ((7, 1, 20), (7, 1, 20))],
    ids=str,
)
def test_qk_step(shape, table, with_keep, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    x, scale = draw(*shape, dtype=dtype).requires_grad_(), draw(*shape[-2:], dtype=wide).requires_grad_()
    tables = [draw(*table, dtype=wide), draw(*table, dtype=wide) if with_keep else None]
    agree(nlrl_kernels.qk_step, [x, scale, *tables], dtype)


def test_qk_step_reads_queries_and_keys_where_the_projection_left_them():
    qkv = draw(5, 3 * 2 * 8, dtype=torch.float32)
    qk = qkv[:, : 2 * 2 * 8].unflatten(-1, (2, 2, 8))
    scale, cross = draw(2, 8, dtype=torch.float32), draw(5, 1, 1, 8, dtype=torch.float32)
    with nlrl_kernels.use_implementation("triton"):
        found = nlrl_kernels.qk_step(qk, scale, cross)
    assert_near(found, nlrl_kernels.qk_step(qk, scale, cross), FORWARD[torch.float32])


def test_qk_step_refuses_gradients_that_it_does_not_have():
    x, scale, cross = (draw(3, 2, 4, dtype=torch.float32) for _ in range(3))
    with nlrl_kernels.use_implementation("triton"):
        with pytest.raises(ValueError, match="detach"):
            nlrl_kernels.qk_step(x, scale[0], cross.requires_grad_())
        with pytest.raises(ValueError, match="heads by width"):
            nlrl_kernels.qk_step(x, scale.requires_grad_(), cross.detach())


@pytest.mark.parametrize("dtype", [*DTYPES, *SIXTEEN])
@pytest.mark.parametrize("shape", [(2,), (3, 34), (2, 3, 2200)], ids=str)
def test_scaled_swiglu(shape, dtype):
    scale = draw(shape[-1], dtype=torch.promote_types(dtype, torch.float32))
    agree(nlrl_kernels.scaled_swiglu, [draw(*shape, dtype=dtype).requires_grad_(), scale.requires_grad_()], dtype)


def test_no_rows_at_all():
    h, alpha = draw(0, 8, dtype=torch.float32).requires_grad_(), draw(8, dtype=torch.float32).requires_grad_()
    with nlrl_kernels.use_implementation("triton"):
        y = nlrl_kernels.residual_step(h, h, alpha)
        assert y.shape == (0, 8)
        assert torch.autograd.grad(y.sum(), alpha)[0].tolist() == [0.0] * 8
        assert nlrl_kernels.scaled_swiglu(h, alpha).shape == (0, 4)
        assert (
            nlrl_kernels.qk_step(h.unflatten(-1, (2, 4)), alpha.unflatten(0, (2, 4)), alpha[:4].detach()).numel() == 0
        )


def test_a_zero_vector_gives_nan_in_its_own_row_alone():
    h, o, alpha = draw(3, 9, dtype=torch.float32), draw(3, 9, dtype=torch.float32), draw(9, dtype=torch.float32)
    h[1] = 0
    with nlrl_kernels.use_implementation("triton"):
        y = nlrl_kernels.residual_step(h, o, alpha)
    assert y[[0, 2]].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.parametrize("dtype", [*DTYPES, *SIXTEEN])
def test_many_matrices_are_normalised_in_few_launches(dtype, monkeypatch):
    from nlrl_kernels.hypersphere import kernels

    shapes = [(40, 20, 1), (20, 7, 0), (20, 20, -1), (20, 700, 0), (1, 20, 1), (0, 20, 1), (700, 20, 1), (16, 5, 0)]
    matrices, axes = [draw(*shape[:2], dtype=dtype) for shape in shapes], [shape[2] for shape in shapes]
    matrices[2] = matrices[2].t()
    expected = [matrix.clone() for matrix in matrices]
    versions = [matrix._version for matrix in matrices]
    launches = []
    kernel = kernels.normalize_all

    class Counting:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(kernels, "normalize_all", Counting())
    with nlrl_kernels.use_implementation("triton"):
        nlrl_kernels.normalize_vectors_(matrices, axes)
    with nlrl_kernels.use_implementation("reference"):
        nlrl_kernels.normalize_vectors_(expected, axes)
    for found, other in zip(matrices, expected, strict=True):
        assert_near(found, other, FORWARD[dtype])
    assert len(launches) == 4  # rows of 20 entries, columns of 20, of 16, and the matrix that is not adjacent
    assert all(m._version > before for m, before in zip(matrices, versions, strict=True) if m.numel())


def test_torch_compile_follows_each_step_in_one_graph():
    def block(h, o, alpha, qk, scale, cross):
        h = nlrl_kernels.residual_step(h, o, alpha)
        return h, nlrl_kernels.qk_step(qk, scale, cross), nlrl_kernels.scaled_swiglu(h, alpha)

    inputs = [draw(*shape, dtype=torch.float32) for shape in [(3, 8), (3, 8), (8,), (3, 2, 4), (2, 4), (3, 1, 4)]]
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(*inputs), block(*inputs), strict=True):
        assert_near(found, expected, FORWARD[torch.float32])


@pytest.mark.parametrize("operator", ["residual_step", "qk_step", "scaled_swiglu"])
def test_the_operations_keep_what_torch_compile_asks_of_them(operator):
    from nlrl_kernels.hypersphere import triton_impl

    shapes = {
        "residual_step": [(3, 8), (3, 8), (8,)],
        "qk_step": [(3, 2, 4), (2, 4), (3, 1, 4)],
        "scaled_swiglu": [(3, 8), (8,)],
    }
    inputs = [draw(*shape, dtype=torch.float64) for shape in shapes[operator]]
    for x in inputs if operator != "qk_step" else inputs[:2]:
        x.requires_grad_()
    names = {"residual_step": "_residual", "qk_step": "_qk", "scaled_swiglu": "_swiglu"}
    arguments = (*inputs, None) if operator == "qk_step" else tuple(inputs)
    torch.library.opcheck(getattr(triton_impl, names[operator]), arguments)


def test_poison_is_seen():
    with pytest.raises(AssertionError, match="not finite"):
        assert_near(poisoned(2), torch.ones(2), 1.0)


def test_torch_compile_takes_the_triton_forms_whole_with_their_gradients(monkeypatch):
    monkeypatch.setattr("nlrl_kernels.ops.implementation_for", lambda tensor: "triton")

    def block(h, o, alpha, scale, cross):
        h = nlrl_kernels.residual_step(h, o, alpha)
        q = nlrl_kernels.qk_step(h.unflatten(-1, (2, 4)), scale, cross)
        return nlrl_kernels.scaled_swiglu(q.flatten(-2), alpha)

    inputs = [draw(*shape, dtype=torch.float32) for shape in [(3, 8), (3, 8), (8,), (2, 4), (3, 1, 4)]]
    trained = [x.requires_grad_() for x in inputs[:4]]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    found, expected = compiled(*inputs), block(*inputs)
    assert_near(found, expected, FORWARD[torch.float32])
    for one, other in zip(*(torch.autograd.grad(y.sum(), trained) for y in (found, expected)), strict=True):
        assert_near(one, other, BACKWARD[torch.float32])
