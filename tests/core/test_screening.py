"""Screening: no card number gets in, honest requests do, and no fault repeats what was sent.

Measured share of honest numbers that are taken for card numbers (200,000 of each kind, the years 2020 to 2027; per cent):
`.venv/bin/python -m tests.core.test_screening` prints the table anew.

    never       time stamps in s, ms, us, ns; ISO 8601; yyyymmdd[HHMMSS] or yymmdd and a sequence; UUIDs; MD5, SHA-1,
                SHA-256; snowflakes of Twitter; IBANs without spaces; phone numbers with their "+"
    < 0.1       snowflakes of Discord, Mongo ids, hexadecimal ids of 16 and 48 digits
    0.4 and 3.6 snowflakes of Sonyflake and Instagram; in some months of these years a tenth, in the others none
    1.0         barcodes (EAN-13): a tenth of those that begin with 4, and hardly any other
    4.2         IBANs written in groups of four
    6.6         yymmddHHMMSS and four digits: most of 2023 to 2027, when they begin like a Mastercard
    10          German phone numbers without their "+"
    random numbers of 12 to 19 digits: 0.01, 1.1, 0.4, 0.2, 4.0, 0.3, 0.3, 2.7
"""

import dataclasses
import random
import re
import string
import unicodedata
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_service import screening
from command_service.card_numbers import SCHEMES, card_number_in
from command_service.charge import Card, Money, Request
from command_service.currencies import EXPONENTS
from command_service.screening import always_refused, faults, key_fault

GOOD = Request(
    charge_id="00000000-0000-8000-8000-000000000000",
    tenant="default",
    idempotency_key="order-2026-11-23-000123",
    actor="default",
    user_id="user:42@shop.example",
    card=Card("tok_visa", "Visa", "4242"),
    amount=Money(1250, "EUR"),
    description="Zwei Plätze, Reihe 12 🎟️",
    metadata=(("order.id", "A-1001"), ("note", "")),
)
VISA = "4111111111111111"

# Where a client's text can stand in a request: the field's name in a fault, and how to put a text there.
PLACES: dict[str, Callable[[str], Request]] = {
    "idempotency_key": lambda text: dataclasses.replace(GOOD, idempotency_key=text),
    "user_id": lambda text: dataclasses.replace(GOOD, user_id=text),
    "card.token": lambda text: dataclasses.replace(GOOD, card=Card(text)),
    "card.brand": lambda text: dataclasses.replace(GOOD, card=Card("tok_visa", brand=text)),
    "card.last4": lambda text: dataclasses.replace(GOOD, card=Card("tok_visa", last4=text)),
    "amount.currency_code": lambda text: dataclasses.replace(GOOD, amount=Money(1250, text)),
    "description": lambda text: dataclasses.replace(GOOD, description=text),
    "metadata.key": lambda text: dataclasses.replace(GOOD, metadata=((text, "1"),)),
    "metadata.value": lambda text: dataclasses.replace(GOOD, metadata=(("a", "1"), ("b", text), ("c", text))),
}


def with_check_digit(digits: str) -> str:
    """Append the digit by which a number passes Luhn: an implementation of its own, against which ours is tested."""
    total = sum(sum(divmod(int(digit) * (2 - i % 2), 10)) for i, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


@st.composite
def card_numbers(draw: st.DrawFn) -> str:
    scheme = draw(st.sampled_from(SCHEMES))
    low, high = draw(st.sampled_from(scheme.prefixes))
    length = draw(st.sampled_from(scheme.lengths))
    body = draw(st.text(string.digits, min_size=length - 5, max_size=length - 5))
    return with_check_digit(f"{draw(st.integers(low, high))}{body}")


separators = st.text(st.characters(exclude_categories=("L", "N", "Cs")), max_size=3)
zeros = st.sampled_from(
    "0\uff10\u0660\u06f0\u0966\u0e50\U0001d7ce"
)  # Digits of a script stand in a row from its zero on.


@st.composite
def written(draw: st.DrawFn, number: str) -> str:
    """Write a number with any separators, between any digits, in digits of any scripts."""
    text = "".join(draw(separators) + chr(ord(draw(zeros)) + int(digit)) for digit in number)
    return draw(st.sampled_from(["", "card", "tok_", "Karte №", "%B", "番号"])) + text.lstrip("+")


# ---------------------------------------------------------------- card numbers
@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111 4012888888881881 4222222222222 4012888818888 4000000000000000006",
        "5555555555554444 5105105105105100 2223000048400011 2720990000000007",
        "378282246310005 371449635398431 343434343434343",
        "6011111111111117 6011000990139424 6445644564456445 6500000000000002",
        "30569309025904 38520000023237 36259600000004 3056930009020004",
        "3530111333300000 3566002020360505",
        "6221261111117766 6243030000000001 6205500000000000004 8171999927660000 8171999900000000021",
        "6304000000000000 6759649826438453 6759411100000008 6759560045005727054 6799990100000000019 501800000009",
        "6074820000000009 8200000000000001 2200000000000004 9792030000000000",
    ],
)
def test_published_test_numbers_of_every_scheme_are_card_numbers(number: str) -> None:
    """Visa, Mastercard, Amex, Discover, Diners, JCB, UnionPay, Maestro; RuPay, Mir and Troy by their first digits."""
    for one in number.split():
        assert card_number_in(one), one


