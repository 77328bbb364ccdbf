"""Amounts as people and banks write them, to minor units and back. Exact: no float anywhere."""

import re
from functools import lru_cache

from contract.currencies import EXPONENTS

_SPACES = " \u00a0\u202f\u2009"


def minor_units_in(text: str, exponent: int, *, decimal: str, thousands: str) -> int:
    """Read an amount in a currency with so many decimals. Raises ValueError.

    A sign may stand before or after it, or be told by brackets, or by DR (negative) and CR: "-1.50", "1.50-", "(1.50)",
    "1.50 DR". There is one at most. More decimals than the currency has must be zeros.
    """
    bare = text.strip(_SPACES).replace("\u2212", "-")
    sign = 1
    if bare[-2:].upper() in ("DR", "CR"):
        sign, bare = (-1 if bare[-2:].upper() == "DR" else 1), bare[:-2].rstrip(_SPACES)
    elif bare.startswith("(") and bare.endswith(")"):
        sign, bare = -1, bare[1:-1].strip(_SPACES)
    elif bare[:1] in ("-", "+"):
        sign, bare = (-1 if bare[0] == "-" else 1), bare[1:].lstrip(_SPACES)
    elif bare[-1:] in ("-", "+"):
        sign, bare = (-1 if bare[-1] == "-" else 1), bare[:-1].rstrip(_SPACES)
    if thousands == " ":
        for space in _SPACES[1:]:
            bare = bare.replace(space, " ")
    found = _form(decimal, thousands).fullmatch(bare)
    if found is None:
        raise ValueError("no amount")
    whole, fraction = found["whole"].replace(thousands, "") if thousands else found["whole"], found["fraction"] or ""
    if fraction[exponent:].strip("0"):
        raise ValueError("more decimals than the currency has")
    return sign * int(whole + fraction[:exponent].ljust(exponent, "0"))


@lru_cache(16)
def _form(decimal: str, thousands: str) -> "re.Pattern[str]":
    mark = re.escape(thousands)
    # The last group has three digits: 12,50 is no amount where a comma parts groups. Others may have two, as in India.
    grouped = rf"\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}|" if thousands else ""
    return re.compile(rf"(?P<whole>{grouped}\d{{1,18}})(?:{re.escape(decimal)}(?P<fraction>\d{{0,18}}))?", re.ASCII)


def amount_out(minor_units: int, currency_code: str) -> str:
    """Write an amount for people: 1250 EUR is 12.50, -5 JPY is -5."""
    exponent = EXPONENTS.get(currency_code, 2)
    digits = str(abs(minor_units)).rjust(exponent + 1, "0")
    sign = "-" if minor_units < 0 else ""
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}" if exponent else f"{sign}{digits}"
