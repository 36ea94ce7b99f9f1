"""The rules against OpenSpiel's and gymnasium's, in a short form; `python -m nlrl_envs.verify` is the long one."""

import pytest

from nlrl_envs.board_game import Position
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_envs.verify import COMPARISONS, Difference, compare_board_game


@pytest.mark.parametrize("name", COMPARISONS)
def test_no_difference(name: str):
    if "frozen_lake" not in name:
        pytest.importorskip("pyspiel", reason="board games are held against OpenSpiel")
    found = COMPARISONS[name](3000)
    assert found.plies >= 3000
    assert len(found.outcomes) > 1


class Wrong(TicTacToe):
    """A game that forgets one diagonal."""

    def play(self, position: Position, number: int) -> Position:
        after = super().play(position, number)
        board = position.second if position.seat else position.first
        return after._replace(result=None) if after.result and number == 6 and board & 20 == 20 else after


def test_a_difference_is_found():
    pytest.importorskip("pyspiel", reason="board games are held against OpenSpiel")
    with pytest.raises(Difference, match="The end differs in tic_tac_toe after"):
        compare_board_game(Wrong(), "tic_tac_toe", False, 3000)
