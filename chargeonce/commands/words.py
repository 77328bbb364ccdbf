"""How people write and read what the contract has: amounts, times, names of charges, statuses."""

import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import click
from google.protobuf.timestamp_pb2 import Timestamp

from chargeonce_client import Money
from contract.currencies import EXPONENTS

_VERSION_OF_IDS = 8
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Values(Protocol):
    """An enum of the contract."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return the names and numbers of its values."""


def amount_of(text: str, currency: str) -> Money:
    """Read an amount as people write it, with all decimals of its currency: 12.50 EUR, 1250 JPY, 1.250 KWD.

    1250 is no amount of EUR: whoever means 12.50 euros by it must not charge a hundred times as much. Raises
    click.BadParameter.
    """
    exponent = EXPONENTS.get(currency)
    if exponent is None:
        raise click.BadParameter(f"{currency} is no currency in use: write its ISO 4217 code, such as EUR")
    whole, _, decimals = text.partition(".")
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]+)?", text) or len(decimals) != exponent:
        wanted = f"{exponent} decimals behind a point" if exponent else "no decimals"
        raise click.BadParameter(
            f"{text} {currency}: {currency} is written with {wanted}, such as {_written(1250, exponent)}"
        )
    return Money(minor_units=int(whole + decimals), currency_code=currency)


def amount(minor_units: int, currency: str) -> str:
    """Write an amount."""
    exponent = EXPONENTS.get(currency)
    return (
        f"{minor_units} minor units of {currency}"
        if exponent is None
        else f"{_written(minor_units, exponent)} {currency}"
    )


def money(told: Money) -> str:
    """Write an amount; an empty one is empty."""
    return amount(told.minor_units, told.currency_code) if told.currency_code else ""


def _written(minor_units: int, exponent: int) -> str:
    digits = f"{abs(minor_units):0{exponent + 1}d}"
    sign = "-" if minor_units < 0 else ""
    return sign + (f"{digits[:-exponent]}.{digits[-exponent:]}" if exponent else digits)


def time(told: Timestamp) -> str:
    """Write a time in UTC, to the second; one that is not set is empty."""
    return told.ToDatetime(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if told.ByteSize() else ""


def word(kind: Values, number: int) -> str:
    """Return an enum's value without its prefix, such as CHARGED; the number of a value of a later contract."""
    names: Mapping[int, str] = {value: name for name, value in kind.items()}
    if number == 0:
        return ""
    prefix = names[0].removesuffix("UNSPECIFIED")
    return names.get(number, str(number)).removeprefix(prefix)


def option(name: str) -> str:
    """Write an enum's value as an option's, such as no-answer."""
    return name.lower().replace("_", "-")


class Time(click.ParamType[datetime]):
    """A time in ISO 8601: in UTC, unless it names another offset."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value} is no time such as 2027-01-31, 2027-01-31T12:00 or 2027-01-31T12:00:00+01:00", param, ctx
            )
        return read if read.tzinfo else read.replace(tzinfo=UTC)


class Duration(click.ParamType[timedelta]):
    """A time span: 90s, 10m, 2h, 1d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        if isinstance(value, timedelta):
            return value
        read = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
        if read is None:
            self.fail(f"{value} is no time span such as 90s, 10m, 2h or 1d", param, ctx)
        return timedelta(seconds=int(read[1]) * _SECONDS[read[2]])


def since_now(span: timedelta) -> datetime:
    """Return the time that is a span after now; of a negative one, before."""
    return datetime.now(UTC) + span


def filled(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """Refuse an empty text, most likely that of a shell's variable without a value."""
    if text == "":
        raise click.BadParameter("it is empty", ctx, param)
    return text


def is_id(name: str) -> bool:
    """Whether a charge's name is an id: ids are UUIDs of version 8, and keys seldom are."""
    try:
        read = uuid.UUID(name)
    except ValueError:
        return False
    return read.version == _VERSION_OF_IDS and str(read) == name.lower()
