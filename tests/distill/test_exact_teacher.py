"""Distillation alone, with a teacher that is never wrong: exact values and optimal moves into the Hymba in the box.

Whatever a loop's teacher is worth, the student must come to say what it was taught when it is asked as it will be: the
prompts of training and of asking, the masks of the loss, the end token and the reload have to agree for that. The
student is the one that actor-critic has, a running vLLM engine whose weights are replaced, and value and policy are
learned one after the other by one model, as there: without going over the values it forgets them for the moves.

Minutes of training on one core: ``make served ARGS="-k exact_teacher"``.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytest.importorskip("accelerate")

from learning import store

from nlrl.ask import Asker
from nlrl.distill.examples import policy_examples, value_examples
from nlrl.distill.knobs import TrainingKnobs
from nlrl.distill.rehearsal import Rehearsing
from nlrl.distill.student import DistilledStudent
from nlrl.engine.vllm import VllmEngine
from nlrl.evaluate.graders import Grader, make_grader
from nlrl.learn import Student
from nlrl.policy import act
from nlrl.recorded import RecordedEngine
from nlrl.registry import resolve_model
from nlrl.types import CallId, Evaluation, ImprovedPolicy, LanguageValue, Situation
from nlrl.values.direct import language_values
from nlrl_envs.base import seat_of
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load

pytestmark = [pytest.mark.vllm, pytest.mark.full]

SITUATIONS = 16
KNOBS = TrainingKnobs(learning_rate=2e-3, epochs=40, batch=16, threads=1, device="cpu")
GAMES = {1.0: "Of 5 games won 5, drew 0, lost 0. Worth 1.00.", 0.0: "Of 5 games won 0, drew 5, lost 0. Worth 0.00.",
         -1.0: "Of 5 games won 0, drew 0, lost 5. Worth -1.00."}  # fmt: skip


def drawn_situations(count: int) -> list[Situation]:
    """Different positions of random games in which the mover has three to six moves."""
    rng, found = np.random.default_rng(5), dict[str, Situation]()
    while len(found) < count:
        env = TicTacToe()
        env.reset(rng)
        if not any(env.step(str(rng.choice(env.legal_actions))).terminated for _ in range(rng.integers(3, 7))):
            call = CallId(len(found), 0, "policy")
            found.setdefault(
                env.observation, Situation((env.observation,), call, env.legal_actions, env.seats[seat_of(env)])
            )
    return list(found.values())


def exact(grader: Grader, situation: Situation) -> dict[str, float]:
    moves = grader.moves(situation.history[-1], 0)
    assert moves is not None
    return dict(moves)


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    running = VllmEngine("hymba", arguments={"kv_cache_memory_bytes": 128 << 20, "max_model_len": 512})
    yield running
    asyncio.run(running.close())


async def agreement(situations_S: list[Situation], grader: Grader, ask: Asker) -> tuple[float, float]:
    """The shares of exact values among Q^L of all moves, and of optimal moves among the plain policy's at T = 0."""
    pairs = [(situation, action) for situation in situations_S for action in situation.actions]
    said = await language_values(pairs, ask=ask)
    right = sum(one.value.number == exact(grader, one.situation)[str(one.action)] for one in said.evaluations)
    optimal = 0
    for situation in situations_S:
        asked = replace(ask, player=situation.player, temperature=0.0)
        choice = (await act(asked, situation.history, situation.actions, situation.call)).choice
        values = exact(grader, situation)
        optimal += choice is not None and values[choice.action] == max(values.values())
    return right / len(pairs), optimal / len(situations_S)


@pytest.mark.parametrize("rehearse", [False, True])
def test_a_student_comes_to_say_what_an_exact_teacher_said(
    engine: VllmEngine, tmp_path: Path, row: Callable[[str], None], rehearse: bool
) -> None:
    env, run = TicTacToe(), store(tmp_path)
    grader = make_grader(env)
    assert grader is not None
    recorded = RecordedEngine(engine, run)
    ask = Asker(recorded, load("compact", "tic_tac_toe"), env.task, attempts=1, seed=0)
    base = resolve_model("hymba").path
    assert base is not None
    engine.update_weights(base)
    student: Student = DistilledStudent(base, engine, run, KNOBS, reloaded=recorded.reloaded)
    student = Rehearsing(student) if rehearse else student
    situations_S = drawn_situations(SITUATIONS)
    tables_S = [exact(grader, situation) for situation in situations_S]
    values = [
        Evaluation(situation, action, LanguageValue(GAMES[q], q), reply=GAMES[q])
        for situation, table in zip(situations_S, tables_S, strict=True)
        for action, q in table.items()
    ]
    choices_S = [
        ImprovedPolicy(best, f"Most worth is {table[best]:.2f} after {best}.")
        for table in tables_S
        for best in [max(table, key=lambda action, table=table: table[action])]
    ]
    by_chance = np.mean([np.mean(np.array(list(t.values())) == max(t.values())) for t in tables_S])

    before = asyncio.run(agreement(situations_S, grader, ask))
    lessons = value_examples(values, ask=ask, iteration=1)
    valued = asyncio.run(student.learn(lessons, iteration=1, student="value", seed=1))
    between = asyncio.run(agreement(situations_S, grader, ask))
    lessons = policy_examples(situations_S, choices_S, ask=ask, iteration=1)
    moved = asyncio.run(student.learn(lessons, iteration=1, student="policy", seed=1))
    after = asyncio.run(agreement(situations_S, grader, ask))
    run.close()

    row(
        f"{len(values)} values, {len(choices_S)} moves; values exact, moves optimal: {before} untrained, "
        f"{between} after the values, {after} after the moves ({by_chance:.2f} by chance); "
        f"loss {valued.losses_T[0]:.2f} to {valued.losses_T[-1]:.3f} and {moved.losses_T[0]:.2f} to "
        f"{moved.losses_T[-1]:.3f}"
    )
    assert between[0] > 0.8 > 0.5 > before[0]
    assert after[1] > 0.9
    assert (after[0] > 0.8) is rehearse
