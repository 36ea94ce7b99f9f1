"""The last K value sets, merged for training.

Source: arXiv 2411.14251, section 4.3 and appendix: value models are trained on the merged sets of the last K_buffer (3)
iterations. The paper's text samples equally from them, the authors' code concatenates and shuffles; both are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

Item = TypeVar("Item")


def merge(
    sets_K: Sequence[Sequence[Item]],
    last: int,
    rng: np.random.Generator,
    *,
    how: Literal["concatenate", "equal"] = "concatenate",
    each: int | None = None,
) -> list[Item]:
    """The last `last` sets (oldest first in `sets_K`), in a random order.

    "concatenate" takes everything, so that a larger set weighs more; "equal" draws without replacement as many items
    from each set: `each`, or as many as the smallest set has, and all of a set that has fewer than `each`.

    Raises:
        ValueError: `last` or `each` is below 1.
    """
    if last < 1 or (each is not None and each < 1):
        raise ValueError("A buffer keeps at least one set and takes at least one item of each.")
    kept = sets_K[-last:]
    if how == "equal" and kept:
        size = min(len(one) for one in kept) if each is None else each
        kept = [[one[i] for i in rng.permutation(len(one))[:size]] for one in kept]
    items = [item for one in kept for item in one]
    return [items[i] for i in rng.permutation(len(items))]
