"""The counters of a run as its views read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot; a view asks for a new one whenever it draws, from a thread of its own."""

    calls: int = 0
    """Replies of the language model, re-asked ones included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bad_replies: int = 0
    """Replies that could not be used (`nlrl.types.Failure`)."""
    seconds: float = 0.0
    """Since the run began."""
    games_done: int = 0
    games_total: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float:
        """Tokens written a second, over the whole run; 0 before any time has passed."""
        return self.completion_tokens / self.seconds if self.seconds > 0 else 0.0


def clock_text(seconds: float) -> str:
    """Minutes and seconds, "4:07", or hours, "1:02:09"."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
