"""Connect Four compiled: rules for search, and the alpha-beta search behind the grader.

A position is an array [x, o, seat] of uint64 with the squares of `nlrl_envs.connect_four`; the rules of a board are an
array of masks made by `rules_of`. Importing this module compiles it, once: numba keeps the result on disk.

Scores are for the side to move. A forced win that ends the game with n stones on the board scores PROVEN + squares - n,
a forced loss the opposite, so sooner is more; everything nearer to 0 is a draw or the estimate of a position at the
depth limit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from nlrl_envs.connect_four import ConnectFour

HEIGHT, COLUMNS, BOTTOM, ALL, SQUARES, ORDER = 0, 1, 2, 3, 4, 5
"""Entries of the rules: rows plus one, columns, masks, number of squares, then the columns from the middle outwards."""
PROVEN = 1000
MOST = 4000
"""More than any score."""
EXACT, AT_LEAST, AT_MOST = 0, 1, 2
"""What the score of an entry of the table is."""
MOST_PLIES = 80


def rules_of(game: ConnectFour) -> np.ndarray:
    """The masks of a board, for the functions below."""
    rows, columns = game.grid
    bottom = sum(1 << c * (rows + 1) for c in range(columns))
    order = sorted(range(columns), key=lambda c: abs(2 * c - columns + 1))
    return np.array([rows + 1, columns, bottom, bottom * ((1 << rows) - 1), rows * columns, *order], np.uint64)


@njit("int64(uint64)", cache=True)
def count(squares):
    """How many squares a set has."""
    squares = squares - ((squares >> np.uint64(1)) & np.uint64(0x5555555555555555))
    squares = (squares & np.uint64(0x3333333333333333)) + ((squares >> np.uint64(2)) & np.uint64(0x3333333333333333))
    squares = (squares + (squares >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((squares * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit("int64(uint64[::1], uint64[::1], int64[::1])", cache=True, nogil=True)
def moves(rules, position, out):
    """Writes the numbers of the legal moves, ascending, and returns how many they are."""
    free, found = ((position[0] | position[1]) + rules[BOTTOM]) & rules[ALL], 0
    column = (np.uint64(1) << rules[HEIGHT]) - np.uint64(1)
    for number in range(np.int64(rules[COLUMNS])):
        if free & column:
            out[found] = number
            found += 1
        column <<= rules[HEIGHT]
    return found


@njit("int64(uint64[::1], uint64)", cache=True)
def has_line(rules, stones):
    """1 if there are four in a row, else 0."""
    height = rules[HEIGHT]
    for step in (np.uint64(1), height - np.uint64(1), height, height + np.uint64(1)):
        pairs = stones & stones >> step
        if pairs & pairs >> np.uint64(2) * step:
            return 1
    return 0


@njit("int64(uint64[::1], uint64[::1], int64)", cache=True, nogil=True)
def play(rules, position, number):
    """Makes a legal move in place; 1 if it wins, 2 if it fills the board without a winner, else 0."""
    seat = np.int64(position[2])
    free = ((position[0] | position[1]) + rules[BOTTOM]) & rules[ALL]
    column = ((np.uint64(1) << rules[HEIGHT]) - np.uint64(1)) << rules[HEIGHT] * np.uint64(number)
    position[seat] |= free & column
    position[2] = np.uint64(1 - seat)
    if has_line(rules, position[seat]):
        return 1
    return 2 if position[0] | position[1] == rules[ALL] else 0


@njit("uint64(uint64[::1], uint64, uint64)", cache=True)
def completing(rules, stones, taken):
    """The empty squares, reachable now or not, that would complete four in a row."""
    height, found = rules[HEIGHT], np.uint64(0)
    for step in (np.uint64(1), height - np.uint64(1), height, height + np.uint64(1)):
        two, three = np.uint64(2) * step, np.uint64(3) * step
        up, down = stones << step, stones >> step
        after, before = up & stones << two, down & stones >> two
        found |= after & stones << three | before & stones >> three | after & down | before & up
    return found & rules[ALL] & ~taken


@njit("int64(uint64[::1], uint64, uint64, uint64, int64)", cache=True)
def at_sight(rules, mine, theirs, wanted, stones):
    """The score of a position whose end is plain, else -MOST; `wanted` completes lines of theirs."""
    taken = mine | theirs
    free, squares = (taken + rules[BOTTOM]) & rules[ALL], np.int64(rules[SQUARES])
    if stones == squares:
        return 0
    if completing(rules, mine, taken) & free:
        return PROVEN + squares - stones - 1
    threats = wanted & free
    lost = threats & (threats - np.uint64(1)) if threats else np.uint64(not free & ~(wanted >> np.uint64(1)))
    return -(PROVEN + squares - stones - 2) if lost else -MOST


@njit("int64(uint64[::1], uint64, uint64)", cache=True)
def estimate(rules, mine, theirs):
    """What a position at the depth limit seems worth: squares that complete a line, and stones in the middle column."""
    taken = mine | theirs
    middle = ((np.uint64(1) << rules[HEIGHT]) - np.uint64(1)) << rules[HEIGHT] * rules[ORDER]
    lines = count(completing(rules, mine, taken)) - count(completing(rules, theirs, taken))
    return 16 * lines + 2 * (count(mine & middle) - count(theirs & middle))


@njit("int64(int64, int64, int64)", cache=True)
def packed(score, depth, bound):
    """An entry of the table in one number."""
    return (score + MOST) << 16 | depth << 8 | bound


@njit("int64(uint64[::1], uint64[::1], int64[::1], int64[::1], uint64[::1], int64)", cache=True, nogil=True)
def search(rules, keys, entries, counters, position, depth):
    """The score of a position that is not over, `depth` plies deep. Fills the table (keys, entries), counts positions.

    Negamax with alpha and beta on a stack of its own. A forced reply (the square that completes a line of the enemy)
    costs no depth. Level d holds alpha, beta, the best score so far, the next place in the order of columns and the
    depth that is left; stones[d] the mover's, the enemy's, the moves worth trying, and the key.
    """
    stones = np.empty((MOST_PLIES, 4), np.uint64)
    levels = np.empty((MOST_PLIES, 6), np.int64)
    seat = np.int64(position[2])
    stones[0, 0], stones[0, 1] = position[seat], position[1 - seat]
    levels[0, 0], levels[0, 1], levels[0, 4] = -MOST, MOST, depth
    begun, level, entering, score = count(position[0] | position[1]), 0, True, 0
    while level >= 0:
        mine, theirs = stones[level, 0], stones[level, 1]
        if entering:
            counters[0] += 1
            entering = False
            wanted = completing(rules, theirs, mine | theirs)
            score = at_sight(rules, mine, theirs, wanted, begun + level)
            free = ((mine | theirs) + rules[BOTTOM]) & rules[ALL]
            if score == -MOST and levels[level, 4] <= 0 and not wanted & free:
                score = estimate(rules, mine, theirs)
            key = mine + (mine | theirs) + rules[BOTTOM]
            slot = np.int64((key * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)) & np.uint64(len(keys) - 1))
            if score == -MOST and keys[slot] == key and (entries[slot] >> 8) & 255 >= levels[level, 4]:
                known, bound = (entries[slot] >> 16) - MOST, entries[slot] & 255
                if bound == EXACT or (known >= levels[level, 1] if bound == AT_LEAST else known <= levels[level, 0]):
                    score = known
            if score != -MOST:
                level -= 1
                continue
            stones[level, 2] = wanted & free if wanted & free else free & ~(wanted >> np.uint64(1))
            stones[level, 3] = key
            levels[level, 2], levels[level, 3], levels[level, 5] = -MOST, 0, levels[level, 0]
        else:
            levels[level, 2] = max(levels[level, 2], -score)
            levels[level, 5] = max(levels[level, 5], -score)
        move, best = np.uint64(0), levels[level, 2]
        while not move and best < levels[level, 1] and levels[level, 3] < np.int64(rules[COLUMNS]):
            column = rules[ORDER + levels[level, 3]] * rules[HEIGHT]
            move = stones[level, 2] & ((np.uint64(1) << rules[HEIGHT]) - np.uint64(1)) << column
            levels[level, 3] += 1
        if not move:
            score, key = best, stones[level, 3]
            bound = AT_LEAST if best >= levels[level, 1] else AT_MOST if best <= levels[level, 0] else EXACT
            slot = np.int64((key * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)) & np.uint64(len(keys) - 1))
            keys[slot], entries[slot] = key, packed(best, max(levels[level, 4], 0), bound)
            level -= 1
            continue
        forced = stones[level, 2] == move and completing(rules, theirs, mine | theirs) & move
        stones[level + 1, 0], stones[level + 1, 1] = theirs, mine | move
        levels[level + 1, 0], levels[level + 1, 1] = -levels[level, 1], -levels[level, 5]
        levels[level + 1, 4] = levels[level, 4] - (0 if forced else 1)
        level, entering = level + 1, True
    return score
