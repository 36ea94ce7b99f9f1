"""Whole recorded runs in this process, small enough for many of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nlrl import session
from nlrl.cast import Cast, open_cast, prompt_rows
from nlrl.config import RunConfig, load_config
from nlrl.engine.base import Engine
from nlrl.session import Run
from nlrl.store import RunReader, RunStore
from nlrl.store_export import digest
from nlrl.task import build_task

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
    return asyncio.run(_play(root, run_id, settings, wrap, answers))


async def _play(root: Path, run_id: str, settings: RunConfig, wrap: Callable[[Engine], Any], answers: Any) -> Any:
    task = build_task(settings)
    cast = await open_cast(settings, task)
    wrapped = {name: replace(one, engine=wrap(one.engine)) for name, one in cast.speakers.items()}
    first = wrapped["policy"]
    cast = Cast(first, wrapped.get("value", first), wrapped.get("teacher", first))
    manifest = session.manifest_of(settings, cast, task)
    store = RunStore.resume(root, run_id) if (root / run_id).exists() else RunStore.create(root, run_id, manifest)
    store.record_prompts(prompt_rows({name: one.prompts for name, one in cast.speakers.items()}))
    with open(root / f"{run_id}.txt", "a", encoding="utf-8") as file:  # noqa: PTH123  rich wants a text file
        await Run(settings, task, cast, store, Console(file=file, width=100), plain=True).play(answers)
    return first.engine


def digest_of(root: Path, run_id: str) -> str:
    """What two equal runs have in common."""
    with RunReader.open(root / run_id) as reader:
        return digest(reader)
