"""V^L by language TD in many situations at once is the mean of n-step returns, for whoever is to move in each."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular import Watched

from nlrl.ask import Asker
from nlrl.types import CallId, Group, LookAhead, Situation
from nlrl.values.look_ahead import as_read, continuations, opponent_policy, uniform_random
from nlrl.values.numeric import n_step
from nlrl.values.td import language_td_values
from nlrl_envs.opponents import first_legal
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load

NUMBERS = st.floats(-50, 50).map(lambda x: round(x, 3))
LOOK = st.tuples(st.lists(NUMBERS, min_size=1, max_size=4), NUMBERS, st.booleans())
"""Rewards on the way, V at its end, whether the game is over there."""


def run(coroutine):
    return asyncio.run(coroutine)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(LOOK, min_size=0, max_size=4), min_size=1, max_size=4),
    combine=st.sampled_from(["fused", "split"]),
    form=st.sampled_from([None, "go"]),
)
def test_estimates_are_means_of_n_step_returns(groups, combine, form):
    values, evidence, expected = {}, [], []
    for g, looks in enumerate(groups):
        made = []
        for k, (rewards, value, over) in enumerate(looks):
            leaf = f"leaf {g} {k}"
            values[leaf] = value
            actions = (f"m{k}",) * len(rewards)
            made.append(
                LookAhead((f"root {g}\n", "...", f"{leaf}\n"), actions, tuple(rewards), "Over." if over else None)
            )
        situation = Situation((f"root {g}\n",), CallId(g, 0, "policy"), ("go",), "ab"[g % 2])
        evidence.append(Group(situation, form, tuple(made)))
        returns = [n_step(r, [0.0] * (len(r) - 1) + [0.0 if over else v], len(r)) for r, v, over in looks]
        expected.append(np.mean(returns) if returns else None)
    engine = Watched(values)
    ask = Asker(engine, load("arithmetic", "any"), "")
    found = run(language_td_values(evidence, ask=ask, combine=combine))
    said = {e.situation.call.game: e for e in found.evaluations}
    assert set(said) == {g for g, value in enumerate(expected) if value is not None}
    for g, one in said.items():
        assert one.value.number == pytest.approx(expected[g], abs=1e-9)
        assert (one.action, one.reply) == (form, one.value.text)
    assert sum(k * count for k, count in found.achieved_K.items()) == sum(map(len, groups))
    assert found.calls == len(engine.places) == len(set(engine.places))


def roots(count):
    env, found = TicTacToe(), []
    for g in range(count):
        found.append(
            (env.clone(), Situation((env.observation,), CallId(g, 0, "policy"), env.legal_actions, env.seats[env.seat]))
        )
        env.step(env.legal_actions[0])
    return found


def test_continuations_differ_unless_draws_are_wanted():
    rng = np.random.default_rng(0)
    wild, failures = run(continuations(roots(4), variations=3, steps=2, rollout=uniform_random, rng=rng))
    assert not failures
    assert [len(set(group.games_K)) for group in wild] == [3] * 4
    assert all(len(look.actions) == 2 and look.history[0] == g.situation.history[0] for g in wild for look in g.games_K)
    tame, _ = run(continuations(roots(4), variations=3, steps=2, rollout=opponent_policy(first_legal), rng=rng))
    assert [len(group.games_K) for group in tame] == [1] * 4
    drawn, _ = run(
        continuations(
            roots(4), variations=3, steps=2, rollout=opponent_policy(first_legal), rng=rng, distinct=False
        )
    )  # fmt: skip
    assert [len(group.games_K) for group in drawn] == [3] * 4
    with pytest.raises(ValueError, match="CallId of its own"):
        run(continuations([roots(1)[0], roots(1)[0]], variations=1, steps=1, rollout=uniform_random, rng=rng))


def test_what_v_reads_of_a_look_is_cut_from_its_end():
    look = LookAhead(("a", "1", "b", "2", "c"), ("1", "2"), (0.0, 1.0))
    assert as_read([look], None) == [look]
    (cut,) = as_read([look], 1)
    assert cut == LookAhead(("c",), ("1", "2"), (0.0, 1.0))
    assert as_read([look], 4)[0].history == ("b", "2", "c")
