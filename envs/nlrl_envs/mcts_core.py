"""Monte Carlo tree search for board games, compiled: simulations, roll-outs and solver as arXiv 2411.14251 sets them.

The paper's players are OpenSpiel's: UCT with constant 1, a leaf is worth the mean of its random roll-outs, and results
that are certain are carried up the tree ("solver"). A simulation walks down by UCT to a position that was not visited
before, opening it; its children are tried in random order. The move that is made is a proven win, else the most
visited, a proven loss last; ties by the returns.

One tree for every game: `moves` and `play` of a game's `<name>_core` are passed as functions. All randomness comes from
the seed. Importing this module compiles it, once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

WORDS = types.uint64[::1]
MOVES = types.FunctionType(types.int64(WORDS, WORDS, types.int64[::1]))
PLAY = types.FunctionType(types.int64(WORDS, WORDS, types.int64))
FIRST_CHILD, CHILDREN, NUMBER, VISITS, PROVEN = 0, 1, 2, 3, 4
"""Columns of the tree. PROVEN is the certain result for who moved into a node, 2 while there is none."""
UNKNOWN = 2
MOST_MOVES = 192
MOST_PLIES = 512
UCT: Any = types.int64(MOVES, PLAY, WORDS, WORDS, types.int64, types.int64, types.float64, types.uint64)


@njit("uint64(uint64[::1])", cache=True)
def draw(state):
    """The next word of a splitmix64 generator."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    word = state[0]
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


@njit("int64(uint64[::1], int64)", cache=True)
def below(state, count):
    """A random number from 0 to count - 1."""
    return np.int64((draw(state) >> np.uint64(32)) * np.uint64(count) >> np.uint64(32))


@njit(types.float64(MOVES, PLAY, WORDS, WORDS, types.int64, WORDS), cache=True, nogil=True)
def roll_out(moves, play, rules, position, count, random):
    """The mean return of random games for the side that moves in `position`, which is not over."""
    seat, total = position[2], 0.0
    now, out = np.empty_like(position), np.empty(MOST_MOVES, np.int64)
    for _ in range(count):
        now[:] = position
        while True:
            mover = now[2]
            end = play(rules, now, out[below(random, moves(rules, now, out))])
            if end:
                total += 0.0 if end == 2 else 1.0 if mover == seat else -1.0
                break
    return total / count


@njit("void(int64[:, ::1], int64)", cache=True)
def settle(tree, node):
    """Carry certain results from the children of a node to it: one child that wins decides, else all must be known."""
    best, all_known = -2, True
    for child in range(tree[node, FIRST_CHILD], tree[node, FIRST_CHILD] + tree[node, CHILDREN]):
        if tree[child, PROVEN] == UNKNOWN:
            all_known = False
        elif tree[child, PROVEN] > best:
            best = tree[child, PROVEN]
    if tree[node, CHILDREN] and (best == 1 or all_known):
        tree[node, PROVEN] = -best


@njit("int64(int64[:, ::1], float64[::1], int64, float64)", cache=True)
def chosen(tree, totals, node, exploration):
    """The child that UCT visits next; one that was never visited comes before all others."""
    best, found = -1e300, -1
    log_visits = math.log(max(tree[node, VISITS], 1))
    for child in range(tree[node, FIRST_CHILD], tree[node, FIRST_CHILD] + tree[node, CHILDREN]):
        if tree[child, PROVEN] != UNKNOWN:
            value = np.float64(tree[child, PROVEN])
        elif tree[child, VISITS] == 0:
            return child
        else:
            visits = tree[child, VISITS]
            value = totals[child] / visits + exploration * math.sqrt(log_visits / visits)
        if value > best:
            best, found = value, child
    return found


@njit("boolean(int64[:, ::1], float64[::1], int64, int64)", cache=True)
def preferred(tree, totals, child, other):
    """Whether a child is the better move: certain results first, then visits, then returns."""
    sure, sure_other = tree[child, PROVEN], tree[other, PROVEN]
    rank = 0 if sure == UNKNOWN else sure
    rank_other = 0 if sure_other == UNKNOWN else sure_other
    if rank != rank_other:
        return rank > rank_other
    if tree[child, VISITS] != tree[other, VISITS]:
        return tree[child, VISITS] > tree[other, VISITS]
    return totals[child] > totals[other]


@njit(UCT, cache=True, nogil=True)
def best_move(moves, play, rules, position, simulations, roll_outs, exploration, seed):
    """The number of the move to make in a position that is not over."""
    random, out, now = np.array([seed], np.uint64), np.empty(MOST_MOVES, np.int64), np.empty_like(position)
    tree, totals = np.zeros((1 + MOST_MOVES, 5), np.int64), np.zeros(1 + MOST_MOVES)
    path, size = np.empty(MOST_PLIES, np.int64), 1
    tree[0, PROVEN] = UNKNOWN
    for _ in range(simulations):
        now[:] = position
        node, depth, end = 0, 0, 0
        path[0] = 0
        while not end and tree[node, PROVEN] == UNKNOWN and (tree[node, VISITS] > 0 or node == 0):
            if tree[node, CHILDREN] == 0:
                count = moves(rules, now, out)
                if size + count > len(tree):
                    tree, totals = np.concatenate((tree, np.zeros_like(tree))), np.concatenate((totals, 0 * totals))
                for i in range(count):
                    other = i + below(random, count - i)
                    out[i], out[other] = out[other], out[i]
                    tree[size + i, NUMBER], tree[size + i, PROVEN] = out[i], UNKNOWN
                tree[node, FIRST_CHILD], tree[node, CHILDREN] = size, count
                size += count
            node = chosen(tree, totals, node, exploration)
            end = play(rules, now, tree[node, NUMBER])
            depth += 1
            path[depth] = node
        if end:
            tree[node, PROVEN] = 1 if end == 1 else 0
        value = np.float64(tree[node, PROVEN])
        if tree[node, PROVEN] == UNKNOWN:
            value = -roll_out(moves, play, rules, now, roll_outs, random)
        for level in range(depth, -1, -1):
            if level < depth and tree[path[level + 1], PROVEN] != UNKNOWN:
                settle(tree, path[level])
            tree[path[level], VISITS] += 1
            totals[path[level]] += value
            value = -value
        if tree[0, PROVEN] != UNKNOWN:
            break
    found = 1
    for child in range(1, 1 + tree[0, CHILDREN]):
        if preferred(tree, totals, child, found):
            found = child
    return tree[found, NUMBER]
