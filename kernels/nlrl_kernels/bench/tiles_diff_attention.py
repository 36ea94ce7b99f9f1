"""Tile sizes of differential attention that ``sweep`` compares, and the shapes of the 3B model on which it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch

from nlrl_kernels.bench import cases_diff_attention as cases
from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.diff_attention import triton_impl
from nlrl_kernels.diff_attention.triton_impl import Tile, Way

NAMES = {"prefill": "prefill_tile", "decode": "decode_tile", "backward": "backward_tiles"}
"""What is tuned, and the function of ``triton_impl`` that says its tiles."""

Candidate = tuple[str, int, tuple[Tile, ...]]
"""What is tuned, the version (1: values of 256, 2: shared keys, values of 128), and the tiles."""

_WAYS: dict[int, list[tuple[int, int, Way]]] = {
    1: [(128, 8, "in_turn"), (128, 8, "sums_first"), (64, 8, "together"), (64, 4, "in_turn"), (64, 4, "sums_first")],
    2: [(128, 8, "together"), (64, 4, "together"), (128, 8, "in_turn")],
}
"""By version: queries, warps and way of prefill. What spills or does not fit is found out by compiling it."""


def candidates() -> list[Candidate]:
    """Every tile that is tried; those of today come first."""
    bf16 = torch.bfloat16
    found: list[Candidate] = []
    for version, width_v in ((1, 256), (2, 128)):
        found.append(("prefill", version, (triton_impl.prefill_tile(width_v, bf16),)))
        for (queries, warps, way), keys, stages in product(_WAYS[version], [32, 64, 128], [2, 3]):
            found.append(("prefill", version, (Tile(queries, keys, warps, stages, way),)))
        found.append(("decode", version, (triton_impl.decode_tile(width_v, bf16),)))
        for keys, warps, stages in product([16, 32, 64, 128], [2, 4, 8], [3, 5]):
            found.append(("decode", version, (Tile(16, keys, warps, stages),)))
    today = triton_impl.backward_tiles(256, bf16)
    found.append(("backward", 1, today))
    for queries, keys, warps in product([32, 64], [32, 64], [4, 8]):
        found.append(("backward", 1, (Tile(queries, keys, warps, 2), today[1])))
        found.append(("backward", 1, (today[0], Tile(queries // 2, 2 * keys, warps, 2))))
    return list(dict.fromkeys(found))


@contextmanager
def installed(what: str, tiles: tuple[Any, ...]) -> Iterator[None]:
    """Launch with these tiles."""
    name = NAMES[what]
    before = getattr(triton_impl, name)
    setattr(triton_impl, name, lambda *_: tiles if what == "backward" else tiles[0])
    try:
        yield
    finally:
        setattr(triton_impl, name, before)


def plan_for(what: str, version: int, *, short: bool, size: Size) -> Plan:
    """The shape on which tiles are compared, or a short one that compiles the same code."""
    if what == "prefill":
        length = 24 if size.tiny else 512 if short else 8192
        return Plan("prefill", f"V{version}, 1 x {length}", lambda: cases._prefill(size, version, length))
    if what == "backward":
        length = 24 if size.tiny else 512 if short else 4096
        return Plan("backward", f"V1, 1 x {length}", lambda: cases._training(size, length))
    rows, context = (2, 40) if size.tiny else (64, 1024 if short else 8192)
    return Plan("decode", f"V{version}, {rows} x {context}", lambda: cases._decode(size, version, rows, context))
