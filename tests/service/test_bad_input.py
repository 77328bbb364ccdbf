"""Bad input, by the numbers of the list of faults: it is refused by a fixed text, and it gets nowhere.

Not into the journal, not to the bank, not into a log, and not back to the client. The server is a real process, so that
its log is its whole output, the lines of libraries included. Cases 31 to 34 and 45 wait for identities; 44 belongs to the
query server.
"""

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, DeclineReason, Money
from command_service import screening
from rig.errors import Told, refused, told
from rig.processes import Town
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import (
    CHARGED,
    DECLINED,
    FRESH,
    REPLAYED,
    a_request,
    assert_books_agree,
    events,
    head,
    id_of,
    new_key,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHARGE = "/charging.v1.CommandService/Charge"
PAN = "4111111111111111"
REFUSED = "the request is invalid, and nothing was stored: see the field violations"
# An error may contain these names and texts of fields, and nothing else.
TEXT_PLACES = (
    "idempotency_key",
    "user_id",
    "card.token",
    "card.brand",
    "card.last4",
    "amount.currency_code",
    "description",
    "metadata.key",
    "metadata.value",
)
FIELDS = frozenset(TEXT_PLACES) | {"amount", "amount.minor_units", "metadata", ""}
TOO_MANY_BYTES = "must have at most 16384 bytes, uncompressed"
FIELD_TEXTS = frozenset(
    value for name, value in vars(screening).items() if name.isupper() and isinstance(value, str)
) | {"has fields that this server does not know", TOO_MANY_BYTES}


def unserialised(channel: grpc.aio.Channel, method: str) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, ChargeResponse]":
    """A call that sends bytes unchanged."""
    return channel.unary_unary(method, request_serializer=bytes, response_deserializer=ChargeResponse.FromString)


@dataclass
class Door:
    """A server, with the journal, bank and log behind it."""

    town: Town
    referee: Referee
    channel: grpc.aio.Channel

    calls_seen: int = 0
    log_seen: int = 0

    def __post_init__(self) -> None:
        self.raw = unserialised(self.channel, CHARGE)

    async def knock(self, request: bytes | ChargeRequest, **more: Any) -> ChargeResponse:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        answer: ChargeResponse = await self.raw(body, timeout=PATIENT_SECONDS, **more)
        await self.new_calls()  # skip the calls of this charge, which is at rest
        if answer.outcome_source == FRESH:
            await self.only_logged(answer)
        return answer

    async def only_logged(self, answer: ChargeResponse) -> None:
        """Assert that the log has grown by this charge's line only: what was turned away before it has left none.

        The server writes its log a little after its answers, and in order.
        """

        def lines() -> list[bytes]:
            return self.town.command.log.read_bytes()[self.log_seen :].splitlines(keepends=True)

        await until(lambda: lines() and lines()[-1].endswith(b"\n"))
        (line,) = lines()
        assert {**json.loads(line), "timestamp": "", "bank_calls": 0, "outcome": ""} == {
            "event": "charge at rest",
            "level": "info",
            "timestamp": "",
            "charge_id": answer.charge_id,
            "operation": "charge",
            "outcome": "",
            "position": answer.position,
            "bank_calls": 0,
            "recovered": False,
        }
        self.log_seen += len(line)

    async def new_calls(self) -> int:
        """Count the bank's calls since the last count."""
        calls = await self.referee.calls(self.calls_seen)
        self.calls_seen += len(calls)
        return len(calls)

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Assert that nothing gets in: journal and bank do not change. The next charge's `only_logged` looks at the log."""
        before = head(self.town.journal)
        yield
        assert head(self.town.journal) == before
        assert await self.new_calls() == 0

    async def turns_away(self, request: bytes | ChargeRequest) -> Told:
        """Assert that the server refuses a request by fixed texts, and that nothing gets in."""
        async with self.closed():
            answer = await refused(self.knock(request))
        assert_fixed(answer)
        return answer


def assert_fixed(answer: Told) -> None:
    assert (answer.code, answer.reason, answer.advice) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        "DO_NOT_RETRY",
    )
    assert answer.text == REFUSED
    assert answer.fields <= FIELDS
    assert answer.field_texts <= FIELD_TEXTS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with Town(tmp_path_factory.mktemp("bad-input")) as town, Referee(town.bank_url) as referee:
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            opened = Door(town, referee, channel, log_seen=town.command.log.stat().st_size)
            yield opened
            assert (await opened.knock(a_request())).status == CHARGED  # it looks at the log after the last test
        assert await town.command.stop() == 0
        await assert_books_agree(town.journal, referee)


