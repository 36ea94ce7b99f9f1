"""PPO over the legal moves' token logits, the paper's learning baseline, which here sees its losses.

Source: Schulman et al., "Proximal policy optimization algorithms", arXiv 1707.06347, eq. 7 and 9; the setting of
arXiv 2411.14251, appendix: discount 0.99, lambda 0.95, clip 0.2, value loss weighed 0.5, entropy 0.01, learning rates
1e-5, batches of 16 accumulated twice, one pass over the games, temperature 0.7.

Deviations from the authors' code, on purpose: rewards that arrive on an opponent's move count (`episodes`; theirs never
sees a loss); the paper's coefficients where their script has others (1.0 and 0.0, temperature 0.1); parameters and
optimizer in float32 and one optimizer for all iterations (theirs is bfloat16 and made anew); advantages are brought to
mean 0 and deviation 1 over an iteration, and gradients are clipped, as is usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nlrl.agents import Agent
from nlrl.baselines.advantages import advantages
from nlrl.baselines.episodes import Episode, EpisodeKnobs, play_episodes
from nlrl.baselines.move_logits import MoveActor, Prompted
from nlrl.engine.local import settle
from nlrl.evaluate.games import GameGrades, grade_games
from nlrl.types import CallId, Decision, History, ImprovedPolicy, Situation
from nlrl_envs.base import TextEnv, seat_of, seats_of
from nlrl_envs.opponents import Opponent

ALONE = EpisodeKnobs()
"""The learner sees the present position alone."""


@dataclass(frozen=True, slots=True)
class PpoKnobs:
    """The paper's setting."""

    iterations: int = 30
    games: int = 512
    """Games an iteration."""
    learning_rate: float = 1e-5
    critic_learning_rate: float = 1e-5
    gamma: float = 0.99
    decay: float = 0.95
    """Lambda."""
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    passes: int = 1
    """How often an iteration's turns are learned from."""
    batch: int = 32
    """Turns a step of the optimizer."""
    most_gradient: float = 1.0
    """Norm to which gradients are clipped."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A turn to be learned from."""

    prompted: Prompted
    move: int
    log_prob: float
    """When it was made."""
    advantage: float
    aim: float
    """What the critic should have said."""


@dataclass(frozen=True, slots=True)
class PpoLoss:
    """The parts of the loss of a batch."""

    total: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor
    clipped: torch.Tensor
    """Share of turns whose ratio has left 1 +- clip."""


@dataclass(frozen=True, slots=True)
class PpoRecord:
    """One iteration."""

    iteration: int
    games: GameGrades
    """Of the games that were learned from, at the policy's temperature."""
    turns: int
    lost_turns: int
    """Turns that ended in a lost game: with reward -1, and terminal."""
    policy_loss: float
    value_loss: float
    entropy: float
    clipped: float


def ppo_loss(
    log_probs_B: torch.Tensor,
    values_B: torch.Tensor,
    entropy_B: torch.Tensor,
    batch: Sequence[Sample],
    knobs: PpoKnobs,
) -> PpoLoss:
    """Minus L^CLIP plus c1 L^VF minus c2 S (arXiv 1707.06347, eq. 9), means over the batch.

    Args:
        log_probs_B: of the moves that were made, by the present policy.
        values_B: by the present critic.
        entropy_B: of the present policy.
        batch: what was done and what it was worth.
        knobs: clip and weights.
    """
    like: Any = {"dtype": log_probs_B.dtype, "device": log_probs_B.device}
    before_B = torch.tensor([one.log_prob for one in batch], **like)
    advantage_B = torch.tensor([one.advantage for one in batch], **like)
    aim_B = torch.tensor([one.aim for one in batch], **like)
    ratio_B = (log_probs_B - before_B).exp()
    held_B = ratio_B.clamp(1 - knobs.clip, 1 + knobs.clip)
    policy = -torch.minimum(ratio_B * advantage_B, held_B * advantage_B).mean()
    value = (values_B - aim_B).square().mean()
    entropy = entropy_B.mean()
    total = policy + knobs.value_weight * value - knobs.entropy_weight * entropy
    return PpoLoss(total, policy, value, entropy, (ratio_B != held_B).float().mean())


