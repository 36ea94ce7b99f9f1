"""Prompts as the operators ask them, about games of random moves: the common part of all games but the maze.

Positions, moves and endings are those of a pool of games in which every move was drawn uniformly; the pool is renewed
as examples are drawn from it. Questions are built by the operators' own functions and rendered by `Asker.messages`.
What is not on a board, the numbers of an evaluation that a later model might state, is drawn at random.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlrl.ask import Asker, Question
from nlrl.engine.scripted import ScriptedEngine
from nlrl.operators.improve import improve_question
from nlrl.policy import policy_question
from nlrl.pretrain.corpus.example import Example
from nlrl.pretrain.corpus.game import Game
from nlrl.pretrain.corpus.speaker import answer
from nlrl.types import CallId, Candidate, Group, History, LanguageValue, LookAhead, Situation, Variation
from nlrl.values.direct import value_question
from nlrl.values.games import ENDINGS
from nlrl.values.monte_carlo import games_question
from nlrl.values.numeric import lambda_weights
from nlrl.values.td import aggregate_question, combine_question
from nlrl.values.td_lambda import blend_question
from nlrl_envs.base import TextEnv, rewards_of, seat_of, seats_of
from nlrl_prompts import load

HERE = CallId(0, 0, "value")
POOL = 48
"""Games that are drawn from at a time."""
RENEWAL = 12
"""Examples after which one of them gives way to a new one."""
DECAYS = (0.25, 0.5, 0.75, 0.8, 0.9)
"""lambda of the estimates that are blended."""
MOST_LOOKS = 10
"""K of look-aheads and of games, at most."""


@dataclass(frozen=True, slots=True)
class Played:
    """A game of random moves."""

    envs: tuple[TextEnv, ...]
    """The game before each move, and at its end."""
    items: History
    """Observation, move, observation, ..., last observation."""
    legal_T_A: tuple[tuple[str, ...], ...]
    rewards_T_P: tuple[tuple[float, ...], ...]
    ending: str

    @property
    def turns(self) -> int:
        """Number of moves."""
        return len(self.legal_T_A)


def play(game: Game, rng: random.Random) -> Played:
    """One game, every move drawn uniformly from the legal ones."""
    env = game.begin(rng)
    env.reset(np.random.default_rng(rng.getrandbits(63)), env.state)
    envs, items, legal_T_A, rewards_T_P = [env], [env.observation], [], []
    while legal := env.legal_actions:
        env = env.clone()
        move = rng.choice(legal)
        step = env.step(move)
        envs.append(env)
        items += [move, step.observation]
        legal_T_A.append(legal)
        rewards_T_P.append(rewards_of(step))
    return Played(tuple(envs), tuple(items), tuple(legal_T_A), tuple(rewards_T_P), env.terminal_text or "")


class Writer:
    """An endless stream of examples of one game; the same seed gives the same stream."""

    def __init__(self, game: Game, seed: int) -> None:
        self.game = game
        self.rng = random.Random(seed)
        self.ask = Asker(ScriptedEngine(()), load("compact", game.id), "")
        self.pool = deque((play(game, self.rng) for _ in range(POOL)), POOL)
        self.seats = seats_of(self.pool[0].envs[0])

    def examples(self, shares: Mapping[str, float]) -> Iterator[Example]:
        """Examples with roles drawn by their shares."""
        roles, chances = list(shares), list(shares.values())
        while True:
            self.pool.append(play(self.game, self.rng))
            for role in self.rng.choices(roles, chances, k=RENEWAL):
                yield self.example(role)

    def example(self, role: str) -> Example:
        """One example of a role."""
        prompt = self.text(getattr(self, role)())
        return Example(role, prompt, answer(self.game, role, prompt, self.rng), self.game.id)

    def text(self, question: Question) -> str:
        """A question as the model reads it."""
        return self.ask.messages(question)[0].content

    def turn(self) -> tuple[Played, int]:
        """A game, and a move of it."""
        played = self.pool[self.rng.randrange(len(self.pool))]
        return played, self.rng.randrange(played.turns)

    def situation(self, played: Played, turn: int, player: str | None = None) -> Situation:
        """A state as its mover, or `player`, knows it: mostly the observation alone, sometimes what came before."""
        moves = min(turn, self.rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 3)))
        history = played.items[2 * (turn - moves) : 2 * turn + 1]
        mover = self.seats[seat_of(played.envs[turn])]
        return Situation(history, HERE, played.legal_T_A[turn], player or mover)

    def value(self) -> Question:
        """V^L of a state, for its mover as often as for anyone; or Q^L of a move that does not end the game."""
        played, turn = self.turn()
        if self.rng.random() < 0.45:
            move = self.rng.choice(played.legal_T_A[turn])
            if played.envs[turn].clone().step(move).terminated or not self.stays(played, turn, move):
                return self.value()
            return value_question(self.situation(played, turn), move)
        player = self.rng.choice(self.seats) if self.rng.random() < 0.5 else None
        return value_question(self.situation(played, turn, player), None)

    def stays(self, played: Played, turn: int, move: str) -> bool:
        """Whether a move does not end the game where it points at: chance may have led elsewhere."""
        return self.game.safe is None or self.game.safe(played.envs[turn], move)

    def policy(self) -> Question:
        """A move in a state."""
        return policy_question(self.situation(*self.turn()))

    def combine(self) -> Question:
        """G2 of a few moves of a game and an evaluation of where they led."""
        look, player = self.look()
        return combine_question(HERE, Variation(look, LanguageValue(self.leaf(look, player))), ())

    def look(self) -> tuple[LookAhead, str]:
        """A few moves of a game as its mover saw them, often its last ones; and the mover."""
        played, turn = self.turn()
        count = self.rng.randint(1, 4)
        if self.rng.random() < 0.3:
            turn = max(0, played.turns - count)
        end = min(turn + count, played.turns)
        seat = seat_of(played.envs[turn])
        rewards = tuple(rewards_P[seat] for rewards_P in played.rewards_T_P[turn:end])
        items = played.items[2 * turn : 2 * end + 1]
        ending = played.ending if end == played.turns else None
        return LookAhead(items, items[1::2], rewards, ending), self.seats[seat]

    def leaf(self, look: LookAhead, player: str, kind: str = "seen") -> str:
        """How the end of a look is judged: by what is seen there, or as a trained model may put it."""
        if look.terminal_text is not None:
            return self.ask.prompts["terminal"].render(terminal_text=look.terminal_text)
        if kind != "seen":
            return self.estimate(kind)
        return self.game.judge(self.text(value_question(Situation(look.history, HERE, player=player), None)))

    def estimate(self, kind: str, worth: float | None = None) -> str:
        """An evaluation whose numbers are drawn: what games, looks or weights might have come to."""
        rng, game = self.rng, self.game
        if kind == "games":
            won, drew, lost = self.results(rng.randint(1, MOST_LOOKS))
            return f"{game.games(won, drew, lost)} {game.worth((won - lost) / (won + drew + lost))}"
        worth = rng.uniform(game.lowest, 1) if worth is None else worth
        if kind == "weights":
            return f"By weight. {game.worth(worth)}"
        count = rng.randint(1, MOST_LOOKS)
        won, _, lost = self.results(rng.randint(0, count))
        return f"{game.looks(count, won, lost)} {game.worth(worth)}"

    def results(self, count: int) -> tuple[int, int, int]:
        """So many games as won, drawn and lost; every mixture occurs."""
        first, second = sorted((self.rng.random(), self.rng.random()))
        drawn = [self.rng.random() for _ in range(count)]
        won, lost = sum(x < first for x in drawn), sum(x > second for x in drawn)
        if not self.game.draws:
            won, lost = won, count - won
        elif self.game.lowest == 0:
            lost = 0
        return won, count - won - lost, lost

    def aggregate(self) -> Question:
        """G1 over variations of a move, G2 inside or done before."""
        played, turn = self.turn()
        if self.rng.random() < 0.3:
            turn = max(0, played.turns - self.rng.randint(1, 4))
        root = played.envs[turn]
        move, steps = self.rng.choice(played.legal_T_A[turn]), self.rng.randint(0, 3)
        kind = self.rng.choice(("seen", "seen", "games", "looks", "weights"))
        player = self.seats[seat_of(root)]
        combine = "fused" if self.rng.random() < 0.75 else "split"
        variations = []
        for _ in range(self.rng.randint(1, MOST_LOOKS)):
            look = self.walk(root, played.items[2 * turn], move, steps)
            variation = Variation(look, LanguageValue(self.leaf(look, player, kind)))
            text = variation.leaf.text
            if combine == "split":
                text = answer(self.game, "combine", self.text(combine_question(HERE, variation, ())), self.rng)
            variations.append((variation, text))
        return aggregate_question(variations, (), CallId(0, 0, "aggregate", move), self.ask, combine)

    def walk(self, root: TextEnv, observation: str, move: str, steps: int) -> LookAhead:
        """A move and so many random ones after it, as the mover sees them."""
        env, seat = root.clone(), seat_of(root)
        items, rewards = [observation], []
        while True:
            step = env.step(move)
            items += [move, step.observation]
            rewards.append(rewards_of(step)[seat])
            if len(rewards) > steps or not (legal := env.legal_actions):
                return LookAhead(tuple(items), tuple(items[1::2]), tuple(rewards), env.terminal_text)
            move = self.rng.choice(legal)

    def monte_carlo(self) -> Question:
        """G1 over whole games, as the game itself told their ends or, rarely, as records without its words do."""
        won, drew, lost = self.results(self.rng.randint(1, MOST_LOOKS))
        returns = [1.0] * won + [0.0] * drew + [-1.0] * lost
        self.rng.shuffle(returns)
        played, turn = self.turn()
        seat, recorded = seat_of(played.envs[turn]), self.rng.random() < 0.15
        games_K = tuple(self.finished(value, seat, recorded) for value in returns)
        action = None if self.rng.random() < 0.3 else self.rng.choice(played.legal_T_A[turn])
        return games_question(Group(self.situation(played, turn), action, games_K), 0, self.ask)

    def finished(self, value: float, seat: int, recorded: bool) -> LookAhead:
        """The rest of a game that brought a seat this much; where the pool has none, its result alone is made up."""
        fitting = [p for p in self.pool if p.rewards_T_P[-1][seat] == value]
        played = self.rng.choice(fitting) if fitting else None
        failed = "horizon" if self.game.lowest == 0 and self.rng.random() < 0.5 else "failure"
        told = ENDINGS["success" if value > 0 else failed]
        ending = told if recorded or played is None else played.ending
        return LookAhead((), ("",), (value,), ending)

    def blend(self) -> Question:
        """TD(lambda): what looks of several lengths came to."""
        weights = lambda_weights(self.rng.choice(DECAYS), self.rng.randint(2, 4))
        found = {n: Candidate("", LanguageValue(self.estimate("looks"))) for n in range(1, len(weights) + 1)}
        return blend_question(found, dict(enumerate(map(float, weights), 1)), (), HERE, self.ask)

    def improve(self) -> Question:
        """I: candidates of a state, their evaluations drawn, near each other or far."""
        rng = self.rng
        played, turn = self.turn()
        legal = played.legal_T_A[turn]
        moves = rng.sample(legal, rng.randint(min(2, len(legal)), len(legal)))
        kind = rng.choice(("games", "games", "looks", "weights", "seen"))
        centre, spread = rng.uniform(self.game.lowest, 1), rng.choice((0.03, 0.1, 0.3, 1.0))
        texts: Sequence[str] = [
            self.leaf(*self.going_on()) if kind == "seen" else self.estimate(kind, rng.gauss(centre, spread))
            for _ in moves
        ]
        candidates = [Candidate(m, LanguageValue(t)) for m, t in zip(moves, texts, strict=True)]
        return improve_question(candidates, Situation((), HERE), self.ask, None)

    def going_on(self) -> tuple[LookAhead, str]:
        """A look that does not reach the end of its game."""
        played, turn = self.turn()
        return LookAhead((played.items[2 * turn],), (), ()), self.rng.choice(self.seats)