@settings(max_examples=400, deadline=None)
@given(st.data(), card_numbers(), st.sampled_from(sorted(PLACES)))
def test_no_way_of_writing_it_gets_a_card_number_past_in_any_field(
    data: st.DataObject, number: str, field: str
) -> None:
    """Separators anywhere, digits of other scripts, any field: refused before the key is looked up."""
    found = dict(always_refused(PLACES[field](data.draw(written(number)))))
    assert found[field] == screening.CARD_NUMBER


@pytest.mark.parametrize("field", sorted(PLACES))
def test_a_card_number_is_the_only_fault_told_of_its_field_and_told_once(field: str) -> None:
    """Nor is any other field accused."""
    assert always_refused(PLACES[field](VISA)) == ((field, screening.CARD_NUMBER),)


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1111 12",
        "4111 1111 1111 1111 12/27 123",
        "12/27 4111-1111-1111-1111",
        "2026-11-23 4111111111111111 2026-11-23",
        "1. 4111 1111 1111 1111, 2. 5555 5555 5555 4444",
        "#7 3782 822463 10005",
        "7: 4222 222 222 222 (old)",
        "7: 5018 0000 0009 (short)",
        "7: 6799 9901 0000 0000 019 7",
    ],
)
def test_a_number_in_printed_groups_is_found_among_other_numbers(text: str) -> None:
    """An expiry date, a security code or a list beside it hides nothing."""
    assert card_number_in(text)


@pytest.mark.parametrize(
    "text",
    [
        ";4111111111111111=25121010000012345678?",
        "%B4111111111111111^DOE/JOHN^2512101000001234567890?",
        "4111111111111111D2512101000001230",  # 32 hexadecimal digits and more are not an id for that
        "4111111111111111D251210100000123",
        "4111111111111111D25121010000012300000000",
    ],
)
def test_a_track_holds_a_card_number(text: str) -> None:
    """Tracks 1 and 2, and track 2 in binary form as a chip sends it."""
    assert card_number_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",  # fails Luhn
        "7111111111111114",  # nobody's prefix
        "411111111111116",  # 15 digits beginning with 4
        "55555555555555557",  # 17 digits beginning with 5
        "41111111111111111227",  # a longer run, as a whole
        "94111111111111111",
        "4111x1111x1111x1111",  # letters are no separators
        "0000000000000000",
        "",
        "9" * 16_000,
    ],
)
def test_what_lacks_prefix_length_or_check_digit_is_no_card_number(text: str) -> None:
    """All three must fit a whole run."""
    assert not card_number_in(text)


@pytest.mark.parametrize("length", range(10, 21))
def test_luhn_is_computed_as_iso_7812_says(length: int) -> None:
    """Against another implementation, number by number: of ten check digits exactly one passes."""
    scheme = next((s for s in SCHEMES if length in s.lengths), None)
    body = (str(scheme.prefixes[0][0]) if scheme else "4000") + "7259136480259137"[: length - 5]
    passing = [digit for digit in string.digits if card_number_in(body + digit)]
    assert passing == ([with_check_digit(body)[-1]] if scheme else [])


@pytest.mark.parametrize(
    "text",
    [
        "44444444-4444-4444-8444-444444444444",
        "order/411111aa-1111-4111-8111-411111111111/1",
        "ttok_4111111111111111aaaabbbbccccdddd",
        "txn_" + "4111111111111111abcdefab" + "0" * 8,
        "4111111111111111abcdefab",
        "4111111111111111" + "ab" * 12,
        "4111111111111111" + "ab" * 24,
    ],
)
def test_uuids_and_hexadecimal_ids_may_hold_any_digits(text: str) -> None:
    """Charge ids, our bank's tokens and transactions, trace ids, digests."""
    assert not card_number_in(text)