def samples_of(episodes: Sequence[Episode], knobs: PpoKnobs) -> list[Sample]:
    """Every turn with its advantage, brought to mean 0 and deviation 1 over all of them."""
    turns = [turn for episode in episodes for turn in episode.turns_T]
    found, values = [], []
    for episode in episodes:
        own = episode.turns_T
        values_T = [turn.note[2] for turn in own]
        terminal = bool(own) and own[-1].terminal
        found.append(advantages([turn.reward for turn in own], values_T, terminal, knobs.gamma, knobs.decay))
        values.append(np.array(values_T))
    raw, value = np.concatenate(found), np.concatenate(values)
    scaled = (raw - raw.mean()) / (raw.std() + 1e-8)
    return [
        Sample(turn.note[0], turn.move, turn.note[1], float(a), float(aim))
        for turn, a, aim in zip(turns, scaled, raw + value, strict=True)
    ]


def train_ppo(
    env: TextEnv,
    actor: MoveActor,
    opponent: Opponent | None,
    *,
    knobs: PpoKnobs = PpoKnobs(),
    seed: int = 0,
    episodes: EpisodeKnobs = ALONE,
) -> Iterator[PpoRecord]:
    """Trains the actor in place, an iteration a record. Games are numbered on; the seed decides all."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in actor.model.parameters() if p.requires_grad], "lr": knobs.learning_rate},
            {"params": list(actor.critic.parameters()), "lr": knobs.critic_learning_rate},
        ],
        weight_decay=0.0,
    )
    after_step = getattr(actor.model, "after_optimizer_step", lambda: None)
    after_step()
    actor.eval()  # no dropout: the ratio is to be 1 before the first step
    for iteration in range(1, knobs.iterations + 1):
        games = range((iteration - 1) * knobs.games, iteration * knobs.games)
        played = play_episodes(env, actor.choose, opponent, games=games, seed=seed, knobs=episodes)
        samples = samples_of(played, knobs)
        rng, losses = np.random.default_rng((seed, iteration, 1)), []
        for _ in range(knobs.passes):
            order = rng.permutation(len(samples))
            for first in range(0, len(order), knobs.batch):
                losses.append(_step(actor, optimizer, [samples[i] for i in order[first : first + knobs.batch]], knobs))
                after_step()
        yield PpoRecord(
            iteration,
            grade_games([one.end for one in played], seats_of(env)),
            len(samples),
            sum(turn.terminal and turn.reward < 0 for one in played for turn in one.turns_T),
            *(float(mean) for mean in np.mean(losses, axis=0)),
        )


def _step(
    actor: MoveActor, optimizer: torch.optim.Optimizer, batch: Sequence[Sample], knobs: PpoKnobs
) -> tuple[float, float, float, float]:
    scored = actor([one.prompted for one in batch])
    moves = torch.tensor([one.move for one in batch], device=scored.values_B.device)
    log_probs_B = scored.log_probs_BA.gather(1, moves[:, None]).squeeze(1)
    loss = ppo_loss(log_probs_B, scored.values_B, scored.entropy_B, batch, knobs)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    torch.nn.utils.clip_grad_norm_(actor.parameters(), knobs.most_gradient)
    optimizer.step()
    return loss.policy.item(), loss.value.item(), loss.entropy.item(), loss.clipped.item()


def ppo_agent(actor: MoveActor) -> Agent:
    """The learned policy as an agent that makes its most probable move; nothing is generated.

    Games that wait for a move at the same time are moved in one pass of the model.
    """
    waiting: list[tuple[Situation, asyncio.Future[int]]] = []
    moving: set[asyncio.Task[None]] = set()

    async def move_all() -> None:
        await settle()
        asked = list(waiting)
        waiting.clear()
        moving.clear()
        try:
            moves = actor.best([here for here, _ in asked])
        except Exception as error:
            for place in (place for _, place in asked if not place.done()):
                place.set_exception(error)
            return
        for (_, place), move in zip(asked, moves, strict=True):
            if not place.done():  # else its game was given up
                place.set_result(move)

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        here = Situation(history, call, env.legal_actions, seats_of(env)[seat_of(env)])
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting.append((here, place))
        if not moving:
            moving.add(asyncio.create_task(move_all()))
        move = await place
        return Decision(call.game, call.step, history, ImprovedPolicy(here.actions[move], "by its logit"))

    return agent
