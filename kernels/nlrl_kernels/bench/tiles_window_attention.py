"""Tile sizes of window attention that ``sweep`` compares, and the shapes of Hymba-1.5B on which it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch

from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.bench.cases_window_attention import paged_case, rows_case, shape_for
from nlrl_kernels.window_attention import triton_impl
from nlrl_kernels.window_attention.triton_impl import Tile

NAMES = {"window_prefill": "prefill_tile", "window_decode": "decode_tile", "window_backward": "backward_tiles"}
"""What is tuned, and the function of ``triton_impl`` that says its tiles."""

Candidate = tuple[str, int, tuple[Tile, ...]]
"""What is tuned, tokens (prefill: 0 for all keys instead of a window) or rows (decode), and the tiles."""


def candidates() -> list[Candidate]:
    """Every tile that is tried; those of today come first."""
    found: list[Candidate] = []
    prefill, decode = (tile(128, torch.bfloat16, 128) for tile in (triton_impl.prefill_tile, triton_impl.decode_tile))
    shapes = [(128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (128, 64, 4), (128, 32, 4), (64, 128, 8)]
    for length in (8192, 2048, 0):
        found.append(("window_prefill", length, (prefill,)))
        for (queries, keys, warps), stages in product(shapes, (3, 2)):
            found.append(("window_prefill", length, (Tile(queries, keys, warps, stages),)))
    for rows in (64, 1, 256):
        found.append(("window_decode", rows, (decode,)))
        for (keys, warps), stages, programs in product(
            [(64, 4), (128, 4), (128, 8), (32, 4)], (3, 4), (528, 264, 1056)
        ):
            found.append(("window_decode", rows, (Tile(16, keys, warps, stages, programs),)))
    of_queries, of_keys = triton_impl.backward_tiles(128, torch.bfloat16)
    found.append(("window_backward", 2048, (of_queries, of_keys)))
    for queries, keys, warps in [(128, 64, 8), (64, 64, 4), (128, 128, 8), (128, 32, 8), (64, 128, 8)]:
        for stages in (3, 2):
            found.append(("window_backward", 2048, (Tile(queries, keys, warps, stages), of_keys)))
    for queries, keys, warps in [(64, 128, 8), (32, 128, 8), (64, 64, 8), (64, 64, 4), (128, 64, 8), (128, 128, 8)]:
        for stages in (3, 2):
            found.append(("window_backward", 2048, (of_queries, Tile(queries, keys, warps, stages))))
    return list(dict.fromkeys(found))


@contextmanager
def installed(what: str, tiles: tuple[Any, ...]) -> Iterator[None]:
    """Launch with these tiles."""
    name = NAMES[what]
    before = getattr(triton_impl, name)
    setattr(triton_impl, name, lambda *_: tiles if what == "window_backward" else tiles[0])
    try:
        yield
    finally:
        setattr(triton_impl, name, before)


def plan_for(what: str, number: int, *, short: bool, size: Size) -> Plan:
    """The shape on which tiles are compared, or a short one that compiles the same code."""
    shape = shape_for(size, window=number > 0)
    if what == "window_decode":
        rows, context = (2, 30) if size.tiny else (number, 2048 if short else 8192)
        return Plan(what, f"{rows} x 1 of {context}", lambda: paged_case(size, shape, rows, 1, context))
    length = 20 if size.tiny else 256 if short else number or 8192
    if what == "window_backward":
        rows = 1 if size.tiny else 4
        return Plan(what, f"{rows} x {length}", lambda: rows_case(size, shape, rows, length, True))
    label = f"1 x {length}, " + ("all keys" if shape.window is None else f"window {shape.window}")
    return Plan(what, label, lambda: paged_case(size, shape, 1, length, length))
