"""`nlrl bench loop`: its clock and its page on a made-up engine, and the whole of it on the model in the box."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlrl.bench_loop import Choice, Phase, Watch, bench
from nlrl.bench_replay import replays
from nlrl.bench_report import report
from nlrl.errors import ConfigError

FACTS = {
    "setting": {"recipe": "tic_tac_toe", "engine": {"backbone": "hymba", "apart": True}, "training": {"games": 4}},
    "device": "made up",
    "start_s": 1.0,
}


class Inner:
    """As vLLM's engine: writes three tokens a request, one request a step of 10 ms."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.resets = 0

    def add_request(self, name: str, prompt: Any, params: Any) -> str:
        self.waiting.append(name)
        return name

    def step(self) -> list[Any]:
        time.sleep(0.01)
        output = SimpleNamespace(token_ids=(1, 2, 3))
        return [SimpleNamespace(request_id=self.waiting.pop(0), finished=True, outputs=[output])]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def reset_prefix_cache(self) -> None:
        self.resets += 1


class Made:
    """As `nlrl.engine.vllm.VllmEngine`."""

    def __init__(self) -> None:
        self._engine = Inner()
        self.loaded: list[str] = []

    def _prompt_ids(self, request: Any) -> tuple[int, ...]:
        return (1, 2)

    def update_weights(self, source: Any, *, seed: int | None = None) -> None:
        self.loaded.append(str(source))


def ask(engine: Made, count: int) -> None:
    for number in range(count):
        params = SimpleNamespace(structured_outputs=f"form {number % 2}")
        engine._engine.add_request(str(number), {"type": "token", "prompt_token_ids": [1, 2]}, params)


def watched(engine: Made) -> list[Phase]:
    """Three requests, a training, then two that wait a while."""
    watch = Watch(engine)
    with watch.watching():
        watch.enter(1, "estimate")
        ask(engine, 3)
        while engine._engine.has_unfinished_requests():
            engine._engine.step()
        watch.enter(1, "distil value")
        engine.update_weights("value-1", seed=1)
        watch.enter(1, "improve")
        time.sleep(0.05)
        ask(engine, 2)
        engine._engine.step()
        engine._engine.step()
        watch.enter(-1, "over")
    return watch.phases[1:-1]


def test_a_phase_has_its_requests_its_tokens_and_the_time_in_which_any_was_under_way() -> None:
    engine = Made()
    estimate, distil, improve = watched(engine)
    assert [len(phase.asked) for phase in (estimate, distil, improve)] == [3, 0, 2]
    assert [(phase.read, phase.written) for phase in (estimate, improve)] == [(6, 9), (4, 6)]
    assert [phase.weights for phase in (estimate, distil, improve)] == ["", "", "value-1"]
    assert 0.03 <= estimate.busy <= estimate.seconds
    assert 0.02 <= improve.busy <= improve.seconds - 0.05
    assert improve.spent["vLLM computes"] >= 0.02 > 0.01 > improve.processor["vLLM computes"]
    assert engine._engine.step.__func__ is Inner.step  # everything is as it was


def test_requests_are_replayed_by_the_weights_of_their_phase_as_one_batch() -> None:
    engine = Made()
    phases = [phase for phase in watched(engine) if phase.asked]
    engine.loaded.clear()
    found = dict(replays(engine, phases, until=time.perf_counter() + 60))
    assert engine.loaded == ["value-1"]
    assert engine._engine.resets == 3
    assert {name: (one["requests"], one["written"]) for name, one in found.items()} == {
        "estimate": (3, 9), "improve": (2, 6), "all": (5, 15),
    }  # fmt: skip
    assert dict(replays(engine, phases, until=time.perf_counter() - 1)) == {}


def test_the_page_says_how_busy_the_engine_was_kept(tmp_path: Path) -> None:
    phases = [
        Phase(1, "estimate", 0.0, 10.0, asked=[([1], SimpleNamespace(structured_outputs="a"))], written=900, busy=9.0),
        Phase(1, "distil value", 10.0, 40.0),
        Phase(
            1, "improve", 40.0, 50.0, asked=[([1], SimpleNamespace(structured_outputs="a"))], written=1000, busy=10.0
        ),
    ]
    batches = {"estimate": {"seconds": 9.0, "written": 900}, "all": {"seconds": 19.0, "written": 1900}}
    page = report(tmp_path, FACTS, phases, batches)
    assert "| estimate | 90 | 100 | 100 | 90.0% |" in page
    assert "The engine wrote 95.0% of what one batch writes; the goal of 90% is met." in page
    assert "Iteration 1: 50.0 s; the goal of 60 s is met." in page
    assert json.loads((tmp_path / "loop.json").read_text())["phases"][2]["written"] == 1000
    assert (tmp_path / "loop.md").read_text() == page + "\n"


def chosen(out: Path, *settings: str, recipe: str = "tic_tac_toe") -> Choice:
    return Choice(recipe, settings, "hymba", False, 1, False, 900.0, out)


@pytest.mark.parametrize("settings", [("engine.kind=oracle",), ("roles.teacher.base_url=http://127.0.0.1:9/v1",)])
def test_what_cannot_be_measured_is_one_sentence(settings: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a loop that trains, on one model, by engine\.kind = 'vllm'"):
        bench(chosen(tmp_path, *settings))


@pytest.mark.vllm
@pytest.mark.full
def test_the_whole_of_it_on_the_model_in_the_box(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    few = ("training.games=4", "training.evaluation_games=4", "training.samples=3", "distil.epochs=1", "exact=false")
    assert bench(chosen(tmp_path, *few, "distil.threads=1")) == 0
    found = json.loads((tmp_path / "loop.json").read_text())
    asked = {phase["phase"] for phase in found["phases"] if phase["iteration"] == 1 and phase["requests"]}
    assert asked == {"estimate", "improve", "evaluate"}
    assert set(found["batches"]) == {*asked, "all"}
    assert all(batch["written"] > 0 for batch in found["batches"].values())
    assert "loop / batch" in (tmp_path / "loop.md").read_text()
