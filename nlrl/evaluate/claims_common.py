"""What evaluations of every game say in the same words: how the games went they were made from, and the worth."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nlrl.evaluate.claims import Check, Checked, Claim
from nlrl.types import Evaluation

_OF_GAMES = re.compile(
    r"Of (?P<n>\d+) games (?:won (?P<won>\d+)(?:, drew (?P<drew>\d+))?, lost (?P<lost>\d+)"
    r"|(?P<reached>\d+) reached the goal)\. (?:After [a-z ]+ worth|Worth) (?P<worth>-?\d+\.\d+)\."
)
_CHANCES = re.compile(r"(?P<who>\w+) wins (?P<won>\d+) of 100 games and loses (?P<lost>\d+)")
_REACHED = re.compile(r"[Tt]he goal is reached in (?P<reached>\d+) of 100 games")
_POINTS = re.compile(r"About (?P<points>\d+(?:\.\d+)?) points are lost")


def worth_claim(evaluation: Evaluation, expected: float, digits: int = 2) -> Claim:
    """That the worth stated is the one its own reasons come to."""
    number = evaluation.value.number
    true = number is not None and abs(number - expected) <= 0.5 * 10.0**-digits + 1e-9
    return Claim("worth", f"worth {number} for {expected:.{digits}f}", true)


def check_games(evaluation: Evaluation) -> Checked | None:
    """The fixed sentence about games, when it is one and the games are known; None otherwise."""
    match = _OF_GAMES.fullmatch(evaluation.value.text.strip())
    if match is None or not evaluation.games_K:
        return None
    returns = [game.total_reward for game in evaluation.games_K]
    said = {name: int(text) for name, text in match.groupdict().items() if text is not None and name != "worth"}
    true = {
        "n": len(returns),
        "won": sum(r > 0 for r in returns),
        "drew": sum(r == 0 for r in returns),
        "lost": sum(r < 0 for r in returns),
        "reached": sum(game.rewards[-1] >= 0 and "goal is reached" in (game.terminal_text or "")
                       for game in evaluation.games_K),
    }  # fmt: skip
    claims = [Claim("games", f"{name} {count}", true[name] == count) for name, count in said.items()]
    digits = len(match["worth"].partition(".")[2])
    mean = sum(returns) / len(returns)
    claims.append(worth_claim(evaluation, mean, digits))
    return Checked(tuple(claims), 2, 0, 0)


def check_figures(evaluation: Evaluation, names: tuple[str, ...]) -> Iterator[tuple[re.Pattern[str], Check]]:
    """Patterns for the last sentence of a chat model's evaluation, whose figures the worth must follow from.

    `names` are the two seats of a game of two; () in a game of one.
    """
    player = evaluation.situation.player

    def chances(match: re.Match[str]) -> list[Claim]:
        difference = (int(match["won"]) - int(match["lost"])) / 100
        mine = match["who"].casefold() == player.casefold()
        return [worth_claim(evaluation, difference if mine else -difference)]

    def reached(match: re.Match[str]) -> list[Claim]:
        return [worth_claim(evaluation, int(match["reached"]) / 100)]

    def points(match: re.Match[str]) -> list[Claim]:
        return [worth_claim(evaluation, -float(match["points"]), 1)]

    if names:
        yield _CHANCES, chances
    else:
        yield _REACHED, reached
        yield _POINTS, points
