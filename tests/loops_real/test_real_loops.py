"""Each loop of the paper for one iteration on a real pretrained model, by its recipe, in every game and in three ways.

- process: vLLM in this process plays every role; students learn (LoRA) and answer with their new weights.
- taught: the teacher answers behind `nlrl serve`; the students are in this process, learn and are reloaded.
- served: every role answers behind `nlrl serve`, where nothing can be trained: fixed weights, recorded lessons.

Few games, for this model writes some tens of tokens a second on two cores. Each is a test of its own, to be run alone:
``make real ARGS="-k connect_four-served"``.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_model import model_folder
from real_server import NLRL, serving

from nlrl.evaluate.replies import grade_replies
from nlrl.store import RunReader
from nlrl.store_loops import dataset, trainings

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.real]

SMALL = (
    "training.iterations=1", "distil.epochs=1", "distil.lora_rank=8", "distil.learning_rate=1e-4", "distil.batch=8",
    "distil.tokens_per_pass=1024", "distil.threads=1", "baseline=[]",
)  # fmt: skip
ONE_GAME = ("training.games=1", "training.samples=1", "training.evaluation_games=0")
TWO_MOVES = ("env.options.horizon=2", "env.history_items=1")
LOOPS = {
    "tic_tac_toe": ("tic_tac_toe", "training.games=1", "training.samples=1", "training.evaluation_games=1"),
    "connect_four": ("connect_four", "env.map=4x4", "exact=false", *ONE_GAME),
    "frozen_lake": ("frozen_lake", *TWO_MOVES, *ONE_GAME),
    "breakthrough": (
        "breakthrough", "training.positions=2", "training.held_out=2", "training.games=2", "look_ahead.steps=2",
        "look_ahead.rollout=random", "env.opponent=random", "exact=false",
    ),
    "maze": (
        "maze_policy_iteration", *TWO_MOVES, "env.starts=1", "look_ahead.variations=1", "look_ahead.steps=1",
        "training.evaluation_games=1",
    ),
}  # fmt: skip
STUDENTS = {"breakthrough": ("value",), "maze": ("policy",)}
BOTH = ("value", "policy")
WAYS = [*((game, way) for game in LOOPS for way in ("process", "served")), ("tic_tac_toe", "taught")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"max_model_len": 4096, "max_num_seqs": 16, "dtype": "bfloat16"}
    with serving(model_folder(), tmp_path_factory.mktemp("served") / "log", settings) as address:
        yield address


def engines(way: str, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The keys of a recipe that say who answers where."""
    here = (f"engine.backbone={model_folder()}",)
    if way == "process":
        return here
    address = request.getfixturevalue("address")
    if way == "taught":
        return (*here, f"roles.teacher.base_url={address}")
    return ("engine.kind=http", f"engine.base_url={address}", "training.learners=[]")


def rates(run: RunReader) -> str:
    """What the replies of a run were, as they were."""
    calls = [(call.request.call, call.failure) for call in run.calls() if call.request.call]
    grade = grade_replies(calls)["all"]
    ((read, written),) = run.rows("SELECT sum(prompt_tokens), sum(completion_tokens) FROM calls")
    bad = ", ".join(f"{kind} {count}" for kind, count in grade.failures) or "none"
    return (
        f"{len(calls)} replies, of the form {grade.parsed.share:.0%}, legal {grade.legal.share:.0%}, bad {bad}; "
        f"tokens read {read:,}, written {written:,}"
    )


@pytest.mark.parametrize(("game", "way"), WAYS)
def test_one_iteration(
    game: str, way: str, tmp_path: Path, row: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    recipe, *keys = LOOPS[game]
    settings = [part for setting in (*SMALL, *keys, *engines(way, request)) for part in ("-s", setting)]
    command = [*NLRL, "run", recipe, "--plain", "--runs", str(tmp_path), "--id", "real", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with RunReader.open(tmp_path / "real") as run:
        learned = {one.student: (one.examples, one.losses_T) for one in trainings(run)}
        assert set(learned) == set(STUDENTS.get(game, BOTH))
        for student, (examples, losses) in learned.items():
            assert len(list(dataset(run, 1, student))) > 0
            assert bool(examples) is bool(losses) is (way != "served")
        row(f"{rates(run)}; learned {learned}; {_clock(done.stdout)} in all")
    assert ("their weights" in done.stdout or "its weights" in done.stdout) is (way == "served")


def _clock(said: str) -> str:
    found = re.search(r"(\d[\d:]*) in all", said)
    assert found, said[-2000:]
    return found[1]
