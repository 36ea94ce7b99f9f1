"""Whole recorded runs in this process, small enough for many of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from nlrl import session
from nlrl.config import RunConfig, load_config
from nlrl.engine.base import Engine
from nlrl.run import build_engine, build_prompts, build_task, prompt_rows
from nlrl.session import Run
from nlrl.store import RunReader, RunStore
from nlrl.store_export import digest

SMALL = {
    "env.map": "umaze",
    "env.starts": 3,
    "look_ahead.variations": 2,
    "look_ahead.steps": 1,
    "engine.kind": "oracle",
}


def config(**changes: Any) -> RunConfig:
    """The config of a small run; keys with two underscores for a dot."""
    return load_config("maze", SMALL | {key.replace("__", "."): value for key, value in changes.items()})


def play(
    root: Path,
    run_id: str,
    settings: RunConfig,
    wrap: Callable[[Engine], Any] = lambda engine: engine,
    answers: Any = None,
) -> Any:
    """Play a run, or go on with it when it is there; returns the engine that `wrap` gave."""
    task = build_task(settings)
    engine = wrap(build_engine(settings, task))
    prompts = build_prompts(settings, engine)
    manifest = session._manifest(settings, prompts, engine, task)
    store = RunStore.resume(root, run_id) if (root / run_id).exists() else RunStore.create(root, run_id, manifest)
    store.record_prompts(prompt_rows(prompts))
    with open(root / f"{run_id}.txt", "a", encoding="utf-8") as file:  # noqa: PTH123  rich wants a text file
        run = Run(settings, task, prompts, store, Console(file=file, width=100), plain=True)
        asyncio.run(run.play(engine, answers))
    return engine


def digest_of(root: Path, run_id: str) -> str:
    """What two equal runs have in common."""
    with RunReader.open(root / run_id) as reader:
        return digest(reader)