def test_an_id_beside_it_does_not_hide_a_card_number() -> None:
    """Only the id's own digits are let through."""
    some_id = "44444444-4444-4444-8444-444444444444"
    assert card_number_in(f"{some_id}-4111-1111-1111-1111")
    assert card_number_in(f"{VISA}/{some_id}")


@given(st.text("0123456789abcdef", min_size=16, max_size=16), card_numbers().filter(lambda number: len(number) == 16))
def test_no_uuid_is_refused(head: str, number: str) -> None:
    """Not even one that ends in a card number: in either case, and with a prefix or suffix, as keys have them."""
    some_id = str(uuid.UUID(head + number))
    for text in (some_id, some_id.upper(), f"order-{some_id}-1", f"txn_{some_id}"):
        assert not card_number_in(text)


def test_a_plus_makes_a_phone_number_of_short_runs_only() -> None:
    """Of a number that passes Luhn and begins like a card's."""
    assert card_number_in("4222222222222")
    assert not card_number_in("call +4222222222222, room 7")
    assert not card_number_in("+42 222 22222222")
    assert card_number_in("4222+222222222")
    assert card_number_in("+378282246310005")
    assert card_number_in("+4111 1111 1111 1111")


# ---------------------------------------------------------------- honest numbers
def _millis(rng: random.Random) -> int:
    return rng.randrange(*(int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000) for year in (2020, 2028)))


def _when(rng: random.Random) -> datetime:
    return datetime.fromtimestamp(_millis(rng) / 1000, UTC)


