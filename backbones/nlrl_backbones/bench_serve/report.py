"""Results of several models, and of several runs, as one table with the ratios that were asked for."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nlrl_backbones.bench_serve.models import ORDER
from nlrl_backbones.bench_serve.workloads import GOALS, Goal

Record = Mapping[str, Any]
"""What ``vllm_measure`` writes of one model."""


def read(paths: Iterable[Path]) -> dict[str, Record]:
    """The records of these files, one of each model: of a model's several, the one with most figures, then the last.

    Raises:
        ValueError: a file that is no such record.
    """
    found: dict[str, Record] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            records = content.get("models", [content])
            named = [(record["model"], record) for record in records if record["figures"] is not None]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no results of nlrl bench serve: give the files that it wrote.") from error
        for name, record in named:
            if name not in found or len(record["figures"]) >= len(found[name]["figures"]):
                found[name] = record
    return dict(sorted(found.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else len(ORDER)))


def table(records: Mapping[str, Record]) -> list[str]:
    """A row a model, a column a rate."""
    columns = list(dict.fromkeys(column for record in records.values() for column, _ in _rates(record)))
    head = ["model", "start, s", "weights, GB", "cache of one, MB", *columns]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, record in records.items():
        rates = dict(_rates(record))
        cells = [
            name,
            f"{record['start_s']:.0f}",
            f"{record.get('weight_bytes', 0) / 1e9:.3f}",
            f"{record.get('cache_bytes', 0) / 1e6:.1f} at {record.get('cached_tokens', 0):,}",
            *(rates.get(column, "") for column in columns),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _rates(record: Record) -> list[tuple[str, str]]:
    cells = []
    for workload, figures in record["figures"].items():
        if "prefill" in figures:
            cells.append((f"{workload}, tokens/s", f"{figures['prefill']:,.0f}"))
        if "decode" in figures:
            kind = workload if workload.startswith("decode") else f"decode of {workload}"
            cells.append((f"{kind}, tokens/s", f"{figures['decode']:,.0f}"))
        if workload.startswith("whole"):
            cells.append((f"{workload}, s", f"{1 / figures['whole']:.2f}"))
    return cells


def verdicts(records: Mapping[str, Record]) -> list[str]:
    """The table of goals: reached, not reached, or not measured; and whether both figures are of one GPU."""
    rows = ["| goal | at least | status | found | one GPU |", "|---|---|---|---|---|"]
    for goal in GOALS:
        found, is_one = _ratio(goal, records)
        status = "not measured" if found is None else "reached" if found >= goal.bound else "not reached"
        if found is not None and records[goal.model]["engine"]["tiny"]:
            status = "not measured: tiny shapes"
        figure = "" if found is None else f"{found:.2f}x"
        rows.append(f"| {goal} | {goal.bound:.2f}x | {status} | {figure} | {'' if found is None else is_one} |")
    return rows


def _ratio(goal: Goal, records: Mapping[str, Record]) -> tuple[float | None, str]:
    if goal.model not in records or goal.other not in records:
        return None, ""
    ours, theirs = records[goal.model], records[goal.other]
    rates = [record["figures"].get(goal.workload, {}).get(goal.figure) for record in (ours, theirs)]
    if None in rates:
        return None, ""
    is_one = ours["machine"] == theirs["machine"] and ours["engine"] == theirs["engine"]
    return rates[0] / rates[1], "yes" if is_one else "no: repeat both in one run"
