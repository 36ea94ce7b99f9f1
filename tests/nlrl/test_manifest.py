"""A run goes on only where all that decides its answers is as it was; the refusal names what is not."""

import asyncio
import json
import shutil
import sqlite3

import pytest
from small_runs import config, digest_of, play

from nlrl.engine.oracle import OracleEngine
from nlrl.errors import ConfigError, NoSuchRunError, ResumeError, UnknownNameError
from nlrl.manifest import _modules_of, check_same, code_digest
from nlrl.session import Place, resume_recorded
from nlrl.store import RunReader, list_runs
from nlrl.store_schema import FILE_NAME

OVERRIDES = {
    "seed": 1,
    "env.id": "other",
    "env.map": "double_t",
    "env.starts": "all",
    "env.history_items": 5,
    "look_ahead.variations": 3,
    "look_ahead.steps": 2,
    "look_ahead.rollout": "policy",
    "look_ahead.combine": "split",
    "engine.kind": "http",
    "engine.backbone": "other",
    "engine.model": "other",
    "engine.prompts": "compact",
    "engine.attempts": 2,
    "engine.constraints": "require",
    "engine.logprobs": True,
    "engine.batch_invariant": True,
    "baseline": False,
}
NOT_IN_THE_CONFIG = ("code", "prompts.value", "model.id", "model.fingerprint", "model.kind", "config.recipe")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    play(root, "run", config())
    with sqlite3.connect(root / "run" / FILE_NAME) as db:
        db.execute("UPDATE run SET status = 'running'")
    return root


@pytest.fixture
def runs(played, tmp_path):
    shutil.copytree(played / "run", tmp_path / "run")
    return tmp_path


def resume(runs, overrides=None, **more):
    return asyncio.run(resume_recorded(Place(runs, "run", plain=True), overrides or {}, **more))


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_changed_key_is_refused_by_name(runs, name):
    before = digest_of(runs, "run")
    with pytest.raises(ResumeError, match=rf"cannot go on: config\.{name} was .* --force-new"):
        resume(runs, {name: OVERRIDES[name]})
    assert digest_of(runs, "run") == before


@pytest.mark.parametrize("name", NOT_IN_THE_CONFIG)
def test_what_changed_outside_the_config_is_refused_by_name(runs, name):
    with sqlite3.connect(runs / "run" / FILE_NAME) as db:
        identity = json.loads(db.execute("SELECT identity FROM run").fetchone()[0])
        db.execute("UPDATE run SET identity = ?", (json.dumps(identity | {name: "other"}),))
    with pytest.raises(ResumeError, match=rf"{name} was 'other' and is"):
        resume(runs)


def test_a_model_that_answers_otherwise_is_refused(runs, monkeypatch):
    monkeypatch.setattr(OracleEngine, "_value", lambda self, prompt, history: 0.0)
    monkeypatch.setattr("nlrl.cast.exact_values", lambda task: {"nowhere": 0.0})
    with pytest.raises(ResumeError, match=r"model\.(fingerprint|id) was"):
        resume(runs)


def test_what_decides_nothing_may_change(runs):
    wanted = digest_of(runs, "run")
    changes = {"engine.at_once": 3, "budget.calls": 10**6, "engine.outage_seconds": 1, "engine.base_url": "http://x/v1"}
    assert resume(runs, changes) == 0
    with RunReader.open(runs / "run") as reader:
        assert reader.status == "finished"
    assert digest_of(runs, "run") != wanted  # it says finished now
    assert resume(runs) == 0


def test_a_run_that_was_stopped_before_it_had_its_prompts_gets_them(runs):
    with RunReader.open(runs / "run") as reader:
        wanted = reader.prompts()
    with sqlite3.connect(runs / "run" / FILE_NAME) as db:
        db.execute("DELETE FROM prompts")
    assert resume(runs) == 0
    with RunReader.open(runs / "run") as reader:
        assert reader.prompts() == wanted != []


def test_force_new_begins_another_run(runs):
    before = digest_of(runs, "run")
    assert resume(runs, {"seed": 5}, force_new=True) == 0
    assert digest_of(runs, "run") == before
    other = next(run for run in list_runs(runs) if run.id != "run")
    with RunReader.open(runs / other.id) as reader:
        assert (reader.seed, reader.status) == (5, "finished")


def test_mistakes_are_one_sentence(runs):
    with pytest.raises(NoSuchRunError, match="There is no run"):
        asyncio.run(resume_recorded(Place(runs, "none", plain=True), {}))
    with pytest.raises(UnknownNameError, match=r"Did you mean 'env\.map'"):
        resume(runs, {"env.mpa": "x"})
    with pytest.raises(ConfigError, match="cannot be used"):
        resume(runs, {"look_ahead.steps": -1})


def test_the_first_difference_is_named_and_long_values_are_short():
    with pytest.raises(ResumeError, match=r"'r' cannot go on: a was 'absent' and is 'xxxxxxxxxxxx\.\.\.' now"):
        check_same("r", {"b": "1"}, {"a": "x" * 64, "b": "2"})
    check_same("r", {"a": "1"}, {"a": "1"})


def test_the_code_is_identified_by_its_sources():
    maze, frozen_lake = code_digest("nlrl_envs.maze"), code_digest("nlrl_envs.frozen_lake")
    assert maze != frozen_lake
    assert len(maze) == 64
    assert {"nlrl_envs.maze", "nlrl_envs.maze_maps", "nlrl_envs.base"} <= set(_modules_of("nlrl_envs.maze"))
    assert "nlrl_envs.breakthrough" not in _modules_of("nlrl_envs.maze")