def _snowflake(epoch_ms: int, bits: int, tick_ms: int = 1) -> Callable[[random.Random], str]:
    return lambda rng: str(((_millis(rng) - epoch_ms) // tick_ms << bits) | rng.getrandbits(bits))


def _number(length: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(10 ** (length - 1), 10**length))


def _iban(rng: random.Random) -> str:
    return f"DE{rng.randrange(10**20):020}"


# Kinds of honest numbers, and the greatest share of them, in per cent, that may be taken for card numbers.
HONEST: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    "epoch, s": (0, lambda rng: str(_millis(rng) // 1000)),
    "epoch, ms": (0, lambda rng: str(_millis(rng))),
    "epoch, us": (0, lambda rng: str(_millis(rng) * 1000 + rng.randrange(1000))),
    "epoch, ns": (0, lambda rng: str(_millis(rng) * 10**6 + rng.randrange(10**6))),
    "ISO 8601, us": (0, lambda rng: _when(rng).strftime("%Y-%m-%d %H:%M:%S.%f+00:00")),
    "ISO 8601, ns": (0, lambda rng: _when(rng).strftime("%Y-%m-%dT%H:%M:%S.") + f"{rng.randrange(10**9):09}Z"),
    "yyyymmdd and 8": (0, lambda rng: f"{_when(rng):%Y%m%d}{rng.randrange(10**8):08}"),
    "yyyymmdd-6": (0, lambda rng: f"{_when(rng):%Y%m%d}-{rng.randrange(10**6):06}"),
    "yyyymmddHHMMSS and 3": (0, lambda rng: f"{_when(rng):%Y%m%d%H%M%S}{rng.randrange(1000):03}"),
    "yymmdd and 6": (0, lambda rng: f"{_when(rng):%y%m%d}{rng.randrange(10**6):06}"),
    "UUID": (0, lambda rng: str(uuid.UUID(int=rng.getrandbits(128)))),
    "UUID, time first": (0, lambda rng: str(uuid.UUID(int=_millis(rng) << 80 | rng.getrandbits(80)))),
    "UUID with affixes": (0, lambda rng: f"order-{uuid.UUID(int=rng.getrandbits(128))}-{rng.randrange(10**4):04}"),
    "MD5": (0.01, lambda rng: f"{rng.getrandbits(128):032x}"),
    "SHA-1": (0, lambda rng: f"{rng.getrandbits(160):040x}"),
    "SHA-256": (0, lambda rng: f"{rng.getrandbits(256):064x}"),
    "Mongo id": (0.1, lambda rng: f"{_millis(rng) // 1000:08x}{rng.getrandbits(64):016x}"),
    "hexadecimal, 16": (0.1, lambda rng: f"{rng.getrandbits(64):016x}"),
    "hexadecimal, 48": (0.1, lambda rng: f"{rng.getrandbits(192):048x}"),
    "snowflake, Twitter": (0, _snowflake(1288834974657, 22)),
    "snowflake, Discord": (0.1, _snowflake(1420070400000, 22)),
    "snowflake, Sonyflake": (1, _snowflake(1409529600000, 24, tick_ms=10)),
    "snowflake, Instagram": (5, _snowflake(1314220021721, 23)),
    "IMEI": (0, lambda rng: with_check_digit(f"35{rng.randrange(10**12):012}")),
    "EAN-13": (2, lambda rng: f"{rng.randrange(10**13):013}"),
    "IBAN": (0, _iban),
    "IBAN in groups": (6, lambda rng: re.sub("(....)", r"\1 ", _iban(rng))),
    "yymmddHHMMSS and 4": (8, lambda rng: f"{_when(rng):%y%m%d%H%M%S}{rng.randrange(10**4):04}"),
    "phone with +": (0, lambda rng: f"+49 15{rng.randrange(10)} {rng.randrange(10**8):08}"),
    "phone without +": (12, lambda rng: f"4915{rng.randrange(10**9):09}"),
    "12 digits": (0.1, _number(12)),
    "13 digits": (2, _number(13)),
    "14 digits": (1, _number(14)),
    "15 digits": (1, _number(15)),
    "16 digits": (6, _number(16)),
    "17 digits": (1, _number(17)),
    "18 digits": (1, _number(18)),
    "19 digits": (4, _number(19)),
}


def _taken_for_cards(kind: str, count: int) -> float:
    rng = random.Random(kind)
    return 100 * sum(card_number_in(HONEST[kind][1](rng)) for _ in range(count)) / count


@pytest.mark.parametrize("kind", HONEST)
def test_honest_numbers_are_seldom_taken_for_card_numbers(kind: str) -> None:
    """The same numbers in every run, since the seed is the kind's name."""
    assert _taken_for_cards(kind, 5_000) <= HONEST[kind][0]


# ---------------------------------------------------------------- before the key is looked up
@pytest.mark.parametrize("key", ["12345678", "k" * 128, "A-Z_a.z:0-9", str(uuid.UUID(int=7)), "........"])
def test_a_key_of_8_to_128_plain_characters_is_well_formed(key: str) -> None:
    """Letters, digits, and _ . : -"""
    assert key_fault(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "1234567",
        "k" * 129,
        " 12345678",
        "12345678\n",
        "12345 678",
        "12345678/",
        "user@host",
        "schlüssel",
        "\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
    ],
)
def test_any_other_key_is_malformed_and_not_repaired(key: str) -> None:
    """Cases 27, 28, 30: nothing is trimmed, folded or normalised."""
    assert key_fault(key) == screening.KEY_MALFORMED
    assert always_refused(dataclasses.replace(GOOD, idempotency_key=key)) == (
        ("idempotency_key", screening.KEY_MALFORMED),
    )


def test_a_known_key_is_found_whatever_else_is_wrong_with_the_request() -> None:
    """Rules get stricter, and the retry of an accepted charge must still find it."""
    broken = Request(
        "", "", GOOD.idempotency_key, "", "", Card("", "\0", "x"), Money(-1, "usd"), "\x1b", (("cvv", "\n"),)
    )
    assert always_refused(broken) == ()
    assert faults(broken) != ()


def test_a_good_request_has_no_faults() -> None:
    """Neither before the look-up nor after it."""
    assert always_refused(GOOD) == ()
    assert faults(GOOD) == ()


# ---------------------------------------------------------------- a new charge
def _amount(minor_units: int, currency_code: str = "EUR") -> Request:
    return dataclasses.replace(GOOD, amount=Money(minor_units, currency_code))


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        (_amount(0), "amount.minor_units", screening.AMOUNT_NOT_POSITIVE),
        (_amount(-1), "amount.minor_units", screening.AMOUNT_NOT_POSITIVE),
        (_amount(-(2**63)), "amount.minor_units", screening.AMOUNT_NOT_POSITIVE),
        (_amount(100_000_000), "amount.minor_units", screening.AMOUNT_TOO_LARGE),
        (_amount(100_000_000, "JPY"), "amount.minor_units", screening.AMOUNT_TOO_LARGE),
        (_amount(2**63 - 1), "amount.minor_units", screening.AMOUNT_TOO_LARGE),
        (_amount(0, ""), "amount", screening.REQUIRED),
        (_amount(1251, "KWD"), "amount.minor_units", screening.AMOUNT_LAST_DIGIT),
        (_amount(1, "BHD"), "amount.minor_units", screening.AMOUNT_LAST_DIGIT),
        *(
            (_amount(1250, code), "amount.currency_code", screening.CURRENCY_UNKNOWN)
            for code in (
                *(
                    "usd",
                    "Eur",
                    "EURO",
                    "978",
                    "XXX",
                    "XTS",
                    "ZZZ",
                    "HRK",
                    "BGN",
                    "ANG",
                    "ZWL",
                    "XAU",
                    "XDR",
                    "CLF",
                    "USN",
                    "CHE",
                ),
                *("", " EUR", "EUR\n", "U\u0405D", "\uff25\uff35\uff32"),  # The last two look like USD and EUR.
            )
        ),
        *(
            (PLACES["user_id"](user_id), "user_id", screening.USER_ID_MALFORMED)
            for user_id in (
                *("u" * 129, "a b", "a\0", "a\r\n", "a\x1b", "a\u202eb", "a\u200bb", "\ud800"),
                *("Rene\u0301", "ren\u00e9", "../x", "%00", "'; DROP", "${jndi:}", "{{7*7}}"),
            )
        ),
        (PLACES["user_id"](""), "user_id", screening.REQUIRED),
        (PLACES["card.token"](""), "card.token", screening.REQUIRED),
        *(
            (PLACES["card.token"](token), "card.token", screening.TOKEN_MALFORMED)
            for token in ["t" * 256, "t" * 10_000, "tok visa", "tok_visa\n", "tök", "${x}", "<x>", "'x'"]
        ),
        (PLACES["card.brand"]("V" * 33), "card.brand", screening.TEXT_TOO_LONG),
        (PLACES["card.brand"]("Vi\nsa"), "card.brand", screening.TEXT_UNPRINTABLE),
        *(
            (PLACES["card.last4"](last4), "card.last4", screening.LAST4_MALFORMED)
            for last4 in ["424", "42424", "424x", "\uff14\uff12\uff14\uff12", "4242\n", " 4242"]
        ),
        (PLACES["description"]("d" * 501), "description", screening.TEXT_TOO_LONG),
        (PLACES["metadata.value"]("v" * 501), "metadata.value", screening.TEXT_TOO_LONG),
        *(
            (PLACES[field](f"pay{character}ment"), field, screening.TEXT_UNPRINTABLE)
            for field in ("description", "metadata.value")
            for character in "\0\r\n\t\x1b\x7f\x85\xad\u200b\u200d\u200e\u202e\u2028\u2066\ufeff\ud800\u3164\u2800\U000e0041"
        ),
        (
            dataclasses.replace(GOOD, metadata=tuple((f"k{i}", "v") for i in range(21))),
            "metadata",
            screening.METADATA_TOO_MANY,
        ),
        *(
            (PLACES["metadata.key"](key), "metadata.key", screening.METADATA_KEY_MALFORMED)
            for key in ["", "k" * 41, "a b", "a/b", "ä", "a\n", "a@b"]
        ),
        *(
            (PLACES["metadata.key"](key), "metadata.key", screening.METADATA_KEY_FORBIDDEN)
            for key in (
                *(
                    "cvv",
                    "CVC",
                    "cvv2",
                    "CVC2",
                    "cid",
                    "cvn2",
                    "cvv_code",
                    "card_cvv",
                    "security_code",
                    "card.security-code",
                ),
                *("card_verification_value", "track1", "Track2", "track_2_data", "pin", "PIN_block"),
            )
        ),
    ],
)
def test_a_new_charge_that_breaks_a_rule_is_told_its_field_and_the_rule(
    request_: Request, field: str, text: str
) -> None:
    """Cases 1 to 26: one fault for one thing wrong, the field named once."""
    assert faults(request_) == ((field, text),)


