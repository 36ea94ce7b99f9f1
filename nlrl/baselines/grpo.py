"""GRPO: TRL's own trainer on the plain policy prompt, rewarded by what a reply's move leads to.

Source: Shao et al., "DeepSeekMath", arXiv 2402.03300, eq. 3: K replies to one prompt are drawn, and each is moved
towards or away from by its reward's distance from the group's mean. TRL's `GRPOTrainer` is used unmodified, through its
reward function: a situation is a prompt, a reply is read by the same strict parser as everywhere, its move is made in
a copy of the game, and the game is played on to its end; the reward is the return of who was asked. A reply that cannot
be used gives the game up, as in `nlrl.play`.

TRL's `environment_factory` is another thing and does not fit: it offers an environment's methods to the model as tools,
which a chat template must know how to call; policies here answer in the words of their prompt set.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlrl.ask import Asker
from nlrl.baselines.episodes import play_episodes, uniform_choice
from nlrl.errors import ParseError
from nlrl.parse import parse_reply
from nlrl.policy import policy_question
from nlrl.types import Situation
from nlrl_envs.base import TextEnv, rewards_of, seat_of
from nlrl_envs.opponents import Opponent, uniform_random

Root = tuple[Hashable, Situation]
"""A state of the game, and how the one to move meets it."""


@dataclass(frozen=True, slots=True)
class GrpoKnobs:
    """The setting; rewards need no critic, so there are few."""

    steps: int = 100
    """Of the optimizer."""
    prompts: int = 8
    """Situations a step."""
    replies: int = 8
    """K: replies to each."""
    learning_rate: float = 1e-6
    temperature: float = 1.0
    beta: float = 0.0
    """Weight of the KL divergence from the model that training begins with."""


@dataclass
class PlayedOn:
    """The reward function: TRL calls it with the replies and the columns of their rows.

    Args:
        env: the game.
        roots: states and situations, by the number in the column `root`.
        ask: whose policy prompt was asked; its form of a reply is the one that is read.
        opponent: who answers in games of two.
        own: who goes on for the one who was asked.
        seed: of all games that are played on.
    """

    env: TextEnv
    roots: Sequence[Root]
    ask: Asker
    opponent: Opponent | None
    own: Opponent = uniform_random
    seed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Replies by what was wrong with them; "" for those that could be used."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], root: Sequence[int], **_: Any
    ) -> list[float]:
        """The return of each reply."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        moves = [self._read(text, self.roots[r][1]) for text, r in zip(texts, root, strict=True)]
        first = sum(self.failures.values()) - len(moves)
        rngs = [np.random.default_rng((self.seed, first + i)) for i in range(len(moves))]
        return play_on(
            [(self._at(r), move) for r, move in zip(root, moves, strict=True)], self.own, self.opponent, rngs
        )

    def _at(self, root: int) -> TextEnv:
        env = self.env.clone()
        env.set_state(self.roots[root][0])
        return env

    def _read(self, text: str, situation: Situation) -> str | None:
        form = self.ask.prompts["policy"].reply
        assert form is not None
        try:
            action = parse_reply(text, form, situation.actions).action
        except ParseError as error:
            self.failures[error.kind] += 1
            return None
        self.failures[""] += 1
        return action


def play_on(
    begun: Sequence[tuple[TextEnv, str | None]], own: Opponent, opponent: Opponent | None,
    rngs: Sequence[np.random.Generator],
) -> list[float]:  # fmt: skip
    """The return of whoever is to move in each game, from this move on; None gives the game up there.

    Afterwards `own` moves for that seat and `opponent` (None: `own` too) for the other.
    """
    seats, returns = [seat_of(env) for env, _ in begun], [0.0] * len(begun)

    def move(i: int, action: str) -> None:
        returns[i] += rewards_of(begun[i][0].step(action))[seats[i]]

    for i, (_, action) in enumerate(begun):
        move(i, action or "")
    going = [i for i, (env, action) in enumerate(begun) if action is not None and env.legal_actions]
    while going:
        for mover, mine in ((own, True), (opponent or own, False)):
            asked = [i for i in going if (seat_of(begun[i][0]) == seats[i]) == mine and begun[i][0].legal_actions]
            if asked:
                games: list[Any] = [begun[i][0] for i in asked]
                for i, action in zip(asked, mover(games, [rngs[i] for i in asked]), strict=True):
                    move(i, action)
        going = [i for i in going if begun[i][0].legal_actions]
    return returns


