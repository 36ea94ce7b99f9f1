"""What the benchmark compares window attention with computes the same function, as far as a CPU can run it."""

import pytest
import torch

import nlrl_kernels
from nlrl_kernels.bench import cases_window_attention as cases
from nlrl_kernels.bench import sweep
from nlrl_kernels.bench import tiles_window_attention as tiles
from nlrl_kernels.bench.case import Size
from nlrl_kernels.testing import assert_near

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
TINY = Size("cuda" if GPU else "cpu", tiny=True)
needs_no_gpu = pytest.mark.skipif(GPU, reason="uncompiled alternatives are for a CPU")


def plain_flash(q, k_pages, v_pages, max_q, starts, max_k, **settings):
    """What ``flash_attn_varlen_func`` says of these arguments, by the reference."""
    names = ("seqused_k", "block_table", "softmax_scale", "causal", "window_size", "fa_version")
    seqused_k, block_table, softmax_scale, causal, window_size, fa_version = (settings.pop(name) for name in names)
    assert not settings
    assert causal
    assert fa_version == 3
    assert max_k >= int(seqused_k.max())
    none = torch.empty(k_pages.shape[2], 0, k_pages.shape[3])
    return nlrl_kernels.pinned_window_attention(
        q, k_pages, v_pages, block_table, seqused_k, starts, meta_k_HMD=none, meta_v_HMD=none,
        window=window_size and window_size[0], scale=softmax_scale, out_THD=torch.empty(*q.shape[:2], v_pages.shape[3]),
        max_query_len=max_q,
    )  # fmt: skip


@pytest.fixture
def plain(monkeypatch):
    """Alternatives uncompiled, and FlashAttention by our reference."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(cases, "vllm_flash_attention", lambda: (plain_flash, 3))


@needs_no_gpu
@pytest.mark.parametrize(("count", "context"), [(20, 20), (6, 30)])
@pytest.mark.parametrize("window", [True, False])
@pytest.mark.usefixtures("plain")
def test_flex_attention_computes_the_same(window, count, context):
    with nlrl_kernels.use_implementation("reference"):
        case = cases.paged_case(TINY, cases.shape_for(TINY, window=window), 1, count, context)
        flex = {name: prepare for name, prepare in case.alternatives.items() if "Flex" in name}
        assert len(flex) == 2
        for prepare in flex.values():
            assert_near(prepare()(), case.run(), 1e-5)


@needs_no_gpu
@pytest.mark.usefixtures("plain")
def test_flash_attention_gets_the_same_cache():
    from dataclasses import replace

    shape = replace(cases.shape_for(TINY, window=True), metas=0)
    with nlrl_kernels.use_implementation("reference"):
        case = cases.paged_case(TINY, shape, 3, 2, 30)
        assert_near(case.alternatives["FlashAttention (vLLM), window without pinned keys"]()(), case.run(), 1e-5)
        whole = cases.paged_case(TINY, replace(shape, window=None), 3, 2, 30)
        assert_near(whole.alternatives["FlashAttention (vLLM), full cache"]()(), whole.run(), 1e-5)


@needs_no_gpu
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.usefixtures("plain")
def test_training_alternatives_compute_the_same(backward):
    with nlrl_kernels.use_implementation("reference"):
        case = cases.rows_case(TINY, cases.shape_for(TINY, window=True), 2, 12, backward)
        expected = case.run()
        for name in ("mask in torch", *(() if backward else ("FlexAttention, compiled",))):
            for one, other in zip(case.alternatives[name]()(), expected, strict=True):
                assert_near(one.detach(), other.detach(), 1e-5, name)


def test_pairs_are_those_of_the_mask():
    for window in (None, 3):
        shape = cases.Shape(metas=4, window=window)
        position = torch.arange(20)
        causal = position[:, None] >= position
        near = causal if window is None else causal & (position[:, None] - position <= window)
        assert shape.pairs(5, 20) == int(near[5:].sum()) + 15 * 4
        assert shape.pairs(0, 20, pinned_in_row=True) == int((near | (causal & (position < 4))).sum())


@needs_no_gpu
def test_a_sweep_launches_with_the_tiles_it_names_and_puts_the_old_ones_back():
    launch = tiles.triton_impl
    before, sizes, launched = [getattr(launch, name) for name in tiles.NAMES.values()], launch._sizes, []
    launch._sizes = lambda width, width_v, tile, dtype: launched.append(tile) or sizes(width, width_v, tile, dtype)
    try:
        for what in tiles.NAMES:
            chosen = (tiles.Tile(16, 16, 4, 1),) * (2 if what == "window_backward" else 1)
            ms, line = sweep.time_one((what, 64, chosen), TINY, None)
            assert line.endswith("| no GPU")
            assert ms == float("inf")
            assert chosen[0] in launched
            launched.clear()
    finally:
        launch._sizes = sizes
    assert [getattr(launch, name) for name in tiles.NAMES.values()] == before


def test_a_sweep_starts_from_todays_tiles():
    tried = sweep.candidates(["window_prefill", "window_backward"])
    assert tried[0] == ("window_prefill", 8192, (tiles.triton_impl.prefill_tile(128, torch.bfloat16),))
    assert {what for what, _, _ in tried} == {"window_prefill", "window_backward"}
    assert len(set(tried)) == len(tried)
