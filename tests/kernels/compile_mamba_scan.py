"""Compile the scan and the norms around it at Hymba-1.5B's shape for an H100 (sm_90); print what the code takes.

Needs no GPU: `python tests/kernels/compile_mamba_scan.py`, or `... NAME` for one kernel with its settings of today.
Registers and spilled bytes a thread, shared memory, and accesses of 16 bytes; and of the longest innermost loop, by
token and 32 channels where it walks tokens: instructions, and clocks of a scheduler that its special functions, and its
shuffles and accesses to memory, take.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrl_kernels.hymba_norms import kernels as norms
from nlrl_kernels.mamba_scan import backward, kernels, triton_impl

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INDICES = {"starts_ptr": "*i32", "slots_ptr": "*i32", "has_state_ptr": "*i1"}
DATA = ("u_ptr", "delta_ptr", "z_ptr", "y_ptr", "dy_ptr", "du_ptr", "ddelta_ptr", "dz_ptr", "x_ptr", "dx_ptr", "dt_ptr")
DATA += ("ddt_ptr", "dt_weight_ptr", "B_weight_ptr", "C_weight_ptr", "x_weight_ptr", "z_weight_ptr")
# Of these the compiler may not assume that 16 divides them: row lengths of any batch, and Hymba's rank of 100.
ODD = ("rows", "length", "tokens", "items", "rank", "x_row", "starts_ptr", "slots_ptr", "has_state_ptr")


def machine_code(kernel, constants, options, steps):
    """What one kernel takes, as a dictionary; ``steps`` tokens of 32 channels a round of its loop, 0 for none."""
    signature, known = {}, {}
    if "slot_n" in kernel.arg_names:
        constants = constants | {"slot_n": 1}  # as a launch makes of a stride of 1
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        pointer = INDICES.get(name, "*bf16" if name in DATA else "*fp32")
        signature[name] = pointer if name.endswith("_ptr") else "fp32" if name == "eps" else "i32"
        if name not in ODD and signature[name] != "fp32":
            known[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=known)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    taken = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert taken, usage
    found = {"registers": int(taken[1]), "stack": int(taken[2]), "shared": compiled.metadata.shared}
    found["wide"] = len(re.findall(r"\b(?:LDG|STG)\S*\.128\b", sass))
    return found | (innermost(sass, steps) if steps else {})


def innermost(sass, steps):
    """Figures of the longest loop that holds no other."""
    labels, instructions, loops = {}, [], []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\S+\s+)?(.*?);", line):
            instructions.append(instruction[1])
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if back and labels.get(back[1], len(instructions)) < len(instructions):
                loops.append((labels[back[1]], len(instructions)))
    inner = [loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]
    begin, end = max(inner, key=lambda loop: loop[1] - loop[0])
    body = instructions[begin:end]

    def count(*starts):
        return sum(text.startswith(starts) for text in body)

    # A scheduler starts one instruction a clock, special functions every 8, shuffles and accesses to memory every 4.
    figures = {"issue": len(body), "special": 8 * count("MUFU"), "memory": 4 * count("LD", "ST", "SHFL")}
    spills = count("LDL", "STL")
    return {name: round(figure / steps) for name, figure in figures.items()} | {"spills in loop": spills}


def launches():
    """Name to (kernel, constants, compiler options, tokens of 32 channels a round of the loop)."""
    sizes = triton_impl._sizes(triton_impl.scan_tile(), 3200, 16)
    options = {"num_warps": sizes.pop("num_warps"), "maxnreg": sizes.pop("maxnreg", None), "num_stages": 3}
    steps = sizes["BLOCK_T"] * sizes["BLOCK_C"] // 32 // options["num_warps"]
    full = {"SOFTPLUS": True, "HAS_BIAS": True, "HAS_D": True, "HAS_Z": True, "STATES": 16}
    plain = full | {"SOFTPLUS": False, "HAS_BIAS": False, "HAS_Z": False}
    packed = {"EVEN": False, "WHOLE": False, "LOCAL": False, "HAS_START": True} | sizes
    even = {"EVEN": True, "HAS_START": True, "STATES": 16, "BLOCK_K": 8, "BLOCK_E": 128}
    tokens, group = triton_impl.gradient_tile()
    gradients = full | triton_impl._groups(16, group) | {"STEPS": tokens, "BLOCK_C": 32}
    local = {name: value for name, value in (full | sizes).items() if name != "HAS_D"}
    block_r, block_c, warps = triton_impl.update_tile(64)
    update = {"BLOCK_N": 16, "BLOCK_R": block_r, "BLOCK_C": block_c}
    mean, small = {"WIDE": tl.float32, "BLOCK_C": 4096}, {"WIDE": tl.float32, "ROWS": 4, "BLOCK_R": 128, "BLOCK_N": 16}
    one, four, eight = ({"num_warps": n, "num_stages": 3} for n in (1, 4, 8))
    return {
        "whole": (kernels.scan_chunks, packed | full | {"WHOLE": True}, options, steps),
        "whole_plain": (kernels.scan_chunks, packed | plain | {"WHOLE": True}, options, steps),
        "even": (kernels.scan_chunks, packed | full | {"EVEN": True, "WHOLE": True}, options, steps),
        "local": (kernels.scan_chunks, packed | full | {"LOCAL": True}, options, steps),
        "chunks": (kernels.scan_chunks, packed | full, options, steps),
        "join": (kernels.join_chunks, even | {"EVEN": False, "REVERSE": False}, four, 0),
        "join_reverse": (kernels.join_chunks, even | {"REVERSE": True}, four, 0),
        "update": (kernels.update_states, full | update, four | {"num_warps": warps}, 0),
        "update_plain": (kernels.update_states, plain | update, four | {"num_warps": warps}, 0),
        "local_gradients": (backward.local_gradients, local, options, steps),
        "gradients": (backward.gradients, gradients, one, tokens * group / 16),
        "mean": (norms.mean_forward, mean, eight, 0),
        "mean_backward": (norms.mean_backward, mean, eight, 0),
        "selection": (norms.selection_forward, small, four, 0),
        "selection_backward": (norms.selection_backward, small, four, 0),
    }


def main():
    for name in sys.argv[1:] or launches():
        print(name, machine_code(*launches()[name]), flush=True)


if __name__ == "__main__":
    main()
