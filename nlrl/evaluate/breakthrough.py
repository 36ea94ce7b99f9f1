"""Breakthrough's test states with both kinds of label, and how far the trivial rules come on them.

    python -m nlrl.evaluate.breakthrough --states 3000 --labelled 200

prints the table that any value model's figures belong beside. V* labels cost half a millisecond each, labels by results
hundreds of games' moves; so all states get the one, `labelled` of them the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlrl.evaluate.mixed_mcts import (
    PAPER_GRID,
    SMALL_GRID,
    Occurrence,
    Player,
    exact_results,
    held_out,
    mean_results,
    mixed_positions,
)
from nlrl.evaluate.trivial import RULES, Rule, more_pieces
from nlrl.evaluate.values import Accuracy, LabelKey, ValueGrades, accuracy_of, grade_values, label_key
from nlrl.types import CallId, Evaluation, Situation
from nlrl_envs.breakthrough import Breakthrough

LEAST = 0.2
"""States whose mean result is nearer to a draw are dropped, as the paper does."""


@dataclass(frozen=True)
class LabelSet:
    """States with what is true of them; S states, values are black's."""

    game: Breakthrough
    states_S: tuple[Occurrence, ...]
    exact_S: np.ndarray
    """(S,) V*, 1 or -1."""
    means_S: np.ndarray
    """(S,) V^pi by games of the labelling player; NaN where none were played."""
    player: Player
    games: int
    """A label by results is the mean of so many."""

    @property
    def kept_S(self) -> np.ndarray:
        """(S,) bool: labelled by results, and not too near to a draw."""
        return np.abs(np.nan_to_num(self.means_S)) >= LEAST

    def situations(self) -> list[Situation]:
        """Each state as the one to move meets it, to be asked about: `nlrl.values.direct.language_values`."""
        found, game = [], self.game.clone()
        for number, one in enumerate(self.states_S):
            game.set_state(one.position)
            call = CallId(number, one.ply, "value")
            player = game.seats[one.position.seat]
            found.append(Situation((game.observation,), call, game.legal_actions, player))
        return found

    def labels(self, kind: str) -> dict[LabelKey, float]:
        """Labels of `situations()` for `nlrl.evaluate.values.grade_values`, in the view of who is to move.

        Args:
            kind: "exact" for V*, "results" for the mean results of the states that were kept.
        """
        values_S = self.exact_S if kind == "exact" else np.where(self.kept_S, self.means_S, np.nan)
        return {
            label_key(situation): float(value) * (1 - 2 * one.position.seat)
            for situation, one, value in zip(self.situations(), self.states_S, values_S, strict=True)
            if not np.isnan(value)
        }


def make_labels(
    states: Sequence[Occurrence], player: Player, *, games: int = 30, labelled: int | None = None, seed: int = 0
) -> LabelSet:
    """Grades states exactly, and `labelled` of them, drawn at random (None: all), by `games` games of `player` each."""
    game, means_S = Breakthrough(), np.full(len(states), np.nan)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(states))[:labelled])
    means_S[chosen] = mean_results(game, [states[s].position for s in chosen], player, games, seed)
    exact_S = exact_results(game, [one.position for one in states])
    return LabelSet(game, tuple(states), exact_S, means_S, player, games)


def clean_subset(labels: LabelSet, seed: int = 0) -> np.ndarray:
    """Indices of states on which the piece counter and both constant rules score one half, ascending.

    Only states whose games are unanimous come into question: there both kinds of label agree. Of the four kinds (winner
    black or white, piece counter right or wrong) as many are drawn as the rarest has.
    """
    winners_S = _winners(labels.exact_S)
    sure_S = np.abs(labels.means_S) == 1
    right_S = np.array([more_pieces(labels.game, one.position) for one in labels.states_S]) == winners_S
    kinds = [np.flatnonzero(sure_S & (winners_S == w) & (right_S == r)) for w in (0, 1) for r in (False, True)]
    rng, count = np.random.default_rng(seed), min(map(len, kinds))
    return np.sort(np.concatenate([rng.permutation(kind)[:count] for kind in kinds]))


