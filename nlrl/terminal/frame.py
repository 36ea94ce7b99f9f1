"""One moment of a game, as the live view and the replay both draw it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nlrl.safe_text import one_line
from nlrl.types import Decision, Event, GameEnd, GameStart, Step

OUTCOMES = {
    "success": "reached the goal",
    "horizon": "ran out of moves",
    "forfeit": "forfeited: no usable move",
    "failure": "lost",
}
"""`GameEnd.outcome` in words, for games that say nothing themselves."""


def mover_text(decision: Decision) -> str:
    """Who moved, in games of two: the seat's name, and whether an opponent has it; "" in games of one."""
    if decision.player == "player":
        return ""
    return f"{one_line(decision.player, 20)}{'' if decision.own else ' (opponent)'}: "


def outcome_text(end: GameEnd) -> str:
    """How a game ended: in its own words where it has any, else what the outcome means."""
    return one_line(end.ending.strip().rstrip("."), 200) or OUTCOMES[end.outcome]


@dataclass(frozen=True, slots=True)
class Frame:
    """The state of a game after its start or after a move."""

    start: GameStart
    step: Step | None = None
    """The move that led here; None at the start."""
    end: GameEnd | None = None
    """Set when that move ended the game."""

    @property
    def picture(self) -> str:
        """The position drawn with text."""
        return self.start.picture if self.step is None else self.step.picture

    @property
    def moves(self) -> int:
        """Moves made so far."""
        return 0 if self.step is None else self.step.step + 1

    @property
    def total_return(self) -> float:
        """Sum of the rewards so far."""
        return 0.0 if self.step is None else self.step.total_return

    def after(self, event: Step | GameEnd) -> Frame:
        """The frame that follows when `event` happens in this game."""
        return Frame(self.start, event) if isinstance(event, Step) else replace(self, end=event)


def frames_of(events: Iterable[Event]) -> list[Frame]:
    """The frames of one recorded game, its start first. A game that was interrupted just stops.

    Raises:
        ValueError: the events do not begin with a `GameStart`, or are of several games.
    """
    frames: list[Frame] = []
    for event in events:
        if isinstance(event, GameStart) != (not frames) or (frames and event.game != frames[0].start.game):
            raise ValueError("A replay shows one game: give its events in order, from its GameStart.")
        if isinstance(event, GameStart):
            frames.append(Frame(event))
        elif isinstance(event, Step):
            frames.append(frames[-1].after(event))
        else:
            frames[-1] = frames[-1].after(event)
    return frames
