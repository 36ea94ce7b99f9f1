"""Made-up games for the tests of the terminal, and what a terminal shows of an output."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
import pyte
from rich.console import Console

from nlrl.types import Candidate, Decision, Event, Failure, GameEnd, GameStart, ImprovedPolicy, LanguageValue, Step
from nlrl_envs.maze import MazeState, MazeText

HOSTILE = (
    "[up] [/foo] [link=file:///etc/passwd]x[/link] \x1b[2J\x1b[H\x1b]0;owned\x07\x1b]52;c;cm0=\x07\x9b31m\x1b(0"
    "down\rup \u202eevil\u202c \u200bzero\x08\x08\x00 \udcff\n\n<script>&amp;"
)
"""Whatever a model may write to upset a terminal, with `[up]` as the part that must be seen."""

OWN_SEQUENCES = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*m|[0-9]*[AKG]|\?2026[lh])")
"""What rich itself sends: cursor hidden and shown, colours, cursor up, line erased, start of line."""


def walk(
    game: int,
    start: tuple[int, int],
    moves: Sequence[str],
    *,
    map_: str = "umaze",
    thought: str = "It is nearer.",
    evaluation: str = "Worth {number:.1f}.",
    failures: tuple[Failure, ...] = (),
) -> list[Event]:
    """The events of a game of given moves; the chosen move's number is -1, those of the others -2, -3, -4."""
    env = MazeText(map_)
    state = MazeState(start, 0)
    observation = env.reset(np.random.default_rng(0), state)
    name, optimum = env.describe_start(state), env.optimal_return(state)
    events: list[Event] = [GameStart(game, name, observation, env.render(), optimum)]
    total = 0.0
    for number, move in enumerate(moves):
        others = [action for action in env.legal_actions if action != move]
        numbers = {move: -1.0} | {action: -2.0 - i for i, action in enumerate(others)}
        candidates = tuple(
            Candidate(action, LanguageValue(evaluation.format(number=numbers[action]), numbers[action]))
            for action in env.legal_actions
        )
        decision = Decision(game, number, (observation,), ImprovedPolicy(move, thought, candidates), failures, 37)
        result = env.step(move)
        total += result.reward
        observation = result.observation
        events.append(Step(game, number, decision, move, result.reward, total, observation, env.render(), result.legal))
    outcome = "success" if env.terminal_text == "The goal is reached." else "horizon"
    return [*events, GameEnd(game, total, len(moves), outcome)]


def terminal(width: int, height: int) -> tuple[Console, io.StringIO]:
    """A console that believes it is a terminal, and what it writes."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=height, color_system="truecolor", legacy_windows=False
    )
    return console, out


def screen(output: str, width: int, height: int) -> list[str]:
    """The lines a terminal of this size shows after an output."""
    emulator = pyte.Screen(width, height)
    # The terminal driver, not the terminal, turns a newline into the start of the next line.
    pyte.Stream(emulator).feed(output.replace("\n", "\r\n"))
    return [line.rstrip() for line in emulator.display]


def foreign_bytes(output: str) -> list[str]:
    """Control characters of an output that rich did not send for our own styles."""
    rest = OWN_SEQUENCES.sub("", output)
    return re.findall("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\ud800-\udfff]", rest)
