"""Rows run with exact numbers in a model's place: what is stored, what is not done twice, what tables say."""

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

import pytest

from nlrl.cli import main
from nlrl.config import load_config, recipes
from nlrl.errors import ConfigError, NoSuchRunError, StoreError, UnknownNameError
from nlrl.reproduce import running
from nlrl.reproduce.explain import explain, markdown
from nlrl.reproduce.intervals import over_seeds, t_quantile
from nlrl.reproduce.plan import LIMIT, items
from nlrl.reproduce.results import Point, Result, cell_name, read, write
from nlrl.reproduce.rows import TABLES, rows_of
from nlrl.reproduce.running import STOPPED, Plan, config_afterwards, config_of, recipe_path, run_plan
from nlrl.reproduce.tables import table_text
from nlrl.store import RunReader

EXACT = {"engine.kind": "oracle", "env.map": "umaze", "look_ahead.variations": 2, "look_ahead.steps": 1,
         "training.evaluation_games": 6, "training.iterations": 2}  # fmt: skip


def plan(out, seeds=1, **more):
    return Plan(
        "learning", rows_of("learning", ["maze-double-t"]), ("hymba",), seeds, out, None, None, {**EXACT, **more}
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    assert asyncio.run(run_plan(plan(out, seeds=2), lambda _: None)) == 0
    return out


@pytest.mark.parametrize("row", [row for rows in TABLES.values() for row in rows], ids=lambda row: row.id)
def test_every_row_has_a_recipe_or_says_what_is_missing(row, tmp_path):
    if row.missing:
        with pytest.raises(ConfigError, match="cannot be run yet"):
            config_of(plan(tmp_path), row, "hymba", 0)
        return
    recipe = recipe_path(row.recipe)
    config = load_config(str(recipe), row.overrides)
    assert config.learns
    assert (config.loop == "td_values") == ("values" in row.figure)
    named = [one.id for rows in TABLES.values() for one in rows if one.recipe == row.recipe]
    assert f"--row {named[0]}" in recipe.read_text().splitlines()[0]


def test_names_of_rows_and_runs_are_plain_and_unlike():
    names = [row.id for rows in TABLES.values() for row in rows]
    assert len(set(names)) == len(names)
    assert cell_name("maze-double-t", "some/Folder/Hymba", 3) == "maze-double-t--hymba--s3"
    assert not {path.stem for path in recipe_path("maze_medium").parent.glob("*.toml")} & set(recipes())
    with pytest.raises(UnknownNameError, match="maze-medium"):
        rows_of("learning", ["maze-medum"])
    with pytest.raises(UnknownNameError, match="ablations"):
        rows_of("ablation")


def test_a_result_says_what_was_measured_and_how(done):
    result = read(done / "results" / "maze-double-t--hymba--s1.json")
    with RunReader.open(done / "runs" / result.name) as run:
        assert result.status == run.status == "finished"
        assert result.seed == run.seed == 1
        returns = run.metrics["evaluate/games/return"]
        ((calls, written),) = run.rows("SELECT count(*), sum(completion_tokens) FROM calls")
    assert [point.value for point in result.curve] == returns
    assert result.final == returns[-1] == -2.5, "exact values make perfect play of umaze"
    assert (result.calls, result.completion_tokens) == (calls, written)
    assert [point.iteration for point in result.curve] == [0, 1, 2]
    tokens = [point.tokens for point in result.curve]
    assert tokens == sorted(tokens)
    assert tokens[-1] == written
    assert all(point.seconds is not None for point in result.curve)
    assert result.command.startswith("nlrl reproduce learning --row maze-double-t --backbone hymba --seeds 2")
    assert "env.map" in result.command


def test_what_is_finished_is_not_done_again(done, monkeypatch):
    monkeypatch.setattr(running, "run_recorded", None)
    monkeypatch.setattr(running, "resume_recorded", None)
    said = []
    assert asyncio.run(run_plan(plan(done, seeds=2), said.append)) == 0
    assert [line.endswith("finished before") for line in said] == [True, True]


def games(run):
    with RunReader.open(run) as reader:
        return reader.counts()[1]


def test_what_a_limit_cut_off_goes_on_and_ends_as_if_it_had_not_been(done, tmp_path, monkeypatch):
    done_in = running._done_in
    run = tmp_path / "runs" / "maze-double-t--hymba--s0"

    async def until_some_games(work, limit):
        while not (run / "run.sqlite").is_file() or games(run) < 8:
            assert not work.done()
            await asyncio.sleep(0.01)
        return False

    monkeypatch.setattr(running, "_done_in", until_some_games)
    limited = replace(plan(tmp_path), limit=1000.0)
    said = []
    assert asyncio.run(run_plan(limited, said.append)) == STOPPED
    assert read(tmp_path / "results" / f"{run.name}.json").status == "interrupted"
    assert "0 of 1 runs are finished" in said[-1]
    with RunReader.open(run) as reader:
        kept = reader.rows("SELECT key FROM calls ORDER BY number")
    monkeypatch.setattr(running, "_done_in", done_in)
    assert asyncio.run(run_plan(limited, said.append)) == 0
    found, whole = (read(root / "results" / f"{run.name}.json") for root in (tmp_path, done))
    assert found.final == whole.final
    assert [p.tokens for p in found.curve] == [p.tokens for p in whole.curve]
    with RunReader.open(run) as reader:
        assert reader.rows("SELECT key FROM calls ORDER BY number")[: len(kept)] == kept


def test_the_last_policy_plays_on_without_learning(tmp_path):
    (row,) = rows_of("learning", ["ttt-minimax"])
    config = load_config(str(recipe_path(row.recipe)))
    again = config_afterwards(config, row, tmp_path / "run")
    assert (again.env.opponent, again.training.learners) == ("minimax", ())
    assert again.engine.backbone == str(tmp_path / "run" / "checkpoints" / "policy-8")
    assert again.training.evaluation_games == config.training.evaluation_games


def result(seed, final, row="ttt-random", status="finished", backbone="hymba"):
    curve = (Point(0, 0.4, 0.35, 0.45, 10, 1.0), Point(1, final, final - 0.05, final + 0.05, 20, 2.0))
    return Result("learning", row, backbone, seed, status, curve, final, "nlrl ...", "abc", "a machine", "model")


def test_a_table_has_means_with_intervals_over_seeds_and_verdicts():
    rows = rows_of("learning")
    results = [result(0, 0.96), result(1, 0.98), result(2, 0.97), result(0, 0.5, backbone="ngpt"),
               result(1, 0.6, backbone="diff", status="interrupted")]  # fmt: skip
    lines = table_text("learning", rows, results).splitlines()
    (best,) = [line for line in lines if "(`ttt-random`)" in line and "| hymba |" in line]
    # Half a width: t(0.975, 2) = 4.3027, standard deviation 0.01, three seeds.
    assert "| 97.0 % (94.5 % .. 99.5 %) | 3 | yes |" in best
    (single,) = [line for line in lines if "| ngpt |" in line]
    assert "| 50.0 % [45.0 % .. 55.0 %] | 1 | no |" in single
    assert any("| diff | 1 unfinished |" in line for line in lines)
    assert any("(`connect-four`)" in line and "not run" in line for line in lines)
    assert any(line.startswith("| ttt-random--hymba--s0 | 40.0 % | 96.0 % |") for line in lines)


def test_a_row_where_less_is_better_is_judged_so():
    (row,) = rows_of("learning", ["ttt-minimax"])
    assert [row.reached(value) for value in (0.0, 0.01, 0.02)] == [True, True, False]
    assert "| no |" in table_text("learning", [row], [result(0, 0.4, row.id)])


def test_the_interval_is_students():
    # Quantiles as tables of the distribution print them.
    known = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
    assert {n: round(t_quantile(0.975, n), 3) for n in known} == known
    assert over_seeds([1.0, 2.0, 3.0]).half == pytest.approx(4.302653 / 3**0.5)
    assert over_seeds([1.0]).half != over_seeds([1.0]).half, "one seed says nothing of the spread"
    with pytest.raises(ValueError, match="degree"):
        t_quantile(0.975, 0)


def test_a_damaged_result_is_named(tmp_path):
    path = write(result(0, 0.9), tmp_path)
    assert read(path) == result(0, 0.9)
    path.write_text(json.dumps({"table": "learning"}))
    with pytest.raises(StoreError, match=r"ttt-random--hymba--s0\.json' is no result"):
        read(path)


def test_the_plan_keeps_within_ten_minutes_and_names_rows_that_are_there():
    for item in items():
        words = item.command.replace("&&", "").split()
        assert ("--table" in words) or str(LIMIT) in words or str(LIMIT - 60) in words
        for option, name in pairwise(words):
            if option == "--row":
                assert rows_of("learning", [name])
    assert LIMIT < 600


def test_the_command_line_lists_and_writes(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nlrl", "reproduce", "--list"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert "maze-double-t" in capsys.readouterr().out
    words = ["nlrl", "reproduce", "learning", "--table", "--out", str(done), "--tables", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert "-2.50 (-2.50 .. -2.50) | 2 | yes |" in (tmp_path / "learning.md").read_text()


def test_curves_are_drawn_side_by_side(tmp_path):
    pytest.importorskip("matplotlib")
    from nlrl.reproduce.plots import plot

    (row,) = rows_of("learning", ["ttt-random"])
    written = plot(row, [result(0, 0.9), result(1, 0.8), result(0, 0.7, backbone="ngpt")], tmp_path / "plot")
    assert [path.suffix for path in written] == [".png", ".svg"]
    assert all(path.stat().st_size > 5000 for path in written)
    first = written[1].read_text()
    assert all(word in first for word in ("hymba", "ngpt", "iterations", "seconds", "tokens written"))


def test_a_position_is_followed_through_a_run(done):
    with RunReader.open(done / "runs" / "maze-double-t--hymba--s0") as reader:
        found = explain(reader)
        assert [moment.iteration for moment in found.moments] == [1, 2]
        assert found.exact is not None
        assert found.moments[-1].chosen in found.exact
        assert {e.action for e in found.moments[0].evidence_A} == set(found.exact)
        text = markdown(found)
        (best,) = [line for line in text.splitlines() if line.endswith("| best |")]
        assert found.moments[-1].chosen in best
        assert "## Iteration 1 (before)" in text
        named = explain(reader, "current position is at position 1, 1.")
        assert "position is at position 1, 1." in named.place.observation
        with pytest.raises(NoSuchRunError, match="No decision"):
            explain(reader, "position 77")
        with pytest.raises(NoSuchRunError, match="iterations 1, 2 only"):
            explain(reader, None, (5, None))
