"""What a run says about itself in single lines: who speaks, which phase it is in, what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from nlrl.cast import role_tables
from nlrl.config import RunConfig
from nlrl.config_parts import EngineConfig
from nlrl.types import Estimated, Improved, LoopEvent, PhaseStart, Trained

_DOES = {
    "collect": "playing",
    "estimate": "estimating values",
    "distil value": "training the value student",
    "improve": "improving",
    "distil policy": "training the policy student",
    "evaluate": "evaluating",
}


def phase_text(config: RunConfig, stage: str, event: PhaseStart) -> tuple[str, int, str]:
    """(what a phase does, how much of it there is, of what)."""
    unit = {"estimate": "questions", "distil value": "examples", "distil policy": "examples"}.get(event.phase, "games")
    if config.loop == "actor_critic" and event.phase == "improve":
        unit = "situations"
    if config.loop == "td_values" and event.phase in ("collect", "evaluate"):
        unit = "positions"
    if stage != config.loop:
        return stage, event.total, "games"
    does = "looking ahead" if unit == "positions" and event.phase == "collect" else _DOES[event.phase]
    return f"iteration {event.iteration}, {does}", event.total, unit


def note_of(event: LoopEvent) -> str:
    """A line about what was done; "" for an event that has none."""
    match event:
        case Trained():
            losses = event.losses_T
            if not event.examples:
                return f"iteration {event.iteration}: {event.student} student learned nothing"
            loss = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
            return f"iteration {event.iteration}: {event.student} student learned {event.examples:,} examples{loss}"
        case Estimated():
            # A resumed run says the same: nothing here depends on what came from the record.
            achieved = ", ".join(f"{count:,} of K={k}" for k, count in event.achieved_K)
            made = f"iteration {event.iteration}: {len(event.evaluations):,} values in words"
            return f"{made} ({achieved})" if achieved else made
        case Improved():
            chosen = sum(choice is not None for choice in event.choices_S)
            return f"iteration {event.iteration}: {chosen:,} choices in {len(event.situations_S):,} situations"
    return ""


def fixed_text(roles: Sequence[str]) -> str:
    """The sentence about students that keep their weights; "" where there are none."""
    if not roles:
        return ""
    who = f"{' and '.join(roles)} student{'s keep their' if len(roles) > 1 else ' keeps its'} weights"
    return f"The {who} (training.learners); what would be taught is recorded."


def model_name(table: EngineConfig) -> str:
    """The model of an engine, short."""
    local = table.kind in ("vllm", "torch")
    return table.backbone.rstrip("/").rsplit("/", 1)[-1] if local else table.model or table.kind


def engine_text(table: EngineConfig) -> str:
    """The model of an engine and what runs it."""
    if table.kind == "http":
        # Not the whole URL: somebody may have put a key where it does not belong, and is told so in a moment.
        hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in (table.base_url or "").split(",")]
        return f"{model_name(table)} at {', '.join(hosts)}"
    return model_name(table) if table.kind == "oracle" else f"{model_name(table)} on {table.kind}"


def engines_text(config: RunConfig) -> str:
    """Every model of a run, with its roles where there are several."""
    tables = role_tables(config)
    distinct: dict[str, list[str]] = {}
    for role, table in tables.items():
        same = next((text for text, roles in distinct.items() if tables[roles[0]] == table), engine_text(table))
        distinct.setdefault(same, []).append(role)
    if len(distinct) == 1:
        return next(iter(distinct))
    return ", ".join(f"{text} ({' and '.join(roles)})" for text, roles in distinct.items())
