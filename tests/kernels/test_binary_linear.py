"""Binary linear layers: bits against official ones, Triton against the reference, the gradients that training uses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nlrl_kernels
from nlrl_kernels.binary import reference
from nlrl_kernels.binary.reference import multiply_signs, pack_signs, unpack_signs
from nlrl_kernels.binary.straight_through import binary_weight
from nlrl_kernels.binary.tolerance import FORWARD
from nlrl_kernels.testing import assert_near

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OFFICIAL = Path(__file__).parents[1] / "backbones" / "golden_bimamba" / "fbi_linear.safetensors"
SHAPES = [(1, 1, 1), (1, 20, 13), (2, 257, 33), (3, 64, 16), (7, 9, 70), (8, 300, 17)]
MANY = [(9, 20, 13), (16, 64, 64), (17, 131, 65), (70, 72, 130)]


@pytest.fixture(scope="module")
def official():
    return load_file(OFFICIAL)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def layer(outputs, inputs, zeros=0):
    """Latent matrix with that many exact zeros, and scales among which are a zero and negative ones."""
    weight, scale, shift = normal(outputs, inputs, seed=1), normal(inputs, seed=2), normal(inputs, seed=3)
    scale[0] = 0.0
    weight.view(-1)[torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(4))[:zeros]] = -0.0
    return weight, scale, shift


@pytest.mark.parametrize("i", range(4))
def test_bits_and_zeros_are_the_official_ones(official, i):
    weight = official[f"fbi{i}.weight"]
    packed, zeros = pack_signs(weight)
    assert torch.equal(packed, official[f"fbi{i}.packed"])
    assert len(zeros) == 2
    assert torch.equal(unpack_signs(packed, weight.shape[1], zeros), official[f"fbi{i}.sign"].float())


@pytest.mark.parametrize("i", range(2))
def test_the_factored_layer_equals_the_official_dense_one(official, i):
    part = {name: official.get(f"fbi{i}.{name}") for name in ("x", "weight", "wscale", "wbias", "bias", "y")}
    packed, zeros = pack_signs(part["weight"])
    y = nlrl_kernels.binary_linear(part["x"], packed, part["wscale"][0], part["wbias"][0], zeros)
    expected = part["y"] if part["bias"] is None else part["y"] - part["bias"]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("i", range(4))
def test_straight_through_gradients_are_the_official_ones(official, i):
    """Scales by column, by row and one for all."""
    names = ("weight", "wscale", "wbias")
    weight, scale, shift = (official[f"fbi{i}.{name}"].clone().requires_grad_() for name in names)
    x = official[f"fbi{i}.x"].clone().requires_grad_()
    dense = binary_weight(weight, scale, shift)
    assert torch.equal(dense, official[f"fbi{i}.dense"])
    torch.nn.functional.linear(x, dense).backward(official[f"fbi{i}.grad_y"])
    for name, tensor in zip((*names, "x"), (weight, scale, shift, x), strict=True):
        torch.testing.assert_close(tensor.grad, official[f"fbi{i}.grad_{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES + MANY)
@pytest.mark.parametrize("zeros", [0, 3])
def test_triton_equals_the_reference(monkeypatch, rows, inputs, outputs, zeros):
    weight, scale, shift = layer(outputs, inputs, min(zeros, outputs * inputs))
    x = normal(rows, inputs + 3, seed=0)[:, :inputs]  # rows of a wider tensor
    packed, listed = pack_signs(weight)
    listed = torch.cat([listed, torch.tensor([[-1, 0]], dtype=torch.int32, device=DEVICE)])  # of another device
    poison = lambda *shape, **how: torch.full(shape, float("nan"), **how)  # noqa: E731
    with nlrl_kernels.use_implementation("triton"):
        nlrl_kernels.binary_linear(x[:1], packed, scale, shift)  # imports the module before torch.empty is replaced
        monkeypatch.setattr(torch, "empty", poison)
        actual = nlrl_kernels.binary_linear(x, packed, scale, shift, listed if zeros else None)
    expected = x.double() @ (scale * weight.sign() + shift).double().T
    assert_near(actual, expected, FORWARD[torch.float32])


def test_a_zero_is_the_shift_alone_and_leading_axes_are_kept():
    weight, scale, shift = layer(5, 20, zeros=100)
    packed, zeros = pack_signs(weight)
    assert packed.count_nonzero() == 0
    x = normal(2, 3, 20, seed=0)
    for implementation in ("reference", "triton"):
        with nlrl_kernels.use_implementation(implementation):
            y = nlrl_kernels.binary_linear(x, packed, scale, shift, zeros)
        assert_near(y, (x @ shift)[..., None].expand(2, 3, 5), 1e-4, implementation)


def test_the_reference_and_the_dense_signs_agree_in_float64_to_rounding():
    weight, scale, shift = (tensor.double() for tensor in layer(9, 21, zeros=4))
    packed, zeros = pack_signs(weight)
    x = normal(6, 21, seed=0).double()
    expected = x @ (scale * weight.sign() + shift).T
    assert_near(reference.binary_linear(x, packed, scale, shift, zeros), expected, 1e-14)
    assert_near(multiply_signs(x, weight.sign(), scale, shift), expected, 1e-14)


def test_no_rows_give_no_rows():
    packed, _ = pack_signs(normal(4, 16, seed=1))
    for implementation in ("reference", "triton"):
        with nlrl_kernels.use_implementation(implementation):
            y = nlrl_kernels.binary_linear(
                normal(0, 16, seed=0), packed, normal(16, seed=2), normal(16, seed=3), None
            )  # fmt: skip
        assert y.shape == (0, 4)


def test_a_matrix_that_is_not_finite_has_no_signs():
    with pytest.raises(ValueError, match="not finite"):
        pack_signs(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 2560, 1000), (5, 130, 65), (100, 2560, 1000)])
def test_sixteen_bits(dtype, rows, inputs, outputs):
    weight, scale, shift = layer(outputs, inputs, zeros=3)
    packed, zeros = pack_signs(weight)
    x = normal(rows, inputs, seed=0).to(dtype)
    actual = nlrl_kernels.binary_linear(x, packed, scale, shift, zeros)
    assert actual.dtype == dtype
    assert_near(actual, x.double() @ (scale * weight.sign() + shift).double().T, FORWARD[dtype])
