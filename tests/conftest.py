"""Without a GPU, Triton kernels run in Triton's interpreter; the switch must be set before triton is imported.

The tests of `tests/torture` have a short form, which always runs, and a full one, marked `torture`, which runs with
`--torture` (`make torture`). What they measure is printed as a table at the end. Tests marked `full` take minutes and
run with `--full` alone (`make served`).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

if shutil.which("nvidia-smi") is None and not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


ROWS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="run the full figures of tests/torture, not the short ones")
    parser.addoption("--full", action="store_true", help="run the tests marked full, which take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    torture, full = config.getoption("--torture"), config.getoption("--full")
    left_out = [
        item for item in items
        if (item.name.endswith("[short]") if torture else item.get_closest_marker("torture") is not None)
        or (not full and item.get_closest_marker("full") is not None)
    ]  # fmt: skip
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the table of what was measured."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda line: rows.append(f"| {request.node.name} | {line} |")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--torture") and (rows := config.stash.get(ROWS, [])):
        terminalreporter.write_sep("-", "what was measured")
        terminalreporter.write_line("\n".join(["| test | result |", "|---|---|", *rows]))
