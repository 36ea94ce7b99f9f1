"""Compile nGPT's steps at the widths of its 1B model for an H100 (sm_90) and print what their machine code takes.

Needs no GPU: `python tests/kernels/compile_hypersphere.py`. Registers, spilled bytes and shared memory of the settings
of today, the share of a multiprocessor's warps that fit, and instructions: loads and stores of 16 bytes (LDG128,
STG128), copies to shared memory that do not wait (LDGSTS), and narrower loads (LDG32 and LDG64: the tables of which
matrix is whose).
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrl_kernels.bench.profile import occupancy
from nlrl_kernels.hypersphere import kernels
from nlrl_kernels.hypersphere.triton_impl import SETTINGS, Setting, _warps

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
FLOATS = {f"{name}_ptr": "*fp32" for name in ("alpha", "dalpha", "dscale", "cross", "keep", "scale")}
KNOWN = FLOATS | {"table_ptr": "*i64", "owner_ptr": "*i32"}
# Whatever the model, the compiler may not assume that 16 divides these.
ODD = ("rows", "tokens", "heads", "n1", "n2")
INSTRUCTIONS = {"LDG128": r"LDG\.E\.128", "STG128": r"STG\.E\.128", "LDGSTS": r"LDGSTS\.E\.BYPASS\.128",
                "LDG64": r"LDG\.E\.64", "LDG32": r"LDG\.E R", "STG32": r"STG\.E \["}  # fmt: skip


def machine_code(kernel, constants, warps, dtype, registers=None):
    """What one kernel takes, as a dictionary."""
    signature, known = {}, {}
    for i, name in enumerate(kernel.arg_names):
        default = f"*{dtype}" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else KNOWN.get(name, default)
        if name not in constants and name not in ODD:
            known[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=known)
    options = {"num_warps": warps, "maxnreg": registers}
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
    share, shared = round(occupancy(used, warps, compiled.metadata.shared), 3), compiled.metadata.shared
    counts = {name: len(re.findall(pattern, sass)) for name, pattern in INSTRUCTIONS.items()}
    return {"registers": used, "stack": stack, "shared": shared, "occupancy": share, "warps": warps, **counts}


def compile_one(name, setting: Setting, dtype="bf16", *, keep=True):
    """Compile a kernel of ``SETTINGS`` with a setting, as it is launched at width 1,280 and 20 heads of 64."""
    wide, backward = {"WIDE": tl.float32}, {"STAGES": setting.stages}
    vectors = min(64, max(1, setting.tile // 2048))
    normal = wide | {"ALIGNED": True, "BLOCK_E": 1024, "BLOCK_X": 256, "COUNT": vectors}
    heads = wide | {"WIDTH": 64, "HAS_KEEP": keep, "BLOCK_D": 64}
    kernel, constants, block = {
        "residual_forward": (kernels.residual_forward, wide | {"BLOCK_E": 2048}, 2048),
        "residual_backward": (kernels.residual_backward, wide | backward | {"BLOCK_E": 2048}, 2048),
        "qk_forward": (kernels.qk_forward, heads | {"ROWS": setting.tile // 64}, setting.tile),
        "qk_backward": (kernels.qk_backward, heads | backward | {"ROWS": 4}, 256),
        "swiglu_forward": (kernels.swiglu_forward, wide | {"BLOCK_F": 1024}, 1024),
        "swiglu_backward": (kernels.swiglu_backward, wide | backward | {"BLOCK_F": 1024}, 1024),
        "normalize_rows": (kernels.normalize_all, normal | {"BY_COLUMN": False}, vectors * 2048),
        "normalize_columns": (kernels.normalize_all, normal | {"BY_COLUMN": True}, vectors * 2048),
    }[name]
    dtype = "fp32" if name.startswith("normalize") else dtype
    return machine_code(kernel, constants, _warps(block, setting.entries), dtype, setting.registers)


def main():
    for name, setting in SETTINGS.items():
        print(name, compile_one(name, setting), flush=True)
    print("qk_forward, without keep", compile_one("qk_forward", SETTINGS["qk_forward"], keep=False), flush=True)


if __name__ == "__main__":
    main()
