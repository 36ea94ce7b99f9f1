"""A hundred thousand plies of each game beside somebody else's: the full form of `tests/envs/test_verify.py`."""

import pytest

from nlrl_envs.verify import COMPARISONS

PLIES = 100_000


@pytest.mark.torture
@pytest.mark.parametrize("name", COMPARISONS)
def test_no_difference_in_a_hundred_thousand_plies(name, row):
    if "frozen_lake" not in name:
        pytest.importorskip("pyspiel", reason="board games are held against OpenSpiel")
    found = COMPARISONS[name](PLIES)
    row(f"{name}: {found.plies:,} plies, outcomes {found.outcomes}: no difference")
    assert found.plies >= PLIES
