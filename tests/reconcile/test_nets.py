"""One line a day: what is about midnight is dealt out so that sums are equal, if that is possible at all."""

from hypothesis import given
from hypothesis import strategies as st

from command_service.reconciling.nets import Day, Midnight, deal


def ours(days: list[Day], midnights: list[Midnight]) -> list[int]:
    """The journal's sum of each day, as dealt."""
    dealt = deal(days, midnights)
    return [day.certain + sum(midnights[n].amounts) - dealt[n] + dealt[n + 1] for n, day in enumerate(days)]


def test_sums_that_are_equal_by_our_clock_stay_as_they_are() -> None:
    days = [Day(110, 100), Day(95, 100)]
    midnights = [Midnight([], 0), Midnight([10, -5], 10), Midnight([], 0)]
    assert deal(days, midnights) == [0, 10, 0]
    assert ours(days, midnights) == [110, 95]


def test_a_movement_that_the_bank_has_on_the_other_day_is_dealt_there() -> None:
    days = [Day(100, 100), Day(110, 100)]
    assert ours(days, [Midnight([], 0), Midnight([10], 10), Midnight([], 0)]) == [100, 110]


def test_what_is_missing_stays_missing() -> None:
    days = [Day(93, 100), Day(100, 100)]
    unequal = [day.net != sum_of_it for day, sum_of_it in zip(days, ours(days, [Midnight([], 0)] * 3), strict=True)]
    assert unequal == [True, False]


@given(st.data())
def test_whatever_the_bank_chose_is_found(data: st.DataObject) -> None:
    """The bank puts each movement about a midnight on either day: all days are equal again."""
    amounts = st.lists(st.integers(-50, 50), max_size=6)
    certain = data.draw(st.lists(st.integers(-1000, 1000), min_size=1, max_size=5))
    about = [data.draw(amounts) for _ in range(len(certain) + 1)]
    before = [sum(each for each in group if data.draw(st.booleans())) for group in about]
    by_our_clock = [sum(each for each in group if data.draw(st.booleans())) for group in about]
    days = [Day(sure + sum(about[n]) - before[n] + before[n + 1], sure) for n, sure in enumerate(certain)]
    midnights = [Midnight(group, own) for group, own in zip(about, by_our_clock, strict=True)]
    assert ours(days, midnights) == [day.net for day in days]
