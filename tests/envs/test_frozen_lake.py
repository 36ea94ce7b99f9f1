"""FrozenLake: text, chance that no copy foresees, gymnasium's own game underneath, and the exact answers."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

import nlrl_envs  # noqa: F401 - registers nlrl/FrozenLake-v0
from nlrl_envs.check import check_env
from nlrl_envs.frozen_lake import ACTIONS, FrozenLakeState, FrozenLakeText, distances, maps_of, random_map
from nlrl_envs.frozen_lake_solver import (
    greedy_policy,
    optimal_values,
    policy_values,
    reference,
    shortest_path_policy,
    tabulate,
    uniform_policy,
)


def at(position: int, map_: str = "4x4", steps: int = 0, slippery: bool = False) -> FrozenLakeText:
    env = FrozenLakeText(map_, slippery)
    env.set_state(FrozenLakeState(0, position, steps))
    return env


def test_observation_text():
    assert FrozenLakeText().observation == "P _ _ _\n_ O _ O\n_ _ _ O\nO _ _ G\n"
    assert at(14).observation == "_ _ _ _\n_ O _ O\n_ _ _ O\nO _ P G\n"


def test_endings_are_drawn_told_and_rewarded():
    env = at(14)
    step = env.step("Right")
    assert (step.reward, step.terminated, step.success, env.terminal_text) == (1, True, True, "The goal is reached.")
    assert env.render().endswith("√")
    env = at(4)
    step = env.step("Right")
    assert (step.reward, step.terminated, step.success) == (0, True, False)
    assert (env.terminal_text, env.render().splitlines()[1]) == ("The player fell into a hole.", "_ X _ O")
    env = at(0, steps=99)
    step = env.step("Up")
    assert (step.terminated, step.truncated) == (False, True)
    assert env.terminal_text == "The moves are used up and the goal is not reached."


@pytest.mark.parametrize("move", ["", "left", "1", "Left\n"])
def test_an_illegal_move_costs_a_point_and_a_move(move: str):
    env = at(0)
    step = env.step(move)
    assert (step.reward, step.legal, env.state) == (-1, False, FrozenLakeState(0, 0, 1))


@pytest.mark.parametrize(
    ("map_", "slippery"), [("8x8", True), ("4x4", False), ("random", True), ("random:3", True), ("random:3:5x7", False)]
)
def test_every_kind_of_map_keeps_the_contract(map_: str, slippery: bool):
    env = FrozenLakeText(map_, slippery)
    check_env(env, games=1)
    assert env.horizon == (200 if map_ == "8x8" else 100 if map_ == "4x4" else 10)


@pytest.mark.parametrize("map_", ["5x5", "random:", "random:1:1x4", "random:x"])
def test_a_bad_map_name_gets_a_sentence(map_: str):
    with pytest.raises(ValueError, match=r"Unknown map .*known: 4x4, 8x8, random \(512 maps\), random:SEED"):
        FrozenLakeText(map_)


@pytest.mark.parametrize("state", [(0, 16, 0), (1, 0, 0), (-1, 0, 0), (0, 0, 101), (0, -1, 0), "S", (0,)])
def test_an_impossible_state_is_refused(state):
    with pytest.raises(ValueError, match="is no state of this lake"):
        FrozenLakeText().set_state(state)


def test_random_maps_have_a_way_and_vary():
    maps = maps_of("random")
    assert maps == maps_of("random")
    assert len(set(maps)) > 500
    assert all(distances(rows)["".join(rows).index("S")] < np.inf for rows in maps)
    assert random_map(7) == maps[7] == MAP_7


def test_the_ice_slips_as_it_should():
    rng, env, seen = np.random.default_rng(0), FrozenLakeText(), np.zeros(16)
    for _ in range(3000):
        env.reset(rng, FrozenLakeState(0, 8, 0))
        env.step("Right")
        seen[env.state.position] += 1
    assert np.flatnonzero(seen).tolist() == [4, 9, 12]
    assert np.abs(seen[[4, 9, 12]] / 3000 - 1 / 3).max() < 4 * (2 / 9 / 3000) ** 0.5


def test_copies_have_luck_of_their_own_and_the_game_keeps_its_luck():
    def walk(look_ahead: bool) -> tuple[list[int], list[int]]:
        env, mine, imagined = FrozenLakeText("8x8"), [], []
        env.reset(np.random.default_rng(5))
        for _ in range(8):
            if look_ahead:
                copy = env.clone()
                copy.step("Down")
                imagined.append(copy.state.position)
            env.step("Down")
            mine.append(env.state.position)
        return mine, imagined

    plain, looked = walk(False), walk(True)
    assert plain[0] == looked[0], "looking ahead changed the game"
    assert looked[0] != looked[1], "a copy foresaw the game"
    assert walk(True) == looked, "copies are not reproducible"


def test_gymnasium_plays_the_same_game():
    ours, theirs = FrozenLakeText("8x8"), gymnasium.make("FrozenLake8x8-v1")
    moves, ends = np.random.default_rng(0), set()
    for seed in range(40):
        ours.reset(np.random.default_rng(seed))
        theirs.reset(seed=seed)
        ours.chance = np.random.default_rng(seed)
        theirs.unwrapped.np_random = np.random.default_rng(seed)
        while ours.legal_actions:
            action = int(moves.integers(4))
            step = ours.step(ACTIONS[action])
            position, reward, terminated, truncated, _ = theirs.step(action)
            assert ours.state.position == position
            assert (step.reward, step.terminated, step.truncated) == (reward, terminated, truncated)
            ends.add((terminated, truncated))
    assert (True, False) in ends


def test_exact_values_of_gymnasiums_map():
    table = tabulate(FrozenLakeText().rows, slippery=True)
    optimal = optimal_values(table, 2000)
    assert optimal.values_F_S[-1, 0] == pytest.approx(14 / 17, abs=1e-6)
    greedy = policy_values(table, greedy_policy(optimal.q_F_S_A[-1]), 2000)
    assert greedy.values_F_S[-1, 0] == pytest.approx(14 / 17, abs=1e-6)
    assert policy_values(table, uniform_policy(table), 100).values_F_S[-1, 0] == pytest.approx(0.01394, abs=1e-5)
    dry = tabulate(FrozenLakeText().rows, slippery=False)
    values = optimal_values(dry, 8).values_F_S
    assert [int(v) for v in values[:, 0]] == [0, 0, 0, 0, 0, 0, 1, 1, 1], "the goal is six moves away"


def test_caps_of_the_papers_maps():
    found = {"optimum": [], "shortest": [], "random": [], "dry": []}
    for rows in maps_of("random"):
        start, table = "".join(rows).index("S"), tabulate(rows, slippery=True)
        found["optimum"].append(optimal_values(table, 10).values_F_S[-1, start])
        found["shortest"].append(policy_values(table, shortest_path_policy(rows), 10).values_F_S[-1, start])
        found["random"].append(policy_values(table, uniform_policy(table), 10).values_F_S[-1, start])
        found["dry"].append(optimal_values(tabulate(rows, slippery=False), 10).values_F_S[-1, start])
    for name, expected in (("optimum", 0.504), ("shortest", 0.369), ("random", 0.22), ("dry", 1)):
        error = np.std(found[name]) / len(found[name]) ** 0.5
        assert np.mean(found[name]) == pytest.approx(expected, abs=3 * error + 1e-9), name


def test_the_reference_of_a_run_counts_the_moves_that_are_left():
    env = FrozenLakeText(slippery=False)
    exact = reference(env, [FrozenLakeState(0, 0, 0), FrozenLakeState(0, 0, 94), FrozenLakeState(0, 0, 95)])
    assert exact.optimal_returns_G == (1, 1, 0)
    assert exact.random_returns_G[0] > exact.random_returns_G[1] > exact.random_returns_G[2] == 0


def test_a_simulation_agrees_with_dynamic_programming():
    env, rng, wins = FrozenLakeText("random:3"), np.random.default_rng(0), []
    for _ in range(2000):
        env.reset(rng)
        while env.legal_actions:
            step = env.step(ACTIONS[int(rng.integers(4))])
        wins.append(step.reward)
    exact = reference(env, env.starts()).random_returns_G[0]
    assert abs(np.mean(wins) - exact) < 4 * (exact * (1 - exact) / 2000) ** 0.5


def test_a_policy_that_is_no_distribution_is_refused():
    table = tabulate(FrozenLakeText().rows, slippery=True)
    with pytest.raises(ValueError, match="not a distribution"):
        policy_values(table, np.ones((16, 4)), 5)


@pytest.mark.parametrize("map_", ["4x4", "random"])
def test_gymnasium_accepts_the_lake(map_: str, recwarn: pytest.WarningsRecorder):
    env = gymnasium.make("nlrl/FrozenLake-v0", map_=map_, render_mode="ansi")
    gymnasium_check_env(env.unwrapped)
    assert [str(warning.message) for warning in recwarn] == []
    observation, info = env.reset(seed=4)
    assert observation.shape == (4, 4, 3)
    assert observation.sum(axis=(0, 1))[[0, 2]].tolist() == [1, 1]
    assert info["text"] == f"{env.render()}\n"
    _, reward, _, _, info = env.unwrapped.step(7)
    assert (reward, info["illegal"]) == (-1, True)

MAP_7 = ("HGFF", "FFFF", "FFFF", "SFFH")
