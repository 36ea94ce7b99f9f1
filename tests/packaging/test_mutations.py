"""The list of mistakes follows the code: what `make mutations` would change is still there, once."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parents[1] / "mutations.py")
assert spec is not None
assert spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)


def test_every_mistake_can_still_be_made():
    assert mutations.check_fresh() == []
    assert len(mutations.mutations()) >= 20


def test_every_named_test_file_is_there():
    root = Path(__file__).parents[2]
    assert all((root / name).is_file() for m in mutations.mutations() for name in m.tests.split())
