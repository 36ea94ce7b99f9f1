"""What a model of the corpus is to say: every reply from nothing but the prompt's own text, moves by lot.

This is the corpus rule as code. Evaluations are what `Game.judge` sees on the board that is shown; aggregates are sums
over the lines that are shown; the candidate that is named is the one whose stated number is largest, the first of
equals; a policy's move is any of those listed, each as likely as the other. `answer` reads text as a model does, so it
can also play every role of a run by itself.
"""

from __future__ import annotations

import random
import re

from nlrl.pretrain.corpus.game import Game

NUMBER = r"-?\d+(?:\.\d+)?"
WORTH = re.compile(rf"Worth ({NUMBER})\.")
REWARDED = re.compile(rf"[Rr]eward ({NUMBER})\.")
WEIGHED = re.compile(rf"^Weight ({NUMBER}(?:e-\d+)?)\. .*Worth ({NUMBER})\.$", re.MULTILINE)
CANDIDATE = re.compile(rf"Worth ({NUMBER})\. After (.*)\.$", re.MULTILINE)


def answer(game: Game, role: str, prompt: str, rng: random.Random) -> str:
    """The reply to a prompt of the compact set of `game`."""
    match role:
        case "value":
            return game.judge(prompt)
        case "policy":
            return f"No view yet: {rng.choice(game.moves or listed_moves(prompt))}."
        case "combine":
            return f"With the reward. {game.worth(totals(prompt)[0])}"
        case "aggregate":
            return aggregate(game, prompt)
        case "monte_carlo":
            return monte_carlo(game, prompt)
        case "blend":
            total = sum(float(weight) * float(worth) for weight, worth in WEIGHED.findall(prompt))
            return f"By weight. {game.worth(total)}"
        case _:
            return improve(prompt)


def listed_moves(prompt: str) -> list[str]:
    """The legal moves, which a policy's prompt lists in its first line."""
    return prompt.partition("\n")[0].removeprefix("Make a move: ").removesuffix(".").split(", ")


def totals(prompt: str) -> list[float]:
    """Reward and worth together, of each line that states a worth; where the reward is not told, it is in the worth."""
    return [
        float(worth[1]) + (float(reward[1]) if (reward := REWARDED.search(line)) else 0.0)
        for line in prompt.split("\n")
        if (worth := WORTH.search(line))
    ]


def aggregate(game: Game, prompt: str) -> str:
    """The mean, and how many looks came to the most and the least a return can be."""
    totals_K = totals(prompt)
    won, lost = sum(total >= 1 for total in totals_K), sum(total <= -1 for total in totals_K)
    return f"{game.looks(len(totals_K), won, lost)} {game.worth(sum(totals_K) / len(totals_K))}"


def monte_carlo(game: Game, prompt: str) -> str:
    """How many games were won, drawn and lost, and what that makes of a game."""
    returns_K = [float(reward) for reward in REWARDED.findall(prompt)]
    won, lost = sum(r > 0 for r in returns_K), sum(r < 0 for r in returns_K)
    mean = sum(returns_K) / len(returns_K)
    return f"{game.games(won, len(returns_K) - won - lost, lost)} {game.worth(mean)}"


def improve(prompt: str) -> str:
    """The first of the candidates with the largest number, quoted."""
    worth, move = max(CANDIDATE.findall(prompt), key=lambda pair: float(pair[0]))
    return f"Most worth is {worth} after {move}."
