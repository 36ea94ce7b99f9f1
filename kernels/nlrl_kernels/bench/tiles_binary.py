"""Cuts of the binary layer that ``sweep`` compares, on the projections of Bi-Mamba 2.7B."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from unittest.mock import patch

from nlrl_kernels.bench import cases_binary as cases
from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.binary import triton_impl
from nlrl_kernels.binary.triton_impl import Few, Many, few_tile, many_tile

NAMES = ["bits_in", "bits_out"]
"""The projection into a layer, and the one out of it."""

Setting = Few | Many | str
Candidate = tuple[str, int, tuple[Setting, ...]]
"""Which projection, rows, and one cut, or "dense" for the unpacked matrix."""


def candidates() -> list[Candidate]:
    """Every cut that is tried; those of today come first."""
    found: list[Candidate] = []
    for what, (inputs, outputs) in zip(NAMES, cases.shapes(Size("cuda")), strict=True):
        for rows in (1, 8):
            found += [(what, rows, (cut,)) for cut in (few_tile(rows, outputs, inputs), *_few(rows))]
        for rows in (8, 32, 128, 2048, 8192):
            found += [(what, rows, (cut,)) for cut in (many_tile(rows, outputs), *_many(rows))]
            if rows >= 2048:
                found.append((what, rows, ("dense",)))
    return list(dict.fromkeys(found))


def _few(rows: int) -> Iterator[Few]:
    ways = [(early, fused) for early in (False, True) for fused in (True, False)]
    for slices, m, (early, fused) in product([1, 2, 4, 8], [64, 128, 256], ways):
        columns = rows * slices * (1 if fused else 4)
        if columns <= (32 if fused else 64) and (columns >= 16 or fused):
            yield Few(m // slices, slices, 8 if m == 256 else 4, 4, early, fused)


def _many(rows: int) -> Iterator[Many]:
    if rows <= 32:
        yield from (Many(max(16, rows), 64, 4, stages) for stages in (3, 4, 6))
    elif rows <= 512:
        for cut, stages in product([(32, 64, 4), (64, 64, 4), (128, 64, 4), (64, 128, 8), (128, 128, 8)], [3, 4]):
            yield Many(*cut, stages)
    else:
        yield from (Many(128, 128, 8, 3), Many(128, 128, 8, 4), Many(128, 128, 4, 3), Many(256, 128, 8, 3))
        yield from (Many(256, 64, 4, 3), Many(128, 256, 8, 3), Many(256, 128, 8, 2))


@contextmanager
def installed(what: str, settings: tuple[Setting, ...]) -> Iterator[None]:
    """Launch with this cut, whatever the rows."""
    (cut,) = settings
    with ExitStack() as stack:
        put = lambda name, value: stack.enter_context(patch.object(triton_impl, name, value))  # noqa: E731
        put("FEW", 8 if isinstance(cut, Few) else 0)
        put("takes_dense", lambda *_: cut == "dense")
        if isinstance(cut, Few):
            put("few_tile", lambda *_: cut)
        elif isinstance(cut, Many):
            put("many_tile", lambda *_: cut)
        yield


def plan_for(what: str, number: int, *, short: bool, size: Size) -> Plan:
    """The shape on which cuts are compared, or one layer of it, which compiles the same code."""
    inputs, outputs = cases.shapes(size)[0 if size.tiny else NAMES.index(what)]
    return cases.plan("binary_linear", size, number, inputs, outputs, layers=1 if short else None)
