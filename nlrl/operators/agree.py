"""What many decisions agree on, where a student cannot tell their situations apart.

Look-aheads are drawn, so I decides differently in the same place at different times; and whoever looked ahead may have
known more than the plain question says (`Asker.policy_items`). A student of all these replies learns one of them, not
their majority: it says the worth before the move, and the worth it happens to say brings its move along. So what is
taught may be the choices of the majority alone: self-consistency (Wang et al., arXiv 2203.11171), over situations
instead of samples. Not in the paper of the method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nlrl.types import ImprovedPolicy, Situation, truncate_history


def agreed(
    situations_S: Sequence[Situation],
    choices_S: Sequence[ImprovedPolicy | None],
    items: int | None = None,
    *,
    once: bool = False,
) -> list[ImprovedPolicy | None]:
    """The choices that go with the most frequent move among like situations; None in place of the others.

    Args:
        situations_S: where the choices were made.
        choices_S: one a situation, None where there was none.
        items: observations and moves by which situations are told apart, from the end of their histories; None for all.
        once: keep one choice of each kind of situation, the last.

    Of moves that are equally frequent, the one that was chosen last counts: later policies are better informed.

    Raises:
        ValueError: there is not one choice (or None) a situation.
    """
    places_S = [
        (one.player, one.history if items is None else truncate_history(one.history, items)) for one in situations_S
    ]
    votes: dict[tuple, Counter[str]] = {}
    last: dict[tuple, dict[str, int]] = {}
    for s, (place, choice) in enumerate(zip(places_S, choices_S, strict=True)):
        if choice is not None:
            votes.setdefault(place, Counter())[choice.action] += 1
            last.setdefault(place, {})[choice.action] = s
    kept: set[tuple[tuple, str]] = set()
    for place, counted in votes.items():
        most = max(counted.values())
        winner = max((action for action in counted if counted[action] == most), key=last[place].__getitem__)
        kept.add((place, winner))
    return [
        choice
        if choice is not None and (place, choice.action) in kept and (not once or s == last[place][choice.action])
        else None
        for s, (place, choice) in enumerate(zip(places_S, choices_S, strict=True))
    ]
