"""nGPT's steps on the unit sphere against the same written out for one vector in Python's own numbers."""

import math

import pytest
import torch

from nlrl_kernels.hypersphere import position_step, qk_step, residual_step, scaled_swiglu, unit
from nlrl_kernels.hypersphere.tolerance import FORWARD

E, H, D, F = 7, 3, 6, 10


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit_of(x):
    length = math.sqrt(sum(v * v for v in x))
    return [v / length for v in x]


def close(found, expected):
    assert found.tolist() == pytest.approx(expected, abs=1e-14)


def test_unit():
    x = draw(E)
    close(unit(x), unit_of(x.tolist()))


def test_residual_step():
    h, o, alpha = draw(E), draw(E, seed=1), draw(E, seed=2).abs()
    a, b = unit_of(h.tolist()), unit_of(o.tolist())
    close(
        residual_step(h, o, alpha),
        unit_of([x + r * (y - x) for x, y, r in zip(a, b, alpha.tolist(), strict=True)]),
    )


@pytest.mark.parametrize("with_keep", [False, True])
def test_qk_step_and_the_position_step_in_it(with_keep):
    x, scale, cross, keep = draw(H, D), draw(H, D, seed=1), draw(1, D, seed=2), draw(1, D, seed=3)
    for head in range(H):
        row, c, k = x[head].tolist(), cross[0].tolist(), keep[0].tolist()
        moved = [row[i ^ 1] * c[i] + (row[i] * k[i] if with_keep else 0.0) for i in range(D)]
        tables = (cross, keep if with_keep else None)
        close(position_step(x, *tables)[head], moved)
        expected = [u * s for u, s in zip(unit_of(moved), scale[head].tolist(), strict=True)]
        close(qk_step(x, scale, *tables)[head], expected)


def test_scaled_swiglu_gates_with_the_second_half():
    uv, scale = draw(F), draw(F, seed=1)
    u, v = ([a * b for a, b in zip(uv.tolist()[part], scale.tolist()[part], strict=True)] for part in HALVES)
    close(scaled_swiglu(uv, scale), [a * b / (1 + math.exp(-b)) for a, b in zip(u, v, strict=True)])


HALVES = (slice(0, F // 2), slice(F // 2, F))
STEPS = {
    "unit": lambda x: unit(x),
    "residual_step": lambda x: residual_step(x, x.flip(0), x[0].abs().float()),
    "qk_step": lambda x: qk_step(x.unflatten(-1, (H, D)), x[0].unflatten(-1, (H, D)).float(), x[1, :D].float()),
    "scaled_swiglu": lambda x: scaled_swiglu(x, x[0].float()),
}


@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("name", STEPS)
def test_every_dtype_computes_in_float32_and_rounds_once(name, dtype):
    x = draw(5, H * D, dtype=dtype)
    found, expected = STEPS[name](x), STEPS[name](x.double())
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= FORWARD[dtype] * expected.abs().max()


def test_leading_axes_are_rows_of_their_own():
    h_BTE, o_BTE, alpha = draw(2, 4, E), draw(2, 4, E, seed=1), draw(E, seed=2)
    together = residual_step(h_BTE, o_BTE, alpha)
    for b in range(2):
        for t in range(4):
            assert together[b, t].equal(residual_step(h_BTE[b, t], o_BTE[b, t], alpha))


def test_a_zero_vector_gives_nan_in_its_own_row_alone():
    h = draw(2, E)
    h[1] = 0
    out = residual_step(h, draw(2, E, seed=1), torch.ones(E, dtype=torch.float64) / 2)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_every_argument_has_its_gradient():
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, E), (4, E), (E,)])]
    assert torch.autograd.gradcheck(residual_step, inputs)
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, H, D), (H, D), (4, 1, D)])]
    assert torch.autograd.gradcheck(qk_step, inputs)
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, F), (F,)])]
    assert torch.autograd.gradcheck(scaled_swiglu, inputs)
