"""A call as the bank's log shows it, and the bank's time of day."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway_mock.model import Operation


@dataclass
class Call:
    """A call as the log shows it. It comes in with fields that are filled in later."""

    n: int
    method: str
    path: str
    reference: str | None
    token: str | None
    kind: Operation | None
    at: str
    fault: str | None = None
    status: int | None = None


def now_ms() -> int:
    """Return the time of day in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def rfc3339(at_ms: float) -> str:
    """Write a time as the bank's answers say it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