@pytest_asyncio.fixture(loop_scope="module")
async def door(_door: Door) -> AsyncIterator[Door]:
    """After each test an honest client is still served."""
    yield _door
    assert (await _door.knock(a_request())).status == CHARGED


# ---------------------------------------------------------------- requests that are refused
def but(**changed: Any) -> ChargeRequest:
    """A valid request except for these fields; None omits a field."""
    valid = {
        "idempotency_key": new_key(),
        "user_id": "alice",
        "card": Card(token="tok_visa"),
        "amount": Money(minor_units=1250, currency_code="EUR"),
    }
    return ChargeRequest(**{name: value for name, value in {**valid, **changed}.items() if value is not None})


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def plus(wire: bytes) -> bytes:
    """A valid request, followed by more bytes."""
    return but().SerializeToString() + wire


def in_place(place: str, text: str) -> ChargeRequest:
    """A request with a text in one of its text fields."""
    match place:
        case "idempotency_key" | "user_id" | "description":
            return but(**{place: text})
        case "card.token":
            return but(card=Card(token=text))
        case "card.brand" | "card.last4":
            return but(card=Card(token="tok_visa", **{place.removeprefix("card."): text}))
        case "amount.currency_code":
            return but(amount=Money(minor_units=1250, currency_code=text))
        case "metadata.key":
            return but(metadata={"note": "", text: "1"})
        case "metadata.value":
            return but(metadata={"note": text})
    raise AssertionError(place)


NAMES = ("idempotency_key", "user_id", "card.token", "metadata.key")
PEOPLES_TEXTS = ("card.brand", "description", "metadata.value")
CARD_NUMBERS = {
    "visa": PAN,
    "visa of 13": "4222 222 222 222",
    "visa of 19": "4000000000000000006",
    "mastercard": "5555555555554444",
    "amex": "378282246310005",
    "diners": "30569309025904",
    "discover": "6011111111111117",
    "jcb": "3530111333300000",
}
WRITTEN = {
    "spaces": "4111 1111 1111 1111",
    "dashes": "4111-1111-1111-1111",
    "dots": "4111.1111.1111.1111",
    "mixed": "4111 - 1111/1111_1111",
    "full width": "\uff14" + "\uff11" * 15,
    "arabic": "\u0664" + "\u0661" * 15,
    "zero width": "4111\u200b1111\u200b1111\u200b1111",
    "one by one": "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "run on into its expiry": f"{PAN}1227",
    "run on into its expiry and code": f"{PAN}1227123",
    "after EMV tag 5A": f"5A08{PAN}5F24",
    "after EMV tag 57": f"5711{PAN}D25121010000012345F",
    "URL": "4111%201111%201111%201111",
    "URL, plus": "4111+1111+1111+1111",
    "HTML": "4111&nbsp;1111&nbsp;1111&nbsp;1111",
    "line breaks written out": r"4111\n1111\n1111\n1111",
    "tabs written out": r"4111\t1111\t1111\t1111",
    "in words": f"my card is {PAN}, thanks",
    "track 1": f"%B{PAN}^DOE/JANE^2912101000000000000?",
    "track 2": f";{PAN}=29121010000000000000?",
}
INVISIBLE = {
    "NUL": "\0",
    "CR LF": "\r\n",
    "ESC": "\x1b[31m",
    "bidi override": "\u202e",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "line separator": "\u2028",
}
CODE = {
    "path": "../../etc/passwd",
    "percent": "%00%0a",
    "sql": "'; DROP TABLE record; --",
    "jndi": "${jndi:ldap://x.example/a}",
    "template": "{{7*7}}",
    "markup": "<script>alert(1)</script>",
}


