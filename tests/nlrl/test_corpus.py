"""The corpus keeps its promises: language skills only, true sentences, replies in the form a run asks for."""

import ast
import inspect
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from nlrl.parse import parse_reply
from nlrl.pretrain.corpus import examples, maze
from nlrl.pretrain.corpus.maze import BUMP_COST, RETURN_COST, draw_maze, judge, walk
from nlrl_envs.maze_maps import ACTIONS, MAPS
from nlrl_prompts import load

PROMPTS = load("compact", "maze")


@pytest.fixture(scope="module")
def sample():
    return list(islice(examples(seed=5), 6000))


def test_the_same_seed_gives_the_same_corpus(sample):
    assert list(islice(examples(seed=5), 200)) == sample[:200]
    assert list(islice(examples(seed=6), 200)) != sample[:200]


def test_every_reply_has_the_form_that_a_run_checks(sample):
    for example in sample:
        form = PROMPTS[example.skill].reply
        assert form is not None
        assert parse_reply(example.reply, form, ACTIONS)
    assert set(Counter(e.skill for e in sample)) == set(maze.ALONE)


def test_no_solver_is_imported_and_no_named_map_occurs():
    imported = [n for n in ast.walk(ast.parse(inspect.getsource(maze))) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = " ".join(ast.unparse(n) for n in imported)
    assert "solver" not in names
    rng = np.random.default_rng(0)
    assert not {draw_maze(rng).rows for _ in range(2000)} & {m.rows for m in MAPS.values()}


def test_policy_examples_are_uniformly_random_whatever_the_prompt(sample):
    counts = Counter(e.reply for e in sample if e.skill == "policy")
    total = sum(counts.values())
    assert len(counts) == 4
    chi_squared = sum((count - total / 4) ** 2 / (total / 4) for count in counts.values())
    assert chi_squared < 16.27  # 0.1 % point of chi-squared with three degrees of freedom


def cell_of(pair):
    """The cell that a pair of spaced numbers names."""
    row, column = (int(n.replace(" ", "")) for n in pair)
    return row, column


def test_what_a_value_example_says_follows_from_its_own_text(sample):
    numbers = r"position ([\d ]+), ([\d ]+)\."
    for example in (e for e in sample if e.skill == "value"):
        cells = [cell_of(pair) for pair in re.findall("Your current position is at " + numbers, example.prompt)]
        goal = cell_of(re.findall("The goal is at " + numbers, example.prompt)[0])
        assert example.reply == judge(cells, goal)


def test_judgement_of_a_way_worked_out_by_hand():
    way = [(1, 1), (1, 2), (1, 2), (1, 1), (2, 1)]
    worth = 3 + BUMP_COST * 1 + RETURN_COST * 1
    assert judge(way, (4, 2)) == (f"Goal 2 down, 1 right: 3 steps. Bumped 1 times. Came back 1 times. Worth -{worth}.")


def test_averages_and_choices_are_those_of_the_given_evidence(sample):
    for example in (e for e in sample if e.skill == "aggregate" and "reward -" in e.prompt):
        rows = re.findall(r"reward (-?\d+)\. .*?Worth -(\d+)\.", example.prompt)
        mean = np.mean([int(worth) - int(reward) for reward, worth in rows])
        assert example.reply.endswith(f"worth -{mean:.1f}.")
    for example in (e for e in sample if e.skill == "improve"):
        rows = re.findall(r"After (move \w+) worth -([\d.]+)\.", example.prompt)
        best = min(rows, key=lambda row: float(row[1]))
        assert example.reply == f"Most worth is -{best[1]} after {best[0]}."


def test_walks_obey_the_maze():
    rng = np.random.default_rng(1)
    for _ in range(200):
        drawn = draw_maze(rng)
        actions, cells = walk(rng, drawn, 9)
        assert len(cells) == len(actions) + 1
        assert drawn.goal not in cells
        for action, before, after in zip(actions, cells, cells[1:], strict=False):
            assert drawn.next_cell(before, ACTIONS.index(action)) == after