@pytest.mark.parametrize(
    "request_",
    [
        _amount(1),
        _amount(99_999_999),
        _amount(99_999_999, "JPY"),
        _amount(1250, "KWD"),
        _amount(1251, "UGX"),
        PLACES["user_id"]("u"),
        PLACES["user_id"]("A_z.0:@-" * 16),
        PLACES["card.token"]("pm_1MtwBwLkdIwHu7ix28a3tqPa"),
        PLACES["card.token"]("t" * 255),
        PLACES["card.token"]("eyJhbGciOi.J9-_~+/="),
        PLACES["card.brand"]("Cartes Bancaires 银联"),
        PLACES["description"](""),
        PLACES["description"]("ü" * 500),
        PLACES["description"]("cafe\u0301, 50\u00a0% off, مرحبا, 日本語, ❤️ '; DROP TABLE ${jndi:} {{7*7}} <b>"),
        PLACES["description"]("\ue000\U000323af"),  # private, unassigned
        PLACES["metadata.key"]("A_z.0:9-" * 5),
        PLACES["metadata.value"]("v" * 500),
        *(
            PLACES["metadata.key"](key)
            for key in ["pincode", "track", "shipping", "civic", "cardholder_id", "pan", "spin"]
        ),
        dataclasses.replace(GOOD, metadata=tuple((f"k{i}", "v") for i in range(20))),
    ],
)
def test_a_new_charge_within_the_rules_has_no_faults(request_: Request) -> None:
    """The bounds themselves are allowed; texts for people are in any language, NFC or not."""
    assert faults(request_) == ()


