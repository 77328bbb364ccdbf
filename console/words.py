"""How the console writes what the contract has: amounts, times, statuses, and what went wrong."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from chargeonce_client import CallFailed, Money
from console.html import Child, Html, tag
from contract.currencies import EXPONENTS

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_VERSION_OF_IDS = 8
_WITHOUT_REASON = {
    StatusCode.UNAVAILABLE: "The server does not answer.",
    StatusCode.DEADLINE_EXCEEDED: "The server did not answer in time.",
    StatusCode.UNIMPLEMENTED: "This server does not offer it: it is of an earlier version.",
    StatusCode.UNAUTHENTICATED: "The server does not know the caller.",
    StatusCode.PERMISSION_DENIED: "The caller may not do this.",
    StatusCode.RESOURCE_EXHAUSTED: "The server has too much to do. Try again.",
}


class Values(Protocol):
    """An enum of the contract."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return the names and numbers of its values."""


def word(kind: Values, number: int) -> str:
    """Write an enum's value in words, such as "in review"; a value of a later contract by its number."""
    names: Mapping[int, str] = {value: name for name, value in kind.items()}
    prefix = names[0].removesuffix("UNSPECIFIED")
    return "" if number == 0 else names.get(number, str(number)).removeprefix(prefix).lower().replace("_", " ")


def amount(minor_units: int, currency: str) -> str:
    """Write an amount, such as "1,234.50 EUR"."""
    exponent = EXPONENTS.get(currency)
    if exponent is None:
        return f"{minor_units:,} minor units of {currency}"
    digits = f"{abs(minor_units):0{exponent + 1}d}"
    whole = f"{int(digits[: len(digits) - exponent]):,}"
    sign = "\N{MINUS SIGN}" if minor_units < 0 else ""
    return f"{sign}{whole}{'.' if exponent else ''}{digits[len(digits) - exponent :]} {currency}"


def money(told: Money) -> str:
    """Write an amount; an empty one is empty."""
    return amount(told.minor_units, told.currency_code) if told.currency_code else ""


def is_set(told: Timestamp) -> bool:
    """Whether a time is set."""
    return bool(told.ByteSize())


def moment(told: Timestamp, *, exact: bool = False) -> Child:
    """Write a time in UTC, to the second or to the millisecond; one that is not set is nothing."""
    if not is_set(told):
        return None
    read = told.ToDatetime(UTC)
    shown = read.strftime("%Y-%m-%d %H:%M:%S") + (f".{read.microsecond // 1_000:03d}" if exact else "")
    return tag.time(shown, datetime=read.isoformat(), title=f"{shown} UTC")


def age(told: Timestamp, now: datetime | None = None) -> str:
    """Write for how long it has been since a time; one that is not set is empty."""
    return span((now or datetime.now(UTC)) - told.ToDatetime(UTC)) if is_set(told) else ""


def span(time: timedelta | Duration) -> str:
    """Write a length of time with its two largest units."""
    seconds = time.ToTimedelta().total_seconds() if isinstance(time, Duration) else time.total_seconds()
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds < 1:
        return f"{sign}{seconds * 1_000:.0f} ms"
    if seconds < 10:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{sign}{whole} s"
    if whole < _HOUR:
        return f"{sign}{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{sign}{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{sign}{whole // _DAY} d {whole % _DAY // _HOUR} h"


def timestamp(time: datetime) -> Timestamp:
    """Return a time as the contract has it."""
    made = Timestamp()
    made.FromDatetime(time)
    return made


def count(number: int, what: str) -> str:
    """Write a number of things, such as "1 charge"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def read_time(text: str) -> Timestamp | None:
    """Read a time that a form has, in UTC: a day, or a day and a time of day; empty for None. Raises ValueError."""
    if not text:
        return None
    read = datetime.fromisoformat(text)
    return timestamp(read if read.tzinfo else read.replace(tzinfo=UTC))


def is_id(name: str) -> bool:
    """Whether a charge's name is an id: ids are UUIDs of version 8, and keys seldom are."""
    try:
        read = uuid.UUID(name)
    except ValueError:
        return False
    return read.version == _VERSION_OF_IDS and str(read) == name.lower()


_NAMES = ("actor", "transaction_id")
_DETAILS = ("status", "proposal", "bank_said", "differs_in", "as_of_position", *_NAMES)


def trouble(failure: CallFailed) -> str:
    """Say why a call failed, in a sentence. Words of the service's table of errors only: no text of a library."""
    if not failure.reason:
        return _WITHOUT_REASON.get(failure.code, f"The call failed ({failure.code.name}).")
    text = f"{failure.text[:1].upper()}{failure.text[1:]}"
    fields = "; ".join(f"{field or 'the request'}: {what}" for field, what in failure.violations.items())
    details = ", ".join(
        f"{name.replace('_', ' ')}: {value if name in _NAMES else value.removeprefix('CHARGE_STATUS_').lower()}"
        for name, value in failure.metadata.items()
        if name in _DETAILS
    )
    return f"{text}{f' ({fields})' if fields else ''}{f' ({details})' if details else ''}."


def fields(rows: Iterable[tuple[str, Child]], **attributes: str) -> Html:
    """Return a list of names and values; what has no value is left out."""
    shown = [(name, value) for name, value in rows if value not in (None, "")]
    return tag.dl(
        [tag.div(tag.dt(name), tag.dd(value)) for name, value in shown], class_=attributes.get("class_", "fields")
    )
