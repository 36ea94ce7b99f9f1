"""What `nlrl bench loop` found, as JSON and as a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlrl.bench_loop import Phase

PARTS = ("vLLM computes", "vLLM takes requests", "prompts", "replies read", "record", "grading", "training", "reload")
GOAL_S, GOAL_SHARE = 60.0, 0.9


def report(out: Path, facts: Mapping[str, Any], phases: Sequence[Phase], batches: Mapping[str, Any]) -> str:
    """Write `loop.json` and `loop.md` under `out`; returns the page."""
    from nlrl.bench_loop import phase_facts

    found = {**facts, "phases": [phase_facts(phase) for phase in phases], "batches": dict(batches)}
    (out / "loop.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = _page(facts, phases, batches)
    (out / "loop.md").write_text(page + "\n", encoding="utf-8")
    return page


def _page(facts: Mapping[str, Any], phases: Sequence[Phase], batches: Mapping[str, Any]) -> str:
    setting = facts["setting"]
    model, games = setting["engine"]["backbone"], setting["training"]["games"]
    last = max((phase.iteration for phase in phases), default=0)
    lines = [
        f"{setting['recipe']} on {facts['device']}, {model}, {games} games an iteration; vLLM's "
        f"core {'apart' if setting['engine']['apart'] else 'in this process'}, started in {facts['start_s']} s",
        "",
        "| iteration, phase | s | asking, s | requests | forms | tokens read | written | written a second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(phase) for phase in phases]
    lines += ["", *_spent(phases, last), "", _a_request(phases), "", *_shares(phases, batches, last)]
    seconds = sum(phase.seconds for phase in phases if phase.iteration == last and last)
    met = "met" if seconds < GOAL_S else "missed"
    return "\n".join([*lines, "", f"Iteration {last}: {seconds:.1f} s; the goal of {GOAL_S:g} s is {met}."])


def _row(phase: Phase) -> str:
    from nlrl.bench_loop import phase_facts

    rate = f"{phase.written / phase.seconds:,.0f}" if phase.written else ""
    return (
        f"| {phase.iteration}, {phase.name} | {phase.seconds:.2f} | {phase.busy:.2f} | {len(phase.asked):,} | "
        f"{phase_facts(phase)['forms'] if phase.asked else 0} | {phase.read:,} | {phase.written:,} | {rate} |"
    )


def _spent(phases: Sequence[Phase], last: int) -> list[str]:
    """Of the last iteration, what this process did; a training has a thread, so that parts may overlap."""
    lines = [
        f"| s of iteration {last} | " + " | ".join((*PARTS, "rest")) + " |",
        "|---" * (len(PARTS) + 2) + "|",
    ]
    total: dict[str, float] = dict.fromkeys((*PARTS, "rest"), 0.0)
    for phase in (phase for phase in phases if phase.iteration == last):
        rest = phase.seconds - sum(phase.spent.values())
        cells = [*(phase.spent.get(part, 0.0) for part in PARTS), rest]
        total = {part: total[part] + cell for part, cell in zip(total, cells, strict=True)}
        lines.append(f"| {phase.name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return [*lines, "| all | " + " | ".join(f"{total[part]:.2f}" for part in (*PARTS, "rest")) + " |"]


def _a_request(phases: Sequence[Phase]) -> str:
    """What a request costs this process, beside the model."""
    count = sum(len(phase.asked) for phase in phases) or 1
    parts = ("vLLM takes requests", "prompts", "replies read", "record")
    costs = ((part, sum(phase.processor.get(part, 0.0) for phase in phases) / count) for part in parts)
    return "Processor time a request: " + ", ".join(f"{part} {1e3 * cost:.3f} ms" for part, cost in costs) + "."


def _shares(phases: Sequence[Phase], batches: Mapping[str, Any], last: int) -> list[str]:
    if not batches:
        return ["The requests were not replayed."]
    lines = [
        "| the same requests | loop, tokens/s | while asking | one batch, tokens/s | loop / batch |",
        "|---|---|---|---|---|",
    ]
    of_last = {phase.name: phase for phase in phases if phase.iteration == last and phase.asked}
    sums = {name: (phase.written, phase.seconds, phase.busy) for name, phase in of_last.items()}
    sums["all"] = tuple(map(sum, zip(*sums.values(), strict=True)))  # type: ignore[assignment]
    share = 0.0
    for name, batch in batches.items():
        written, seconds, busy = sums[name]
        rate, asking, alone = written / seconds, written / busy, batch["written"] / batch["seconds"]
        share = rate / alone
        lines.append(f"| {name} | {rate:,.0f} | {asking:,.0f} | {alone:,.0f} | {share:.1%} |")
    if "all" in batches:  # the last of them
        met = "met" if share >= GOAL_SHARE else "missed"
        lines += ["", f"The engine wrote {share:.1%} of what one batch writes; the goal of {GOAL_SHARE:.0%} is {met}."]
    return lines
