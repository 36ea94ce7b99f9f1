"""Serve large shapes with random weights by vLLM, each in its own process; ``nlrl bench serve`` is the same command.

Tokens a second of prefill and decode, bytes of weights and of one sequence's cache, and the ratios between models that
are to be reached. Results are written after each figure; ``--merge`` makes one table of several runs.
"""

import argparse
import sys
from pathlib import Path

from nlrl_backbones.bench_serve.command import Choice, bench


def main(arguments: list[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="nlrl_backbones.bench_serve", description=__doc__)
    parser.add_argument("--models", default="", help="shapes with commas between; absent: all, the telling ones first")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few tokens: that it runs, on any machine")
    parser.add_argument("--goals", action="store_true", help="only what a goal asks for")
    parser.add_argument("--plan", action="store_true", help="say what would run and how long it may take; stop")
    parser.add_argument("--merge", type=Path, nargs="+", default=(), metavar="FILE", help="one table of these results")
    parser.add_argument("--limit", type=float, default=Choice.limit, metavar="SECONDS", help="begin no model after it")
    parser.add_argument("--out", type=Path, default=Choice.out, metavar="FOLDER", help="where files go")
    chosen = parser.parse_args(arguments)
    chosen.models = tuple(filter(None, chosen.models.split(",")))
    return bench(Choice(**vars(chosen)))


if __name__ == "__main__":
    sys.exit(main())