def test_all_faults_are_told_together() -> None:
    """A client corrects its request once."""
    request = dataclasses.replace(_amount(0, "usd"), user_id="", description="\n", metadata=(("", "\0"), ("pin", "1")))
    assert dict(faults(request)) == {
        "user_id": screening.REQUIRED,
        "amount.currency_code": screening.CURRENCY_UNKNOWN,
        "amount.minor_units": screening.AMOUNT_NOT_POSITIVE,
        "description": screening.TEXT_UNPRINTABLE,
        "metadata.key": screening.METADATA_KEY_MALFORMED,
        "metadata.value": screening.TEXT_UNPRINTABLE,
    }


def test_currencies_are_the_155_in_use_with_their_iso_exponents() -> None:
    """List one as published on 2026-01-01, less funds, metals, units of account and codes for tests."""
    assert len(EXPONENTS) == 155
    assert {
        code: EXPONENTS[code] for code in ("JPY", "EUR", "KWD", "ISK", "UGX", "HUF", "MGA", "XCG", "ZWG", "SLE")
    } == {
        **{"JPY": 0, "EUR": 2, "KWD": 3, "ISK": 0, "UGX": 0},
        **{"HUF": 2, "MGA": 2, "XCG": 2, "ZWG": 2, "SLE": 2},
    }
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in EXPONENTS)
    assert {code for code in EXPONENTS if code.startswith("X")} == {"XAF", "XCD", "XCG", "XOF", "XPF"}


# ---------------------------------------------------------------- what a fault says
texts = (
    st.text()
    | st.text(st.sampled_from("0123456789\u0663\uff14 -.+_a\u200b"))
    | st.sampled_from([VISA, "cvv", "\ud800", "x" * 600])
)
requests = st.builds(
    Request,
    charge_id=st.just(GOOD.charge_id),
    tenant=st.just(GOOD.tenant),
    idempotency_key=texts,
    actor=st.just(GOOD.actor),
    user_id=texts,
    card=st.builds(Card, texts, texts, texts),
    amount=st.builds(Money, st.integers(-(2**63), 2**63 - 1), texts | st.sampled_from(sorted(EXPONENTS))),
    description=texts,
    metadata=st.lists(st.tuples(texts, texts), max_size=25).map(tuple),
)
FIXED_TEXTS = {text for name, text in vars(screening).items() if name.isupper() and isinstance(text, str)}
FIXED_FIELDS = {*PLACES, "amount", "amount.minor_units", "metadata"}


@settings(max_examples=300, deadline=None)
@given(requests)
def test_whatever_is_sent_faults_are_fixed_texts_on_fixed_fields(request: Request) -> None:
    """Nothing raises, and nothing of the input is repeated: neither a value nor a metadata key."""
    for found in (always_refused(request), faults(request)):
        assert {field for field, _ in found} <= FIXED_FIELDS
        assert {text for _, text in found} <= FIXED_TEXTS
        assert len(dict(found)) == len(found)


@given(st.text(st.characters()))
def test_a_text_without_faults_is_visible(text: str) -> None:
    """Nothing that moves a cursor, turns the direction of writing or has no width is left in it."""
    if not faults(PLACES["description"](text)):
        assert not {unicodedata.category(character) for character in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


if __name__ == "__main__":
    for kind_ in HONEST:
        print(f"{kind_:24}{_taken_for_cards(kind_, 200_000):8.3f} %")
