"""The maze's part of the corpus: ways are walked at random through mazes that are drawn at random.

What a "value" example says follows from the way's own text: the straight-line offset to the goal, how often a move did
not change the position, how often a place was entered again, and their weighted sum as the prompt states it. The four
named maps never occur, they are held out for evaluation.

With the maze alone the corpus is, example for example, the one that hymba-tiny in the box was trained on; beside other
games the maze has also the roles "monte_carlo" and "blend".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nlrl.ask import Asker
from nlrl.engine.scripted import ScriptedEngine
from nlrl.pretrain.corpus.example import Example
from nlrl.types import CallId, Candidate, Group, LanguageValue, LookAhead, Situation
from nlrl.values.games import ENDINGS
from nlrl.values.monte_carlo import games_question
from nlrl.values.numeric import lambda_weights
from nlrl.values.td_lambda import blend_question
from nlrl_envs.maze import RAN_OUT_TEXT, REACHED_TEXT, describe
from nlrl_envs.maze_maps import ACTIONS, MAPS, Cell, MazeMap, random_map
from nlrl_prompts import PromptSet, load

ALONE = {"value": 0.44, "aggregate": 0.22, "improve": 0.22, "combine": 0.05, "policy": 0.07}
"""Share of each skill among the examples where the maze is the only game."""

HELD_OUT = frozenset(maze.rows for maze in MAPS.values())
"""Layouts that never occur."""

ASK = Asker(ScriptedEngine(()), load("compact", "maze"), "")
"""Renders questions; nobody is asked."""
HERE = CallId(0, 0, "value")
DECAYS = (0.25, 0.5, 0.75, 0.8, 0.9)
"""lambda of the estimates that are blended."""
BUMP_COST = 2
RETURN_COST = 2
"""What `value.md` states: less worth for each step left, 2 for each bump, 2 for each return."""


def examples(seed: int, shares: Mapping[str, float] = ALONE) -> Iterator[Example]:
    """An endless stream of examples; the same seed gives the same stream."""
    rng = np.random.default_rng(seed)
    prompts = load("compact", "maze")
    skills, chances = list(shares), np.array(list(shares.values()))
    while True:
        maze = draw_maze(rng)
        for skill in rng.choice(skills, size=64, p=chances):
            match skill:
                case "value":
                    yield value_example(rng, prompts, maze)
                case "policy":
                    yield policy_example(rng, prompts, maze)
                case "combine":
                    yield combine_example(rng, prompts)
                case "aggregate":
                    yield aggregate_example(rng, prompts)
                case "monte_carlo":
                    yield monte_carlo_example(rng)
                case "blend":
                    yield blend_example(rng)
                case _:
                    yield improve_example(rng, prompts)


def value_example(rng: np.random.Generator, prompts: PromptSet, maze: MazeMap) -> Example:
    """V^L: describe where a way has led and what happened on it."""
    actions, cells = walk(rng, maze, moves=int(rng.integers(0, 10)))
    return Example("value", prompts["value"].render(history=_history(maze, actions, cells)), judge(cells, maze.goal))


def judge(cells: Sequence[Cell], goal: Cell) -> str:
    """The description that a way's own text supports."""
    down, right = goal[0] - cells[-1][0], goal[1] - cells[-1][1]
    steps = abs(down) + abs(right)
    bumps = sum(a == b for a, b in pairwise(cells))
    returns = sum(cells[i] != cells[i - 1] and cells[i] in cells[: i - 1] for i in range(1, len(cells)))
    vertical, horizontal = "up" if down < 0 else "down", "left" if right < 0 else "right"
    worth = steps + BUMP_COST * bumps + RETURN_COST * returns
    return (
        f"Goal {abs(down)} {vertical}, {abs(right)} {horizontal}: {steps} steps. Bumped {bumps} times. "
        f"Came back {returns} times. Worth -{worth}."
    )


