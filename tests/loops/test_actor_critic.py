"""Actor-critic with the oracle is tabular reinforcement learning: it must find what the solvers know, on every game.

Full games are out of reach for a table that learns from hundreds of games, so Breakthrough is played on 4x3, Connect
Four on 4x4 from positions with six squares free, FrozenLake dry from all squares of 4x4 with no move to spare, and
slippery on 2x3. `test_policy_iteration` and `test_td_values` hold slippery 4x4 against its solver.
"""

from itertools import pairwise

import numpy as np
import pytest
from tabular import Tabular, of, run

from nlrl.iterate import actor_critic
from nlrl.knobs import ActorCriticKnobs, GameKnobs
from nlrl.operators.masked import Mask
from nlrl.types import Estimated, GameEnd, Improved, PhaseStart, Step, Trained
from nlrl.values.games import trajectories
from nlrl_envs import frozen_lake_solver as lakes
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText, distances
from nlrl_envs.maze import MazeText
from nlrl_envs.maze_maps import ACTIONS
from nlrl_envs.maze_solver import optimal_actions, tabulate
from nlrl_envs.opponents import first_legal, uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe

ALL = Mask(samples=0)


def loop(env, tabular, knobs, opponent=None, seed=0):
    models, students = tabular.models, tabular.students
    return run(actor_critic(env, models=models, students=students, knobs=knobs, opponent=opponent, seed=seed))


def phases(events):
    return [(e.iteration, e.phase) for e in of(PhaseStart, events)]


def returns(events, iteration):
    """Returns of an iteration's evaluation, by game."""
    first = (iteration * 10 + 5) * 1_000_000
    ends = [e for e in of(GameEnd, events) if first <= e.game < first + 1_000_000]
    return [e.total_return for e in sorted(ends, key=lambda e: e.game)]


def best(env, seat):
    """The best return against an opponent that plays its first legal move, by trying everything."""
    if env.result_P is not None:
        return env.result_P[seat]
    found = []
    for move in env.legal_actions if env.seat == seat else env.legal_actions[:1]:
        after = env.clone()
        after.step(move)
        found.append(best(after, seat))
    return max(found)


class LateConnectFour(ConnectFour):
    """4x4 with six squares free."""

    def starts(self):
        rng, found = np.random.default_rng(0), []
        while len(found) < 4:
            game = ConnectFour("4x4")
            for _ in range(10):
                if game.result_P is None:
                    game.step(str(rng.choice(game.legal_actions)))
            if game.result_P is None:
                found.append(game.state)
        return tuple(found)


class LakeWithoutAMoveToSpare(FrozenLakeText):
    """Dry ice; games start on every square, with as many moves left as the shortest way takes."""

    def __init__(self):
        super().__init__("4x4", slippery=False)

    def starts(self):
        (start,), far = super().starts(), distances(self.maps[0])
        letters = "".join(self.maps[0])
        squares = [s for s in range(16) if letters[s] in "SF"]
        return tuple(start._replace(position=s, steps=self.horizon - int(far[s])) for s in squares)


@pytest.mark.parametrize(
    ("env", "iterations", "games"),
    [(TicTacToe(), 10, 64), (Breakthrough("4x3"), 4, 64), (LateConnectFour("4x4"), 5, 96)],
    ids=["tic_tac_toe", "breakthrough 4x3", "connect_four, six squares free"],
)
def test_every_game_of_two_ends_as_well_as_it_can_against_the_first_legal_move(env, iterations, games):
    starts = env.starts()
    played = GameKnobs(evaluation_games=2 * len(starts))
    knobs = ActorCriticKnobs(iterations, games, mask=ALL, play=played)
    events = loop(env, Tabular(env, explore=0.3), knobs, first_legal)
    exact = []
    for start in starts:
        game = env.clone()
        game.set_state(start)
        exact += [best(game, 0), best(game, 1)]
    assert returns(events, 0) != returns(events, iterations)
    assert sorted(returns(events, iterations)) == sorted(exact)
    if isinstance(env, TicTacToe):
        assert returns(events, iterations) == [1.0, 1.0], "100 % from both seats"


