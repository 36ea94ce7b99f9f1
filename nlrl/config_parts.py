"""The parts of a recipe that say what is played, by whom, and how a model learns from it; see `nlrl.config`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nlrl.redact import secrets

OptionValue = bool | int | float | str


class Part(BaseModel):
    """A table of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def opponent_name(name: str, *others: str) -> str:
    """An opponent as `nlrl_envs.opponents` writes it: `mcts:sims=1000,rollouts=10` is "mcts:1000:10".

    Raises:
        ValueError: no opponent is written like that, and it is none of `others`.
    """
    plain = re.sub(r"[ ]|sims=|rollouts=", "", name).replace(",", ":")
    if name in others or re.fullmatch(r"random|first|minimax(:[1-9]\d*)?|mcts(:[1-9]\d*){0,2}", plain):
        return plain
    known = ", ".join((*others, "random", "first", "minimax", "minimax:DEPTH", "mcts", "mcts:sims=N,rollouts=N"))
    raise ValueError(f"known are {known}")


class EnvConfig(Part):
    """Which game, from where, and against whom."""

    id: str = "maze"
    """A name of `nlrl_envs.ENVS` or of an `nlrl.envs` entry point."""
    map: str | None = None
    """A map or a board of the game: a maze ("double_t"; "random:SEED" draws one), a lake ("4x4"), a board's size
    ("5x5"); the game's own when absent."""
    options: dict[str, OptionValue] = {}
    """Further arguments of the game's class: slippery (the lake), pawn_rows (Breakthrough), horizon."""
    starts: Literal["all"] | int = "all"
    """Every start once, or this many drawn from them; loops of whole games draw one a game."""
    history_items: int = Field(default=7, ge=1, le=99)
    """Observations and actions the agent remembers, counted together; 7 in the paper's maze, 1 where a board shows
    all."""
    policy_items: int | None = Field(default=None, ge=1, le=99)
    """The same for the plain policy alone; history_items when absent. In a maze it can be 1, for an observation says
    where the player is; whoever looks ahead may still see where it came from."""
    opponent: str = "random"
    """For games of two: random, first, minimax, mcts, mcts:sims=1000,rollouts=10, or pool, which is past policies of
    the run (random until there is one)."""

    @field_validator("opponent")
    @classmethod
    def _known_opponent(cls, name: str) -> str:
        return opponent_name(name, "pool")


class LookAheadConfig(Part):
    """How far and how often the agent looks ahead."""

    variations: int = Field(default=8, ge=1, le=64)
    """K: look-aheads an action, or a position in the loop td_values."""
    steps: int = Field(default=3, ge=0, le=64)
    """l: steps after the candidate action."""
    rollout: str = "random"
    """Who walks them: random, policy (the current language policy), or for games of two an opponent such as
    mcts:sims=100. Never an oracle unless it is named."""
    combine: Literal["fused", "split"] = "fused"
    """G1 and G2 in one call, or G2 in a call of its own a variation."""
    distinct: bool = True
    """Variations that differ from each other, as in the paper; false: drawn independently."""

    @field_validator("rollout")
    @classmethod
    def _known_rollout(cls, name: str) -> str:
        return opponent_name(name, "policy")


