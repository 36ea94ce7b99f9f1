"""Hymba's attention backend on the path of a GPU: one launch for decodes, one for the rest, in Triton's interpreter."""

import pytest

pytest.importorskip("vllm")
pytest.importorskip("triton")

HEADS, CACHED, WIDTH_K, WIDTH_V, METAS, WINDOW, PAGE = 4, 2, 8, 16, 5, 9, 16


def step(past, new, padding=0):
    """(impl, query, cache, metadata, the result by plain torch) of a step over a cache that is NaN elsewhere."""
    import torch
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from nlrl_backbones.hymba import vllm_attention

    lengths = [a + b for a, b in zip(past, new, strict=True)]
    blocks = [-(-length // PAGE) for length in lengths]
    cache = torch.full((sum(blocks) + 1, CACHED, PAGE, WIDTH_K + WIDTH_V), float("nan"))
    table = torch.zeros(len(lengths), max(blocks) + 1, dtype=torch.int32)
    impl = vllm_attention.PinnedWindowImpl(HEADS, WIDTH_K, WIDTH_K**-0.5, CACHED, None, WINDOW + 1, "auto")
    impl.meta_HMC = torch.randn(CACHED, METAS, WIDTH_K + WIDTH_V)
    query, outputs, used = torch.randn(sum(new) + padding, HEADS, WIDTH_K), [], 1
    for row, (count, length) in enumerate(zip(new, lengths, strict=True)):
        packed_GSC = torch.randn(CACHED, length, WIDTH_K + WIDTH_V)
        for j in range(0, length, PAGE):
            table[row, j // PAGE] = used
            cache[used, :, : min(PAGE, length - j)] = packed_GSC[:, j : j + PAGE]
            used += 1
        q_HTD = query[sum(new[:row]) : sum(new[: row + 1])].transpose(0, 1)
        k_HSD, v_HSV = (
            torch.cat([impl.meta_HMC, packed_GSC], dim=1).repeat_interleave(2, 0).split([WIDTH_K, WIDTH_V], dim=-1)
        )
        position, j = torch.arange(length - count, length)[:, None], torch.arange(-METAS, length)
        seen = (j < 0) | ((j <= position) & (position - j <= WINDOW))
        out = torch.nn.functional.scaled_dot_product_attention(q_HTD, k_HSD, v_HSV, attn_mask=seen)
        outputs.append(out.transpose(0, 1))
    starts = torch.tensor([0, *new]).cumsum(0).to(torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=len(new), num_actual_tokens=sum(new), max_query_len=max(new), max_seq_len=max(lengths),
        block_table_tensor=table, slot_mapping=torch.zeros(sum(new), dtype=torch.int64),
    )  # fmt: skip
    builder = object.__new__(vllm_attention.PinnedWindowMetadataBuilder)
    return impl, query, cache, builder.build(0, common), torch.cat(outputs)


@pytest.mark.parametrize(
    ("past", "new", "launches"),
    [
        ([30, 3, 0, 20], [1, 1, 7, 18], [1, 18]),
        ([30, 3], [1, 1], [1]),
        ([0, 40], [3, 2], [3]),
        ([12, 0, 0], [1, 0, 5], [1, 5]),
    ],
    ids=str,
)
def test_a_step_equals_plain_attention(past, new, launches, monkeypatch):
    import torch

    import nlrl_kernels
    from nlrl_backbones.hymba import vllm_attention
    from nlrl_kernels.testing import assert_near

    seen = []

    def noted(*arguments, **settings):
        seen.append(settings["max_query_len"])
        return nlrl_kernels.pinned_window_attention(*arguments, **settings)

    monkeypatch.setattr(vllm_attention, "cpu_loops", lambda: False)
    monkeypatch.setattr(vllm_attention, "pinned_window_attention", noted)
    impl, query, cache, metadata, expected = step(past, new, padding=2)
    output = torch.full((len(query), HEADS, WIDTH_V), float("nan"))
    with nlrl_kernels.use_implementation("triton"):
        impl.forward(torch.nn.Module(), query, None, None, cache, metadata, output)
    assert_near(output[: sum(new)], expected, 1e-5)
    assert bool(output[sum(new) :].isnan().all())
    assert seen == launches
