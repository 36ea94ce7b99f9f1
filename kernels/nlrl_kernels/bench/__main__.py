"""Time the kernels on a GPU: `python -m nlrl_kernels.bench`. On a machine without one it checks them on tiny shapes.

A case is checked against the reference before it is timed, and refused when it is wrong. Times are medians with cold
caches, as CUDA graphs where a call can be captured. Results are printed and written as they come.
"""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; 0 when every case that ran is right, 1 when one is not, 2 for what cannot be run."""
    parser = argparse.ArgumentParser(prog="nlrl_kernels.bench", description=__doc__)
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these; see --list")
    parser.add_argument("--quick", action="store_true", help="a few shapes of each kernel")
    parser.add_argument("--limit", type=float, default=540.0, metavar="SECONDS", help="start no case after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="FOLDER", help="where files go")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    options = parser.parse_args(arguments)

    import torch

    has_gpu = torch.cuda.is_available()
    if not has_gpu:  # must be set before triton is imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        import triton  # noqa: F401
    except ImportError:
        print("The benchmark needs Triton: install the package triton.", file=sys.stderr)
        return 2
    from nlrl_kernels.bench import runner
    from nlrl_kernels.bench.case import Size

    size = Size("cuda" if has_gpu else "cpu", quick=options.quick, tiny=not has_gpu)
    try:
        plans = runner.planned(size, options.kernels)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{plan.kernel}: {plan.shape}" for plan in plans))
        return 0
    wrong = False
    for line in runner.run_all(plans, size, options.out, options.limit):
        print(line, flush=True)
        wrong = wrong or ("| refused: " in line and "| refused: no GPU |" not in line)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
