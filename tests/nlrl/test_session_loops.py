"""Runs of the three loops through the command line's own path, with a table that learns: recorded, resumed, refused."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from small_runs import digest_of, play

from nlrl.cli import main
from nlrl.config import RunConfig, load_config, recipes
from nlrl.distill.rehearsal import Rehearsing
from nlrl.errors import BudgetError, ConfigError, EnvError, ResumeError, StoreError
from nlrl.session import Place, print_estimate, resume_recorded, run_recorded
from nlrl.store import RunReader
from nlrl.store_loops import dataset, datasets, phases, trainings
from nlrl.types import Example, GameEnd, Trained

FEW = {
    "engine.kind": "oracle",
    "training.iterations": 2,
    "training.games": 4,
    "training.evaluation_games": 4,
    "training.samples": 3,
    "distil.epochs": 1,
}
LOOPS = {
    "actor_critic": ("tic_tac_toe", {}),
    "self_play": ("breakthrough_self_play", {"env.map": "4x4"}),
    "td_values": (
        "breakthrough",
        {
            "env.map": "4x4", "training.positions": 6, "training.held_out": 4,
            "env.opponent": "random", "look_ahead.rollout": "random", "look_ahead.steps": 2,
        },
    ),
    "policy_iteration": (
        "maze_policy_iteration",
        {"env.map": "umaze", "env.starts": 3, "look_ahead.variations": 2, "look_ahead.steps": 1},
    ),
}  # fmt: skip


def small(name: str, **changes) -> RunConfig:
    recipe, more = LOOPS[name]
    return load_config(recipe, FEW | more | {key.replace("__", "."): value for key, value in changes.items()})


class Refuses:
    """An engine that fails after so many answers: what is recorded by then is all that is left of the run."""

    def __init__(self, engine, answers: int) -> None:
        self.engine, self.left, self.prompt_set = engine, answers, engine.prompt_set
        self.describe, self.close = engine.describe, engine.close

    async def generate(self, requests):
        if self.left < len(requests):
            raise StoreError("cut off")
        self.left -= len(requests)
        return await self.engine.generate(requests)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for name in LOOPS:
        play(root, name.replace("_", "-"), small(name))
    return root


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_recorded_from_the_untrained_model_to_the_table(whole, name):
    with RunReader.open(whole / name.replace("_", "-")) as run:
        assert run.status == "finished"
        found = phases(run)
        assert found[0].stage == run.config["loop"]
        assert [p.number for p in found] == list(range(len(found)))
        assert {p.iteration for p in found} == {0, 1, 2}
        done = trainings(run)
        wanted = {"actor_critic": 4, "self_play": 4, "td_values": 2, "policy_iteration": 2}[name]
        assert len(done) == len(datasets(run)) == wanted
        for training in done:
            examples = list(dataset(run, training.iteration, training.student))
            assert len(examples) == training.examples > 0
            assert all(example.sources for example in examples)
        recorded = run.rows("SELECT count(*) FROM games WHERE outcome IS NULL OR ending = ''")
        assert recorded == [(0,)]
        assert run.results["rows"]


def test_every_example_names_games_of_its_run(whole):
    with RunReader.open(whole / "actor-critic") as run:
        games = {game for (game,) in run.rows("SELECT game FROM games")}
        sources = {game for example in run.examples() for game in example.sources}
        assert sources <= games
        values = [example for example in dataset(run, 1, "value") if len(example.sources) > 1]
        assert values, "some value was estimated from games of others"


def test_metrics_are_kept_by_iteration(whole):
    with RunReader.open(whole / "actor-critic") as run:
        steps = dict(run.rows("SELECT name, group_concat(step) FROM metrics GROUP BY name"))
        assert steps["evaluate/games/win"] == "0,1,2"
        assert {"evaluate/moves/optimal", "improve/values exact/right", "improve/values results/right"} <= steps.keys()
        assert steps["distil value/training/examples"] == "1,2"
        assert run.metrics["evaluate/replies/parsed"] == [1.0] * 3


@pytest.mark.parametrize(("name", "share"), [*((name, 0.7) for name in LOOPS), ("actor_critic", 0.2)])
def test_a_loop_that_was_cut_off_ends_as_if_it_had_not_been(whole, name, share, tmp_path):
    run_id = name.replace("_", "-")
    with RunReader.open(whole / run_id) as run:
        ((calls,),) = run.rows("SELECT count(*) FROM calls")
    with pytest.raises(StoreError, match="cut off"):
        play(tmp_path, run_id, small(name), lambda engine: Refuses(engine, int(share * calls)))
    play(tmp_path, run_id, small(name))
    assert digest_of(tmp_path, run_id) == digest_of(whole, run_id)


def test_a_resumed_loop_asks_nothing_twice_and_other_knobs_are_refused(tmp_path):
    config = small("actor_critic", budget__calls=50)
    with pytest.raises(BudgetError):
        asyncio.run(run_recorded(config, Place(tmp_path, "run", plain=True)))
    with pytest.raises(ResumeError, match=r"config\.training\.k_mc was '5' and is '4' now"):
        asyncio.run(resume_recorded(Place(tmp_path, "run", plain=True), {"training.k_mc": 4}))
    with pytest.raises(ResumeError, match=r"config\.env\.opponent was 'random' and is 'first'"):
        asyncio.run(resume_recorded(Place(tmp_path, "run", plain=True), {"env.opponent": "first"}))
    assert asyncio.run(resume_recorded(Place(tmp_path, "run", plain=True), {"budget.calls": 100_000})) == 0
    with RunReader.open(tmp_path / "run") as run:
        ((calls, keys),) = run.rows("SELECT count(*), count(DISTINCT key) FROM calls")
        assert calls == keys > 50


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("maze", {"env.opponent": "minimax"}, "game of one and has no opponent 'minimax'"),
        ("tic_tac_toe", {"env.opponent": "minimax:4"}, "looks to the end"),
        ("breakthrough", {"env.opponent": "pool"}, "needs a policy that learns"),
        ("tic_tac_toe", {"env.map": "4x4"}, "'3x3', not '4x4'"),
        ("frozen_lake", {"env.options.slipery": False}, "has the options: slippery, horizon"),
        (
            "tic_tac_toe",
            {"engine.kind": "http", "engine.base_url": "http://127.0.0.1:9/v1"},
            r"value student cannot be trained .* keep its weights as they are with training\.learners = \['policy'\]",
        ),
        (
            "tic_tac_toe",
            {"distil.loss": "logits", "roles.teacher.base_url": "http://127.0.0.1:9/v1"},
            "needs the teacher's weights in this process",
        ),
        ("maze", {"engine.kind": "oracle", "env.id": "tic_tac_toe", "env.map": "3x3"}, "take loop = 'actor_critic'"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_is_spent(recipe, changes, says, tmp_path):
    with pytest.raises((ConfigError, EnvError), match=says):
        asyncio.run(run_recorded(load_config(recipe, changes), Place(tmp_path, "run", plain=True)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("learners", [(), ("value",)])
def test_who_does_not_learn_keeps_its_weights_and_its_lessons_are_recorded(learners, tmp_path, capsys):
    config = small("actor_critic", training__learners=learners, training__iterations=1)
    assert asyncio.run(run_recorded(config, Place(tmp_path, "run", plain=True))) == 0
    said = " ".join(capsys.readouterr().out.split())
    who = "policy student keeps its weights" if learners else "value and policy students keep their weights"
    assert f"The {who} (training.learners)" in said
    with RunReader.open(tmp_path / "run") as run:
        taught = {training.student: training.examples for training in trainings(run)}
        assert {student for student, examples in taught.items() if examples} == set(learners)
        assert all(len(list(dataset(run, 1, student))) > 0 for student in ("value", "policy"))


def test_past_policies_come_from_a_policy_that_learns(tmp_path):
    config = small("self_play", training__learners=("value",))
    with pytest.raises(ConfigError, match=r"name it in training\.learners"):
        asyncio.run(run_recorded(config, Place(tmp_path, "run", plain=True)))


def test_every_recipe_can_be_estimated(capsys):
    for recipe in sorted(recipes()):
        few = {"training.games": 8, "training.positions": 4, "training.held_out": 2, "env.opponent": "random"}
        more = {"look_ahead.rollout": "random", "look_ahead.variations": 2}
        config = load_config(recipe, {} if recipe == "maze" else few | more if "maze" not in recipe else {})
        asyncio.run(print_estimate(config))
        printed = capsys.readouterr().out
        assert "Calls:" in printed, recipe
        assert "Nothing was asked." in printed


def test_an_estimate_is_more_than_what_the_run_then_uses(whole, capsys):
    asyncio.run(print_estimate(small("actor_critic")))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Calls:")]
    low, high = (int(word.replace(",", "")) for word in line.split()[1::2])
    with RunReader.open(whole / "actor-critic") as run:
        ((calls,),) = run.rows("SELECT count(*) FROM calls")
    assert low / 3 < calls < high * 2


def test_roles_have_engines_of_their_own(tmp_path):
    config = small("actor_critic", training__iterations=1, roles__teacher__kind="oracle", roles__teacher__attempts=2)
    assert asyncio.run(run_recorded(config, Place(tmp_path, "run", plain=True))) == 0
    with RunReader.open(tmp_path / "run") as run:
        assert set(run.results["engines"]) == {"policy", "teacher"}
        assert {"model.fingerprint", "teacher.model.fingerprint", "teacher.prompts.improve"} <= run.identity.keys()


def nlrl_says(capsys, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nlrl", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            main()
    printed = capsys.readouterr()
    return printed.out if left.value.code in (0, None) else printed.err


def test_runs_say_what_they_do_and_where_they_got_to(whole, capsys):
    lines = nlrl_says(capsys, "runs", "--runs", str(whole)).splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["actor-critic"]]
    assert "actor critic on tic_tac_toe" in line
    assert "iteration 2, evaluate" in line


def test_a_game_of_two_is_replayed_with_both_seats(whole, capsys):
    which = ["--iteration", "2", "--phase", "evaluate", "--game", "1"]
    said = nlrl_says(capsys, "replay", "actor-critic", "--runs", str(whole), *which)
    assert said.startswith("actor-critic, game 25000001")
    assert "1. O (opponent): " in said
    assert "2. X: " in said
    assert said.count("---------") > 4
    with RunReader.open(whole / "actor-critic") as run:
        last = run.events(25000001)[-1]
        assert isinstance(last, GameEnd)
        assert last.ending.rstrip(".") in said
    refused = nlrl_says(capsys, "replay", "actor-critic", "--runs", str(whole), "--iteration", "7")
    assert "no such game" in refused
    assert "4 of --iteration 2 --phase evaluate" in refused


def test_the_data_set_of_each_iteration_is_exported_as_chat(whole, tmp_path, capsys):
    said = nlrl_says(capsys, "export", "actor-critic", str(tmp_path / "lessons"), "--lessons", "--runs", str(whole))
    files = sorted(path.name for path in (tmp_path / "lessons").iterdir())
    assert files == [f"iteration-{i}-{student}.jsonl" for i in (1, 2) for student in ("policy", "value")]
    lines = [json.loads(line) for line in (tmp_path / "lessons" / files[1]).read_text().splitlines()]
    assert f"{len(lines):,} examples in iteration-1-value.jsonl" in " ".join(said.split())
    with RunReader.open(whole / "actor-critic") as run:
        for line, example in zip(lines, dataset(run, 1, "value"), strict=True):
            assert [tuple(message.values()) for message in line["messages"]] == [
                *example.messages,
                ("assistant", example.target),
            ]
            assert (line["id"], line["games"]) == (example.id, list(example.sources))
    again = nlrl_says(capsys, "export", "actor-critic", str(tmp_path / "lessons"), "--lessons", "--runs", str(whole))
    assert "is not empty; name a new folder" in again


def test_a_model_in_both_roles_goes_over_what_it_was_taught_in_the_other():
    taught = []

    class Keeps:
        async def learn(self, examples, *, iteration, student, seed):
            taught.append((student, [one.id for one in examples]))
            return Trained(iteration, student, f"{student}-{iteration}", len(examples), 0)

    def lessons(name: str) -> list[Example]:
        return [Example(name, "value", (("user", "?"),), "!")]

    async def go() -> list[Trained]:
        student = Rehearsing(Keeps())
        order = [("value", "v1"), ("policy", "p1"), ("value", "v2"), ("policy", "")]
        return [
            await student.learn(lessons(name) if name else [], iteration=1, student=role, seed=0)  # type: ignore[arg-type]
            for role, name in order
        ]

    done = asyncio.run(go())
    assert taught == [("value", ["v1"]), ("policy", ["p1", "v1"]), ("value", ["v2", "p1"]), ("policy", [])]
    assert [one.examples for one in done] == [1, 1, 1, 0]
