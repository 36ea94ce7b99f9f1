"""Without a GPU, Triton kernels run in Triton's interpreter; the switch must be set before triton is imported.

The tests of `tests/torture` have a short form, which always runs, and a full one, marked `torture`, which runs with
`--torture` (`make torture`). What they measure is printed as a table at the end. Tests marked `full` take minutes and
run with `--full` alone (`make served`), those marked `real` with `--real` (`make real`).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

HAS_GPU = shutil.which("nvidia-smi") is not None or any(Path("/dev").glob("nvidia[0-9]*"))
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


ROWS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", action="store_true", help="run the full figures of tests/torture, not the short ones")
    parser.addoption("--real", action="store_true", help="run the tests marked real, on a real pretrained model, too")
    parser.addoption("--full", action="store_true", help="run the tests marked full, which take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    torture, asked_for = config.getoption("--torture"), [m for m in ("full", "real") if config.getoption(f"--{m}")]
    left_out = [
        item for item in items
        if (item.name.endswith("[short]") if torture else item.get_closest_marker("torture") is not None)
        or any(item.get_closest_marker(marker) for marker in ("full", "real") if marker not in asked_for)
    ]  # fmt: skip
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not HAS_GPU:
        pytest.skip("needs a CUDA device")


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the table of what was measured."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda line: rows.append(f"| {request.node.name} | {line} |")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    asked_for = any(config.getoption(f"--{name}") for name in ("torture", "real", "full"))
    if asked_for and (rows := config.stash.get(ROWS, [])):
        terminalreporter.write_sep("-", "what was measured")
        terminalreporter.write_line("\n".join(["| test | result |", "|---|---|", *rows]))
