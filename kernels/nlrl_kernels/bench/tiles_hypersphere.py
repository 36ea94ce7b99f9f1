"""Settings of nGPT's steps that ``sweep`` compares, on the shapes of its 1B model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

from nlrl_kernels.bench import cases_hypersphere as cases
from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.hypersphere.triton_impl import SETTINGS, Setting

NAMES = {f"sphere_{name}": name for name in SETTINGS}
"""What is tuned, and its name among the settings of ``triton_impl``."""

Candidate = tuple[str, int, tuple[Setting, ...]]
"""What is tuned, rows, and one setting."""

_ROWS = 16384


def candidates() -> list[Candidate]:
    """Every setting that is tried; those of today come first."""
    found: list[Candidate] = []
    for what, name in NAMES.items():
        today = SETTINGS[name]
        found += [(what, _ROWS, (setting,)) for setting in (today, *_others(name, today))]
    return list(dict.fromkeys(found))


def _others(name: str, today: Setting) -> Iterator[Setting]:
    if name == "normalize_columns":
        for entries, registers, tile in product([32, 64, 128], [None, 64, 80], [16384, 32768, 65536]):
            yield replace(today, entries=entries, registers=registers, tile=tile)
    elif name == "normalize_rows":
        for entries, tile in product([8, 16, 32, 64], [2048, 4096, 8192, 16384]):
            yield replace(today, entries=entries, tile=tile)
    elif name == "qk_forward":
        for entries, tile in product([8, 16, 32], [512, 1024, 2048, 4096]):
            yield replace(today, entries=entries, tile=tile)
    elif name.endswith("backward"):
        for entries, stages, programs in product([8, 16], [1, 2, 3, 4], [2, 3, 4, 6, 8]):
            yield replace(today, entries=entries, stages=stages, programs=programs)
    else:
        for entries in (4, 8, 16, 32, 64):
            yield replace(today, entries=entries)


@contextmanager
def installed(what: str, settings: tuple[Setting, ...]) -> Iterator[None]:
    """Launch with this setting."""
    name = NAMES[what]
    before = SETTINGS[name]
    SETTINGS[name] = settings[0]
    try:
        yield
    finally:
        SETTINGS[name] = before


def plan_for(what: str, number: int, *, short: bool, size: Size) -> Plan:
    """The shape on which settings are compared, or a short one that compiles the same code."""
    name = NAMES[what]
    width, heads, inner = cases.widths(size)
    rows = 5 if size.tiny else 64 if short else number
    if name.startswith("normalize"):
        layers = 1 if short or size.tiny else 36
        axis = 0 if name.endswith("columns") else 1
        return Plan(what, f"{layers} layers of {width}", lambda: cases.normalize(size, layers, width, inner, axis))
    step = {"residual": "residual_step", "qk": "qk_step", "swiglu": "scaled_swiglu"}[name.partition("_")[0]]
    shapes, wide = cases.shapes_of(step, rows, width, heads, inner)
    build = cases.backward if name.endswith("backward") else cases.forward
    return Plan(what, f"{rows} rows", lambda: build(size, step, shapes, wide))
