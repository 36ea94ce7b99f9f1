"""Attention of whole packed rows with pinned first keys, and its gradients: Triton against the reference in float64."""

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.testing import assert_near, poisoned
from nlrl_kernels.window_attention.tolerance import BACKWARD, FORWARD

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """What a launch allocates is full of NaN: whatever it forgets to write becomes visible."""
    empty = torch.empty

    def poisoned_empty(*arguments, **settings):
        made = empty(*arguments, **settings)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned_empty)


def starts(counts):
    return torch.tensor([0, *counts], device=DEVICE).cumsum(0, dtype=torch.int32)


class Case:
    """Fresh inputs: queries of every row, the last of its tokens, and keys and values of different width."""

    def __init__(
        self, queries=(40, 1, 0, 33), keys=(40, 20, 3, 50), *, window=None, pinned=0, heads=4, kv_heads=2,
        width_k=16, width_v=32, dtype=torch.float32,
    ):  # fmt: skip
        self.queries, self.keys, self.width_v = list(queries), list(keys), width_v
        self.settings = {"window": window, "pinned": pinned, "scale": width_k**-0.5}

        def normal(*shape):
            return torch.randn(*shape).to(dtype).to(DEVICE).requires_grad_()

        self.inputs = [
            normal(sum(queries), heads, width_k),
            normal(sum(keys), kv_heads, width_k),
            normal(sum(keys), kv_heads, width_v),
        ]
        self.weights = torch.randn(sum(queries), heads, width_v, device=DEVICE)

    def run(self, implementation, inputs=None):
        with nlrl_kernels.use_implementation(implementation):
            return nlrl_kernels.pinned_window_attention_varlen(
                *(inputs or self.inputs), starts_R1=starts(self.queries), key_starts_R1=starts(self.keys),
                max_query_len=max(self.queries), **self.settings,
            )  # fmt: skip

    def gradients(self, implementation, inputs=None):
        result = self.run(implementation, inputs)
        return torch.autograd.grad((result * self.weights).sum(), inputs or self.inputs)

    def exact(self):
        return [x.detach().double().requires_grad_() for x in self.inputs]


def check(case, dtype=torch.float32):
    exact = case.exact()
    assert_near(case.run("triton").detach(), case.run("reference", exact).detach(), FORWARD[dtype])
    found, expected = case.gradients("triton"), case.gradients("reference", exact)
    for name, one, other in zip("qkv", found, expected, strict=True):
        assert one.dtype == dtype
        assert_near(one, other, BACKWARD[dtype], f"gradient of {name}")


SETTINGS = [
    {},
    {"window": 8, "pinned": 5},
    {"window": 2, "pinned": 0, "heads": 2, "kv_heads": 2},
    {"window": 0, "pinned": 70},
    {"window": 37, "pinned": 33, "queries": [90], "keys": [90], "heads": 5, "kv_heads": 1, "width_k": 12},
    {"window": 100, "pinned": 4, "queries": [3, 4], "keys": [3, 6]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_results_and_gradients_equal_those_of_float64(settings):
    check(Case(**settings))


def test_a_pinned_key_is_shared_out_over_spans_of_queries(monkeypatch):
    from nlrl_kernels.window_attention import triton_impl

    monkeypatch.setattr(triton_impl, "_QUERIES_A_SPAN", 16)
    check(Case([50, 20], [50, 31], window=3, pinned=6, heads=2, kv_heads=1))


def test_the_reference_equals_plain_attention():
    case = Case([9, 9], [9, 9], window=2, pinned=3)
    q, k, v = (x.detach().unflatten(0, (2, 9)).transpose(1, 2) for x in case.inputs)
    t = torch.arange(9, device=DEVICE)
    seen = (t[:, None] >= t) & ((t[:, None] - t <= 2) | (t < 3))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.25, enable_gqa=True)
    assert_near(case.run("reference").detach(), plain.detach().transpose(1, 2).flatten(0, 1), FORWARD[torch.float32])


def test_every_run_gives_the_same_bits_and_so_does_one_without_gradients():
    case = Case(window=8, pinned=5)
    found = case.run("triton")
    with torch.no_grad():
        assert found.equal(case.run("triton"))
    for one, other in zip(case.gradients("triton"), case.gradients("triton"), strict=True):
        assert one.equal(other)


def test_pinned_keys_change_nothing_where_all_keys_are_seen():
    case = Case(pinned=7)
    found = case.run("triton")
    case.settings["pinned"] = 0
    assert found.equal(case.run("triton"))


def test_inputs_may_be_parts_of_larger_tensors():
    case = Case([6], [6], window=2, pinned=1)
    wide = poisoned(6, 4 * 16 + 2 * 16 + 2 * 32, device=DEVICE)
    q, k, v = (part.unflatten(1, x.shape[1:]) for part, x in zip(wide.split([64, 32, 64], 1), case.inputs, strict=True))
    for part, x in zip((q, k, v), case.inputs, strict=True):
        part.copy_(x.detach())
    assert case.run("triton", [q, k, v]).equal(case.run("triton"))


def test_no_queries_and_nothing_at_all():
    case = Case([0, 0], [4, 0], window=2, pinned=1)
    assert case.run("triton").shape == (0, 4, 32)
    assert all(bool((x == 0).all()) for x in case.gradients("triton"))


def test_double_precision_is_left_to_the_reference():
    case = Case([5], [7], window=2, pinned=1)
    exact = case.exact()
    assert case.run("triton", exact).equal(case.run("reference", exact))


def test_the_operation_keeps_what_torch_compile_asks_of_it():
    from nlrl_kernels.window_attention import triton_impl

    case = Case([3], [5], window=1, pinned=1)
    arguments = (*case.inputs, starts([3]), starts([5]), 3, 1, 1, 0.25, True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton_impl._varlen, arguments, test_utils=checks)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 128, 1000])
def test_sixteen_bit_inputs(window, dtype):
    shape = {"heads": 25, "kv_heads": 5, "width_k": 64, "width_v": 128, "window": window, "pinned": 128}
    check(Case([300, 0, 1, 1500], [300, 5, 513, 1600], dtype=dtype, **shape), dtype)