def test_the_shortest_way_is_found_from_everywhere_in_umaze():
    env = MazeText("umaze", horizon=20)
    tabular = Tabular(env, explore=0.3)
    played = GameKnobs(evaluation_games=6)
    events = loop(env, tabular, ActorCriticKnobs(4, 12, fresh=30, buffer=1, mask=ALL, play=played))
    table = tabulate(env.maze)
    best_S_A = optimal_actions(table)
    for s in table.starts:
        env.set_state(env.starts()[0]._replace(position=table.cells_S[s]))
        assert best_S_A[s, ACTIONS.index(tabular.plays(env))]
    assert np.mean(returns(events, 4)) == -2.5


def test_the_goal_is_reached_from_every_square_of_dry_ice():
    env = LakeWithoutAMoveToSpare()
    played = GameKnobs(evaluation_games=11)
    events = loop(env, Tabular(env, explore=0.3), ActorCriticKnobs(6, 220, mask=ALL, play=played))
    assert np.mean(returns(events, 0)) < 1
    assert returns(events, 6) == [1.0] * 11


def test_the_best_way_over_slippery_ice_is_found_on_a_small_lake():
    env = FrozenLakeText("random:70:2x3", slippery=True, horizon=30)
    assert env.maps[0] == ("GFH", "HFS")
    tabular = Tabular(env, explore=0.2)
    played = GameKnobs(evaluation_games=0)
    loop(env, tabular, ActorCriticKnobs(3, 12, fresh=60, buffer=1, mask=ALL, play=played))
    table = lakes.tabulate(env.maps[0], slippery=True)
    policy_S_A = lakes.uniform_policy(table)
    random = lakes.policy_values(table, policy_S_A, 30).values_F_S[30]
    for s in np.flatnonzero(~table.over_S):
        env.set_state(env.starts()[0]._replace(position=int(s)))
        policy_S_A[s] = np.array(lakes.ACTIONS) == tabular.plays(env)
    learned = lakes.policy_values(table, policy_S_A, 30).values_F_S[30]
    best = lakes.optimal_values(table, 30).values_F_S[30]
    # With few moves left another move is a little better than the one for always; the policy sees no clock.
    assert learned == pytest.approx(best, abs=0.005)
    assert random[5] < 0.1 < 0.8 < best[5]


def test_iteration_0_evaluates_before_anything_is_trained_and_the_others_go_through_every_phase():
    env = TicTacToe()
    knobs = ActorCriticKnobs(2, 6, mask=Mask(3), play=GameKnobs(evaluation_games=4))
    events = loop(env, Tabular(env), knobs, uniform_random)
    every = ["collect", "estimate", "distil value", "improve", "distil policy", "evaluate"]
    assert phases(events) == [(0, "evaluate"), *((i, phase) for i in (1, 2) for phase in every)]
    assert [(t.iteration, t.student) for t in of(Trained, events)] == [
        (1, "value"), (1, "policy"), (2, "value"), (2, "policy"),
    ]  # fmt: skip
    assert [len(of(GameEnd, events[: events.index(of(Trained, events)[0])]))] == [4 + 6]
    assert len(returns(events, 0)) == len(returns(events, 2)) == 4


@pytest.mark.parametrize("merge", ["concatenate", "equal"])
def test_the_value_student_learns_from_the_last_k_sets(merge):
    env = TicTacToe()
    knobs = ActorCriticKnobs(4, 10, buffer=2, merge=merge, mask=Mask(1), play=GameKnobs(evaluation_games=0))
    events = loop(env, Tabular(env, explore=1.0), knobs, uniform_random)
    sizes = [len(e.evaluations) for e in of(Estimated, events)]
    learned = [t.examples for t in of(Trained, events) if t.student == "value"]
    pairs = list(pairwise(sizes))
    assert len(set(sizes)) > 1
    assert learned == [sizes[0], *(a + b if merge == "concatenate" else 2 * min(a, b) for a, b in pairs)]


@pytest.mark.parametrize("every", [True, False])
def test_the_policy_student_learns_a_situation_as_often_as_it_occurred_or_once(every):
    env = TicTacToe()
    knobs = ActorCriticKnobs(1, 10, every_occurrence=every, mask=ALL, play=GameKnobs(evaluation_games=0))
    events = loop(env, Tabular(env), knobs, uniform_random)
    turns = sum(e.decision.own for e in of(Step, events))
    (improved,) = of(Improved, events)
    assert len(improved.situations_S) < turns, "five games begin on the empty board"
    taught = next(t.examples for t in of(Trained, events) if t.student == "policy")
    assert taught == (turns if every else len(improved.situations_S))


