"""The differential attention backend of vLLM on a CPU: against the rewrite as stock attention, and the goldens.

The kernels run in Triton's interpreter where a test says so, else as their reference.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diff_golden import load, official

pytest.importorskip("vllm")
from served import engines, generate, greedy, prompt_logprobs

pytestmark = pytest.mark.vllm

STEPS = 24
PAGE = 16
HEADS, CACHED, WIDTH, EPS, FACTOR = 4, 2, 8, 1e-5, 0.7


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    with engines() as starter:
        yield starter


@pytest.fixture(params=["triton", "reference"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    import nlrl_kernels

    if request.param == "triton":
        pytest.importorskip("triton")
    with nlrl_kernels.use_implementation(request.param):
        yield request.param


def vllm_config(**changes: Any) -> Any:
    """What the backend reads of an engine's configuration."""
    parallel = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)
    asked = SimpleNamespace(backend=None)
    cache = SimpleNamespace(cache_dtype="auto")
    chosen = {"parallel_config": parallel, "attention_config": asked, "cache_config": cache, "quant_config": None}
    return SimpleNamespace(**(chosen | {"speculative_config": None} | changes))


class Step:
    """A step of rows, each some cached tokens and some new ones, over a cache whose unwritten slots are NaN."""

    def __init__(self, past: list[int], new: list[int], padding: int = 0, seed: int = 0) -> None:
        import torch
        from vllm.v1.attention.backend import CommonAttentionMetadata

        from nlrl_backbones.diff_transformer.vllm_attention import DiffAttentionImpl, HeadOutput

        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw)

        self.past, self.new, self.tokens = past, new, sum(new)
        lengths = [a + b for a, b in zip(past, new, strict=True)]
        self.keys, self.values = ([normal(n, CACHED, 2 * WIDTH) for n in lengths] for _ in range(2))
        self.query = normal(self.tokens + padding, HEADS, 2 * WIDTH)
        self.lam, self.weight = normal(), 1 + 0.1 * normal(2 * WIDTH)
        self.impl = DiffAttentionImpl(HEADS, 2 * WIDTH, WIDTH**-0.5, CACHED, None, None, "auto")
        self.impl.head_output = lambda: HeadOutput(self.lam.clone(), EPS, self.weight, FACTOR)
        self.impl.process_weights_after_loading(torch.float32)

        blocks = [-(-n // PAGE) for n in lengths]
        free = (torch.randperm(sum(blocks), generator=draw) + 1).tolist()
        table = torch.zeros(len(past), max(blocks) + 1, dtype=torch.int32)
        for row, count in enumerate(blocks):
            table[row, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
        self.cache = torch.full((sum(blocks) + 1, CACHED, PAGE, 4 * WIDTH), float("nan"))
        starts = torch.tensor([0, *new]).cumsum(0, dtype=torch.int32)
        self.starts = starts.tolist()
        old = [torch.arange(n) for n in past]
        fresh = [torch.arange(n, n + m) for n, m in zip(past, new, strict=True)]
        self._write(old, table, [k[: len(n)] for k, n in zip(self.keys, old, strict=True)], self.values)
        self.slots = torch.cat([self._slots(table, row, at) for row, at in enumerate(fresh)])
        self.metadata = CommonAttentionMetadata(
            query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=torch.tensor(lengths, dtype=torch.int32),
            num_reqs=len(past), num_actual_tokens=self.tokens, max_query_len=max(new), max_seq_len=max(lengths),
            block_table_tensor=table, slot_mapping=self.slots,
        )  # fmt: skip

    def _slots(self, table: Any, row: int, at: Any) -> Any:
        return table[row, at // PAGE].long() * PAGE + at % PAGE

    def _write(self, positions: list[Any], table: Any, keys: list[Any], values: list[Any]) -> None:
        for row, at in enumerate(positions):
            slots = self._slots(table, row, at)
            self.impl.do_kv_cache_update(None, keys[row], values[row][: len(at)], self.cache, slots)

    def run(self) -> Any:
        """What vLLM does in a step: metadata, then the layer's cache and attention."""
        import torch

        from nlrl_backbones.diff_transformer.vllm_attention import DiffAttentionMetadataBuilder

        builder = DiffAttentionMetadataBuilder(None, [], vllm_config(), torch.device("cpu"))
        metadata = builder.build(common_prefix_len=0, common_attn_metadata=self.metadata)
        k, v = (torch.cat([x[n:] for x, n in zip(rows, self.past, strict=True)]) for rows in (self.keys, self.values))
        self.impl.do_kv_cache_update(None, k, v, self.cache, self.slots)
        output = torch.full((len(self.query), HEADS, 2 * WIDTH), float("nan"))
        return self.impl.forward(torch.nn.Module(), self.query, k, v, self.cache, metadata, output)[: self.tokens]

    def rewrite(self) -> Any:
        """The same by ordinary attention over whole rows, with padded queries."""
        import torch

        from nlrl_backbones.diff_transformer.heads import HeadLayout, difference

        layout = HeadLayout(HEADS, CACHED, WIDTH, 2, halves=False)
        rows = []
        for (t0, t1), k, v in zip(pairwise(self.starts), self.keys, self.values, strict=True):
            q_THW, k_SGW = layout.widen(self.query[t0:t1].unflatten(-1, (2, -1)), k.unflatten(-1, (2, -1)))
            shared = 2 * HEADS // CACHED
            k_SHW, v_SHW = (x.repeat_interleave(shared, dim=1) for x in (k_SGW, v))
            scores = torch.einsum("thw,shw->hts", q_THW, k_SHW) * WIDTH**-0.5
            hidden = torch.ones(t1 - t0, len(k), dtype=torch.bool).triu(len(k) - (t1 - t0) + 1)
            both = torch.einsum("hts,shw->thw", scores.masked_fill(hidden, float("-inf")).softmax(-1), v_SHW)
            rows.append(difference(both.flatten(1), self.lam, 2 * WIDTH, eps=EPS, weight_W=self.weight, factor=FACTOR))
        return torch.cat(rows).unflatten(-1, (HEADS, -1))


@pytest.mark.parametrize(
    ("past", "new"),
    [
        ([5, 40, 16, 0, 31], [1, 1, 1, 1, 1]),  # a decode, one row just starting
        ([7, 64, 0, 33, 16, 0], [1, 1, 1, 5, 19, 35]),  # decodes, a chunk, a prefix hit, a fresh prompt
        ([0, 32], [17, 40]),
    ],
    ids=["decode", "mixed", "prefill"],
)
def test_a_step_is_what_the_rewrite_computes(implementation: str, past: list[int], new: list[int]) -> None:
    import torch

    step = Step(past, new, padding=3)
    torch.testing.assert_close(step.run(), step.rewrite(), atol=2e-5, rtol=2e-5)


def test_decodes_and_prefills_are_launched_apart() -> None:
    import torch

    from nlrl_backbones.diff_transformer.vllm_attention import DiffAttentionMetadataBuilder

    step = Step([7, 64, 33, 16], [1, 1, 5, 19])
    builder = DiffAttentionMetadataBuilder(None, [], vllm_config(), torch.device("cpu"))
    few, many = builder.build(0, step.metadata).launches
    assert (few.tokens, few.longest, few.starts.tolist(), few.lengths.tolist()) == (2, 1, [0, 1, 2], [8, 65])
    assert (many.tokens, many.longest, many.starts.tolist(), many.lengths.tolist()) == (26, 19, [2, 7, 26], [38, 35])
    assert many.block_table.data_ptr() == step.metadata.block_table_tensor[2:].data_ptr()
    with pytest.raises(ValueError, match="cascade"):
        builder.build(16, step.metadata)


def test_rows_of_a_captured_graph_that_stand_for_no_request_are_left_alone(implementation: str) -> None:
    """Their length is 0 and their tokens none, as vLLM pads a batch to a captured size."""
    import torch

    step = Step([5, 20], [1, 1], padding=2)
    expected = step.run()
    common = step.metadata
    common.query_start_loc = torch.cat([common.query_start_loc, torch.tensor([2, 2], dtype=torch.int32)])
    common.seq_lens = torch.cat([common.seq_lens, torch.zeros(2, dtype=torch.int32)])
    common.block_table_tensor = torch.cat([common.block_table_tensor, torch.zeros_like(common.block_table_tensor)])
    common.num_reqs, common.num_actual_tokens = 4, 4
    step.tokens = 4
    found = step.run()
    assert found[:2].equal(expected)
    assert bool(found[2:].isnan().all())


def test_lambda_keeps_its_address_over_a_reload() -> None:
    import torch

    step = Step([5], [1])
    before = step.impl._behind
    step.lam = torch.tensor(0.123)
    step.impl.process_weights_after_loading(torch.float32)
    after = step.impl._behind
    assert before is not None
    assert after is not None
    assert after.lam.data_ptr() == before.lam.data_ptr()
    assert float(after.lam) == pytest.approx(0.123)
    torch.testing.assert_close(step.run(), step.rewrite(), atol=2e-5, rtol=2e-5)


def test_which_attention_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from nlrl_backbones.diff_transformer import vllm_attention
    from nlrl_backbones.diff_transformer.config import DiffTransformerConfig

    v1, v2 = (DiffTransformerConfig(variant=v, num_attention_heads=8, hidden_size=512) for v in ("v1", "v2"))
    wide = DiffTransformerConfig(num_attention_heads=2, hidden_size=512)
    custom, flash = (SimpleNamespace(backend=AttentionBackendEnum[name]) for name in ("CUSTOM", "FLASH_ATTN"))
    ours = vllm_attention.DiffAttentionBackend
    assert AttentionBackendEnum.CUSTOM.get_class() is ours
    assert vllm_attention.backend_for(v1, vllm_config()) is None  # a CPU
    monkeypatch.setattr(vllm_attention, "current_platform", SimpleNamespace(is_cuda=lambda: True))
    assert vllm_attention.backend_for(v1, vllm_config()) is ours
    assert vllm_attention.backend_for(v1, vllm_config(attention_config=flash)) is None
    eight_bit = SimpleNamespace(cache_dtype="fp8")
    for config, changes in ((v2, {}), (wide, {}), (v1, {"cache_config": eight_bit})):
        assert vllm_attention.backend_for(config, vllm_config(**changes)) is None
        with pytest.raises(ValueError, match=r"cannot run as attention_backend CUSTOM: .*; leave it out\.$"):
            vllm_attention.backend_for(config, vllm_config(attention_config=custom, **changes))


@pytest.fixture(scope="module", params=["v1", "plain"])
def served(request: pytest.FixtureRequest, start: Callable[..., Any], tmp_path_factory: Any) -> Any:
    """A golden V1 or DiffLlama on the backend, 16 tokens a step: prompts come in chunks, among other rows' tokens."""
    folder = official(request.param, tmp_path_factory.mktemp(request.param))
    llm = start(folder, max_num_batched_tokens=16, block_size=16, attention_backend="CUSTOM")
    return load(request.param), llm, folder


def test_goldens_in_mixed_batches_and_from_the_prefix_cache(served: Any) -> None:
    import nlrl_kernels

    golden, llm, _ = served
    layers = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.model_runner.compilation_config
    backends = {layer.attn_backend.__name__ for layer in layers.static_forward_context.values()}
    assert backends == {"DiffAttentionBackend"}
    assert greedy(llm, golden.prompts, STEPS)[golden.continued] == golden.continuation
    known = 20
    longer = golden.prompts[golden.continued] + golden.continuation[:known]
    with nlrl_kernels.use_implementation("triton" if golden.name == "v1" else "reference"):
        again = generate(llm, [longer, golden.prompts[0]], STEPS - known)
    assert again[0].num_cached_tokens >= 32
    assert list(again[0].outputs[0].token_ids) == golden.continuation[known:]


def test_served_numbers_follow_a_reload(served: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    golden, llm, folder = served
    for k, row in enumerate(prompt_logprobs(llm, golden.prompts)):
        assert row == pytest.approx(golden.logprobs(k), abs=2e-4)
    weights = load_file(folder / "model.safetensors")
    moved = official(golden.name, tmp_path)
    changed = {key: x.flip(0) * 1.3 if "lambda" in key or "subln" in key else x for key, x in weights.items()}
    save_file(changed, moved / "model.safetensors", metadata={"format": "pt"})
    for place, stays in ((moved, False), (folder, True)):
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(place)})
        llm.reset_prefix_cache()
        found = torch.tensor(prompt_logprobs(llm, golden.prompts[-1:])[0])
        distance = (found - torch.tensor(golden.logprobs(len(golden.prompts) - 1))).abs().max().item()
        assert (distance < 2e-4) is stays, distance


@pytest.mark.full
@pytest.mark.parametrize(
    ("attention", "backend"), [("CUSTOM", "DiffAttentionBackend"), ("auto", "CPUAttentionBackend")]
)
def test_the_comparison_that_a_gpu_makes(attention: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``check_gpu.py --only diff`` on a CPU, with a smaller model and batch."""
    from nlrl.engine.vllm_setup import prepare_environment

    prepare_environment()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "backbones"))
    import gpu_diff  # pyright: ignore[reportMissingImports]

    sizes = {"hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 2}
    figures = gpu_diff.part_diff(attention, "float32", batch=9, **sizes)
    assert figures["passed"], figures
    assert figures["attention"] == backend
    assert figures["logprob_mean"] < 1e-4