def policy_example(rng: np.random.Generator, prompts: PromptSet, maze: MazeMap) -> Example:
    """pi_L of a beginner: any move, each as likely as the other."""
    actions, cells = walk(rng, maze, moves=int(rng.integers(0, 4)))
    prompt = prompts["policy"].render(history=_history(maze, actions, cells))
    return Example("policy", prompt, f"No view yet: {rng.choice(ACTIONS)}.")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One variation as the aggregating prompts show it: what was done, what it cost, how its end was judged."""

    moves: str
    reward: int
    steps: int
    bumps: int
    returns: int
    judgement: str

    @property
    def total(self) -> int:
        """Reward plus worth."""
        return self.reward - self.steps - BUMP_COST * self.bumps - RETURN_COST * self.returns


def combine_example(rng: np.random.Generator, prompts: PromptSet) -> Example:
    """G2: reward and evaluation into one evaluation."""
    (evidence,) = _evidence(rng, 1)
    prompt = prompts["combine"].render(moves=evidence.moves, reward=str(evidence.reward), evaluation=evidence.judgement)
    return Example("combine", prompt, _combined(evidence))


def aggregate_example(rng: np.random.Generator, prompts: PromptSet) -> Example:
    """G1: the average of what several variations say, with G2 inside or done before."""
    evidence_K = _evidence(rng, int(rng.integers(1, 11)))
    fused = rng.random() < 0.75
    line = prompts["look" if fused else "combined_look"]
    looks = "\n".join(
        line.render(
            number=str(k + 1),
            moves=e.moves,
            reward=str(e.reward),
            evaluation=e.judgement if fused else _combined(e),
        )
        for k, e in enumerate(evidence_K)
    )
    action = evidence_K[0].moves.split(", ")[0]
    return Example("aggregate", prompts["aggregate"].render(looks=looks, action=action), _average(action, evidence_K))


def improve_example(rng: np.random.Generator, prompts: PromptSet) -> Example:
    """I: name the candidate whose given evaluation is best, the first of equals."""
    actions = rng.permutation(ACTIONS)[: int(rng.integers(2, 5))]
    centre = rng.uniform(2, 40)
    spread = rng.choice([0.3, 1.0, 3.0, 8.0])
    worths = [round(float(np.clip(centre + rng.normal(0, spread), 0, 99)), 1) for _ in actions]
    lines = [
        prompts["candidate"].render(
            action=str(action), evaluation=_average_text(str(action), *_parts(rng, worth), worth)
        )
        for action, worth in zip(actions, worths, strict=True)
    ]
    best = int(np.argmin(worths))
    reply = f"Most worth is -{worths[best]:.1f} after {actions[best]}."
    return Example("improve", prompts["improve"].render(candidates="\n".join(lines)), reply)


def monte_carlo_example(rng: np.random.Generator) -> Example:
    """G1 over whole games: how many reached the goal, and their mean return."""
    count, horizon = int(rng.integers(1, 11)), int(rng.choice([10, 20, 40, 60, 100], p=[0.1, 0.1, 0.1, 0.1, 0.6]))
    reached_K = rng.random(count) < rng.random()
    returns_K = [-int(rng.integers(0, horizon)) if reached else -horizon - 1 for reached in reached_K]
    recorded = rng.random() < 0.15
    texts = (ENDINGS["success"], ENDINGS["horizon"]) if recorded else (REACHED_TEXT, RAN_OUT_TEXT)
    action = None if rng.random() < 0.3 else str(rng.choice(ACTIONS))
    games_K = tuple(
        LookAhead((), (action or "",), (float(total),), texts[0 if reached else 1])
        for reached, total in zip(reached_K, returns_K, strict=True)
    )
    question = games_question(Group(Situation((), HERE), action, games_K), 0, ASK)
    worth = f"-{abs(np.mean(returns_K)):.1f}."
    worth = f"Worth {worth}" if action is None else f"After {action} worth {worth}"
    reply = f"Of {count} games {int(reached_K.sum())} reached the goal. {worth}"
    return Example("monte_carlo", ASK.messages(question)[0].content, reply)


def blend_example(rng: np.random.Generator) -> Example:
    """TD(lambda): estimates of several lengths, by their weights."""
    weights_N = lambda_weights(float(rng.choice(DECAYS)), int(rng.integers(2, 5)))
    action, centre = str(rng.choice(ACTIONS)), rng.uniform(2, 40)
    worths_N = [round(float(np.clip(centre + rng.normal(0, 4), 0, 99)), 1) for _ in weights_N]
    found_N = {
        n: Candidate(action, LanguageValue(_average_text(action, *_parts(rng, worth), worth)))
        for n, worth in enumerate(worths_N, 1)
    }
    question = blend_question(found_N, dict(enumerate(map(float, weights_N), 1)), (), HERE, ASK)
    worth = float(np.dot(weights_N, worths_N))
    reply = f"By weight. After {action} worth -{worth:.1f}."
    return Example("blend", ASK.messages(question)[0].content, reply)


def walk(rng: np.random.Generator, maze: MazeMap, moves: int) -> tuple[list[str], list[Cell]]:
    """A random walk of at most `moves` moves that stops short of the goal; (actions, cells), one cell more.

    Four habits are mixed so that every count of bumps and returns occurs: any move; straight on until something is in
    the way; not back where it came from; to and fro.
    """
    cell = maze.starts[rng.integers(len(maze.starts))]
    habit = rng.choice(["any", "straight", "onward", "fro"], p=[0.4, 0.2, 0.3, 0.1])
    actions: list[str] = []
    cells = [cell]
    last = int(rng.integers(4))
    for _ in range(moves):
        choice = int(rng.integers(4))
        open_ = [a for a in range(4) if maze.next_cell(cell, a) != cell]
        if habit == "straight" and last in open_ and rng.random() < 0.85:
            choice = last
        elif habit == "onward" and open_ and rng.random() < 0.85:
            choice = int(rng.choice([a for a in open_ if a != _BACK[last]] or open_))
        elif habit == "fro" and rng.random() < 0.7:
            choice = _BACK[last]
        cell = maze.next_cell(cell, choice)
        if cell == maze.goal:
            break
        actions.append(ACTIONS[choice])
        cells.append(cell)
        last = choice
    return actions, cells


_BACK = (1, 0, 3, 2)
"""The opposite of each of ACTIONS."""


def draw_maze(rng: np.random.Generator) -> MazeMap:
    """A maze of 5 to 16 rows and columns that is not held out; any free cell may be the goal."""
    while (rows := tuple(_draw_rows(rng))) in HELD_OUT:
        pass
    free = [(r, c) for r, row in enumerate(rows) for c, mark in enumerate(row) if mark == "."]
    return MazeMap("drawn", rows, free[rng.integers(len(free))])


def _draw_rows(rng: np.random.Generator) -> list[str]:
    """Corridors, shifted so that they lie on odd and even lines alike, or cells walled up at random."""
    if rng.random() < 0.5:
        rows, columns = (int(n) for n in rng.choice([5, 7, 9, 11, 13, 15], size=2))
        drawn = list(random_map(int(rng.integers(2**48)), rows, columns).rows)
        if rng.random() < 0.5:
            drawn.insert(0, "#" * columns)
        if rng.random() < 0.5:
            drawn = ["#" + row for row in drawn]
        return drawn
    rows, columns = (int(n) for n in rng.integers(5, 16, size=2))
    wall = rng.random((rows, columns)) < rng.uniform(0.1, 0.5)
    wall[[0, -1]], wall[:, [0, -1]] = True, True
    wall[1, 1:3] = False
    return ["".join("#" if cell else "." for cell in row) for row in wall]


def _history(maze: MazeMap, actions: Sequence[str], cells: Sequence[Cell]) -> str:
    lines = [describe(maze, cells[0]).rstrip("\n")]
    for action, cell in zip(actions, cells[1:], strict=True):
        lines += [action, describe(maze, cell).rstrip("\n")]
    return "\n".join(lines)


def _evidence(rng: np.random.Generator, count: int) -> list[Evidence]:
    """Variations that could belong to one candidate action: alike in length and place, different in detail."""
    length = int(rng.integers(1, 7))
    centre, spread = rng.uniform(1, 24), rng.uniform(0, 3)
    bump_rate, return_rate = rng.uniform(0, 4), rng.uniform(0, 3)
    first = str(rng.choice(ACTIONS))
    ends = rng.random() < 0.25
    found: list[Evidence] = []
    for _ in range(count):
        moves = [first, *(str(a) for a in rng.choice(ACTIONS, size=length - 1))]
        if ends and rng.random() < 0.4:
            moves = moves[: int(rng.integers(1, length + 1))]
            found.append(Evidence(", ".join(moves), 1 - len(moves), 0, 0, 0, _judgement(rng, 0, 0, 0)))
            continue
        steps = int(np.clip(round(centre + rng.normal(0, spread)), 1, 28))
        bumps, returns = min(int(rng.poisson(bump_rate)), 9), min(int(rng.poisson(return_rate)), 9)
        judgement = _judgement(rng, steps, bumps, returns)
        found.append(Evidence(", ".join(moves), -len(moves), steps, bumps, returns, judgement))
    return found


def _judgement(rng: np.random.Generator, steps: int, bumps: int, returns: int) -> str:
    """A "value" reply with these counts; the terminal text of the prompt set is the one with zero steps."""
    down = int(rng.integers(0, steps + 1))
    vertical = "down" if steps == 0 else rng.choice(["up", "down"])
    horizontal = "right" if steps == 0 else rng.choice(["left", "right"])
    worth = steps + BUMP_COST * bumps + RETURN_COST * returns
    return (
        f"Goal {down} {vertical}, {steps - down} {horizontal}: {steps} steps. Bumped {bumps} times. "
        f"Came back {returns} times. Worth -{worth}."
    )


def _combined(evidence: Evidence) -> str:
    return (
        f"With the reward: {evidence.steps} steps, {evidence.bumps} bumps, {evidence.returns} returns. "
        f"Worth -{-evidence.total}."
    )


def _average(action: str, evidence_K: Sequence[Evidence]) -> str:
    means = [float(np.mean([getattr(e, name) for e in evidence_K])) for name in ("steps", "bumps", "returns", "total")]
    return _average_text(action, means[0], means[1], means[2], -means[3])


def _average_text(action: str, steps: float, bumps: float, returns: float, worth: float) -> str:
    return (
        f"On average {abs(steps):.1f} steps, {abs(bumps):.1f} bumps, {abs(returns):.1f} returns. "
        f"After {action} worth -{abs(worth):.1f}."
    )


def _parts(rng: np.random.Generator, worth: float) -> tuple[float, float, float]:
    """Steps, bumps and returns that could stand beside `worth` in an average, a reward of a few steps included."""
    rest = max(worth - float(rng.integers(1, 7)), 0.0)
    bumps, returns = rng.uniform(0, rest / 6), rng.uniform(0, rest / 6)
    return max(rest - BUMP_COST * bumps - RETURN_COST * returns, 0.0), bumps, returns