def rule_table(labels: LabelSet, rules: Mapping[str, Rule] = RULES) -> dict[str, dict[str, Accuracy]]:
    """Accuracy of each rule, and of perfect play, on each kind of label: rule -> kind -> accuracy.

    Kinds: "exact" on all states, "exact, same states" on those labelled by results, "results" on those kept of them,
    "results from ply 4" on the later ones of these.
    """
    seats, game = labels.game.seats, labels.game
    winners_S, by_games_S = _winners(labels.exact_S), _winners(labels.means_S)
    later_S = np.array([one.ply >= 4 for one in labels.states_S])
    kinds = {
        "exact": (np.ones(len(winners_S), bool), winners_S),
        "exact, same states": (labels.kept_S, winners_S),
        "results": (labels.kept_S, by_games_S),
        "results from ply 4": (labels.kept_S & later_S, by_games_S),
    }
    said: dict[str, np.ndarray] = {
        name: np.array([rule(game, one.position) for one in labels.states_S]) for name, rule in rules.items()
    }
    said["perfect play"] = winners_S
    return {
        name: {
            kind: accuracy_of((seats[said_S[s]], seats[truth_S[s]]) for s in np.flatnonzero(mask_S))
            for kind, (mask_S, truth_S) in kinds.items()
        }
        for name, said_S in said.items()
    }


def table_lines(labels: LabelSet) -> list[str]:
    """The table of `rule_table`, with what the labels are."""
    played_S = ~np.isnan(labels.means_S)
    unanimous_S = np.abs(labels.means_S) == 1
    agree = (_winners(labels.means_S) == _winners(labels.exact_S))[unanimous_S]
    lines = [
        f"{len(labels.states_S):,} states; white wins {np.mean(labels.exact_S < 0):.3f} of them by perfect play",
        f"{played_S.sum():,} labelled by {labels.games} games of {labels.player} against itself, "
        f"{labels.kept_S.sum():,} kept with |mean| >= {LEAST}; {unanimous_S.sum():,} unanimous, "
        f"{agree.sum():,} of those as perfect play",
    ]
    for name, by_kind in rule_table(labels).items():
        lines.append(name)
        for kind, accuracy in by_kind.items():
            balanced = f"balanced {100 * accuracy.balanced:.2f} %"
            lines.append(f"    {kind:20s} {accuracy.right!s:44s} {balanced}")
    return lines


def grade_answers(labels: LabelSet, evaluations: Sequence[Evaluation]) -> dict[str, ValueGrades]:
    """V^L of `labels.situations()` against both kinds of label, under the names that say what they are.

    Args:
        labels: the states.
        evaluations: as `nlrl.values.direct.language_values` gives them; a state without one is answered wrongly.
    """
    found = {}
    for kind, name in (("exact", "exact"), ("results", f"{labels.games} games of {labels.player}")):
        known = labels.labels(kind)
        answered = [one for one in evaluations if label_key(one.situation) in known]
        found[name] = grade_values(answered, known, seats=labels.game.seats)
    return found


def has_learnt(accuracy: Accuracy, labels: LabelSet, kind: str) -> bool:
    """Whether a value model knows something: 5 points above the best trivial rule, with 95 % intervals apart.

    Args:
        accuracy: of its answers.
        labels: the very states that it was asked about.
        kind: which label, as `rule_table` names it.
    """
    rules = [by_kind[kind].right for name, by_kind in rule_table(labels).items() if name in RULES]
    best = max(rules, key=lambda rate: rate.share)
    return accuracy.right.share >= best.share + 0.05 and accuracy.right.interval[0] > best.interval[1]


def _winners(values_S: np.ndarray) -> np.ndarray:
    """The seat that wins: 0 for values above 0, else 1."""
    return (np.nan_to_num(values_S) <= 0).astype(int)


def main(
    states: int = 3000,
    labelled: int = 200,
    games: int = 30,
    simulations: int = 100,
    roll_outs: int = 10,
    grid: str = "small",
    seed: int = 0,
) -> None:
    """Make the test states, label them and print how far the trivial rules come."""
    import time

    grids: Mapping[str, Callable[[], tuple[tuple[int, int], ...]]] = {
        "small": lambda: SMALL_GRID,
        "paper": lambda: PAPER_GRID,
    }
    players = [Player(*knobs) for knobs in grids[grid]()]
    began = time.perf_counter()
    pool = mixed_positions(Breakthrough(), players, 10_000, seed, enough=4 * states)
    _, test = held_out(pool, states, seed)
    print(f"{len(pool):,} different positions of {len(players)} MCTS players in {time.perf_counter() - began:.1f} s")
    exact_results(Breakthrough(), [Breakthrough().start()])
    began = time.perf_counter()
    exact_results(Breakthrough(), [one.position for one in test])
    print(f"{states:,} of them graded exactly in {time.perf_counter() - began:.1f} s after the start was solved")
    labels = make_labels(test, Player(simulations, roll_outs), games=games, labelled=labelled, seed=seed)
    print("\n".join(table_lines(labels)))


if __name__ == "__main__":
    import typer

    typer.run(main)
