"""A run killed inside the reload of new weights into a vLLM that runs ends as the never-killed one."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytest.importorskip("accelerate")

import killing
from tiny_students import make_student

from nlrl.store import RunReader
from nlrl.store_export import digest
from nlrl.store_loops import trainings

pytestmark = [pytest.mark.vllm, pytest.mark.torture]
RUN = [
    "tic_tac_toe", "--engine", "oracle", "-s", "roles.value.kind=vllm", "-s", "roles.value.prompts=arithmetic",
    "-s", "roles.value.attempts=1", "-s", "training.iterations=2", "-s", "training.games=4", "-s", "training.samples=2",
    "-s", "training.evaluation_games=2", "-s", "distil.epochs=2", "-s", "distil.batch=8", "-s", "distil.device=cpu",
    "-s", "distil.threads=1", "-s", "exact=false",
]  # fmt: skip
KILLS = [(1, 0), (1, 5), (2, 2), (2, 10_000)]
"""(which reload of the process, how many tensors are copied before the kill); more than there are: after the last one,
before anybody hears of it. A process that goes on with a run reloads what was trained before."""


def killed_in_a_reload(arguments: list[str], output: str, reload: int, copies: int) -> None:
    """`killing.command`, whose process kills itself in a reload."""
    import torch

    from nlrl.engine.vllm import VllmEngine

    whole, copy, count = VllmEngine.update_weights, torch.Tensor.copy_, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def update_weights(self: VllmEngine, source: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        left = copies

        def copy_and_count(tensor: torch.Tensor, *values: Any, **how: Any) -> torch.Tensor:
            nonlocal left
            if left == 0:
                die()
            left -= 1
            return copy(tensor, *values, **how)

        if count == reload:
            torch.Tensor.copy_ = copy_and_count  # type: ignore[method-assign]
        whole(self, source, **more)
        if count == reload:
            die()

    VllmEngine.update_weights = update_weights  # type: ignore[method-assign]
    killing.command(arguments, output)


def exit_code(target: Callable[..., None], *arguments: Any) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(900)
    return process.exitcode


def test_sigkill_inside_a_reload_of_vllm(tmp_path: Path, row):
    base = make_student("transformer", tmp_path / "tiny")
    arguments = [*RUN, "-s", f"roles.value.backbone={base}", "--runs", str(tmp_path), "--plain"]
    logs = {name: str(tmp_path / f"{name}.log") for name in ("whole", "killed")}
    whole_run = ["run", *arguments, "--id", "whole"]
    assert exit_code(killing.command, whole_run, logs["whole"]) == 0, Path(logs["whole"]).read_text()
    go_on = ["resume", "killed", "--runs", str(tmp_path), "--plain"]
    for number, place in enumerate(KILLS):
        words = go_on if number else ["run", *arguments, "--id", "killed"]
        assert exit_code(killed_in_a_reload, words, logs["killed"], *place) == -signal.SIGKILL, place
        assert killing.is_whole(tmp_path / "killed")
    assert exit_code(killing.command, go_on, logs["killed"]) == 0, Path(logs["killed"]).read_text()
    with RunReader.open(tmp_path / "whole") as whole, RunReader.open(tmp_path / "killed") as killed:
        assert digest(killed) == digest(whole)
        taught = [one.checkpoint for one in trainings(whole) if one.student == "value"]
        said = {call.request.call.role: call.completion.token_ids for call in whole.calls() if call.request.call}
    assert taught == ["value-1", "value-2"]
    assert said["value"]
    row(f"{len(KILLS)} kills inside reloads of a vLLM that runs: the record equals the never-killed one row for row")
