"""Breakthrough compiled: rules for search, perft, and the search that decides who wins.

A position is an array [black, white, seat] of uint64 with the squares of `nlrl_envs.breakthrough`; the rules of a board
are an array of masks made by `rules_of`. Importing this module compiles it, once: numba keeps the result on disk.

The decision is a depth-first search with a table of known positions. It is exact because three facts are: a pawn one
step from the far row wins at once (it can always step diagonally); against two such pawns of the enemy there is no
defence but a win at once; against one there is none but its capture. Everything else only orders the moves.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from nlrl_envs.breakthrough import Breakthrough

COLUMNS, NOT_FIRST, NOT_LAST, BOTTOM, TOP, SQUARES, MIRROR = 0, 1, 2, 3, 4, 5, 6
"""Entries of the rules: number of columns, masks, number of squares, then one mask a column for mirroring."""
SOLVABLE_SQUARES = 28
"""Twice as many bits, the seat, the verdict and 6 bits of work fit into one entry of the table."""
MOST_PLIES = 512
SIDES, LAST_STAGE = (-1, 1, 0), 14


def rules_of(game: Breakthrough) -> np.ndarray:
    """The masks of a board, for the functions below."""
    rows, columns = game.grid
    column = sum(1 << row * columns for row in range(rows))
    row, everything = (1 << columns) - 1, (1 << rows * columns) - 1
    masks = [columns, everything & ~column, everything & ~(column << columns - 1)]
    masks += [row << (rows - 1) * columns, row, rows * columns]
    return np.array(masks + [column << c for c in range(columns)], np.uint64)


@njit("uint64(uint64)", cache=True)
def lowest(squares):
    """The set of its lowest square."""
    return squares & (~squares + np.uint64(1))


@njit("uint64(uint64)", cache=True)
def highest(squares):
    """The set of its highest square."""
    for shift in (1, 2, 4, 8, 16, 32):
        squares |= squares >> np.uint64(shift)
    return squares ^ squares >> np.uint64(1)


@njit("int64(uint64)", cache=True)
def count(squares):
    """How many squares a set has."""
    squares = squares - ((squares >> np.uint64(1)) & np.uint64(0x5555555555555555))
    squares = (squares & np.uint64(0x3333333333333333)) + ((squares >> np.uint64(2)) & np.uint64(0x3333333333333333))
    squares = (squares + (squares >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((squares * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit("int64(uint64)", cache=True)
def index(square):
    """The number of a set's only square."""
    return count(square - np.uint64(1))


@njit("uint64(uint64[::1], uint64, int64, int64)", cache=True)
def shifted(rules, squares, seat, side):
    """Where the pawns of a seat step to: side -1, 0, 1 to the left, straight, to the right."""
    if side == -1:
        squares &= rules[NOT_FIRST]
        return (squares >> rules[COLUMNS] + np.uint64(1)) if seat else (squares << rules[COLUMNS] - np.uint64(1))
    if side == 1:
        squares &= rules[NOT_LAST]
        return (squares >> rules[COLUMNS] - np.uint64(1)) if seat else (squares << rules[COLUMNS] + np.uint64(1))
    return (squares >> rules[COLUMNS]) if seat else (squares << rules[COLUMNS])


@njit("uint64(uint64[::1], uint64, int64, int64)", cache=True)
def origins(rules, targets, seat, side):
    """Where a seat's pawns come from when they step to `targets`."""
    return shifted(rules, targets, 1 - seat, -side)


@njit("int64(uint64[::1], uint64[::1], int64[::1])", cache=True, nogil=True)
def moves(rules, position, out):
    """Writes the numbers of the legal moves, ascending, and returns how many they are."""
    seat = np.int64(position[2])
    mine, theirs = position[seat], position[1 - seat]
    left = origins(rules, shifted(rules, mine, seat, -1) & ~mine, seat, -1)
    straight = origins(rules, shifted(rules, mine, seat, 0) & ~(mine | theirs), seat, 0)
    right = origins(rules, shifted(rules, mine, seat, 1) & ~mine, seat, 1)
    pawns, found = mine, 0
    while pawns:
        pawn = lowest(pawns)
        pawns ^= pawn
        square = 3 * index(pawn)
        if pawn & left:
            out[found] = square
            found += 1
        if pawn & straight:
            out[found] = square + 1
            found += 1
        if pawn & right:
            out[found] = square + 2
            found += 1
    return found


