"""Times as banks write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import TypeGuard

# RFC 3339 and nothing else: Python takes other forms too, and times without a zone.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_BEGIN_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC)
# What is later cannot be stored. A time of the year 9999 may be, in a zone of the west.
_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)
_MOST_SECONDS = int(datetime(9900, 1, 1, tzinfo=UTC).timestamp())
_MICROSECOND = timedelta(microseconds=1)


def microseconds(said: object) -> int | None:
    """Read a time after 1970 that can be stored: microseconds since then, 0 if none is said. None: it is malformed."""
    if said is None:
        return 0
    try:
        at = datetime.fromisoformat(said) if isinstance(said, str) and _TIME.fullmatch(said) else _BEGIN_OF_TIME
    except ValueError:  # Of a 13th month.
        return None
    return (at - _BEGIN_OF_TIME) // _MICROSECOND if _BEGIN_OF_TIME < at < _END_OF_TIME else None


def is_time(seconds: object) -> TypeGuard[int]:
    """Whether a number is a time after 1970 in seconds since then, to which years can be added before it cannot be stored."""
    return type(seconds) is int and 0 < seconds < _MOST_SECONDS