def test_the_value_student_learns_the_mean_return_of_the_runs_own_games():
    env = TicTacToe()
    tabular = Tabular(env)
    knobs = ActorCriticKnobs(1, 64, mask=ALL, play=GameKnobs(evaluation_games=0))
    events = loop(env, tabular, knobs, uniform_random)
    (found,) = of(Estimated, events)
    games = trajectories([e for e in events if not isinstance(e, PhaseStart | Estimated | Improved | Trained)])
    turns = sum(sum(game.own) for game in games)
    assert sum(k * count for k, count in found.achieved_K) == turns
    assert max(k for k, _ in found.achieved_K) == 5
    earned: dict[str, list[float]] = {}
    for game in games:
        for t, action in enumerate(game.actions):
            if game.own[t]:
                key = f"value\nfor {game.player}\n{game.observations[t].rstrip()}\n{action}"
                earned.setdefault(key, []).append(sum(game.rewards[t:]))
    one_prompt = {key: values for key, values in earned.items() if len(values) <= 5}
    assert len(one_prompt) > 100
    for key, values in one_prompt.items():
        (reply,) = tabular.table.replies[key]
        assert float(reply) == pytest.approx(np.mean(values), abs=1e-9)


def test_the_player_sees_its_losses():
    env = TicTacToe()
    knobs = ActorCriticKnobs(1, 128, mask=ALL, play=GameKnobs(evaluation_games=0))
    events = loop(env, Tabular(env), knobs, uniform_random)
    lost = [e.game for e in of(GameEnd, events) if e.total_return == -1]
    # 43.65 % of random games are lost, as many as are won; three standard deviations of 128 games are 13 points.
    assert len(lost) / 128 == pytest.approx(0.4365, abs=0.13)
    last = {e.game: e for e in of(Step, events)}
    assert all(last[game].reward == -1 and not last[game].decision.own for game in lost)
    (found,) = of(Estimated, events)
    told = {look.game for e in found.evaluations for look in e.games_K if look.total_reward == -1}
    assert told == set(lost)
    texts = {look.terminal_text for e in found.evaluations for look in e.games_K}
    assert any(text and " wins with " in text for text in texts), "evidence ends in the game's own words"


@pytest.mark.parametrize("form", ["Q", "V"])
def test_fresh_games_give_every_evaluation_the_k_that_was_asked_for(form):
    env = TicTacToe()
    knobs = ActorCriticKnobs(1, 6, fresh=4, form=form, mask=ALL, play=GameKnobs(evaluation_games=0))
    events = loop(env, Tabular(env), knobs, uniform_random)
    (found,), (improved,) = of(Estimated, events), of(Improved, events)
    actions = sum(len(s.actions) if form == "Q" else 1 for s in improved.situations_S)
    assert found.achieved_K == ((4, actions),)


def test_state_values_teach_as_well_as_action_values():
    env = TicTacToe()
    played = GameKnobs(evaluation_games=2)
    events = loop(env, Tabular(env, explore=0.3), ActorCriticKnobs(8, 64, form="V", play=played), first_legal)
    assert returns(events, 8) == [1.0, 1.0]


def test_games_against_past_policies_are_games_against_what_was_learned_then():
    env = TicTacToe()
    tabular, asked = Tabular(env), []
    tabular.keep_past(asked)
    knobs = ActorCriticKnobs(3, 20, mask=ALL, past_share=1.0, play=GameKnobs(evaluation_games=0))
    events = loop(env, tabular, knobs, first_legal)
    assert [t.iteration for t in asked] == [1, 2, 3]
    moves = {}
    for step in of(Step, events):
        if not step.decision.own:
            moves.setdefault(step.game // 10_000_000, set()).add(step.decision.choice.thought.split(":")[0])
    assert moves[1] == {"opponent"}, "in the first iteration there is no past"
    assert "opponent" not in moves[2] | moves[3]
