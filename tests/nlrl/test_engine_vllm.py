"""vLLM in this process, with a random Llama of two layers; the engine is shared, for it takes seconds to start."""

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
sys.path.insert(0, str(Path(__file__).parent))

from tiny_llama import make_tiny_llama

from nlrl.engine.base import Completion, Constraint, Message, Request, Sampling
from nlrl.engine.check import check_engine, obeys
from nlrl.engine.local import encode_messages
from nlrl.engine.vllm import VllmEngine
from nlrl.errors import ContextLengthError, EngineError

pytestmark = pytest.mark.vllm

MOVES = Constraint("choice", ("move left", "move right", "move up", "move down"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    running = VllmEngine(str(folder), seed=3)
    yield running
    asyncio.run(check_engine(running))  # closes it, twice


def test_one_thread_unless_the_user_says_otherwise(engine: VllmEngine) -> None:
    import torch

    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def ask(text: str, constraint: Constraint | None = None, max_tokens: int = 12, temperature: float = 0.0) -> Request:
    return Request((Message("user", text),), Sampling(temperature, max_tokens=max_tokens), constraint)


def reference(folder: Path, prompt_ids: tuple[int, ...], max_tokens: int) -> list[int]:
    """Greedy ids by transformers."""
    import torch
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder)
    ids = torch.tensor([prompt_ids])
    return model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0, len(prompt_ids) :].tolist()


def test_greedy_replies_are_those_of_the_model(engine: VllmEngine, folder: Path) -> None:
    requests = [ask(f"Your position is {i}, {i}.") for i in range(5)]
    for request, got in zip(requests, asyncio.run(engine.generate(requests)), strict=True):
        assert list(got.prompt_token_ids) == encode_messages(engine._tokenizer, request.messages)
        assert list(got.token_ids) == reference(folder, got.prompt_token_ids, 12)
        assert got.text == engine._tokenizer.decode(got.token_ids, skip_special_tokens=True)
        assert (got.prompt_tokens, got.completion_tokens) == (len(got.prompt_token_ids), len(got.token_ids))
    assert engine.prompt_set == "full"


def test_replies_keep_the_asked_form(engine: VllmEngine) -> None:
    forms = [
        MOVES,
        Constraint("regex", r"-?[0-9]{1,2}\.[0-9] (far|near)"),
        Constraint("regex", r"(move\ left|move\ right)"),
        Constraint("json", '{"type":"object","properties":{"a":{"enum":["x","y"]}},"required":["a"]}'),
    ]
    requests = [ask(f"Where to, {i}?", form, 60, 1.0) for form in forms for i in range(4)]
    for request, got in zip(requests, asyncio.run(engine.generate(requests)), strict=True):
        assert got.finish_reason == "stop"
        assert request.constraint is not None
        assert obeys(got.text, request.constraint), got.text


