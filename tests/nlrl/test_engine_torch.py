"""transformers as an engine, with a random Llama of two layers."""

import asyncio
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

from tiny_llama import make_tiny_llama

from nlrl.engine import torch as torch_engine
from nlrl.engine.base import Completion, Constraint, Message, Request, Sampling
from nlrl.engine.check import check_engine, obeys
from nlrl.engine.torch import TorchEngine
from nlrl.errors import ContextLengthError, EngineError, EngineUnavailableError

MOVES = Constraint("choice", ("move left", "move right", "move up", "move down"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TorchEngine:
    return TorchEngine(str(folder), device="cpu")


def ask(text: str, constraint: Constraint | None = None, max_tokens: int = 12, temperature: float = 0.0) -> Request:
    return Request((Message("user", text),), Sampling(temperature, max_tokens=max_tokens), constraint)


def test_a_padded_batch_answers_as_each_alone(engine: TorchEngine) -> None:
    requests = [ask("Where? " * (i + 1), None, 9) for i in range(4)]
    alone = [asyncio.run(engine.generate([request]))[0] for request in requests]
    assert asyncio.run(engine.generate(requests)) == alone
    assert len({completion.token_ids for completion in alone}) > 1


def test_replies_keep_the_asked_form_row_by_row(engine: TorchEngine) -> None:
    pytest.importorskip("xgrammar")
    forms = [
        MOVES,
        None,
        Constraint("regex", r"-?[0-9]{1,2}\.[0-9] (far|near)"),
        Constraint("json", '{"type":"object","properties":{"a":{"enum":["x","y"]}},"required":["a"]}'),
    ]
    requests = [ask(f"Where to, {i}?", form, 60, 1.0) for i in range(3) for form in forms]
    for request, got in zip(requests, asyncio.run(engine.generate(requests)), strict=True):
        if request.constraint is not None:
            assert got.finish_reason == "stop"
            assert obeys(got.text, request.constraint), got.text


def test_coroutines_share_batches(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, inner = [], engine._complete

    def complete(requests: list[Request], prompts_B: list[list[int]]) -> list[Completion]:
        sizes.append(len(requests))
        return inner(requests, prompts_B)

    monkeypatch.setattr(engine, "_complete", complete)

    async def go() -> None:
        await asyncio.gather(*(engine.generate([ask(f"{i}", None, 2)]) for i in range(40)))

    asyncio.run(go())
    assert sizes == [32, 8]


def test_draws_repeat_with_the_seed(folder: Path) -> None:
    requests = [ask("x", None, 12, 1.0)] * 3
    first, again, other = (
        asyncio.run(TorchEngine(str(folder), seed=seed, device="cpu").generate(requests)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len({completion.token_ids for completion in first}) == 3


def test_it_keeps_the_protocol(folder: Path) -> None:
    asyncio.run(check_engine(TorchEngine(str(folder), device="cpu")))


def test_without_xgrammar_it_says_that_replies_are_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "find_spec", lambda name: None)
    free = TorchEngine(str(folder), device="cpu")
    assert any("not constrained" in note for note in free.describe().notes)
    asyncio.run(check_engine(free))


def test_what_does_not_fit_and_what_is_closed(folder: Path) -> None:
    engine = TorchEngine(str(folder), device="cpu")
    with pytest.raises(ContextLengthError, match="256 tokens of 'tiny'"):
        asyncio.run(engine.generate([ask("x", max_tokens=256)]))
    asyncio.run(engine.close())
    with pytest.raises(EngineError, match="is closed"):
        asyncio.run(engine.generate([ask("x")]))


def test_a_failing_model_fails_its_callers_in_one_sentence(engine: TorchEngine) -> None:
    broken = ask("x", Constraint("regex", "(a"))
    with pytest.raises(EngineError, match="The model failed"):
        asyncio.run(engine.generate([broken]))
    assert asyncio.run(engine.generate([ask("x", MOVES)]))[0].text in MOVES.value


def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such"}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    with pytest.raises(EngineError, match="transformers cannot load"):
        TorchEngine(str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EngineUnavailableError, match=r"nlrl\[train\]"):
        TorchEngine(str(tmp_path))
