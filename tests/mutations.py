"""Put single mistakes into the backbones, one at a time, and see which test notices: `make mutations`.

The mistakes stand in mutations.toml. A copy of the checkout is changed, never the checkout itself. The table names for
each the first test that failed; one that no test notices is printed as SURVIVED, and the exit code is 1. The same tests
must pass without a mistake, or nothing is printed and the exit code is 2.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """A mistake: what it is in words, where ``right`` becomes ``wrong``, and the tests that should notice."""

    mistake: str
    file: str
    right: str
    wrong: str
    tests: str


def mutations() -> list[Mutation]:
    """All mistakes of mutations.toml, in its order."""
    with Path(__file__).with_suffix(".toml").open("rb") as stream:
        return [Mutation(**entry) for entry in tomllib.load(stream)["mutation"]]


def check_fresh() -> list[str]:
    """Mistakes whose right form does not stand exactly once in its file: the list must follow the code."""
    stale = []
    for mutation in mutations():
        count = (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.right)
        if count != 1:
            stale.append(f"{mutation.mistake}: its right form occurs {count} times in {mutation.file}")
    return stale


def first_failure(mutation: Mutation, tree: Path) -> str | None:
    """The first test that fails with the mistake in ``tree``; None when all pass."""
    file = tree / mutation.file
    right = file.read_text(encoding="utf-8")
    file.write_text(right.replace(mutation.right, mutation.wrong), encoding="utf-8")
    try:
        return failing(mutation.tests, tree)
    finally:
        file.write_text(right, encoding="utf-8")


def failing(tests: str, tree: Path) -> str | None:
    """The first of ``tests`` that fails in ``tree`` as it stands; None when all pass."""
    parts = [str(tree), *(str(tree / name) for name in ("backbones", "kernels", "envs", "prompts"))]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(parts), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py\S*)", done.stdout, re.MULTILINE)
    return found[1] if found else (done.stdout + done.stderr).strip().splitlines()[-1]


def main() -> int:
    """Print the table; the arguments choose mistakes by words in their names."""
    wanted = sys.argv[1:]
    if stale := check_fresh():
        print("\n".join(stale))
        return 2
    chosen = [m for m in mutations() if not wanted or any(word.lower() in m.mistake.lower() for word in wanted)]
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        for name in ("nlrl", "backbones", "kernels", "envs", "prompts", "tests", "runs"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "out", "boxed"))
        shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
        for tests in dict.fromkeys(m.tests for m in chosen):
            if (broken := failing(tests, tree)) is not None:
                print(f"Without any mistake {broken} fails: mend that first.")
                return 2
        print("| mistake | noticed by | s |\n|---|---|---|")
        for mutation in chosen:
            began = time.perf_counter()
            noticed = first_failure(mutation, tree)
            survived += noticed is None
            print(f"| {mutation.mistake} | {noticed or 'SURVIVED'} | {time.perf_counter() - began:.0f} |", flush=True)
    print(f"\n{len(chosen) - survived} of {len(chosen)} mistakes noticed.")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
