"""Compile the binary layers of Bi-Mamba 2.7B for an H100 (sm_90) and print what their machine code takes.

Needs no GPU: `python tests/kernels/compile_binary.py`. Of each kernel the registers, bytes of stack (spills) and shared
memory, and of the loop over the inputs: its instructions, those for each 32 weights of a warp (one shift and one
logical operation for two weights is 1.0 for each weight of a thread), products of a warp group (HGMMA, of integers
IGMMA), copies to shared memory that do not wait (LDGSTS), and stores to and loads from shared memory, through which no
sign may go.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrl_kernels.binary import kernels, training
from nlrl_kernels.binary.triton_impl import Few, Many, few_tile, many_tile

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
KNOWN = {"packed_ptr": "*i16", "digits_ptr": "*i8", "zeros_ptr": "*i32", "eps": "fp32"} | {
    f"{name}_ptr": "*fp32"
    for name in ("unit", "scale", "shift", "shared", "weight", "residual", "dweight", "dscale", "dshift")
}
# The compiler may assume that 16 divides every other number and address.
ODD = ("rows", "zeros", "eps", "ROWS")
WORDS = {"ALIGNED": True, "DTYPE": tl.bfloat16, "ASSEMBLY": True}


def machine_code(kernel, constants, warps, stages=3, types=None):
    """Registers, stack, shared memory, and the instructions of the loop around the products if there is one."""
    signature, known = {}, {}
    for i, name in enumerate(kernel.arg_names):
        default = "*bf16" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else (KNOWN | (types or {})).get(name, default)
        if name not in constants and name not in ODD:
            known[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=known)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    said = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert said, usage
    used, stack = int(said[1]), int(said[2])
    return {"registers": used, "stack": stack, "shared": compiled.metadata.shared} | _loop(sass)


def _loop(sass):
    labels, lines = {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s*(?:@!?U?P\d+\s+)?([A-Z]\S*)(.*);", line):
            lines.append((found[1], found[2]))
    for i, (name, rest) in enumerate(lines):
        begin = labels.get(found[1], i) if name == "BRA" and (found := re.search(r"`\((\S+)\)", rest)) else i
        loop = [name.split(".")[0] for name, _ in lines[begin:i]]
        if "HGMMA" in loop or "IGMMA" in loop:
            counts = Counter(loop)
            names = ("LOP3", "HGMMA", "IGMMA", "LDGSTS", "STS", "LDS")
            return {"loop": len(loop)} | {name: counts[name] for name in names if counts[name] or name == "STS"}
    return {}


def compile_few(rows: int, tile: Few):
    how = {"EARLY": 512 if tile.early else 0, "ADD": not tile.fused, "SLICES": tile.slices, "BLOCK_O": tile.outputs}
    if tile.fused:
        constants = WORDS | how | {"ROWS": max(rows, 16 // tile.slices)}
        found = machine_code(kernels.few_rows, constants, tile.warps, tile.stages)
    else:
        constants = how | {"ASSEMBLY": True, "ROWS": max(rows, 4 // tile.slices)}
        found = machine_code(kernels.few_digits, constants, tile.warps, tile.stages, {"packed_ptr": "*u8"})
    return found | {"weights": tile.outputs * tile.slices * 128 // (32 * tile.warps)}


def compile_many(tile: Many):
    constants = WORDS | {"ADD": False, "BLOCK_T": tile.rows, "BLOCK_O": tile.outputs}
    found = machine_code(kernels.many_rows, constants, tile.warps, tile.stages)
    return found | {"weights": tile.outputs * 128 // (32 * tile.warps)}


def main():
    for inputs, outputs in ((2560, 10576), (5120, 2560)):
        for rows in (1, 8):
            tile = few_tile(rows, outputs, inputs)
            for fused in (True, False):
                tile = Few(tile.outputs, tile.slices, tile.warps, tile.stages, tile.early, fused)
                print("few_rows", rows, inputs, outputs, tile, compile_few(rows, tile), flush=True)
        for rows in (16, 128, 512, 2048):
            tile = many_tile(rows, outputs)
            print("many_rows", rows, inputs, outputs, tile, compile_many(tile), flush=True)
    for dense in (True, False):
        flags = {"NORM": True, "GATE": True, "DENSE": dense, "BLOCK": 4096}
        print("prepare_rows", machine_code(kernels.prepare_rows, flags, 8), flush=True)
    flags = {"NORM": True, "GATE": True, "EARLY": True, "BLOCK": 4096}
    print("prepare_digits", machine_code(kernels.prepare_digits, flags, 8), flush=True)
    print(
        "unpack_rows", machine_code(kernels.unpack_rows, {"ALIGNED": True, "BLOCK_O": 4, "BLOCK_Q": 32}, 4), flush=True
    )
    for kernel in (training.binarize, training.straight_through):
        print(kernel.__name__, machine_code(kernel, training._BLOCK | {"WIDE": tl.float32}, 4), flush=True)


if __name__ == "__main__":
    main()
