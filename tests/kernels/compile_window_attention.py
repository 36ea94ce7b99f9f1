"""Compile window attention at Hymba-1.5B's shape for an H100 (sm_90) and print what its machine code takes.

Needs no GPU: `python tests/kernels/compile_window_attention.py`, or `... prefill 128 64 8 3` for one kernel and tile
(queries, keys, warps, stages). Registers and spilled bytes a thread, shared memory, and instructions: HGMMA (products
on the tensor cores of Hopper), HMMA (of Ampere), LDGSTS (copies to shared memory that do not wait), STL (spills). Last,
the instructions of a turn of each loop that multiplies, in the order of the code: with masks, then without.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrl_kernels.window_attention import backward, kernels, triton_impl
from nlrl_kernels.window_attention.triton_impl import Tile

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
FLOATS = ("lse_ptr", "partial_ptr", "stats_ptr", "delta_ptr", "part_ptr")
INDICES = ("starts_ptr", "key_starts_ptr", "table_ptr", "lengths_ptr")
# Of these the compiler may not assume that 16 divides them.
ODD = ("window", "pinned", "rows", "tokens", "heads", "kv_heads", "splits", "spans", "pin_tiles", "share", "total")
PAGED = {"PAGE": 128, "KEEP": False, "HAS_WINDOW": True, "HAS_PINNED": True, "ALIKE": True, "GROUP": 5}
ROWS = {"HAS_WINDOW": True, "GROUP": 5}


def machine_code(kernel, constants, tile, dtype="bf16"):
    """What one kernel takes, as a dictionary."""
    signature, known = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = "*fp32" if name in FLOATS else "*i32" if name in INDICES else f"*{dtype}"
        else:
            signature[name] = "fp32" if name in ("scale", "natural_scale") else "i32"
        if name not in ODD and signature[name] != "fp32":
            known[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=known)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    counts = {name: len(re.findall(rf"\b{name}\b", sass)) for name in ("HGMMA", "HMMA", "LDGSTS", "STL")}
    used = {"registers": int(found[1]), "stack": int(found[2]), "shared": compiled.metadata.shared, **counts}
    return used | {"loops": loops(sass)}


def loops(sass):
    """Instructions of each innermost loop with products on tensor cores: from a label to the branch back to it."""
    labels, code, found = {}, [], []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(instruction[1])
            back = re.search(r"BRA.*`\((\.L_\w+)\)", instruction[1])
            if back and back[1] in labels and re.search(r"\bHG?MMA\b", " ".join(code[labels[back[1]] :])):
                found.append(len(code) - labels[back[1]])
    return found


def compile_one(what, tile, dtype="bf16"):
    """Compile one of the launches of ``triton_impl`` with a tile."""
    torch_dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    sizes = triton_impl._sizes(64, 128, tile, torch_dtype)
    sizes = {name: value for name, value in sizes.items() if name not in ("num_warps", "num_stages")}
    wide = {"WIDTH": 64, "BLOCK": 64, "BLOCK_N": 16}
    kernel, constants = {
        "prefill": (kernels.attend, PAGED | {"DECODE": False, "SPLIT": False} | sizes),
        "prefill_small_pages": (kernels.attend, PAGED | {"PAGE": 16, "DECODE": False, "SPLIT": False} | sizes),
        "rows": (kernels.attend, PAGED | {"PAGE": 0, "KEEP": True, "DECODE": False, "SPLIT": False} | sizes),
        "decode": (kernels.attend, PAGED | {"DECODE": True, "SPLIT": True} | sizes),
        "combine": (kernels.combine, {"BLOCK_S": 32, "WIDTH_V": 128, "BLOCK_V": 128}),
        "row_sums": (backward.row_sums, {"GROUP": 5, "WIDTH_V": 128, "BLOCK_V": 128, "ROWS": 32}),
        "queries": (backward.queries_backward, ROWS | {"HAS_PINNED": True} | sizes),
        "keys": (backward.keys_backward, ROWS | {"PINNED": False} | sizes),
        "pinned_keys": (backward.keys_backward, ROWS | {"PINNED": True, "HAS_WINDOW": False} | sizes),
        "add_spans": (backward.add_spans, wide),
    }[what]
    return machine_code(kernel, constants, tile, dtype)


def todays(dtype):
    """Every launch with the tiles that it has today."""
    torch_dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    prefill, decode = triton_impl.prefill_tile(128, torch_dtype), triton_impl.decode_tile(128, torch_dtype)
    of_queries, of_keys = triton_impl.backward_tiles(128, torch_dtype)
    whole, small = Tile(1, 1, 4, 3), triton_impl.prefill_tile(128, torch_dtype, 16)
    tiles = {"prefill": prefill, "prefill_small_pages": small, "rows": prefill, "decode": decode, "combine": whole}
    backwards = {"queries": of_queries, "keys": of_keys, "pinned_keys": of_keys, "row_sums": whole, "add_spans": whole}
    return tiles | backwards


def main():
    if sys.argv[1:]:
        print(sys.argv[1], compile_one(sys.argv[1], Tile(*map(int, sys.argv[2:]))))
        return
    for dtype in ("bf16", "fp32"):
        for what, tile in todays(dtype).items():
            print(dtype, what, compile_one(what, tile, dtype), flush=True)


if __name__ == "__main__":
    main()
