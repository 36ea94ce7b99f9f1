"""Cache memory of one sequence, counted by vLLM's own scheduler and block manager on the shapes of large models."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

MB = 10**6


@pytest.fixture(scope="module")
def hymba(tmp_path_factory):
    from nlrl_backbones.shapes import write_shape
    from nlrl_backbones.vllm_cache_bytes import measure

    return measure(write_shape("hymba-1.5b", tmp_path_factory.mktemp("hymba")), 8192)


def blocks(use, kind):
    return sum(group.blocks for group in use.groups if group.kind == kind)


def test_hymba_holds_less_than_96_mb_at_8k(hymba):
    assert hymba.bytes == 88_473_600 < 96 * MB
    # For one step in 128 the scan's states lie in two blocks, the old and the new one.
    assert hymba.highest_blocks * hymba.block_bytes == 96_583_680


def test_a_page_wastes_a_tenth_at_most(hymba):
    """128 tokens of five heads of 64 + 128 numbers fill a page; a layer's convolution and scan states nearly do."""
    states = 3 * 3200 * 2 + 3200 * 16 * 4
    assert hymba.page_bytes == 128 * 5 * (64 + 128) * 2
    assert states <= hymba.page_bytes < 1.1 * states


def test_window_layers_free_what_lies_behind_the_window(hymba):
    window_groups = [group for group in hymba.groups if group.kind == "window"]
    assert sum(group.layers for group in window_groups) == 14
    assert {group.blocks for group in window_groups} == {-(-1025 // 128)}
    assert blocks(hymba, "full attention") == 8192 // 128


def test_a_scan_keeps_one_state_a_layer(hymba):
    scans = [group for group in hymba.groups if group.kind == "scan state"]
    assert sum(group.layers for group in scans) == 32
    assert {group.blocks for group in scans} == {1}


def test_the_weights_are_those_of_the_published_model(hymba):
    """In bfloat16, but A and D in float32, which the scan reads so; vLLM rounds the vocabulary up to 64."""
    assert hymba.weight_bytes == 2 * (1_522_797_824 + 32 * (3200 * 16 + 3200) + 63 * 1600)


def test_llama_3b_holds_what_hymbas_paper_says(tmp_path: Path):
    from nlrl_backbones.shapes import write_shape
    from nlrl_backbones.vllm_cache_bytes import describe, measure

    use = measure(write_shape("llama-3.2-3b", tmp_path), 8000)
    assert use.bytes == 28 * 8 * (128 + 128) * 2 * 8000
    assert "500 blocks = 917.5 MB held" in describe("llama", use)[-1]


def test_packed_bimamba_needs_half_a_gigabyte(tmp_path: Path):
    from nlrl_backbones.shapes import write_shape
    from nlrl_backbones.vllm_cache_bytes import measure

    use = measure(write_shape("bimamba-2.7b", tmp_path), 8192)
    assert 0.45e9 < use.weight_bytes < 0.55e9
    states = 64 * (80 * 64 * 128 * 4 + 5376 * 3 * 2)  # float32, and the convolution's last inputs in bfloat16
    assert (blocks(use, "scan state"), use.bytes) == (1, states)


def test_an_unknown_shape_is_refused(tmp_path: Path):
    from nlrl_backbones.shapes import write_shape

    with pytest.raises(ValueError, match=r"no shape 'gpt-5': choose one of hymba-1\.5b"):
        write_shape("gpt-5", tmp_path)