class EngineConfig(Part):
    """A language model and what runs it."""

    kind: str = "vllm"
    """A name of `nlrl.engine.ENGINES`: vllm, http, torch, oracle."""
    backbone: str = "hymba"
    """A model in the box, a folder, or a hub id; engines vllm and torch."""
    base_url: str | None = None
    """Where the server is; several, separated by commas, share the work and stand in for each other; engine http."""
    model: str | None = None
    """The server's name for the model; its first one when absent."""
    api_key_env: str | None = None
    """The environment variable that holds the server's key, for example TEACHER_API_KEY; NLRL_API_KEY or OPENAI_API_KEY
    when absent; engine http."""
    prompts: str = "auto"
    """A prompt set; "auto" takes the one that suits the model."""
    attempts: int = Field(default=3, ge=1, le=20)
    """How often a question may be asked before its bad reply counts as the answer."""
    at_once: int = Field(default=64, ge=1, le=4096)
    """Games in progress at the same time, and requests in flight at one server."""
    constraints: Literal["prefer", "require"] = "prefer"
    """Whether a reply that the engine did not hold to its form is checked and asked again, or ends the run."""
    logprobs: bool = False
    """Also record the probability of each drawn token."""
    apart: bool = False
    """vLLM's core in a process of its own, which keeps a tiny model on a GPU busy; engine vllm."""
    batch_invariant: bool = False
    """vLLM's mode in which a reply does not depend on what else is in the batch; slower, and only for some models."""
    http_attempts: int = Field(default=6, ge=1, le=100)
    """How often one request is sent to a server that fails; engine http."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """For one answer; engine http."""
    outage_seconds: float = Field(default=600.0, ge=0)
    """How long to wait for a server when none can be reached, before the run stops; engine http."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """What the server permits; engine http."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """What the server permits, read and written together; engine http."""

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_secret(cls, name: str | None) -> str | None:
        """What is called a key is kept out of everything written (`nlrl.redact`), so it must be called one."""
        if name is not None and (not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) or not secrets({name: ""})):
            raise ValueError("write the name of an environment variable that ends in _API_KEY, never the key itself")
        return name

    @model_validator(mode="before")
    @classmethod
    def _kind_of_an_address(cls, table: Any) -> Any:
        """A table that gives an address and no kind means a server."""
        if isinstance(table, dict) and table.get("base_url") and "kind" not in table:
            return {**table, "kind": "http"}
        return table


class RolesConfig(Part):
    """Models of their own for single roles; a role that is absent is spoken by the run's engine.

    Roles with equal tables are one model. The teacher speaks G1, G2 and I.
    """

    policy: EngineConfig | None = None
    value: EngineConfig | None = None
    teacher: EngineConfig | None = None


class TrainingConfig(Part):
    """How much is played, estimated and improved in an iteration of a loop that learns; the paper's defaults."""

    iterations: int = Field(default=1, ge=1, le=1000)
    games: int = Field(default=512, ge=1)
    """An iteration, from which values and situations come; in td_values the games that positions are taken from."""
    positions: int | None = Field(default=None, ge=1)
    """td_values: how many different positions of those games are learned from; all when absent."""
    held_out: int = Field(default=0, ge=0)
    """td_values: how many others the student is only asked about, before the first iteration and after each."""
    k_mc: int = Field(default=5, ge=1, le=64)
    """K_MC: games that one evaluation is made from, at most."""
    fresh: int = Field(default=0, ge=0, le=64)
    """This many new games from each move in each situation in place of those that happen to exist; 0 for the latter."""
    form: Literal["Q", "V"] = "Q"
    """What is learned: values of the moves made, or of the situations."""
    samples: int = Field(default=10, ge=0, le=256)
    """Moves drawn from the policy in a situation, which are then considered; 0 for all legal ones."""
    top: int | None = Field(default=None, ge=1)
    """m: how many of the most frequent are kept; all that were drawn when absent."""
    mask_temperature: float = Field(default=0.7, ge=0, le=2)
    """At which the policy names the moves that are considered."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """At which the policy plays the games it learns from; it is evaluated at 0."""
    buffer: int = Field(default=3, ge=1, le=100)
    """K_buffer: how many of the last iterations' evaluations the value student learns from."""
    merge: Literal["concatenate", "equal"] = "concatenate"
    """All of them, as in the authors' code, or as many of each, as in the paper's text."""
    random_first: bool = True
    """Whether the first iteration's games are played at random."""
    every_occurrence: bool = True
    """Whether a situation is learned as often as it occurred, as in the authors' code, or once; by policy_iteration
    only with `agreed`."""
    policy_buffer: int = Field(default=1, ge=1, le=100)
    """policy_iteration: how many of the last iterations' decisions the policy student learns from."""
    agreed: bool = False
    """policy_iteration: of situations that the plain policy cannot tell apart, teach only what most of them chose."""
    past_share: float = Field(default=0.0, ge=0, le=1)
    """Share of an iteration's games that are played against past policies of the run, once there are any."""
    evaluation_games: int = Field(default=512, ge=0)
    """Games of the plain policy before the first iteration and after each; seats alternate."""
    learners: tuple[Literal["value", "policy"], ...] = ("value", "policy")
    """Which students are trained; [] for none. What the others would be taught is recorded, and their weights stay:
    for a model behind a server, which cannot be trained from here."""


class DistilConfig(Part):
    """How a student learns its teacher's replies (`nlrl.distill.knobs`). By policy iteration nothing is trained without
    this table.
    """

    loss: Literal["tokens", "logits", "both"] = "tokens"
    """Learn the teacher's tokens, or its distribution, which needs one vocabulary, or the mean of both losses."""
    learning_rate: float = Field(default=1e-5, gt=0, le=1)
    """The paper's; a model in the box wants about a hundred times as much."""
    epochs: int = Field(default=2, ge=1, le=100)
    batch: int = Field(default=64, ge=1)
    """Examples an optimizer step, over all devices."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of a step's gradient; 0 for no limit."""
    rehearse: bool = False
    """Whether a model in both roles goes over the last lessons of one while it learns the other; without it, it forgets
    them, and with it a training is about twice as long."""
    carry: bool = True
    """Whether the optimizer's moments go on from iteration to iteration."""
    keep_states: int | None = Field(default=1, ge=1)
    """Of how many of a student's latest checkpoints what a training goes on from is kept, 12 bytes a parameter; absent,
    of all. Weights are kept of all."""
    lora_rank: int = Field(default=0, ge=0, le=1024)
    """0 trains every weight; else adapters of this rank (peft), merged into what the engine gets."""
    lora_alpha: int = Field(default=32, ge=1)
    tokens_per_pass: int | None = Field(default=None, ge=1)
    """Most tokens in one forward pass of a process; absent, what keeps its logits in bounds."""
    processes: int = Field(default=1, ge=1)
    """Of training, one a GPU."""
    sharded: bool = False
    """Divide weights, gradients and moments among the processes (FSDP)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0)
    """On a CPU; 0 for one a core."""


class BudgetConfig(Part):
    """What a run may use, over all its resumptions; it stops within one request of the first limit, to be resumed."""

    calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    """Read and written."""
    seconds: float | None = Field(default=None, ge=0)
    money: float | None = Field(default=None, ge=0)
    """In the currency of the prices."""
    price_read: float = Field(default=0.0, ge=0)
    """For a million tokens of prompts."""
    price_written: float = Field(default=0.0, ge=0)
    """For a million tokens of replies."""
