"""Statements of one line a day: each is the sum of a day's movements, and is compared with the journal's. Pure.

A movement that the bank executed about midnight may be in the sum of either day. So of each midnight there are a few movements
whose day is not certain. They are dealt out to the days so that as many days as possible are equal, and then so that as few
midnights as possible are otherwise than by our own clock: what is taken from one day must be in the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

# More sums than these are not told apart at a midnight: then its movements are on the day that our clock has them.
MOST_SUMS = 10_000
_UNEQUAL = 1_000_000


class Day(NamedTuple):
    """A day, in minor units: the statement's sum, and that of the journal's movements which are certainly of this day."""

    net: int
    certain: int


class Midnight(NamedTuple):
    """The movements that may be before it or after it, in minor units, and the sum of those that our clock has before it."""

    amounts: Sequence[int]
    before: int


def deal(days: Sequence[Day], midnights: Sequence[Midnight]) -> Sequence[int]:
    """Deal out what is uncertain; return for each midnight the sum of its movements that are before it.

    `midnights` has one more than `days`: the first is the begin of the first day.
    """
    # For each sum that may be before a midnight: the cost until there, and the sum before the midnight before it.
    steps: list[dict[int, tuple[int, int]]] = [
        {before: (int(before != midnights[0].before), 0) for before in _sums(midnights[0])}
    ]
    for day, begin, end in zip(days, midnights, midnights[1:], strict=False):
        known, total = steps[-1], sum(begin.amounts)
        cheapest = min(known, key=lambda before: known[before][0])
        step: dict[int, tuple[int, int]] = {}
        for before in _sums(end):
            equal = day.certain + total + before - day.net
            cost, origin = known[cheapest][0] + _UNEQUAL, cheapest
            if equal in known and known[equal][0] < cost:
                cost, origin = known[equal][0], equal
            step[before] = cost + (before != end.before), origin
        steps.append(step)
    before = min(steps[-1], key=lambda each: steps[-1][each][0])
    dealt = [before]
    for step in reversed(steps[1:]):
        before = step[before][1]
        dealt.append(before)
    return dealt[::-1]


def _sums(midnight: Midnight) -> set[int]:
    sums = {0}
    for amount in midnight.amounts:
        sums |= {each + amount for each in sums}
        if len(sums) > MOST_SUMS:
            return {midnight.before}
    return sums
