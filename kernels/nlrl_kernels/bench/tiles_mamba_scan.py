"""Settings of the scan that ``sweep`` compares, and the shapes of Hymba-1.5B on which it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.bench.cases_mamba_scan import prefill_case, training_case, update_case
from nlrl_kernels.mamba_scan import triton_impl
from nlrl_kernels.mamba_scan.triton_impl import Tile

NAMES = {
    "scan_prefill": "scan_tile",
    "scan_chunks": "chunk_length",
    "scan_update": "update_tile",
    "scan_backward": "gradient_tile",
}
"""What is tuned, and the function of ``triton_impl`` that says its settings."""

Candidate = tuple[str, int, tuple[Any, ...]]
"""What is tuned, rows, and the settings."""


def candidates() -> list[Candidate]:
    """Every setting that is tried; those of today come first."""
    found: list[Candidate] = []
    tiles = [(8, 32, 4, 1), (4, 32, 4, 1), (8, 32, 2, 1), (16, 32, 4, 1), (8, 64, 4, 2), (4, 64, 4, 2), (8, 128, 4, 4)]
    for rows in (16, 1):
        found.append(("scan_prefill", rows, (triton_impl.scan_tile(),)))
        for tile, registers in product(tiles, (128, 168, None)):
            found.append(("scan_prefill", rows, (Tile(*tile, registers),)))
    for rows in (1, 2, 4, 8, 16):
        for length in (None, 64, 104, 128, 208, 256, 512):
            found.append(("scan_chunks", rows, (length,)))
    for rows in (64, 256, 1):
        found.append(("scan_update", rows, triton_impl.update_tile(rows)))
        for setting in product((1, 2, 4), (32, 64, 128), (2, 4, 8)):
            found.append(("scan_update", rows, setting))
    found.append(("scan_backward", 4, triton_impl.gradient_tile()))
    for setting in product((2, 4, 8), (4, 8, 16)):
        found.append(("scan_backward", 4, setting))
    return list(dict.fromkeys(found))


@contextmanager
def installed(what: str, settings: tuple[Any, ...]) -> Iterator[None]:
    """Launch with these settings."""
    name = NAMES[what]
    before = getattr(triton_impl, name)
    is_one = what in ("scan_prefill", "scan_chunks")
    setattr(triton_impl, name, lambda *_: settings[0] if is_one else settings)
    try:
        yield
    finally:
        setattr(triton_impl, name, before)


def plan_for(what: str, number: int, *, short: bool, size: Size) -> Plan:
    """The shape on which settings are compared, or a short one that compiles the same code."""
    if what == "scan_update":
        rows = 3 if size.tiny else number
        return Plan(what, f"{rows} rows", lambda: update_case(size, rows))
    time = 9 if size.tiny else 160 if short else 2048
    rows = 2 if size.tiny else number
    build = training_case if what == "scan_backward" else prefill_case
    return Plan(what, f"{rows} x {time}", lambda: build(size, rows, time))
