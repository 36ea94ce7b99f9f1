"""Tic-Tac-Toe compiled, for Monte Carlo tree search: a position is an array [O, X, seat] of uint64."""

from __future__ import annotations

import numpy as np
from numba import njit

from nlrl_envs.tic_tac_toe import LINE_SETS, TicTacToe


def rules_of(game: TicTacToe) -> np.ndarray:
    """The eight lines, as sets of squares."""
    return np.array(LINE_SETS, np.uint64)


@njit("int64(uint64[::1], uint64[::1], int64[::1])", cache=True, nogil=True)
def moves(rules, position, out):
    """Writes the numbers of the empty squares, ascending, and returns how many they are."""
    taken, found = position[0] | position[1], 0
    for square in range(9):
        if not taken >> np.uint64(square) & np.uint64(1):
            out[found] = square
            found += 1
    return found


@njit("int64(uint64[::1], uint64[::1], int64)", cache=True, nogil=True)
def play(rules, position, number):
    """Makes a legal move in place; 1 if it wins, 2 if it fills the board without a winner, else 0."""
    seat = np.int64(position[2])
    position[seat] |= np.uint64(1) << np.uint64(number)
    position[2] = np.uint64(1 - seat)
    for line in rules:
        if position[seat] & line == line:
            return 1
    return 2 if position[0] | position[1] == np.uint64(511) else 0
