"""Which results are kept, and what the gauges say of them."""

from pathlib import Path

from charging.v1.operator_pb2 import ReconciledDay, Reconciliation
from chassis.instruments import By
from command_service.reconciling.kept import figures, keep, kept

HOUR = 3_600_000_000
DAY = 24 * HOUR


def result(day: int, difference: int = 0, *, undecided: int = 0, days: int = 1) -> Reconciliation:
    """The result of a run over a day, or several."""
    made = Reconciliation(
        bank="acme",
        differences=int(difference != 0),
        is_balanced=not difference,
        undecided=undecided,
        days=[ReconciledDay(day=f"day {day}", currency_code="EUR", difference_minor_units=difference)],
    )
    getattr(made, "from").FromMicroseconds(day * DAY)
    made.to.FromMicroseconds((day + days) * DAY)
    made.done_at.FromMicroseconds((day + 1) * DAY)
    return made


def gauges(folder: Path) -> tuple[float, ...]:
    """The difference and the findings."""
    found = figures(kept(folder), [], 9 * DAY)
    told = [found[f"reconciliation_{name}"] for name in ("difference_minor_units", "findings")]
    return tuple(sum(each.figures.values()) for each in told if isinstance(each, By))


def test_an_undecided_run_clears_no_difference(tmp_path: Path) -> None:
    """The neighbouring day's file was left out this time: nobody knows that it is mended."""
    keep(tmp_path, result(1, -1250))
    keep(tmp_path, result(1, undecided=1))
    assert gauges(tmp_path) == (1250, 2)
    keep(tmp_path, result(1, -1250, undecided=1))
    assert gauges(tmp_path) == (1250, 2)
    keep(tmp_path, result(2))
    assert gauges(tmp_path) == (1250, 2)
    keep(tmp_path, result(0, days=3))
    assert gauges(tmp_path) == (0, 0)


def test_what_is_undecided_is_told_until_it_is_decided(tmp_path: Path) -> None:
    keep(tmp_path, result(1, undecided=2))
    keep(tmp_path, result(2))
    assert gauges(tmp_path) == (0, 2)
    keep(tmp_path, result(1))
    assert gauges(tmp_path) == (0, 0)


def test_differences_of_two_days_do_not_cancel_each_other(tmp_path: Path) -> None:
    keep(tmp_path, result(1, 1250))
    keep(tmp_path, result(2, -1250))
    assert gauges(tmp_path) == (2500, 2)
