"""The maze as a game: text, rules, drawing, both faces."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

import nlrl_envs  # noqa: F401 - registers nlrl/Maze-v0
from nlrl_envs.maze import MazeEnv, MazeState, MazeText, describe
from nlrl_envs.maze_maps import MAPS, MazeMap, load_map, random_map


def at(row: int, column: int, map_: str = "double_t", steps: int = 0, horizon: int = 100) -> MazeText:
    env = MazeText(map_, horizon)
    env.set_state(MazeState((row, column), steps))
    return env


@pytest.mark.parametrize(
    ("map_", "cell", "text"),
    [
        ("double_t", (1, 2), "The goal is at position 8, 6. Your current position is at position 1, 2. "
         "There are walls above you, below you.\n"),
        ("double_t", (1, 10), "The goal is at position 8, 6. Your current position is at position 1, 1 0. "
         "There are walls above you, below you.\n"),
        ("double_t", (5, 6), "The goal is at position 8, 6. Your current position is at position 5, 6. "
         "There is a wall above you.\n"),
        ("double_t", (1, 1), "The goal is at position 8, 6. Your current position is at position 1, 1. "
         "There are walls to your left, above you, below you.\n"),
        ("double_t", (7, 6), "The goal is at position 8, 6. Your current position is at position 7, 6. "
         "There are walls to your right, to your left.\n"),
        ("random:1:15x15", (7, 9), "The goal is at position 1 2, 3. Your current position is at position 7, 9. "
         "There are no walls near you.\n"),
        ("large", (10, 1), "The goal is at position 1 0, 7. Your current position is at position 1 0, 1. "
         "There are walls to your left, below you.\n"),
    ],
)  # fmt: skip
def test_observation_text(map_: str, cell: tuple[int, int], text: str):
    assert describe(load_map(map_), cell) == text


def test_a_wall_leaves_the_agent_in_place_and_costs_one():
    env = at(1, 1)
    result = env.step("move up")
    assert (result.reward, result.legal, env.state) == (-1.0, True, MazeState((1, 1), 1))


def test_the_move_that_reaches_the_goal_costs_nothing():
    env = at(7, 6)
    result = env.step("move down")
    assert (result.reward, result.terminated, result.truncated, result.success) == (0.0, True, False, True)
    assert env.terminal_text == "The goal is reached."
    assert env.legal_actions == ()


@pytest.mark.parametrize("move", ["move down\n", "Move down", "down", "", "move sideways", " move down"])
def test_anything_else_is_illegal_and_costs_four(move: str):
    env = at(7, 6)
    result = env.step(move)
    assert (result.reward, result.legal, env.state) == (-4.0, False, MazeState((7, 6), 1))


def test_the_last_move_pays_for_running_out():
    env = at(1, 1, steps=99)
    result = env.step("move right")
    assert (result.reward, result.terminated, result.truncated) == (-2.0, False, True)
    assert env.terminal_text == "The moves are used up and the goal is not reached."


def test_the_goal_may_be_reached_with_the_last_move():
    result = at(7, 6, steps=99).step("move down")
    assert (result.reward, result.terminated, result.truncated) == (0.0, True, False)


def test_a_failed_game_returns_the_floor_of_lmrl_gym():
    env = MazeText("umaze")
    env.reset(np.random.default_rng(0), env.starts()[0])
    total = 0.0
    while env.legal_actions:
        total += env.step("move up").reward
    assert total == -101


def test_a_move_after_the_end_is_refused():
    env = at(8, 6)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("move up")


@pytest.mark.parametrize("state", [((0, 0), 0), ((1, 1), -1), ((1, 1), 101), ((99, 99), 0)])
def test_an_impossible_state_is_refused(state: tuple):
    with pytest.raises(ValueError, match="is no state of maze"):
        MazeText().set_state(state)


def test_optimal_return_knows_the_moves_that_are_left():
    env = MazeText(horizon=20)
    assert env.optimal_return(MazeState((1, 1), 0)) == -11
    assert env.optimal_return(MazeState((1, 1), 8)) == -11
    assert env.optimal_return(MazeState((1, 1), 9)) == -12
    assert env.optimal_return(MazeState((1, 1), 15)) == -6
    assert str(env.optimal_return(MazeState((8, 6), 3))) == "0.0"
    assert str(env.optimal_return(MazeState((7, 6), 3))) == "0.0"
    assert env.optimal_return(MazeState((7, 6), 20)) == -1


def test_starts_are_all_free_cells_but_the_goal_in_row_order():
    env = MazeText("umaze")
    names = [env.describe_start(start) for start in env.starts()]
    assert names == ["1, 1", "1, 2", "1, 3", "2, 1", "2, 3", "3, 1"]


def test_random_starts_cover_all_of_them():
    env, rng = MazeText("umaze"), np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        env.reset(rng)
        seen.add(env.state)
    assert seen == set(env.starts())


def test_drawing():
    env = at(1, 1, "umaze")
    env.step("move right")
    assert env.render().splitlines() == [
        "   0 1 2 3 4",
        " 0 ██████████",
        " 1 ██· @   ██",
        " 2 ██  ██  ██",
        " 3 ██  ██G ██",
        " 4 ██████████",
    ]


@pytest.mark.parametrize("size", [(5, 5), (9, 9), (9, 15), (15, 15)])
def test_generated_mazes_are_connected_corridors(size: tuple[int, int]):
    rows, columns = size
    goals = set()
    for seed in range(30):
        maze = random_map(seed, rows, columns)
        assert len(maze.distances) == len(maze.free_cells), "not connected"
        assert max(maze.distances.values()) <= 96
        squares = [
            (r, c) for r, c in maze.free_cells if {(r, c + 1), (r + 1, c), (r + 1, c + 1)} <= set(maze.free_cells)
        ]
        assert squares == [], "wider than a corridor"
        goals.add(maze.goal)
    assert len(goals) > 3


def test_generated_mazes_are_the_same_for_ever():
    maze = load_map("random:7")
    assert maze == random_map(7, 9, 9)
    assert maze != random_map(8, 9, 9)
    assert (maze.rows, maze.goal) == (GENERATED_7, GENERATED_7_GOAL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("duble_t", r"Unknown map 'duble_t'; known: double_t, umaze, .*random:SEED.*Did you mean 'double_t'"),
        ("random", "random:SEED"),
        ("random:-1", "random:SEED"),
        ("random:1:8x9", "odd number of rows from 5 to 15, not 8"),
        ("random:1:9x99", "odd number of columns from 5 to 15, not 99"),
    ],
)  # fmt: skip
def test_a_bad_map_name_gets_a_sentence(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_map(name)


def test_a_malformed_maze_is_refused():
    with pytest.raises(ValueError, match="differ in length"):
        MazeMap("m", ("####", "#..#", "###"), (1, 1))
    with pytest.raises(ValueError, match="gap"):
        MazeMap("m", ("####", "#...", "####"), (1, 1))
    with pytest.raises(ValueError, match="not a free cell"):
        MazeMap("m", ("####", "#..#", "####"), (0, 0))


@pytest.mark.parametrize("map_", [*MAPS, "random:3"])
def test_gymnasium_accepts_the_maze(map_: str, recwarn: pytest.WarningsRecorder):
    gymnasium_check_env(gymnasium.make("nlrl/Maze-v0", map_=map_, render_mode="ansi").unwrapped)
    assert [str(warning.message) for warning in recwarn] == []


def test_both_faces_show_the_same_game():
    env = gymnasium.make("nlrl_envs:nlrl/Maze-v0", render_mode="ansi")
    observation, info = env.reset(seed=1, options={"start": (1, 10)})
    assert info["text"].startswith("The goal is at position 8, 6. Your current position is at position 1, 1 0.")
    assert observation["walls"].tolist() == [0, 0, 1, 1]
    following, reward, terminated, truncated, info_after = env.step(1)
    assert following["position"].tolist() == [1, 11]
    assert (reward, terminated, truncated, info_after["illegal"]) == (-1.0, False, False, False)
    assert observation["position"].tolist() == [1, 10], "observations must not share memory"
    assert info["action_mask"] is not info_after["action_mask"]
    assert info["action_mask"].dtype == np.int8
    drawn = env.render()
    assert isinstance(drawn, str)
    assert "@" in drawn


def test_an_illegal_number_costs_four():
    env = gymnasium.make("nlrl/Maze-v0", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    _, reward, _, _, info = env.step(9)
    assert (reward, info["illegal"]) == (-4.0, True)


def test_bad_arguments_of_the_environment():
    with pytest.raises(ValueError, match="render_mode='ansi'"):
        MazeEnv(render_mode="human")
    with pytest.raises(ValueError, match="at least 1 move"):
        MazeText(horizon=0)
    env = gymnasium.make("nlrl/Maze-v0").unwrapped
    with pytest.raises(ValueError, match="is no start of maze"):
        env.reset(options={"start": (0, 0)})


GENERATED_7 = (
    "#########",
    "#...#...#",
    "#.#.###.#",
    "#.#.....#",
    "#######.#",
    "#.......#",
    "#.#######",
    "#.......#",
    "#########",
)
GENERATED_7_GOAL = (7, 6)
