"""Tables of a claim, made from its races' records: the mean over seeds with its 95 % interval."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlrl.claims.contestants import CLAIMS
from nlrl.claims.race import Finish, finishes, steps_to
from nlrl.reproduce.intervals import over_seeds

PROBES = "probes.json"
"""In the folder of a race: contestant -> what was found on each probe."""
_LAST = "tokens/s"


def table(claim: str, folders: Sequence[Path]) -> str:
    """Markdown of everything that stands in the folders of a claim's races, one folder a context and seed."""
    lines = []
    for context, races in _by_context(folders).items():
        lines += [f"## {claim}, {context} tokens of context, {len(races)} seeds", "", *_losses(claim, races), ""]
        if probes := [json.loads((race / PROBES).read_text()) for race in races if (race / PROBES).is_file()]:
            lines += [*_probes(probes), ""]
    return "\n".join(lines)


def _by_context(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Races of one context together; a race's folder is named CONTEXT-SEED."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(folders):
        found[folder.name.rpartition("-")[0]].append(folder)
    return dict(sorted(found.items(), key=lambda entry: int(entry[0])))


def _losses(claim: str, races: Sequence[Path]) -> list[str]:
    """Loss after each budget; how many steps of the control's longest budget a contestant needs for its loss."""
    by_seed = [_curves(finishes(race)) for race in races]
    budgets = sorted({one.steps for curves in by_seed for curve in curves.values() for one in curve})
    heads = ["model", "parameters", *(f"loss after {steps:,}" for steps in budgets), "steps to the control's", _LAST]
    lines = [_row(heads), _row(["---"] * len(heads))]
    control = CLAIMS[claim][0]
    for name in CLAIMS[claim]:
        own = [curves[name] for curves in by_seed if name in curves]
        if not own:
            continue
        cells = [name, f"{own[0][-1].parameters:,}"]
        cells += [_mean([one.loss for curve in own for one in curve if one.steps == steps]) for steps in budgets]
        cells += [_mean([_share(curves, control, name) for curves in by_seed if name in curves], 2)]
        lines.append(_row([*cells, _mean([curve[-1].tokens / curve[-1].seconds for curve in own], 0)]))
    return lines


def _curves(done: Sequence[Finish]) -> dict[str, list[Finish]]:
    """Contestant -> its training of each budget, with the rate that was chosen."""
    found: dict[str, dict[int, Finish]] = defaultdict(dict)
    for one in done:
        held = found[one.contestant].get(one.steps)
        if held is None or one.tuning_loss < held.tuning_loss:
            found[one.contestant][one.steps] = one
    return {name: [by_steps[steps] for steps in sorted(by_steps)] for name, by_steps in found.items()}


def _share(curves: Mapping[str, Sequence[Finish]], control: str, name: str) -> float:
    """Steps to the control's last loss, over the control's steps; NaN before the control has ended."""
    if control not in curves:
        return math.nan
    goal = curves[control][-1]
    return steps_to(goal.loss, [(one.steps, one.loss) for one in curves[name]]) / goal.steps


def _probes(probes: Sequence[Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[str]:
    """Every finding of every probe, contestant by contestant."""
    first = next(iter(probes[0].values()))
    figures = list(next(iter(first.values())))
    lines = [_row(["model", "probe", *figures]), _row(["---"] * (2 + len(figures)))]
    for name, found in probes[0].items():
        for asked in found:
            values = [[one[name][asked][figure] for one in probes if asked in one.get(name, {})] for figure in figures]
            shown = [_mean([v for v in column if v is not None], 3) for column in values]
            lines.append(_row([name, asked, *shown]))
    return lines


def _mean(values: Sequence[float], digits: int = 4) -> str:
    """The mean, and half the interval's width where there are seeds enough for one."""
    if not values:
        return "-"
    found = over_seeds(values)
    half = "" if math.isnan(found.half) else f" ± {found.half:,.{digits}f}"
    return f"{found.value:,.{digits}f}{half}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