def test_log_probabilities_are_those_of_the_drawn_tokens(engine: VllmEngine, folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    request = replace(ask("Where to?"), sampling=Sampling(max_tokens=6, logprobs=True))
    (got,) = asyncio.run(engine.generate([request]))
    assert len(got.logprobs) == len(got.token_ids) == 6
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(torch.tensor([[*got.prompt_token_ids, *got.token_ids]])).logits[0].log_softmax(-1)
    first = len(got.prompt_token_ids) - 1
    wanted = [logits[first + i, token].item() for i, token in enumerate(got.token_ids)]
    assert got.logprobs == pytest.approx(wanted, abs=1e-4)
    assert asyncio.run(engine.generate([ask("Where to?")]))[0].logprobs == ()


def test_an_answer_says_whether_it_was_held_to_its_form(engine: VllmEngine) -> None:
    requests = [ask("x", MOVES, 60), ask("x"), ask("x", Constraint("regex", "a{40}"), 3)]
    held = [completion.constrained for completion in asyncio.run(engine.generate(requests))]
    assert held == [True, None, None]


def test_the_batch_invariant_mode_is_refused_where_it_is_not(folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU has it")
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        VllmEngine(str(folder), batch_invariant=True)


def test_a_form_is_looked_at_once_and_held_to_again(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.sampling_params import SamplingParams

    looked, verify = [], SamplingParams.verify
    monkeypatch.setattr(SamplingParams, "verify", lambda params, *rest: (looked.append(1), verify(params, *rest))[1])
    forms = [Constraint("regex", "(north|south) by (east|west)"), Constraint("choice", ("due north", "due south"))]
    requests = [ask(f"Whither, {i}?", form, 60, 1.0) for i in range(3) for form in forms]
    for request, got in zip(requests, asyncio.run(engine.generate(requests)), strict=True):
        assert request.constraint is not None
        assert obeys(got.text, request.constraint), got.text
    assert len(looked) == len(forms)
    bad = [ask(f"x{i}", Constraint("regex", "(a")) for i in range(2)]
    assert [got.finish_reason for got in asyncio.run(engine.generate(bad))] == ["error", "error"]
    assert len(looked) == len(forms) + len(bad)


def test_a_bad_pattern_is_the_error_of_that_request_alone(engine: VllmEngine) -> None:
    bad, good = asyncio.run(engine.generate([ask("x", Constraint("regex", "(a")), ask("x", MOVES)]))
    assert bad.finish_reason == "error"
    assert bad.error is not None
    assert bad.error.startswith("vLLM refuses it")
    assert good.text in MOVES.value


def test_what_does_not_fit_is_refused_before_it_is_sent(engine: VllmEngine) -> None:
    with pytest.raises(ContextLengthError, match=r"reply of up to 250 do not fit into the 256 tokens of 'tiny'"):
        asyncio.run(engine.generate([ask("x"), ask("y", max_tokens=250)]))
    assert asyncio.run(engine.generate([ask("x", max_tokens=200)]))[0].error is None


def count_steps(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were pending at each step of the engine, from now on."""
    inner, pending = engine._engine.step, []

    def step() -> Any:
        pending.append(len(engine._flights))
        return inner()

    monkeypatch.setattr(engine._engine, "step", step)
    return pending


def test_coroutines_share_their_batches(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = count_steps(engine, monkeypatch)
    same_length = Constraint("regex", "[ab]{9}")

    async def game(number: int) -> None:
        for turn in range(4):
            questions = [[ask(f"{number} {turn} {i}", same_length)] for i in range(3)]
            await asyncio.gather(*map(engine.generate, questions))

    async def play() -> None:
        async with asyncio.TaskGroup() as games:
            for number in range(5):
                games.create_task(game(number))

    asyncio.run(play())
    assert set(pending[:-12]) == {15}


def test_equal_greedy_requests_in_flight_are_computed_once(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = count_steps(engine, monkeypatch)

    async def twice() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.generate([ask("same", MOVES), ask("same", MOVES)]) for _ in range(3)))

    replies = [reply for batch in asyncio.run(twice()) for reply in batch]
    assert max(pending) == 1
    assert len(replies) == 6
    assert len(set(replies)) == 1
    assert any("shared its computation" in note for note in engine.describe().notes)
    hot = asyncio.run(engine.generate([ask("same", None, 12, 1.0)] * 6))
    assert max(pending) == 6
    assert len({reply.token_ids for reply in hot}) > 1


def test_a_cancelled_question_leaves_the_engine_usable(engine: VllmEngine) -> None:
    async def go() -> Completion:
        patient = asyncio.create_task(engine.generate([ask("shared", None, 40)]))
        hasty = asyncio.create_task(engine.generate([ask("shared", None, 40), ask("dropped", None, 200)]))
        await asyncio.sleep(0.01)
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        assert len(engine._flights) == 1
        return (await patient)[0]

    assert asyncio.run(go()).completion_tokens > 0
    assert not engine._flights
    assert not engine._engine.has_unfinished_requests()


def test_new_weights_answer_at_once_and_the_cache_forgets(engine: VllmEngine, folder: Path, tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "other", seed=1)
    long = "Your current position is at position 1, 2. " * 6

    def reply() -> tuple[int, ...]:
        return asyncio.run(engine.generate([ask(long)]))[0].token_ids

    first = reply()
    engine.update_weights(other)
    second = reply()
    prompt = tuple(encode_messages(engine._tokenizer, ask(long).messages))
    assert list(second) == reference(other, prompt, 12) != list(first)
    from safetensors.torch import load_file

    engine.update_weights(iter(load_file(folder / "model.safetensors").items()))
    assert reply() == first


def test_a_failing_engine_fails_its_callers_in_one_sentence(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        with pytest.raises(EngineError, match="vLLM stopped: out of luck"):
            await engine.generate([ask("a"), ask("b")])

    def step() -> None:
        raise RuntimeError("out of luck.\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(engine._engine, "step", step)
        asyncio.run(go())
    # The requests are still inside vLLM: a later step finishes them, for nobody.
    assert asyncio.run(engine.generate([ask("c")]))[0].error is None


def test_a_run_repeats_with_its_seed(folder: Path) -> None:
    async def draw(fresh: VllmEngine) -> list[list[str]]:
        async def game(number: int) -> list[str]:
            texts = []
            for turn in range(3):
                form = MOVES if (number + turn) % 2 else Constraint("regex", "[a-z ]{5,20}")
                texts += [c.text for c in await fresh.generate([ask(f"{number}", form, 30, 1.0)] * 2)]
            return texts

        texts = await asyncio.gather(*map(game, range(4)))
        await fresh.close()
        return texts

    first, second = (asyncio.run(draw(VllmEngine(str(folder), seed=5))) for _ in range(2))
    assert first == second
    assert len({text for texts in first for text in texts}) > 10


def test_a_model_without_a_template_reads_the_contents_one_under_the_other() -> None:
    class Plain:
        chat_template = None

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    messages = (Message("system", "ab"), Message("user", "c"))
    assert bytes(encode_messages(Plain(), messages)) == b"ab\nc"


def test_what_cannot_be_loaded_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "no_such"}')
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="is damaged"):
        VllmEngine(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    with pytest.raises(EngineError, match="vLLM cannot load the model"):
        VllmEngine(str(tmp_path))
    with pytest.raises(EngineError, match="not on 'cuda'"):
        VllmEngine(str(folder), device="cuda")


def test_a_closed_engine_says_so(folder: Path) -> None:
    closed = object.__new__(VllmEngine)
    closed._engine = None
    with pytest.raises(EngineError, match="is closed"):
        asyncio.run(closed.generate([ask("x")]))
    with pytest.raises(EngineError, match="is closed"):
        closed.update_weights(folder)


@pytest.mark.full
def test_with_its_core_apart_it_answers_the_same_and_takes_weights_from_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    apart = VllmEngine(str(folder), seed=3, apart=True, arguments={"kv_cache_memory_bytes": 32 << 20})
    try:
        requests = [ask(f"Your position is {i}, {i}.") for i in range(5)]
        for request, got in zip(requests, asyncio.run(apart.generate(requests)), strict=True):
            assert list(got.token_ids) == reference(folder, got.prompt_token_ids, 12), request
        (held,) = asyncio.run(apart.generate([ask("Where to?", MOVES, 60, 1.0)]))
        assert obeys(held.text, MOVES)
        other = make_tiny_llama(tmp_path / "other")
        weights = load_file(other / "model.safetensors")
        torch.manual_seed(1)
        noisy = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in weights.items()}
        save_file(noisy, other / "model.safetensors", {"format": "pt"})
        apart.update_weights(other)
        for request, got in zip(requests, asyncio.run(apart.generate(requests)), strict=True):
            assert list(got.token_ids) == reference(other, got.prompt_token_ids, 12), request
        with pytest.raises(EngineError, match="from a folder alone"):
            apart.update_weights(weights.items())
        assert "process of its own" in " ".join(apart.describe().notes)
    finally:
        asyncio.run(apart.close())
