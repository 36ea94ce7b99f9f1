"""Binary linear layers in Triton: every way through the product, the fused norm, shards, and training."""

import itertools

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.binary import reference
from nlrl_kernels.binary.reference import pack_signs
from nlrl_kernels.binary.tolerance import BACKWARD, FORWARD
from nlrl_kernels.testing import assert_near

pytest.importorskip("triton")

from nlrl_kernels.binary import triton_impl
from nlrl_kernels.binary.triton_impl import Few

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEW = [(1, 1, 1), (1, 20, 13), (2, 257, 33), (3, 64, 16), (8, 530, 17)]
MANY = [(9, 20, 13), (17, 131, 65), (33, 256, 70)]


def normal(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def layer(outputs, inputs, zeros=0):
    """Latent matrix with that many exact zeros, and scales among which are a zero and negative ones."""
    weight, scale, shift = normal(outputs, inputs, seed=1), normal(inputs, seed=2), normal(inputs, seed=3)
    scale[0] = 0.0
    weight.view(-1)[torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(4))[:zeros]] = -0.0
    return weight, scale, shift


def dense(x, weight, scale, shift):
    return x.double() @ (scale * weight.sign() + shift).double().T


@pytest.fixture(autouse=True)
def _in_triton(monkeypatch):
    """All that is allocated is NaN until it is written."""
    poison = lambda *shape, **how: torch.full(shape, float("nan") if how["dtype"].is_floating_point else 99, **how)  # noqa: E731
    with nlrl_kernels.use_implementation("triton"):
        monkeypatch.setattr(torch, "empty", poison)
        yield


@pytest.mark.parametrize(("rows", "inputs", "outputs"), FEW + MANY)
def test_odd_sizes_zeros_and_rows_of_a_wider_tensor(rows, inputs, outputs):
    weight, scale, shift = layer(outputs, inputs, zeros=3)
    x = normal(rows, inputs + 3, seed=0)[:, :inputs]
    packed, zeros = pack_signs(weight)
    elsewhere = torch.tensor([[-1, 0]], dtype=torch.int32, device=DEVICE)  # a zero of another device
    actual = nlrl_kernels.binary_linear(x, packed, scale, shift, torch.cat([zeros, elsewhere]))
    assert_near(actual, dense(x, weight, scale, shift), FORWARD[torch.float32])
    assert torch.equal(actual, nlrl_kernels.binary_linear(x, packed, scale, shift, torch.cat([elsewhere, zeros])))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "digits"])
@pytest.mark.parametrize(("rows", "slices"), [(1, 8), (2, 4), (5, 2), (1, 1)])
def test_every_cut_of_few_rows(monkeypatch, rows, slices, fused):
    monkeypatch.setattr(triton_impl, "few_tile", lambda *_: Few(64 // slices, slices, 4, 2, fused=fused))
    weight, scale, shift = layer(19, 300, zeros=2)
    x = normal(rows, 300, seed=0)
    actual = nlrl_kernels.binary_linear(x, *pack_signs(weight)[:1], scale, shift, pack_signs(weight)[1])
    assert_near(actual, dense(x, weight, scale, shift), FORWARD[torch.float32])


@pytest.mark.parametrize("inputs", [61, 64])
def test_the_unpacked_matrix(monkeypatch, inputs):
    """The way of very many rows; in float32, for the interpreter has no 16-bit products."""
    monkeypatch.setattr(triton_impl, "takes_dense", lambda *_: True)
    weight, scale, shift = layer(21, inputs, zeros=3)
    packed, zeros = pack_signs(weight)
    x, residual = normal(11, inputs, seed=0), normal(11, 21, seed=5)
    assert_near(
        nlrl_kernels.binary_linear(x, packed, scale, shift, zeros),
        dense(x, weight, scale, shift),
        FORWARD[torch.float32],
    )
    ones = torch.ones(inputs, device=DEVICE)
    normed = nlrl_kernels.normed_binary_linear(x, ones, packed, scale, shift, zeros, eps=0.1, residual=residual)
    exact = x.double() * torch.rsqrt(x.double().square().mean(dim=1, keepdim=True) + 0.1)
    assert_near(normed, dense(exact, weight, scale, shift) + residual, FORWARD[torch.float32])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 12])
def test_norm_gate_and_residual(rows, gated):
    weight, scale, shift = layer(18, 150, zeros=2)
    packed, zeros = pack_signs(weight)
    x, gain = normal(1, rows, 150, seed=0), normal(150, seed=6)
    gate = normal(1, rows, 160, seed=7)[..., :150] if gated else None
    residual = normal(1, rows, 18, seed=8)
    actual = nlrl_kernels.normed_binary_linear(
        x, gain, packed, scale, shift, zeros, eps=1e-5, gate=gate, residual=residual
    )
    exact = x.double() if gate is None else x.double() * torch.nn.functional.silu(gate.double())
    exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + 1e-5) * gain
    assert_near(actual, residual + dense(exact, weight, scale, shift), FORWARD[torch.float32])
    with nlrl_kernels.use_implementation("reference"):
        defined = nlrl_kernels.normed_binary_linear(
            x, gain, packed, scale, shift, zeros, eps=1e-5, gate=gate, residual=residual
        )
    assert_near(actual, defined, FORWARD[torch.float32])


