"""Compile the kernels for an H100 (sm_90) and print their names; run by test_compile.py, in a process of its own.

Window attention, the scan, nGPT's steps and binary layers are compiled at their real shapes, by
compile_window_attention.py, compile_mamba_scan.py, compile_hypersphere.py and compile_binary.py.

Needs no GPU, only triton. The interpreter accepts code that the compiler refuses, hence this second check.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nlrl_kernels.causal_conv import triton_impl as conv
from nlrl_kernels.diff_attention import backward as diff_backward
from nlrl_kernels.diff_attention import kernels as diff
from nlrl_kernels.diff_attention import triton_impl as diff_launch

INDEX = {
    "starts_ptr": "*i32",
    "slots_ptr": "*i32",
    "has_state_ptr": "*i1",
    "table_ptr": "*i32",
    "lengths_ptr": "*i32",
}
WIDE = ("start_ptr", "states_ptr")


def compile_kernel(kernel, constants, dtype="fp32", num_warps=1, types=None, num_stages=3):
    known = INDEX | (types or {})
    signature = {}
    for name in kernel.arg_names:
        default = f"*{'fp32' if name in WIDE else dtype}" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else known.get(name, "fp32" if name == "scale" else default)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    shared = getattr(compiled.metadata, "shared", 0)
    assert shared <= 227 * 1024, f"{kernel.__name__} wants {shared} bytes of shared memory"
    print(kernel.__name__, dtype, len(compiled.asm["cubin"]), shared)


def compile_diff_attention():
    """Narrow heads in small tiles, in every way that the code can take: wide ones take ptxas minutes."""
    numbers = dict.fromkeys(("scale", "eps", "factor", "natural_scale"), "fp32")
    wide = ("lam", "weight", "lse", "partial", "stats", "sums", "dweight")
    index = {f"{name}_ptr": "*i32" for name in ("starts", "key_starts", "table", "lengths")}
    types = numbers | {f"{name}_ptr": "*fp32" for name in wide} | index
    sizes = diff_launch._sizes(32, 64, diff_launch.Tile(64, 32, 4, 2), torch.bfloat16)
    warps, stages = sizes.pop("num_warps"), sizes.pop("num_stages")
    for full in (True, False):
        norm, layout = {"NORM": full, "HAS_WEIGHT": full}, sizes | {"GROUP": 2, "SHARED": not full}
        for flags in (
            {"WAY": "in_turn" if full else "together", "PAGE": 0, "ALIKE": False, "SPLITS": 1, "KEEP": True},
            {"WAY": "sums_first" if full else "in_turn", "PAGE": 16, "ALIKE": full, "SPLITS": 1, "KEEP": False},
            {"WAY": "together", "PAGE": 64, "ALIKE": not full, "SPLITS": 8, "KEEP": False, "BLOCK_M": 16},
        ):
            compile_kernel(diff.attend, layout | norm | flags, "bf16", warps, types, stages)
        compile_kernel(diff_backward.queries_backward, layout, "bf16", warps, types, stages)
        compile_kernel(diff_backward.keys_backward, layout, "bf16", warps, types, stages)
        splits = {"SPLITS": 8, "BLOCK_S": 8, "WIDTH_V": 64, "BLOCK_W": 64}
        compile_kernel(diff.combine, norm | splits, "bf16", 4, types)
    compile_kernel(diff_backward.norm_backward, {"HAS_WEIGHT": True, "WIDTH_V": 64, "BLOCK_W": 64}, "bf16", 1, types)


def main():
    compile_diff_attention()
    for dtype in ("fp32", "bf16"):
        for full in (True, False):
            conv_tile = {"K": 4, "BLOCK_K": 4, "BLOCK_T": 1 if full else 16, "BLOCK_C": 128}
            compile_kernel(conv._conv_rows, {"ONE_TOKEN": full} | conv_tile, dtype, num_warps=4)


if __name__ == "__main__":
    main()
