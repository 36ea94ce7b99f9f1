"""The definition of differential attention against Microsoft's modules, and against itself where they have no say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nlrl_kernels.diff_attention.reference import diff_attention
from nlrl_kernels.diff_attention.tolerance import FORWARD
from nlrl_kernels.testing import assert_near

pytest.importorskip("safetensors")

GOLDEN = Path(__file__).parents[1] / "backbones" / "golden_diff" / "attn"
CASES = json.loads((GOLDEN / "attn.json").read_text())["cases"]


@pytest.fixture(scope="module")
def golden():
    from safetensors.torch import load_file

    return load_file(GOLDEN / "attn.safetensors")


def rotated(x_BTHD, cos_TD, sin_TD):
    a, b = x_BTHD[..., ::2], x_BTHD[..., 1::2]
    cos, sin = cos_TD[:, None], sin_TD[:, None]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def inputs(case, golden, dtype):
    """Arguments of the operator for a stored case, and the rest of the module's weights."""
    name, d, kv = case["name"], case["head_dim"], case["num_kv_heads"]
    w = {key.removeprefix(f"{name}.w."): x.to(dtype) for key, x in golden.items() if key.startswith(f"{name}.w.")}
    x, cos, sin = (golden[f"{name}.{key}"].to(dtype) for key in ("x", "cos", "sin"))
    q = rotated((x @ w["q_proj.weight"].T).unflatten(-1, (-1, d)), cos, sin)
    k = rotated((x @ w["k_proj.weight"].T).unflatten(-1, (-1, d)), cos, sin)
    v = (x @ w["v_proj.weight"].T).unflatten(-1, (kv, -1))
    if case["variant"] == "v2":
        lam = (x @ w["lambda_proj.weight"].T).sigmoid()
        return (q[:, :, ::2], q[:, :, 1::2], k, k, v, lam), {}, w
    lam = (w["lambda_q1"] @ w["lambda_k1"]).exp() - (w["lambda_q2"] @ w["lambda_k2"]).exp() + case["lambda_init"]
    norm: dict[str, Any] = {"eps": 1e-5, "weight_W": w["subln.weight"], "factor": 1 - case["lambda_init"]}
    return (q[:, :, ::2], q[:, :, 1::2], k[:, :, ::2], k[:, :, 1::2], v, lam), norm, w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_microsofts_modules(case, golden, dtype):
    name, tolerance = case["name"], 1e-9 if dtype == torch.float64 else 2e-5
    arguments, norm, w = inputs(case, golden, dtype)
    heads = diff_attention(*arguments, scale=case["head_dim"] ** -0.5, **norm)
    y = heads.flatten(2) @ w["out_proj.weight" if case["variant"] == "v1" else "o_proj.weight"].T
    expected = golden[f"{name}.y_f64"] if dtype == torch.float64 else golden[f"{name}.y"]
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=0)
    if case["variant"] == "v1":
        plain = diff_attention(*arguments, scale=case["head_dim"] ** -0.5)
        torch.testing.assert_close(plain.float(), golden[f"{name}.pre_subln"], atol=2e-5, rtol=0)
        norm["factor"] = 1.0
        unfactored = diff_attention(*arguments, scale=case["head_dim"] ** -0.5, **norm)
        torch.testing.assert_close(unfactored.float(), golden[f"{name}.post_subln"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case["variant"] == "v1"], ids=lambda case: case["name"])
def test_the_other_official_file_pairs_otherwise_under_grouped_heads(case, golden):
    arguments, norm, w = inputs(case, golden, torch.float32)
    y = diff_attention(*arguments, scale=case["head_dim"] ** -0.5, **norm).flatten(2) @ w["out_proj.weight"].T
    distance = (y - golden[f"{case['name']}.y_naive"]).abs().max().item()
    if case["num_kv_heads"] == case["num_heads"]:
        assert distance < 1e-4
    else:
        assert distance > 0.5


def random_arguments(B=2, T=5, S=5, H=4, G=2, D=6, W=12, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return [normal(B, T, H, D), normal(B, T, H, D), normal(B, S, G, D), normal(B, S, G, D), normal(B, S, G, W)]


def test_the_last_queries_of_longer_keys_are_the_last_rows_of_a_full_pass():
    q1, q2, k1, k2, v = random_arguments(T=7, S=7)
    lam = torch.tensor(0.4, dtype=torch.float64)
    whole = diff_attention(q1, q2, k1, k2, v, lam, scale=0.5, eps=1e-5)
    last = diff_attention(q1[:, 4:], q2[:, 4:], k1, k2, v, lam, scale=0.5, eps=1e-5)
    assert_near(last, whole[:, 4:], FORWARD[torch.float64])


def test_a_mask_hides_keys_and_a_query_that_sees_none_gives_zeros():
    q1, q2, k1, k2, v = random_arguments()
    lam = torch.rand(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 5, 5, dtype=torch.bool)
    mask[1, :, :2] = False  # the second row is padded on the left by two
    together = diff_attention(q1, q2, k1, k2, v, lam, scale=0.5, mask_BTS=mask)
    alone = diff_attention(*(x[1:, 2:] for x in (q1, q2, k1, k2, v, lam)), scale=0.5)
    assert_near(together[1:, 2:], alone, FORWARD[torch.float64])
    assert bool((together[1, :2] == 0).all())


def test_rounded_inputs_stay_within_their_tolerances():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = [x.to(dtype) for x in random_arguments(T=33, S=33)] + [torch.tensor(0.3)]
        exact = diff_attention(*(x.double() for x in rounded), scale=0.4, eps=1e-5, factor=0.8)
        found = diff_attention(*rounded, scale=0.4, eps=1e-5, factor=0.8)
        assert found.dtype == dtype
        assert_near(found, exact, FORWARD[dtype])


def test_gradients_are_those_of_finite_differences():
    arguments = [x.requires_grad_() for x in random_arguments(B=1, T=3, S=3, H=2, G=1, D=2, W=4)]
    lam = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.9, 1.1, 1.0, 0.7], dtype=torch.float64, requires_grad=True)

    def operator(q1, q2, k1, k2, v, lam, weight):
        return diff_attention(q1, q2, k1, k2, v, lam, scale=0.7, eps=1e-5, weight_W=weight, factor=0.8)

    assert torch.autograd.gradcheck(operator, (*arguments, lam, weight))