def random_roots(env: TextEnv, opponent: Opponent | None, count: int, seed: int) -> list[Root]:
    """`count` different situations of one seat or the other, from games of uniformly random play against `opponent`.

    Fewer when so many games as `count` hold no more.
    """
    found: dict[tuple, Root] = {}
    for number in range(count):
        (episode,) = play_episodes(env, uniform_choice, opponent, games=range(number, number + 1), seed=seed)
        for turn in episode.turns_T:
            found.setdefault(turn.situation.key, (turn.state, turn.situation))
        if len(found) >= count:
            break
    return list(found.values())[:count]


def train_grpo(
    model: Any, tokenizer: Any, reward: PlayedOn, *, knobs: GrpoKnobs = GrpoKnobs(), seed: int = 0,
    watch: Callable[[dict[str, float]], None] = lambda figures: None,
) -> list[dict[str, float]]:  # fmt: skip
    """Trains the model in place on the situations of `reward`; returns TRL's log, a row a step of the optimizer.

    Args:
        model: a causal model of transformers in float32.
        tokenizer: its tokenizer.
        reward: whose situations are the prompts.
        knobs: the setting.
        seed: of the trainer: order of prompts and draws.
        watch: called with each row of the log as it comes.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from transformers.utils import logging
    from trl.trainer.grpo_trainer import GRPOTrainer

    from nlrl.distill.training import AfterStep

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            watch(logs or {})

    def played_on(**columns: Any) -> list[float | None]:
        return [*reward(**columns)]

    logging.disable_progress_bar()
    after_step = getattr(model, "after_optimizer_step", None)
    rows = [_row(tokenizer, reward.ask, number, situation) for number, (_, situation) in enumerate(reward.roots)]
    with tempfile.TemporaryDirectory(prefix="nlrl-grpo-") as scratch:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[played_on],
            args=_settings(scratch, reward.ask, knobs, seed, next(model.parameters()).device.type),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch(), *([AfterStep(after_step)] if after_step is not None else [])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


def _settings(folder: str, ask: Asker, knobs: GrpoKnobs, seed: int, device: str) -> Any:
    """TRL's settings: what `knobs` does not say is as TRL has it, but for the precision, which stays float32."""
    from trl.trainer.grpo_config import GRPOConfig

    form = ask.prompts["policy"].reply
    assert form is not None
    return GRPOConfig(
        output_dir=folder,
        max_steps=knobs.steps,
        per_device_train_batch_size=knobs.prompts * knobs.replies,
        num_generations=knobs.replies,
        max_completion_length=form.max_tokens,
        learning_rate=knobs.learning_rate,
        lr_scheduler_type="constant",
        temperature=knobs.temperature,
        beta=knobs.beta,
        # Hymba's published configuration speaks of a router, of which it has none; no model here mixes experts.
        router_aux_loss_coef=0.0,
        seed=seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _row(tokenizer: Any, ask: Asker, number: int, situation: Situation) -> dict[str, Any]:
    """A prompt for TRL: a conversation where the model has a chat template, else the text that engines send."""
    messages = ask.messages(policy_question(situation))
    if tokenizer.chat_template is None:
        return {"prompt": "\n".join(message.content for message in messages), "root": number}
    return {"prompt": [{"role": m.role, "content": m.content} for m in messages], "root": number}