@njit("int64(uint64[::1], uint64[::1], int64)", cache=True, nogil=True)
def play(rules, position, number):
    """Makes a legal move in place; 1 if it wins, else 0."""
    seat = np.int64(position[2])
    pawn = np.uint64(1) << np.uint64(number // 3)
    target = shifted(rules, pawn, seat, number % 3 - 1)
    position[seat] ^= pawn | target
    position[1 - seat] &= ~target
    position[2] = np.uint64(1 - seat)
    return 1 if target & rules[BOTTOM + seat] or not position[1 - seat] else 0


@njit("void(uint64[::1], uint64[::1], int64[:, ::1], int64)", cache=True, nogil=True)
def perft(rules, position, totals, depth):
    """Adds to totals[d] = (positions, finished games) after d + 1 moves, for every d below len(totals)."""
    out, saved = np.empty(64, np.int64), position.copy()
    for i in range(moves(rules, position, out)):
        over = play(rules, position, out[i])
        totals[depth, 0] += 1
        totals[depth, 1] += over
        if not over and depth + 1 < len(totals):
            perft(rules, position, totals, depth + 1)
        position[:] = saved


@njit("uint64(uint64[::1], uint64)", cache=True)
def mirrored(rules, squares):
    """Left and right exchanged."""
    columns = np.int64(rules[COLUMNS])
    turned = np.uint64(0)
    for c in range(columns):
        shift = columns - 1 - 2 * c
        part = squares & rules[MIRROR + c]
        turned |= (part << np.uint64(shift)) if shift >= 0 else (part >> np.uint64(-shift))
    return turned


@njit("uint64(uint64[::1], uint64, uint64, int64)", cache=True)
def key_of(rules, mine, theirs, seat):
    """One number for a position and its mirror image, never 0."""
    size = rules[SQUARES]
    straight = mine | theirs << size
    turned = mirrored(rules, mine) | mirrored(rules, theirs) << size
    return min(straight, turned) << np.uint64(1) | np.uint64(seat)


@njit("int64(uint64[::1], uint64)", cache=True)
def slot_of(table, key):
    """The first of the two slots of a position."""
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ mixed >> np.uint64(32)) & np.uint64(len(table) - 2))


@njit("int64(uint64[::1], uint64, uint64, int64)", cache=True)
def at_sight(rules, mine, theirs, seat):
    """1 if the side to move wins within two of its moves, -1 if it loses to the enemy's next, 0 if neither is plain."""
    left, right = shifted(rules, mine, seat, -1), shifted(rules, mine, seat, 1)
    goal, caught = rules[BOTTOM + seat], (left | right) & theirs
    if (left | right) & goal or (caught == theirs and caught == lowest(caught)):
        return 1
    threats = theirs & shifted(rules, rules[TOP - seat], seat, 0)
    if threats:
        return 0 if threats == lowest(threats) and threats & caught else -1
    attacked = shifted(rules, theirs, 1 - seat, -1) | shifted(rules, theirs, 1 - seat, 1)
    entered = ((left | right) & ~mine) | (shifted(rules, mine, seat, 0) & ~(mine | theirs))
    return 1 if entered & ~attacked & shifted(rules, goal, 1 - seat, 0) else 0


