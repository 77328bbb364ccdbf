"""Reads requests strictly: what is not exactly as the API says is refused, by the name of its field."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple, Never
from urllib.parse import parse_qsl

from gateway_mock.model import CAPTURE, CHARGE, FOLLOWING, Operation, Transaction

MAX_AMOUNT = 2**63 - 1  # What SQLite stores.
MAX_PAGE = 1_000

_REFERENCE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}")
_TRANSACTION_ID = re.compile(r"[\x20-\x7e]{1,255}")  # With room for ids that a fault made odd.

# The bank sends browsers there, in a header and in a page.
_RETURN_URL = re.compile(r"https?://[!#-;=?-~]{1,2040}")

_KINDS: Mapping[str, Operation] = {kind.value: kind for kind in Operation}
_COMPARED = frozenset({"amount", "currency"})
_OF_ALL = _COMPARED | {"reference", "kind"}
_OF_AN_OPENING = _OF_ALL | {"card", "off_session", "return_url"}
_OF_A_FOLLOWING = _OF_ALL | {"on"}
_OF_A_CAPTURE = _OF_A_FOLLOWING | {"final"}
_OF_SOME = ("card", "on", "final", "off_session", "return_url")  # In an order of another kind they are refused by name.


class BadField(Exception):
    """A field of a request is missing, malformed or unknown. The argument is its name, never its value."""


def order(body: bytes) -> Transaction:
    """Read a token step's order, as a transaction that has no token and no time yet, and no card if it follows another."""
    said = json_object(body)
    kind = _KINDS.get(str(said.get("kind", CHARGE)))
    if kind is None:
        raise BadField("kind")
    allowed = _OF_A_CAPTURE if kind is CAPTURE else _OF_A_FOLLOWING if kind in FOLLOWING else _OF_AN_OPENING
    for other in _OF_SOME:
        if other in said and other not in allowed:
            raise BadField(other)
    reference = _text(said, "reference", _REFERENCE)
    on = _text(said, "on", _TRANSACTION_ID) if kind in FOLLOWING else None
    card = said.get("card") if on is None else ""
    if not isinstance(card, str):
        raise BadField("card")
    amount, currency = _amount_and_currency(said)
    final = _yes_or_no(said, "final")
    _yes_or_no(said, "off_session")  # This bank asks all the same.
    return_url = _text(said, "return_url", _RETURN_URL) if "return_url" in said else ""
    _nothing_but(said, allowed)
    return Transaction("", reference, card, amount, currency, 0, kind=kind, on=on, final=final, return_url=return_url)


def key(said: str | None) -> str:
    """Read the key that an order carries."""
    if said is None or not _KEY.fullmatch(said):
        raise BadField("Idempotency-Key")
    return said


def compared(body: bytes) -> tuple[int, str]:
    """Read the amount and the currency that an execute step may name."""
    said = json_object(body)
    amount, currency = _amount_and_currency(said)
    _nothing_but(said, _COMPARED)
    return amount, currency


def json_object(body: bytes) -> dict[str, object]:
    """Read a JSON object: no key twice, no NaN, no depth that Python cannot follow."""
    try:
        value = json.loads(body, object_pairs_hook=_each_key_once, parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise BadField("body") from None
    if not isinstance(value, dict):
        raise BadField("body")
    return value


def only(query: str, key: str) -> str:
    """Read the one parameter of a query."""
    match parse_qsl(query, keep_blank_values=True, max_num_fields=1) if query.count("&") == 0 else []:
        case [(name, value)] if name == key:
            return value
        case _:
            raise BadField(key)


def number_after(query: str) -> int:
    """Read `after`, 0 if there is no query."""
    return number("after", only(query, "after") if query else "0")


def number(name: str, text: str) -> int:
    """Read a whole number of the caller's."""
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise BadField(name)
    return int(text)


class Part(NamedTuple):
    """A part of a statement: a span of milliseconds since 1970, after the movement of a number, and how many."""

    begin_ms: int
    end_ms: int
    after: int
    limit: int


def part(query: str) -> Part:
    """Read which part of a statement is wanted: each parameter once."""
    said = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=4) if query.count("&") == 3 else [])
    if said.keys() != {"from", "to", "after", "limit"}:
        raise BadField("query")
    return Part(
        _milliseconds(said, "from"),
        _milliseconds(said, "to"),
        number_after(f"after={said['after']}"),
        _limit(said["limit"]),
    )


def _milliseconds(said: Mapping[str, str], key: str) -> int:
    if not _TIME.fullmatch(said[key]):
        raise BadField(key)
    try:
        return round(datetime.fromisoformat(said[key]).timestamp() * 1000)
    except ValueError:
        raise BadField(key) from None


def _limit(said: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", said, re.ASCII) or not 1 <= int(said) <= MAX_PAGE:
        raise BadField("limit")
    return int(said)


def _amount_and_currency(said: Mapping[str, object]) -> tuple[int, str]:
    amount = said.get("amount")
    if not (type(amount) is int and 1 <= amount <= MAX_AMOUNT):  # `type is`: True is an int too.
        raise BadField("amount")
    return amount, _text(said, "currency", _CURRENCY)


def _yes_or_no(said: Mapping[str, object], key: str) -> bool:
    value = said.get(key, False)
    if not isinstance(value, bool):
        raise BadField(key)
    return value


def _text(said: Mapping[str, object], key: str, pattern: re.Pattern[str]) -> str:
    value = said.get(key)
    if not (isinstance(value, str) and pattern.fullmatch(value)):
        raise BadField(key)
    return value


def _nothing_but(said: Mapping[str, object], allowed: frozenset[str]) -> None:
    if said.keys() - allowed:
        raise BadField("body")


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _not_json(_: str) -> Never:
    raise ValueError("no JSON number")
