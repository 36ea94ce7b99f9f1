"""A policy over legal moves read off a language model's own logits, and a critic on its last hidden state.

Source: arXiv 2411.14251, appendix on PPO: the policy is a softmax over the move tokens' logits where the reply to the
plain policy prompt begins (nothing is generated, no thought), restricted to legal moves; the critic is an MLP of two
layers with tanh on the last hidden state there.

A move of several tokens has the sum of their log-probabilities; for moves of one token each that is the paper's policy
exactly. Moves that share their first tokens share a row of the batch. Any causal model of transformers, ours among
them; rows are padded on the right, which no causal model sees.

Axes: B prompts, A legal moves (padded to the most), R rows, T tokens, V vocabulary, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nlrl.ask import Asker
from nlrl.engine.local import encode_messages
from nlrl.errors import ConfigError
from nlrl.policy import policy_question
from nlrl.types import Situation


@dataclass(frozen=True, slots=True)
class Prompted:
    """A situation in tokens."""

    prompt: tuple[int, ...]
    moves_A: tuple[tuple[int, ...], ...]
    """The tokens of each legal move, in the order of `Situation.actions`."""

    @property
    def heads(self) -> list[tuple[int, ...]]:
        """What has to be read after the prompt so that the logits of every token of every move are seen.

        All but the last token of a move; of those that begin another one only the longest. [()] for one-token moves.
        """
        heads = {move[:-1] for move in self.moves_A}
        return sorted(h for h in heads if not any(o != h and o[: len(h)] == h for o in heads))


@dataclass(frozen=True, slots=True)
class Scored:
    """The policy and the critic in a batch."""

    log_probs_BA: torch.Tensor
    """Over the legal moves, float32; minus infinity in the padding."""
    values_B: torch.Tensor

    @property
    def entropy_B(self) -> torch.Tensor:
        """Of the policy, in nats."""
        return -(self.log_probs_BA.exp() * self.log_probs_BA.masked_fill(self.log_probs_BA == -torch.inf, 0)).sum(1)


class MoveActor(torch.nn.Module):
    """A language model as actor and critic.

    Args:
        model: a causal model of transformers, its parameters in float32.
        tokenizer: its tokenizer.
        ask: whose plain policy prompt is read; its engine is never asked.
        temperature: by which move scores are divided, in playing and in learning alike.
        rows: most rows in one pass of the model.
        autocast: whether passes run in bfloat16 where the device has it; parameters stay in float32.

    Raises:
        ConfigError: parameters are not in float32, where small steps of an optimizer would be rounded away.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ask: Asker,
        *,
        temperature: float = 0.7,
        rows: int = 64,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        wrong = next((p.dtype for p in model.parameters() if p.requires_grad and p.dtype != torch.float32), None)
        if wrong is not None:
            raise ConfigError(f"PPO trains in float32, and this model's parameters are {wrong}; load it with float32.")
        self.model, self.tokenizer, self.ask = model, tokenizer, ask
        self.temperature, self.rows, self.autocast = temperature, rows, autocast
        width = model.get_input_embeddings().weight.shape[1]
        device = model.get_input_embeddings().weight.device
        self.critic = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)).to(
            device
        )
        self._spelled: dict[str, tuple[int, ...]] = {}

    def encode(self, situation: Situation) -> Prompted:
        """The plain policy prompt of a situation and the spelling of its moves.

        Raises:
            ConfigError: two legal moves have the same tokens.
        """
        prompt = tuple(encode_messages(self.tokenizer, self.ask.messages(policy_question(situation))))
        moves_A = tuple(self._spell(action) for action in situation.actions)
        if len(set(moves_A)) < len(moves_A):
            raise ConfigError(f"The tokenizer spells two of the moves {', '.join(situation.actions)} alike.")
        return Prompted(prompt, moves_A)

    def forward(self, prompted_B: Sequence[Prompted]) -> Scored:
        """The policy over each prompt's moves, and the critic's value."""
        rows = [(b, one.prompt + head) for b, one in enumerate(prompted_B) for head in one.heads]
        heads = [head for one in prompted_B for head in one.heads]
        logits_R, states_R = [], []
        for first in range(0, len(rows), self.rows):
            logits, states = self._read(
                [ids for _, ids in rows[first : first + self.rows]],
                [len(prompted_B[b].prompt) for b, _ in rows[first : first + self.rows]],
            )
            logits_R += logits
            states_R += states
        most = max(len(one.moves_A) for one in prompted_B)
        scores: list[torch.Tensor] = []
        states_B: dict[int, torch.Tensor] = {}
        by_prompt: list[list[int]] = [[] for _ in prompted_B]
        for r, (b, _) in enumerate(rows):
            by_prompt[b].append(r)
            states_B.setdefault(b, states_R[r])
        for b, one in enumerate(prompted_B):
            mine = [self._score(move, by_prompt[b], heads, logits_R) for move in one.moves_A]
            scores.append(F.pad(torch.stack(mine), (0, most - len(mine)), value=-torch.inf))
        values_B = self.critic(torch.stack([states_B[b] for b in range(len(prompted_B))])).squeeze(1)
        return Scored((torch.stack(scores) / self.temperature).log_softmax(1), values_B)

    @torch.no_grad()
    def choose(
        self, situations: Sequence[Situation], rngs: Sequence[np.random.Generator]
    ) -> list[tuple[int, tuple[Prompted, float, float]]]:
        """A move drawn in each situation; its note is (prompt, log-probability, value). An `episodes.Choose`."""
        prompted_B = [self.encode(situation) for situation in situations]
        scored = self(prompted_B)
        found = []
        for b, (one, rng) in enumerate(zip(prompted_B, rngs, strict=True)):
            log_probs_A = scored.log_probs_BA[b, : len(one.moves_A)].double().cpu().numpy()
            probabilities_A = np.exp(log_probs_A)
            move = int(rng.choice(len(probabilities_A), p=probabilities_A / probabilities_A.sum()))
            found.append((move, (one, float(log_probs_A[move]), float(scored.values_B[b]))))
        return found

    @torch.no_grad()
    def best(self, situations: Sequence[Situation]) -> list[int]:
        """The index of the most probable move in each situation."""
        return self([self.encode(one) for one in situations]).log_probs_BA.argmax(1).tolist()

    def _spell(self, action: str) -> tuple[int, ...]:
        if action not in self._spelled:
            self._spelled[action] = tuple(self.tokenizer.encode(action, add_special_tokens=False))
        return self._spelled[action]

    def _read(
        self, rows: Sequence[tuple[int, ...]], prompts: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each row, log-probabilities (1 + head, V) from where the reply begins, and the hidden state (E,) there."""
        device = self.model.get_input_embeddings().weight.device
        width = max(map(len, rows))
        ids_RT = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=device)
        mask_RT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        kept = width - min(prompts) + 1
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            out = self.model(
                input_ids=ids_RT, attention_mask=mask_RT, output_hidden_states=True, use_cache=False,
                logits_to_keep=kept,
            )  # fmt: skip
        logits, states = [], []
        for r, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            begin = prompt - 1 - (width - kept)
            logits.append(out.logits[r, begin : begin + len(row) - prompt + 1].float().log_softmax(-1))
            states.append(out.hidden_states[-1][r, prompt - 1].float())
        return logits, states

    @staticmethod
    def _score(
        move: tuple[int, ...], rows: Sequence[int], heads: Sequence[tuple[int, ...]], logits_R: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The sum of a move's token log-probabilities, from a row that reads what comes before its last token."""
        row = next(r for r in rows if heads[r][: len(move) - 1] == move[:-1])
        places = torch.arange(len(move), device=logits_R[row].device)
        return logits_R[row][places, torch.tensor(move, device=places.device)].sum()
