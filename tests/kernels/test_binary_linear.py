"""Binary linear layers: bits, zeros and gradients against official ones, and what every implementation keeps to."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nlrl_kernels
from nlrl_kernels.binary import reference
from nlrl_kernels.binary.reference import multiply_signs, pack_signs, unpack_signs
from nlrl_kernels.binary.straight_through import binary_weight
from nlrl_kernels.testing import assert_near

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OFFICIAL = Path(__file__).parents[1] / "backbones" / "golden_bimamba" / "fbi_linear.safetensors"


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


def test_torch_compile_takes_the_operations_whole():
    pytest.importorskip("triton")
    import nlrl_kernels.binary.triton_impl  # noqa: F401  registers them

    weight, scale, shift = layer(6, 20)
    packed, _ = pack_signs(weight)
    x, gain = normal(2, 20, seed=0), normal(20, seed=6)
    operations, seen = torch.ops.nlrl_kernels, []

    def keep(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def model(x):
        y = operations.binary_linear(x, packed, scale, shift, None)
        z = operations.normed_binary_linear(x, gain, packed, scale, shift, None, 1e-5, None, y, None)
        return z + operations.latent_linear(x, weight, scale, shift)

    assert_near(torch.compile(model, backend=keep, fullgraph=True)(x), model(x), 1e-6)
    assert sum(name.startswith("nlrl_kernels.") for name in seen) == 3
    torch.library.opcheck(operations.binary_linear.default, (x, packed, scale, shift, None))
    torch.library.opcheck(operations.latent_linear.default, (x, weight.requires_grad_(), scale, shift))
