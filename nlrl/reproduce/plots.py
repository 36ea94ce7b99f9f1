"""Learning curves of the models side by side: against iterations, against seconds, against generated tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nlrl.errors import ConfigError
from nlrl.reproduce.intervals import over_seeds
from nlrl.reproduce.results import Point, Result
from nlrl.reproduce.rows import Row

AXES: dict[str, Callable[[Point], float | None]] = {
    "iterations": lambda point: point.iteration,
    "seconds": lambda point: point.seconds,
    "tokens written": lambda point: point.tokens,
}
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
"""So that lines can be told apart without colour."""


def plot(row: Row, results: Sequence[Result], target: Path) -> list[Path]:
    """Write `<target>.png` and `<target>.svg`, one panel an axis of `AXES`; returns what was written.

    A line is the mean over a model's seeds at each iteration, its band the 95 % interval over seeds by Student's t; a
    single seed has a line without a band. Places on an axis are means over seeds as well.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("Plots need matplotlib: pip install 'nlrl[plots]'.") from error
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels: Any = figure.subplots(1, len(AXES), sharey=True)
    scale = 100.0 if row.percent else 1.0
    for panel, (name, place) in zip(panels, AXES.items(), strict=True):
        for number, backbone in enumerate(sorted({one.backbone for one in results})):
            xs, means, lows, highs = _line([one for one in results if one.backbone == backbone], place)
            dash: Any = _DASHES[number % len(_DASHES)]
            panel.plot(xs, [scale * y for y in means], label=backbone, linestyle=dash, marker="o", markersize=3)
            panel.fill_between(xs, [scale * y for y in lows], [scale * y for y in highs], alpha=0.15)
        if row.goal is not None:
            panel.axhline(scale * row.goal, color="0.5", linewidth=0.8)
        panel.set_xlabel(name)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel(f"{row.figure.split('/')[-1]}{', %' if row.percent else ''}")
    panels[0].legend(frameon=False)
    figure.suptitle(row.what, fontsize=10)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = [target.with_suffix(ending) for ending in (".png", ".svg")]
    for path in written:
        # Without a date the same results give the same file.
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return written


def _line(
    results: Sequence[Result], place: Callable[[Point], float | None]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """(places, means, lower ends, upper ends) of a model's line, by iteration."""
    points: dict[int, list[Point]] = defaultdict(list)
    for result in results:
        for point in result.curve:
            points[point.iteration].append(point)
    xs, means, lows, highs = [], [], [], []
    for iteration in sorted(points):
        where = [x for point in points[iteration] if (x := place(point)) is not None]
        if not where:
            continue
        found = over_seeds([point.value for point in points[iteration]])
        half = found.half if found.count > 1 else 0.0
        xs.append(sum(where) / len(where))
        means.append(found.value)
        lows.append(found.value - half)
        highs.append(found.value + half)
    return xs, means, lows, highs
