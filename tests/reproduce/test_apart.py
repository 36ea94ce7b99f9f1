"""Held-out positions and mirror images: one form for all images of a position, and none of them in training."""

import random

import pytest

from nlrl.config import load_config
from nlrl.task import build_task, positions
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.maze import MazeText
from nlrl_envs.maze_maps import MAPS, MazeMap, random_map
from nlrl_envs.symmetry import canonical, canonical_maze, shared
from nlrl_envs.tic_tac_toe import TicTacToe


def played(game, moves):
    for move in moves:
        game.step(move)
    return game.state


def mirrored(game, move: str) -> str:
    """A move in the mirror from left to right."""
    if isinstance(game, ConnectFour):
        return str(8 - int(move))
    letters = str.maketrans("abcde", "edcba")
    return move.translate(letters)


@pytest.mark.parametrize("make", [Breakthrough, ConnectFour])
def test_a_game_in_the_mirror_has_the_same_forms(make):
    rng, game, image = random.Random(0), make(), make()
    unlike = 0
    for _ in range(12):
        move = rng.choice(game.legal_actions)
        game.step(move)
        image.step(mirrored(image, move))
        assert canonical(game, game.state) == canonical(image, image.state)
        unlike += game.state != image.state
    assert unlike > 6, "the images were other positions"


def test_the_square_has_eight_images():
    # A corner, then the middle of one of the two sides that do not touch it.
    lines = [("1", "6"), ("1", "8"), ("3", "4"), ("3", "8"), ("7", "2"), ("7", "6"), ("9", "2"), ("9", "4")]
    assert len({canonical(TicTacToe(), played(TicTacToe(), line)) for line in lines}) == 1
    others = {canonical(TicTacToe(), played(TicTacToe(), line)) for line in [("1", "2"), ("1", "5"), ("1", "9")]}
    assert len(others) == 3
    assert canonical(TicTacToe(), played(TicTacToe(), ("1", "6"))) not in others


def test_tic_tac_toe_has_as_many_forms_as_the_literature_says():
    # 765 essentially different positions, of which 138 are finished games.
    seen, open_ = set(), [TicTacToe()]
    while open_:
        game = open_.pop()
        form = canonical(game, game.state)
        if form in seen:
            continue
        seen.add(form)
        for move in game.legal_actions:
            after = game.clone()
            after.step(move)
            open_.append(after)
    assert len(seen) == 765
    assert sum(form[3] is not None for form in seen) == 138


def test_what_is_shared_is_named():
    a, b = played(TicTacToe(), ("1",)), played(TicTacToe(), ("9",))
    assert shared(TicTacToe(), [a], [b, played(TicTacToe(), ("5",))]) == [(a, b)]
    assert shared(TicTacToe(), [a], [played(TicTacToe(), ("2",))]) == []


def test_positions_to_be_judged_have_no_image_among_those_that_are_learned():
    overrides = {
        "env.opponent": "random", "look_ahead.rollout": "random", "engine.kind": "oracle", "training.games": 60,
        "training.positions": 300, "training.held_out": 200,
    }  # fmt: skip
    config = load_config("breakthrough", overrides)
    task = build_task(config)
    learned, reported = positions(task, config)
    assert (len(learned), len(reported)) == (300, 200)
    assert shared(task.env, learned, reported) == []


def test_a_maze_keeps_its_form_when_it_is_turned():
    maze = MAPS["double_t"]
    rows = tuple(row[::-1] for row in maze.rows)
    turned = MazeMap("turned", rows, (maze.goal[0], len(rows[0]) - 1 - maze.goal[1]))
    fallen = MazeMap("fallen", tuple(map("".join, zip(*maze.rows, strict=True))), (maze.goal[1], maze.goal[0]))
    assert canonical_maze(maze) == canonical_maze(turned) == canonical_maze(fallen)
    moved = MazeMap("moved", maze.rows, (1, 1))
    assert canonical_maze(moved) != canonical_maze(maze)
    assert len({canonical_maze(random_map(seed, 9, 9)) for seed in range(50)}) > 40


def test_a_game_without_symmetries_keeps_its_states():
    env = MazeText("umaze")
    assert canonical(env, env.state) == env.state
