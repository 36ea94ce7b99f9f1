"""A model for a baseline that trains: by its name or folder, with its tokenizer and the prompts that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlrl import registry
from nlrl.ask import Asker
from nlrl.engine.local import opened
from nlrl.engine.oracle import OracleEngine
from nlrl_envs.base import TextEnv
from nlrl_prompts import load


@dataclass(frozen=True)
class Learner:
    """What a policy-gradient baseline learns with."""

    model: Any
    """In float32."""
    tokenizer: Any
    ask: Asker
    """For its prompts: the engine behind it is never asked."""


def load_learner(
    backbone: str, env_id: str, env: TextEnv, *, prompts: str | None = None, device: str = "auto"
) -> Learner:
    """A model by the name of a backbone, a folder or a hub id, as `nlrl.registry.resolve_model` reads it.

    Args:
        backbone: which model.
        env_id: the game's name, for its prompts.
        env: the game.
        prompts: the prompt set; None for the model's own.
        device: "auto" takes a CUDA device when there is one.

    Raises:
        UnsafeFileError: a file of the model could do harm.
        EngineError: the model cannot be fetched.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    import nlrl_backbones  # noqa: F401  makes our architectures known to transformers

    logging.disable_progress_bar()
    resolved, _ = opened(backbone)
    assert resolved.path is not None
    prompt_set = prompts or resolved.prompt_set or "full"
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    tokenizer = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        resolved.path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )
    wanted = load(prompt_set, env_id, registry.prompt_root(prompt_set))
    return Learner(model.to(place), tokenizer, Asker(OracleEngine({}), wanted, env.task))
