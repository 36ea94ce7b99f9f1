"""Time the kernels on a GPU, each once it has been found right; with ``--check`` only that, on any machine.

Times are medians with cold caches, as CUDA graphs where a call can be captured and as launches from Python. Results
are printed and written as they come, goals first. ``nlrl bench kernels`` is the same command.
"""

import argparse
import sys
from pathlib import Path

from nlrl_kernels.bench.command import Choice, bench


def main(arguments: list[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="nlrl_kernels.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these families or kernels; see --list")
    parser.add_argument("--quick", action="store_true", help="a few shapes of each kernel")
    parser.add_argument("--check", action="store_true", help="tiny shapes, no times; needs no GPU")
    parser.add_argument("--list", dest="listed", action="store_true", help="name the cases and stop")
    parser.add_argument("--limit", type=float, default=Choice.limit, metavar="SECONDS", help="start no case after it")
    parser.add_argument("--out", type=Path, default=Choice.out, metavar="FOLDER", help="where files go")
    parser.add_argument("--processes", type=int, metavar="N", help="compile with so many before; 0: do not")
    return bench(Choice(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())