def bad_input() -> Iterator[tuple[str, bytes | ChargeRequest, set[str]]]:
    """Each case: its number and name, the request, and the fields that its refusal names."""

    def amount(minor_units: int, currency_code: str = "EUR") -> ChargeRequest:
        return but(amount=Money(minor_units=minor_units, currency_code=currency_code))

    units, currency = {"amount.minor_units"}, {"amount.currency_code"}
    yield "1 amount 0", amount(0), units
    yield "2 amount negative", amount(-1250), units
    yield "2 amount most negative", amount(-(2**63)), units
    yield "3 amount above the most", amount(100_000_000), units
    yield "4 amount 2^63-1", amount(2**63 - 1), units
    yield "4 amount of 70 bits", plus(field(4, b"\x08" + b"\xff" * 9 + b"\x7f")), units
    yield "4 amount of 11 bytes", plus(field(4, b"\x08" + b"\xff" * 10 + b"\x01")), set()
    yield "5 amount unset", but(amount=None), {"amount"}
    yield "5 amount empty", but(amount=Money()), {"amount"}
    yield "7 currency empty", amount(1250, ""), currency
    for code in ("usd", "Usd", " USD", "USD ", "US", "USDX"):
        yield f"8 currency {code!r}", amount(1250, code), currency
    for code in ("XXX", "XTS", "ZZZ", "XAU", "CHW"):
        yield f"9 currency {code}", amount(1250, code), currency
    yield "10 currency in Cyrillic", amount(1250, "U\u0405D"), currency
    yield "10 currency in full width", amount(1250, "\uff35\uff33\uff24"), currency
    for code in ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"):
        yield f"12 {code} with a last digit", amount(1251, code), units
    yield "13 currency withdrawn", amount(1250, "HRK"), currency
    yield "13 both wrong", amount(0, "HRK"), units | currency
    for name, number in CARD_NUMBERS.items():
        yield f"14 a {name} number as card token", in_place("card.token", number), {"card.token"}
    for name, text in WRITTEN.items():
        yield f"15 a card number as card token, {name}", in_place("card.token", text), {"card.token"}
        yield f"15 a card number as description, {name}", in_place("description", text), {"description"}
    for place in TEXT_PLACES:
        yield f"16 a card number in {place}", in_place(place, PAN), {place}
        yield f"16 a card number after a word in {place}", in_place(place, f"nr-{PAN}"), {place}
    yield (
        "16 a brand that last4 completes",
        but(card=Card(token="t", brand="411111111111", last4="1111")),
        {"card.brand"},
    )
    for key in ("cvv", "cvv_1", "CVC2", "card.cvc", "security_code", "pin", "Track2", "track-1-data"):
        yield f"17 {key} in metadata", but(metadata={key: "98765432"}), {"metadata.key"}
    for text in ("cvv 123", "CVC2: 1234", "exp 12/27, security code 123"):
        yield f"17 {text} as description", but(description=text), {"description"}
        yield f"17 {text} as metadata", but(metadata={"note": text}), {"metadata.value"}
    yield "18 card token empty", but(card=Card(brand="visa")), {"card.token"}
    yield "18 card unset", but(card=None), {"card.token"}
    yield "19 card token of 10 kB", in_place("card.token", "t" * 10_000), {"card.token"}
    yield "22 user id empty", in_place("user_id", ""), {"user_id"}
    yield "22 user id blank", in_place("user_id", "        "), {"user_id"}
    for length in (256, 1_000):
        yield f"23 user id of {length}", in_place("user_id", "u" * length), {"user_id"}
    for name, text in INVISIBLE.items():
        for place in (*NAMES, *PEOPLES_TEXTS) if name != "CR LF" else (*NAMES, "card.brand"):
            yield f"24 {name} in {place}", in_place(place, f"somebody{text}else"), {place}
    for tag, place in ((1, "idempotency_key"), (2, "user_id"), (5, "description")):
        yield f"24 lone surrogate in {place}", plus(field(tag, b"somebody\xed\xa0\x80else")), set()
    yield "25 user id composed", in_place("user_id", "jos\u00e9-maria"), {"user_id"}
    yield "25 user id decomposed", in_place("user_id", "jose\u0301-maria"), {"user_id"}
    for name, text in CODE.items():
        for place in NAMES:
            # A token may look like a path, as base64 does, and is never sent in a path. Keys and users have all but spaces.
            if (name, place) != ("path", "card.token") and (" " in text or place not in ("idempotency_key", "user_id")):
                yield f"26 {name} in {place}", in_place(place, text), {place}
    yield "27 no key", in_place("idempotency_key", ""), {"idempotency_key"}
    yield "28 a key of 256", in_place("idempotency_key", "k" * 256), {"idempotency_key"}
    yield "28 a key of an umlaut", in_place("idempotency_key", "\u00f6rder-1234"), {"idempotency_key"}
    yield "30 a key with a space", in_place("idempotency_key", "order 1234"), {"idempotency_key"}
    yield "30 a key with a space after it", in_place("idempotency_key", "order-1234 "), {"idempotency_key"}
    yield "37 nothing at all", b"", {"idempotency_key", "user_id", "card.token", "amount"}
    yield "37 random bytes", bytes(range(255, 0, -1)), set()
    yield "37 text", b'{"idempotency_key": "order-1234"}', set()
    yield "37 truncated", plus(b"")[:-2], set()
    yield "37 no UTF-8", plus(field(2, b"somebody\xffelse")), set()
    yield "37 no UTF-8 in metadata", plus(field(6, field(1, b"note") + field(2, b"\xc3("))), set()
    yield "38 an unknown field", plus(field(15, b"more")), {""}
    yield "38 an unknown field of 10 kB", plus(field(15, b"m" * 10_000)), {""}
    yield "38 an unknown field in the card", plus(field(3, field(15, b"more"))), {""}
    yield "38 an unknown field in the amount", plus(field(4, b"\x18\x01")), {""}
    yield "38 an unknown field in metadata", plus(field(6, field(1, b"note") + field(3, b"more"))), {""}
    yield "38 nested", plus(b"\xa3\x06" * 50 + b"\xa4\x06" * 50), {""}
    yield "38 nested too deep", plus(b"\xa3\x06" * 2_000 + b"\xa4\x06" * 2_000), set()
    yield "38 metadata of 21", but(metadata={f"key-{n}": "" for n in range(21)}), {"metadata"}
    yield "38 metadata of 10,001 bytes", but(metadata={f"key-{n}": "\u732b" * 498 for n in range(7)}), {"metadata"}
    for place in ("description", "metadata.value"):
        yield f"38 {place} of 1,503 bytes", in_place(place, "\u732b" * 501), {place}
    yield "38 brand of 65 bytes", in_place("card.brand", "b" * 65), {"card.brand"}
    yield "39 the amount as a number", plus(b"\x20\x05"), {""}
    yield "39 the key as a number", plus(b"\x08\x05"), {""}


