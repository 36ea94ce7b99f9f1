"""The Breakthrough states: unlike up to mirroring, split cleanly, labelled twice, and graded fast."""

import time

import numpy as np
import pytest

pytest.importorskip("numba", reason="compiled search needs numba")

from nlrl.evaluate.breakthrough import clean_subset, grade_answers, has_learnt, make_labels, rule_table, table_lines
from nlrl.evaluate.mixed_mcts import Player, canonical, exact_results, held_out, mean_results, mixed_positions
from nlrl.evaluate.trivial import always_white, more_advanced, more_pieces, side_to_move
from nlrl.evaluate.values import grade_values
from nlrl.types import Evaluation, LanguageValue
from nlrl_envs.breakthrough import Breakthrough

PLAYERS = [Player(2, 1), Player(10, 1), Player(60, 1)]
WEAK = Player(30, 2)


@pytest.fixture(scope="module")
def pool():
    return mixed_positions(Breakthrough(), PLAYERS, 1000, seed=0, enough=4500)


@pytest.fixture(scope="module")
def labels(pool):
    _, test = held_out(pool, 600, seed=0)
    return make_labels(test, WEAK, games=10, labelled=300, seed=0)


def test_three_thousand_states_are_graded_in_ten_seconds(pool):
    game = Breakthrough()
    assert exact_results(game, [game.start()]).tolist() == [-1.0]
    _, test = held_out(pool, 3000, seed=1)
    began = time.process_time()
    values = exact_results(game, [one.position for one in test])
    assert time.process_time() - began < 10
    assert set(values) == {-1.0, 1.0}
    assert len(values) == 3000


def test_no_position_is_there_twice_not_even_mirrored(pool):
    game = Breakthrough()
    kept = {canonical(game, one.position) for one in pool}
    assert len(kept) == len(pool) >= 4500
    train, test = held_out(pool, 1000, seed=3)
    assert len(test) == 1000
    assert not {canonical(game, t.position) for t in test} & {canonical(game, t.position) for t in train}
    assert held_out(pool, 1000, seed=3)[1] == test
    assert held_out(pool, 1000, seed=4)[1] != test
    with pytest.raises(ValueError, match="too few"):
        held_out(pool[:5], 6, seed=0)


def test_a_position_and_its_image_are_one():
    game, image = Breakthrough(), Breakthrough()
    rng = np.random.default_rng(0)
    while game.legal_actions:
        assert canonical(game, game.state) == canonical(image, image.state)
        move = str(rng.choice(game.legal_actions))
        game.step(move)
        image.step(move.translate(str.maketrans("abcde", "edcba")))
    assert image.terminal_text is not None


def test_seeds_decide_games_and_labels():
    game = Breakthrough()
    again = [mixed_positions(game, PLAYERS[:2], 2, seed=seed) for seed in (5, 5, 6)]
    assert again[0] == again[1] != again[2]
    states = [one.position for one in again[0][:20]]
    means = [mean_results(game, states, WEAK, 6, seed=seed) for seed in (1, 1, 2)]
    assert (means[0] == means[1]).all()
    assert (means[0] != means[2]).any()
    # A state's label is its own: it does not depend on which others are labelled.
    assert mean_results(game, states[:3], WEAK, 6, seed=1).tolist() == means[0][:3].tolist()


def test_trivial_rules_counted_by_hand():
    game = Breakthrough()
    for move in ("e4d3", "c2d3*", "b4c3"):
        game.step(move)
    position = game.state
    assert [rule(game, position) for rule in (more_pieces, always_white, side_to_move)] == [1, 1, 1]
    assert more_advanced(game, position) == position.seat
    game.step("d3c4*")
    assert [rule(game, game.state) for rule in (more_pieces, side_to_move, more_advanced)] == [1, 0, 1]


def test_both_kinds_of_label_and_the_rules_beside_them(labels):
    table = rule_table(labels)
    exact, results = table["perfect play"]["exact"], table["perfect play"]["results"]
    assert exact.right.hits == exact.right.count == 600
    assert 0.5 < results.right.share < 1
    assert results.right.count == labels.kept_S.sum() <= 300
    assert 0.7 < table["side with more pieces, tie to the mover"]["exact"].right.share < 0.95
    assert table["always white"]["exact"].balanced == 0.5
    unanimous = np.abs(labels.means_S) == 1
    assert ((labels.means_S > 0) == (labels.exact_S > 0))[unanimous].mean() > 0.8
    assert any("always white" in line for line in table_lines(labels))


def test_on_the_clean_subset_trivial_rules_score_one_half(labels):
    chosen = clean_subset(labels)
    assert len(chosen) >= 8
    states = [labels.states_S[s] for s in chosen]
    white_wins = (labels.exact_S[chosen] < 0).astype(int)
    for rule in (more_pieces, always_white):
        said = np.array([rule(labels.game, one.position) for one in states])
        assert (said == white_wins).mean() == 0.5


def test_language_values_are_graded_against_either_kind(labels):
    def answers(numbers):
        return [Evaluation(s, None, LanguageValue("", n)) for s, n in zip(labels.situations(), numbers, strict=True)]

    seats = labels.game.seats
    views = np.array([1 - 2 * one.position.seat for one in labels.states_S])
    perfect = grade_values(answers(labels.exact_S * views), labels.labels("exact"), seats=seats)
    assert perfect.accuracy.right.share == perfect.accuracy.balanced == perfect.calibration.sign_agreement == 1.0
    white = answers(-1.0 * views)
    constant = grade_values(white, labels.labels("exact"), seats=seats)
    rule = rule_table(labels)["always white"]["exact"]
    assert (constant.accuracy.right, constant.accuracy.by_side) == (rule.right, rule.by_side)
    kept = labels.labels("results")
    asked = [e for e in white if (e.situation.key, None) in kept]
    by_results = grade_values(asked, kept, seats=seats, least=0.2)
    assert by_results.accuracy.right == rule_table(labels)["always white"]["results"].right
    both = grade_answers(labels, white)
    assert list(both) == ["exact", "10 games of mcts:30:2"]
    assert both["exact"].accuracy == constant.accuracy
    assert both["10 games of mcts:30:2"].accuracy.right == by_results.accuracy.right
    assert has_learnt(perfect.accuracy, labels, "exact")
    assert not has_learnt(constant.accuracy, labels, "exact")
    counter = rule_table(labels)["side with more pieces, tie to the mover"]
    assert not has_learnt(counter["exact"], labels, "exact")
    silent = grade_values([], labels.labels("exact"), seats=seats).accuracy
    assert (silent.right.hits, silent.unparsed) == (0, 600)
