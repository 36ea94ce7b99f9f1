"""Compile differential attention as the 3B model launches it for an H100 (sm_90), and read the machine code.

    python tests/kernels/compile_diff_attention.py

needs no GPU, only triton: one line of JSON a kernel, with its registers, stack and shared memory, and of each of its
loops over keys how many instructions it has, how many of them spill, multiply on the tensor cores (HGMMA is wgmma, HMMA
the older mma), and copy 16 bytes to shared memory asynchronously.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrl_kernels.diff_attention import kernels
from nlrl_kernels.diff_attention import triton_impl as launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
COUNTED = {"spills": ("LDL", "STL"), "wgmma": ("HGMMA",), "mma": ("HMMA",), "copies": ("LDGSTS.E.BYPASS.128",)}
FLOATS = ("lam", "weight", "lse", "partial", "stats")
INDICES = ("starts", "key_starts", "table", "lengths")
ODD = ("table_r", "lam_t", "lam_h", "heads", "tokens")
"""Numbers that need not be multiples of 16, as strides of pages and heads are."""


@dataclass(frozen=True)
class Figures:
    """One kernel of machine code."""

    name: str
    registers: int
    stack: int
    shared: int
    loops: list[dict[str, int]]


def compiled(tile, *, page, splits=1, width=128, width_v=256):
    """The forward kernel with one head a group, norm and weight, in bfloat16."""
    constants = launch._sizes(width, width_v, tile, torch.bfloat16) | {
        "GROUP": 1, "SHARED": False, "PAGE": page, "ALIKE": page > 0, "SPLITS": splits, "WAY": tile.way,
        "NORM": True, "HAS_WEIGHT": True, "KEEP": False,
    }  # fmt: skip
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    signature, hints = {}, {}
    for i, name in enumerate(kernels.attend.arg_names):
        stem, is_pointer = name.removesuffix("_ptr"), name.endswith("_ptr")
        if name in constants:
            signature[name] = "constexpr"
        elif is_pointer:
            signature[name] = "*i32" if stem in INDICES else "*fp32" if stem in FLOATS else "*bf16"
        else:
            signature[name] = "fp32" if name in ("scale", "eps", "factor") else "i32"
        if is_pointer or (signature[name] == "i32" and name not in ODD):
            hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernels.attend, signature=signature, constexprs=constants, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def loops(sass: str) -> Iterator[list[str]]:
    """The instructions of every loop that holds no other."""
    labels, instructions, found = {}, [], []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*);", line):
            instructions.append(instruction[1])
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if back and back[1] in labels:
                found.append((labels[back[1]], len(instructions)))
    for begin, end in found:
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in found):
            yield instructions[begin:end]


def figures(name, kernel) -> Figures:
    """What the assembler and the machine code say."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage, sass = (
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    said = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert said, usage
    registers, stack = int(said[1]), int(said[2])
    of_keys = []
    for body in loops(sass):
        counts = Counter()
        for key, prefixes in COUNTED.items():
            counts[key] = sum(line.startswith(prefixes) for line in body)
        if counts["wgmma"] or counts["mma"]:
            of_keys.append({"instructions": len(body), **counts})
    return Figures(name, registers, stack, kernel.metadata.shared, of_keys)


def main() -> None:
    bf16 = torch.bfloat16
    prefill, decode = launch.prefill_tile(256, bf16), launch.decode_tile(256, bf16)
    cases = {
        "prefill, packed": (prefill, {"page": 0}),
        "prefill, pages of 16": (prefill, {"page": 16}),
        "prefill, pages of 64": (prefill, {"page": 64}),
        "prefill of maps of 64, packed": (launch.prefill_tile(128, bf16), {"page": 0, "width": 64, "width_v": 128}),
        "decode, pages of 16": (decode, {"page": 16, "splits": 8}),
        "sums first, packed": (launch.Tile(128, 32, 8, 3, "sums_first"), {"page": 0}),
        "together, packed": (launch.Tile(64, 64, 8, 3, "together"), {"page": 0}),
    }
    for name, (tile, settings) in cases.items():
        print(json.dumps(asdict(figures(name, compiled(tile, **settings)))), flush=True)


if __name__ == "__main__":
    main()