CASES = list(bad_input())


@pytest.mark.parametrize(("request_", "fields"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_bad_input_is_refused_by_its_fields_name_and_gets_nowhere(
    _door: Door, request_: bytes | ChargeRequest, fields: set[str]
) -> None:
    """INVALID_ARGUMENT with fixed texts, and nothing in journal, bank and log."""
    assert (await _door.turns_away(request_)).fields == fields


async def test_29_a_key_reused_for_another_body_is_refused_and_gets_nowhere(door: Door) -> None:
    """ALREADY_EXISTS; the first charge stands."""
    first = but()
    await door.knock(first)
    async with door.closed():
        answer = await refused(door.knock(but(idempotency_key=first.idempotency_key, user_id="mallory")))
    assert (answer.code, answer.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")


async def test_the_refusal_of_a_request_with_many_faults_names_each_once(door: Door) -> None:
    """By the field's name, also for many wrong entries of metadata."""
    answer = await door.turns_away(
        but(
            user_id="",
            card=Card(token=" ", brand="\n", last4="x"),
            amount=Money(minor_units=-1, currency_code="?"),
            description="\0",
            metadata={f"key {n}": "\0" for n in range(30)},
        )
    )
    assert answer.fields == FIELDS - {"", "amount", "idempotency_key"}


@pytest.mark.parametrize(
    ("key", "more", "field"),
    [
        ("", b"", "idempotency_key"),
        (PAN, b"", "idempotency_key"),
        ("a key", b"", "idempotency_key"),
        ("k", b"\x78\x01", ""),
    ],
)
async def test_a_fault_that_is_refused_before_the_key_is_looked_up_hides_no_other_fault(
    door: Door, key: str, more: bytes, field: str
) -> None:
    """A malformed key, a card number, an unknown field: a client can mend all faults at once."""
    request = but(
        idempotency_key=key,
        user_id="",
        card=Card(token=PAN, brand="\n", last4="x"),
        amount=Money(minor_units=-1, currency_code="?"),
        description=PAN,
        metadata={"cvv": "\0"},
    )
    answer = await door.turns_away(request.SerializeToString() + more)
    assert answer.fields == FIELDS - {"", "amount", "idempotency_key", "metadata"} | {field}


# ---------------------------------------------------------------- valid requests that look bad
@pytest.mark.parametrize(
    ("minor_units", "currency"),
    [(1, "EUR"), (1250, "JPY"), (1, "JPY"), (500, "UGX"), (1250, "KWD"), (99_999_999, "USD"), (999_999_999_999, "IDR")],
)
async def test_6_11_12_an_amount_is_in_minor_units_and_only_the_bank_knows_a_minimum(
    door: Door, minor_units: int, currency: str
) -> None:
    """A server cannot see whether 1250 yen were meant as 12.50."""
    request = but(amount=Money(minor_units=minor_units, currency_code=currency))
    assert (await door.knock(request)).status == CHARGED
    (movement,) = await door.referee.movements(id_of(request))
    assert (movement.minor_units, movement.currency_code) == (minor_units, currency)


@pytest.mark.parametrize("token", ["tok_of_another_tenant", "../../etc/passwd"])
async def test_21_a_foreign_card_token_is_declined_like_an_unknown_one(door: Door, token: str) -> None:
    """Only the bank knows tokens; until tenants exist no token is another tenant's."""
    answer = await door.knock(but(card=Card(token=token)))
    assert (answer.status, answer.decline_reason) == (DECLINED, DeclineReason.DECLINE_REASON_BANK_REFUSED)


@pytest.mark.parametrize(
    "text",
    [
        "Two seats\nRow 12\r\n\tby the aisle",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\u200d\U0001f525",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
    ],
    ids=["lines", "joined emoji", "Persian", "Indic"],
)
async def test_24_lines_and_joiners_in_texts_for_people_are_stored_unchanged(door: Door, text: str) -> None:
    """In a description and a value of metadata."""
    request = but(description=text, metadata={"note": text})
    assert (await door.knock(request)).status == CHARGED
    stored = events(door.town.journal, id_of(request))[0].charge_requested
    assert (stored.description, stored.metadata["note"]) == (text, text)


@pytest.mark.parametrize(
    "name", ["1001", "1", "auth0|x", "jane+x@y", "../../etc/passwd", "%00%0a", "${jndi:x}", "n" * 255]
)
async def test_28_keys_and_users_have_any_printable_characters(door: Door, name: str) -> None:
    """They are stored unchanged, and never logged."""
    request = but(idempotency_key=name, user_id=name)
    assert (await door.knock(request)).outcome_source == FRESH
    assert (await door.knock(request)).outcome_source == REPLAYED
    stored = events(door.town.journal, id_of(request))[0].charge_requested
    assert (stored.idempotency_key, stored.user_id) == (name, name)
    assert f'"{name}"' not in door.town.command.text()


HONEST = {
    "a mobile number": "4915112345672",
    "a mobile number with +": "+4915112345672",
    "an article number": "4006381333931",
    "a key with hexadecimal": "bench:6187:18ec538375723166:1001",
    "a time in nanoseconds": "1796000000000000000",
    "an order number with its time": "2611281233000004",
}


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
async def test_16_honest_numbers_are_no_card_numbers(door: Door, text: str) -> None:
    """As key, as user, and in texts: a card is not typed there."""
    request = but(idempotency_key=text, user_id=text, description=text, metadata={"ean": text})
    assert (await door.knock(request)).status == CHARGED


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
async def test_26_code_in_a_text_for_people_is_stored_unchanged_and_never_logged(door: Door, text: str) -> None:
    """A description is never executed."""
    request = but(description=text, metadata={"note": text}, card=Card(token="tok_visa", brand=text))
    assert (await door.knock(request)).status == CHARGED
    stored = events(door.town.journal, id_of(request))[0].charge_requested
    assert (stored.description, stored.metadata["note"], stored.card.brand) == (text, text, text)
    assert text not in door.town.command.text()


async def test_30_keys_that_differ_in_case_only_are_two_charges(door: Door) -> None:
    """Keys are compared byte by byte."""
    key = new_key()
    answers = [await door.knock(but(idempotency_key=each)) for each in (key, key.upper())]
    assert [answer.outcome_source for answer in answers] == [FRESH, FRESH]
    assert answers[0].charge_id != answers[1].charge_id


# ---------------------------------------------------------------- calls that never become a request
@pytest.mark.parametrize("kilobytes", [10, 64])
async def test_35_too_much_metadata_is_turned_away(door: Door, kilobytes: int) -> None:
    """From 8 kB on at grpc's discretion, from 16 kB on always. Its value is neither sent back nor logged."""
    value = PAN * (kilobytes * 64)
    async with door.closed():
        answer = await refused(door.knock(but(user_id=""), metadata=[("x-note", value)]))
    assert answer.code in {grpc.StatusCode.RESOURCE_EXHAUSTED} | (
        {grpc.StatusCode.INVALID_ARGUMENT} if kilobytes < 16 else set()
    )
    assert PAN.encode() not in answer.everything


TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "36 a description of 17 kB": lambda: but(description=PAN * 1_100).SerializeToString(),
    "36 metadata of many bytes a character": lambda: but(
        metadata={f"k{n}": "\u732b" * 500 for n in range(20)}
    ).SerializeToString(),
    "38 unknown fields of 200 kB": lambda: plus(field(15, PAN.encode() * 12_500)),
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_request_above_16_kb_is_refused_unread_with_its_reason(door: Door, make: Callable[[], bytes]) -> None:
    """By us, with details: grpc's own refusal has none, and a code that makes clients retry for ever."""
    answer = await door.turns_away(make())
    assert (set(answer.fields), set(answer.field_texts)) == ({""}, {TOO_MANY_BYTES})


FAR_TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "38 unknown fields of 1 MB": lambda: plus(field(15, PAN.encode() * (1 << 16))),
    "38 a million entries": lambda: plus(field(6, b"") * 1_000_000),
    "36 5 MB": lambda: but(description="x" * (5 << 20)).SerializeToString(),
}


@pytest.mark.parametrize("make", FAR_TOO_LARGE.values(), ids=FAR_TOO_LARGE)
async def test_a_request_above_256_kb_is_turned_away_by_grpc(door: Door, make: Callable[[], bytes]) -> None:
    """RESOURCE_EXHAUSTED."""
    async with door.closed():
        answer = await refused(door.knock(make()))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert PAN.encode() not in answer.everything


async def test_41_a_request_that_is_large_only_when_decompressed_is_turned_away(door: Door) -> None:
    """Half a megabyte that travels as one kilobyte."""
    async with door.closed():
        bomb = but(description=PAN * (1 << 15))
        answer = await refused(door.knock(bomb, compression=grpc.Compression.Gzip))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert PAN.encode() not in answer.everything


@pytest.mark.parametrize(
    "method",
    [
        "/charging.v1.CommandService/Nothing",
        "/charging.v1.JournalService/Subscribe",
        "/charging.v2.CommandService/Charge",
        f"/charging.v1.{PAN}/{PAN}",
    ],
)
async def test_40_an_unknown_method_is_unimplemented(door: Door, method: str) -> None:
    """The feed is not served on the clients' port either."""
    async with door.closed():
        answer = await refused(unserialised(door.channel, method)(but().SerializeToString(), timeout=PATIENT_SECONDS))
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED
    assert PAN.encode() not in answer.everything


async def raw_exchange(door: Door, sent: bytes) -> bytes:
    """The answer over a bare connection, until it is closed or a call's trailers have come."""
    host, _, port = door.town.command.listen.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    got = b""
    while b"grpc-status" not in got and (part := await reader.read(65_536)):
        got += part
    writer.close()
    return got


def client_hello() -> bytes:
    """The first message of a client that expects TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="bank.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HTTP_1 = f"POST {CHARGE} HTTP/1.1\r\nhost: x\r\nx-card: {PAN}\r\n\r\n{PAN}".encode()
GRPC_WEB = HTTP_1.replace(b"x-card", b"content-type: application/grpc-web\r\nx-card")
STRANGERS = {"HTTP 1.1": HTTP_1, "gRPC-Web": GRPC_WEB, "TLS": client_hello(), "nonsense": PAN.encode() * 10}


@pytest.mark.parametrize("hello", STRANGERS.values(), ids=STRANGERS)
async def test_42_the_connection_of_a_client_without_http_2_is_closed(door: Door, hello: bytes) -> None:
    """The log has nothing of the client's bytes."""
    async with door.closed():
        got = await raw_exchange(door, hello)
    assert b"grpc-status" not in got
    assert PAN.encode() not in got


def call_by_hand(grpc_timeout: bytes, request: ChargeRequest) -> bytes:
    """A call as the bytes of HTTP/2, with a grpc-timeout that no library would send."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": CHARGE.encode(),
        b":authority": b"x",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"grpc-timeout": grpc_timeout,
    }
    coded = b"".join(b"\0" + bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in headers.items())
    body = request.SerializeToString()
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, b"")
        + frame(1, 4, 1, coded)
        + frame(0, 1, 1, struct.pack(">BI", 0, len(body)) + body)
    )


@pytest.mark.parametrize(
    "grpc_timeout", [b"-5S", b"5", b"soon", b"0n", b"1n", b"-1n", b"999999999999H", PAN.encode() + b"S"]
)
async def test_43_a_nonsensical_deadline_does_no_harm(door: Door, grpc_timeout: bytes) -> None:
    """The library refuses it or reads some deadline in it; the invalid request gets nowhere in both cases."""
    before = head(door.town.journal)
    got = await raw_exchange(door, call_by_hand(grpc_timeout, but(user_id="mallory and more")))
    assert b"grpc-status" in got
    assert head(door.town.journal) == before
    assert await door.new_calls() == 0
    assert PAN.encode() not in got
    assert b"mallory" not in got


# ---------------------------------------------------------------- any input at all
async def serves_or_turns_away(door: Door, body: bytes) -> None:
    """Assert that the request is valid and stored unchanged, or refused by fixed texts and gets nowhere."""
    before = head(door.town.journal)
    try:
        answer = await door.knock(body)
    except grpc.aio.AioRpcError as error:
        if told(error).reason != "IDEMPOTENCY_KEY_REUSED":  # the generator repeats keys such as "00000000"
            assert_fixed(told(error))
        answer = None
    if answer is None or answer.outcome_source == REPLAYED:
        assert head(door.town.journal) == before
        assert await door.new_calls() == 0
        return
    request = ChargeRequest.FromString(body)
    assert (answer.outcome_source, answer.charge_id) == (FRESH, id_of(request))
    assert answer.status in (CHARGED, DECLINED)
    stored = events(door.town.journal, answer.charge_id)[0].charge_requested
    for name in ("idempotency_key", "user_id", "card", "amount", "description", "metadata"):
        assert getattr(stored, name) == getattr(request, name)


thorough = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@thorough
@given(st.binary(max_size=300))
async def test_any_bytes_are_served_or_turned_away(_door: Door, body: bytes) -> None:
    """No bytes make the server fail."""
    await serves_or_turns_away(_door, body)


@thorough
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), st.binary(max_size=4)), max_size=4))
async def test_a_damaged_request_is_served_or_turned_away(_door: Door, damage: list[tuple[int, int, bytes]]) -> None:
    """Bytes inserted, removed or replaced: a request that is still valid is stored unchanged."""
    body = a_request().SerializeToString()
    for at, length, instead in damage:
        body = body[:at] + instead + body[at + length :]
    await serves_or_turns_away(_door, body)


# Any text, the texts of this file, and valid ones, so that often only one field is wrong.
texts = st.text(max_size=60) | st.sampled_from([*CARD_NUMBERS.values(), *WRITTEN.values(), *CODE.values()])
names = st.just("alice") | texts
requests = st.builds(
    ChargeRequest,
    idempotency_key=st.builds(new_key) | texts,
    user_id=names,
    card=st.builds(
        Card, token=st.sampled_from(["tok_visa", "tok_declined"]) | texts, brand=names, last4=st.just("") | texts
    ),
    amount=st.builds(
        Money,
        minor_units=st.integers(1, 10_000) | st.integers(-(2**63), 2**63 - 1),
        currency_code=st.sampled_from(["EUR", "JPY", "KWD"]) | texts,
    ),
    description=names,
    metadata=st.dictionaries(st.just("note") | texts, names, max_size=3),
)


@thorough
@given(requests)
async def test_any_field_values_are_served_or_turned_away(_door: Door, request_: ChargeRequest) -> None:
    """As above, field by field."""
    await serves_or_turns_away(_door, request_.SerializeToString())


# ---------------------------------------------------------------- no card number, anywhere
async def test_no_card_number_that_was_ever_sent_is_found_anywhere(door: Door) -> None:
    """Not in the journal, its WAL or its anchor, not at the bank, not in a log and not in an answer."""
    planted = [*CARD_NUMBERS.values(), *WRITTEN.values()]
    for place in TEXT_PLACES:
        for text in planted:
            answer = await door.turns_away(in_place(place, text))
            assert text.encode() not in answer.everything
    files = [file for file in door.town.folder.rglob("*") if file.is_file()]
    assert {"journal.db", "journal.db-wal", "bank.db", "command.log", "bank.log"} <= {file.name for file in files}
    for file in files:
        held = file.read_bytes()
        assert [text for text in planted if text.encode() in held] == [], file.name