def test_shards_by_row_and_by_column_make_up_the_whole():
    weight, scale, shift = layer(20, 64, zeros=4)
    packed, zeros = pack_signs(weight)
    x = normal(3, 64, seed=0)
    whole = nlrl_kernels.binary_linear(x, packed, scale, shift, zeros)
    by_row, by_column = [], []
    for rank in range(2):
        rows, columns = slice(10 * rank, 10 * rank + 10), slice(32 * rank, 32 * rank + 32)
        mine = zeros.clone()
        mine[:, 0] = torch.where(zeros[:, 0] // 10 == rank, zeros[:, 0] - 10 * rank, -1)
        by_row.append(nlrl_kernels.binary_linear(x, packed[rows], scale, shift, mine))
        mine = zeros.clone()
        mine[:, 0] = torch.where(zeros[:, 1] // 32 == rank, zeros[:, 0], -1)
        mine[:, 1] %= 32
        part = packed.chunk(2, dim=1)[rank]
        by_column.append(nlrl_kernels.binary_linear(x[:, columns], part, scale[columns], shift[columns], mine))
    assert_near(torch.cat(by_row, dim=1), whole, FORWARD[torch.float32])
    assert_near(torch.stack(by_column).sum(0), whole, 2 * FORWARD[torch.float32])


@pytest.mark.parametrize("rows", [1, 10])
def test_no_rows_one_row_and_the_same_bits_at_every_run(rows):
    weight, scale, shift = layer(33, 140)
    packed, _ = pack_signs(weight)
    x = normal(rows, 140, seed=0)
    first = nlrl_kernels.binary_linear(x, packed, scale, shift)
    assert torch.equal(first, nlrl_kernels.binary_linear(x, packed, scale, shift))
    assert nlrl_kernels.binary_linear(x[:0], packed, scale, shift).shape == (0, 33)
    ones = torch.ones(140, device=DEVICE)
    assert nlrl_kernels.normed_binary_linear(x[:0], ones, packed, scale, shift, eps=0.1).shape == (0, 33)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 37, 130), (2, 140, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_that_trains(shape, dtype):
    rows, inputs, outputs = shape
    weight, scale, shift = (tensor.to(dtype) for tensor in layer(outputs, inputs, zeros=1))
    arguments = [normal(1, rows, inputs, seed=0, dtype=dtype), weight, scale, shift]
    found = []
    for implementation in ("triton", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in arguments]
        with nlrl_kernels.use_implementation(implementation):
            y = nlrl_kernels.latent_linear(*leaves)
        y.backward(normal(*y.shape, seed=9, dtype=dtype))
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for name, actual, expected in zip(("y", "x", "weight", "scale", "shift"), *found, strict=True):
        assert_near(actual, expected, BACKWARD[dtype], name)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 2560, 10576), (1, 5120, 2560), (5, 130, 65), (32, 2560, 1000), (100, 2560, 1000), (2048, 2560, 1064)],
)
def test_sixteen_bits(monkeypatch, dtype, rows, inputs, outputs):
    """Every way through the product, as bits of one run and the next, and in a CUDA graph."""
    weight, scale, shift = layer(outputs, inputs, zeros=3)
    packed, zeros = pack_signs(weight)
    x = normal(rows, inputs, seed=0, dtype=dtype)
    expected = dense(x, weight, scale, shift)
    for few, takes_dense in itertools.product((True, False), (True, False)):
        if few:
            tile = triton_impl.few_tile(min(rows, 8), outputs, inputs)
            monkeypatch.setattr(triton_impl, "few_tile", lambda *_, tile=tile: Few(64, 1, 4, 3, not tile.early, False))
        monkeypatch.setattr(triton_impl, "takes_dense", lambda *_, dense=takes_dense: dense)
        actual = nlrl_kernels.binary_linear(x, packed, scale, shift, zeros)
        assert actual.dtype == dtype
        assert_near(actual, expected, FORWARD[dtype])
        assert torch.equal(actual, nlrl_kernels.binary_linear(x, packed, scale, shift, zeros))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = nlrl_kernels.binary_linear(x, packed, scale, shift, zeros)
    captured.fill_(float("nan"))
    graph.replay()
    assert_near(captured, expected, FORWARD[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 40])
def test_a_residual_in_float32_and_a_product_in_sixteen_bits(rows):
    weight, scale, shift = layer(2560, 5120, zeros=3)
    packed, zeros = pack_signs(weight)
    x, gate = normal(rows, 5120, seed=0, dtype=torch.bfloat16), normal(rows, 5120, seed=1, dtype=torch.bfloat16)
    gain, residual = normal(5120, seed=6), normal(rows, 2560, seed=8)
    actual = nlrl_kernels.normed_binary_linear(
        x, gain, packed, scale, shift, zeros, eps=1e-5, gate=gate, residual=residual
    )
    assert actual.dtype == torch.float32
    exact = reference.normed_binary_linear(
        x.double(), gain.double(), packed, scale.double(), shift.double(), zeros,
        eps=1e-5, gate=gate.double(), residual=residual.double(),
    )  # fmt: skip
    assert_near(actual, exact, FORWARD[torch.bfloat16])
