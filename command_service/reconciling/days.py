"""Days in the time zone of a statement. A day is counted from 1970, as a whole number."""

from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

_FIRST: Final = date(1970, 1, 1)
_SECOND: Final = 1_000_000


def zone_named(said: object) -> tzinfo:
    """Return the time zone of one of IANA's names. Raises ValueError. UTC needs no data of the system's."""
    if said == "UTC":
        return UTC
    try:
        if isinstance(said, str):
            return ZoneInfo(said)
    except (OSError, ValueError, KeyError):  # a KeyError: there is none of that name
        pass
    raise ValueError("must be a name of IANA's, such as UTC or Europe/Berlin")


class Calendar:
    """Tells the day of a moment in a time zone. What a day is was computed once: a million lines fall into a few."""

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone
        self._first = 0
        self._begins: list[int] = [0, 0]

    def day_of(self, at: int) -> int:
        """Return the day of a moment in microseconds since 1970."""
        if not self._begins[0] <= at < self._begins[-1]:
            self._compute(at)
        return self._first + bisect_right(self._begins, at) - 1

    def begin_of(self, day: int) -> int:
        """Return the first moment of a day."""
        midnight = datetime.combine(_FIRST + timedelta(days=day), datetime.min.time(), self.zone)
        return round(midnight.astimezone(UTC).timestamp()) * _SECOND

    def _compute(self, at: int) -> None:
        day = (datetime.fromtimestamp(at / _SECOND, self.zone).date() - _FIRST).days
        self._first = day - 40
        self._begins = [self.begin_of(each) for each in range(day - 40, day + 41)]


def written(day: int) -> str:
    """Write a day, as 2026-11-30."""
    return (_FIRST + timedelta(days=day)).isoformat()