@njit("uint64(uint64[::1], uint64, uint64, int64, int64)", cache=True)
def targets_of(rules, mine, theirs, seat, stage):
    """The squares a stage of the search moves to; stage 3 t + i steps to the left, the right, straight for i = 0, 1, 2.

    In order of t: captures that cannot be retaken, other captures, steps to where no enemy captures, guarded steps to
    where one does, the rest. When the enemy threatens to arrive, the capture of that pawn is all there is.
    """
    turn, side = stage // 3, SIDES[stage % 3]
    targets = shifted(rules, mine, seat, side)
    threats = theirs & shifted(rules, rules[TOP - seat], seat, 0)
    if threats:
        return targets & threats if turn == 0 and side else np.uint64(0)
    attacked = shifted(rules, theirs, 1 - seat, -1) | shifted(rules, theirs, 1 - seat, 1)
    if turn < 2:
        return targets & theirs & (attacked if turn else ~attacked) if side else np.uint64(0)
    targets &= ~(mine | theirs)
    if turn == 2:
        return targets & ~attacked
    guarded = shifted(rules, mine, seat, -1) | shifted(rules, mine, seat, 1)
    return targets & attacked & (guarded if turn == 3 else ~guarded)


@njit("void(uint64[::1], uint64, int64, int64)", cache=True)
def remember(table, key, verdict, work):
    """Puts a verdict into its pair of slots: the first keeps what cost most to find out, the second what came last.

    An entry is, from its lowest bit, the verdict, the order of magnitude of the work (6 bits), and the key.
    """
    magnitude = np.uint64(0)
    while work > 0:
        work >>= 1
        magnitude += np.uint64(1)
    slot = slot_of(table, key)
    kept = table[slot]
    if kept >> np.uint64(7) != key and (kept >> np.uint64(1)) & np.uint64(63) > magnitude:
        slot += 1
    table[slot] = key << np.uint64(7) | magnitude << np.uint64(1) | np.uint64(verdict)


@njit("int64(uint64[::1], uint64)", cache=True)
def recall(table, key):
    """1 or 0 for a position whose mover wins or loses, -1 for one that is not in the table."""
    slot = slot_of(table, key)
    for entry in (table[slot], table[slot + 1]):
        if entry >> np.uint64(7) == key:
            return np.int64(entry & np.uint64(1))
    return -1


@njit("int64(uint64[::1], uint64[::1], int64[::1], uint64, uint64, int64)", cache=True, nogil=True)
def wins(rules, table, counters, black, white, seat):
    """1 if the side to move wins, 0 if it loses; the game is not over. Reads and fills the table, counts positions.

    Depth-first with its own stack: depth d holds the pawns of its mover and of the enemy, the stage of its moves, the
    targets left in it.
    """
    pawns, left = np.empty((MOST_PLIES, 2), np.uint64), np.empty(MOST_PLIES, np.uint64)
    keys, (stages, begun) = np.empty(MOST_PLIES, np.uint64), np.empty((2, MOST_PLIES), np.int64)
    pawns[0, 0], pawns[0, 1] = (white, black) if seat else (black, white)
    depth, entering, verdict = 0, True, 0
    while depth >= 0:
        mover, mine, theirs = (seat + depth) & 1, pawns[depth, 0], pawns[depth, 1]
        if entering:
            sight = at_sight(rules, mine, theirs, mover)
            keys[depth] = key_of(rules, mine, theirs, mover)
            known = (sight + 1) // 2 if sight else recall(table, keys[depth])
            if known >= 0:
                verdict, entering, depth = known, False, depth - 1
                continue
            counters[0] += 1
            stages[depth], left[depth], begun[depth], entering = -1, np.uint64(0), counters[0], False
        elif verdict == 0:
            verdict, depth = 1, depth - 1
            remember(table, keys[depth + 1], 1, counters[0] - begun[depth + 1])
            continue
        while not left[depth] and stages[depth] < LAST_STAGE:
            stages[depth] += 1
            left[depth] = targets_of(rules, mine, theirs, mover, stages[depth])
        if not left[depth]:
            verdict, depth = 0, depth - 1
            remember(table, keys[depth + 1], 0, counters[0] - begun[depth + 1])
            continue
        target = lowest(left[depth]) if mover else highest(left[depth])
        left[depth] ^= target
        side = SIDES[stages[depth] % 3]
        pawns[depth + 1, 0] = theirs & ~target
        pawns[depth + 1, 1] = mine ^ (target | origins(rules, target, mover, side))
        depth, entering = depth + 1, True
    return verdict
