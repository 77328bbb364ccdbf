"""Screening: no card number gets in, honest requests do, and no fault repeats the input.

Both rates in per cent, measured over generated sets of 100,000: `.venv/bin/python -m tests.core.test_screening` prints them
again, with more digits, in a few minutes. Real proportions are unknown; the schemes are mixed as in _COMMON.

    card numbers found                                              card's fields   other fields
    bare, in a sentence, after a word, track 2                             100          99.97
    in groups as on a card, with spaces, dashes, escapes, an expiry        100         100
    run on into expiry and security code; after EMV tags 5A and 57         100         100
    Visa of 13 digits and rare lengths of Maestro, bare                    100           0
    ... Visa of 13 in groups of 4 3 3 3                                    100         100
    in groups of any sizes                                                 100           1.7
    in a request, in each of its ten fields                                100    99.98 and more

    honest texts refused                                            card's fields   other fields
    time stamps in s, ms, us, ns; ISO 8601; yyyymmdd and a sequence          0           0
    UUIDs, MD5, SHA-1, SHA-256, IMEIs, IBANs, snowflakes of Twitter          0           0
    keys with hexadecimal, as our benchmark's were                           0.002       0
    keys of shop, day or time, and number, without a letter                  1.7         0
    German mobile numbers, with 49 or +49 before them                        7.5         0
    phone numbers of any country, 11 to 13 digits                            0.6         0
    article numbers (EAN-13)                                                 1.8         0
    hexadecimal ids of 16, 24 and 48 digits; snowflakes of Discord           0.1         0.1
    yymmddHHMMSS and four digits, of 2020 to 2027                            6.6         0.4
    snowflakes of Sonyflake, of Instagram                             0.5, 3.7    0.4, 3.7
    random numbers of 20 to 23 digits                                        0.2         0.2
    random numbers of 12 to 19 digits, card's fields:   0.02, 1.1, 0.4, 0.2, 4.0, 0.3, 0.3, 2.7
                                       other fields:    0,    0,   0.4, 0.2, 4.0, 0.3, 0.3, 2.7

The price, outside of a card's fields: 0.03 % of bare card numbers pass, the Mastercards that read as a time.
"""

import dataclasses
import random
import re
import string
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from charging.v1 import command_pb2, common_pb2
from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from command_service import currencies, screening
from command_service.card_numbers import SCHEMES, card_number_in
from command_service.intake import LATEST
from command_service.screening import AnyRequest, Faults, faults, key_fault
from command_service.serving import COMMAND_BYTES
from command_service.values import Card, Kind, Money, Request, Wish
from contract.currencies import EXPONENTS

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
    return_url="https://shop.example/back?order=A-1001",
)
VISA = "4111111111111111"


def wire(request: Request) -> ChargeRequest:
    """Make the message of a request."""
    return ChargeRequest(
        idempotency_key=request.idempotency_key,
        user_id=request.user_id,
        card=common_pb2.Card(**dataclasses.asdict(request.card)),
        amount=common_pb2.Money(minor_units=request.amount.minor_units, currency_code=request.amount.currency_code),
        description=request.description,
        metadata=dict(request.metadata),
        return_url=request.return_url,
    )


def always_refused(request: Request) -> Faults:
    return screening.always_refused(wire(request))


A_TIME = re.compile(r"2[3-7](0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])[0-5]\d[0-5]\d")
CARD_PLACES = ("card.brand", "card.fingerprint", "card.last4", "card.token")
# The places of a client's text in a request: the field's name in a fault, and a function that puts a text there.
PLACES: dict[str, Callable[[str], Request]] = {
    "idempotency_key": lambda text: dataclasses.replace(GOOD, idempotency_key=text),
    "user_id": lambda text: dataclasses.replace(GOOD, user_id=text),
    "card.token": lambda text: dataclasses.replace(GOOD, card=Card(text)),
    "card.brand": lambda text: dataclasses.replace(GOOD, card=Card("tok_visa", brand=text)),
    "card.last4": lambda text: dataclasses.replace(GOOD, card=Card("tok_visa", last4=text)),
    "card.fingerprint": lambda text: dataclasses.replace(GOOD, card=Card("tok_visa", fingerprint=text)),
    "amount.currency_code": lambda text: dataclasses.replace(GOOD, amount=Money(1250, text)),
    "description": lambda text: dataclasses.replace(GOOD, description=text),
    "return_url": lambda text: dataclasses.replace(GOOD, return_url=text),
    "metadata.key": lambda text: dataclasses.replace(GOOD, metadata=((text, "1"),)),
    "metadata.value": lambda text: dataclasses.replace(GOOD, metadata=(("a", "1"), ("b", text), ("c", text))),
}


def with_check_digit(digits: str) -> str:
    """Append the Luhn digit, by an independent implementation, against which ours is tested."""
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
zeros = st.sampled_from("0\uff10\u0660\u06f0\u0966\u0e50\U0001d7ce")  # The digits of a script follow its zero.


def _is_odd(number: str) -> bool:
    """Whether it fits only schemes whose numbers count in a card's fields only."""
    return not any(
        len(number) in scheme.lengths and low <= int(number[:4]) <= high
        for scheme in SCHEMES
        if not scheme.odd
        for low, high in scheme.prefixes
    )


def _groupings(number: str) -> list[tuple[int, ...]]:
    """The group sizes in which a card's number is printed or typed; one group means no grouping."""
    length = len(number)
    found = [(4,) * (length // 4) + ((length % 4,) if length % 4 else ())]
    if not _is_odd(number):
        found += [(length,), (1,) * length, (2,) * (length // 2) + (1,) * (length % 2)]
    return found + [sizes for sizes in ((4, 6, 5), (4, 6, 4), (4, 3, 3, 3), (6, 13)) if sum(sizes) == length]


@st.composite
def written(draw: st.DrawFn, number: str, sizes: tuple[int, ...] | None = None) -> str:
    """Write a number with any separators, in digits of any scripts, in groups of these or of any sizes."""
    breaks = None if sizes is None else {sum(sizes[:n]) for n in range(1, len(sizes))}
    between = separators if breaks is None else separators.filter(bool)
    text = "".join(
        (draw(between) if breaks is None or at in breaks else "") + chr(ord(draw(zeros)) + int(digit))
        for at, digit in enumerate(number)
    )
    return draw(st.sampled_from(["", "card", "tok_", "Karte №", "%B", "番号"])) + text


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
        assert card_number_in(one, of_card=True), one
        assert card_number_in(one) or _is_odd(one), one


@settings(max_examples=400)
@given(st.data(), card_numbers(), st.sampled_from(CARD_PLACES))
def test_a_cards_field_refuses_a_card_number_in_any_notation(data: st.DataObject, number: str, field: str) -> None:
    """With separators anywhere and digits of other scripts: it is refused before the key is looked up."""
    found = dict(always_refused(PLACES[field](data.draw(written(number)))))
    assert found[field] == screening.CARD_NUMBER


@settings(max_examples=400)
@given(st.data(), card_numbers().filter(lambda number: not A_TIME.match(number)), st.sampled_from(sorted(PLACES)))
def test_every_field_refuses_a_card_number_bare_or_in_groups_as_on_a_card(
    data: st.DataObject, number: str, field: str
) -> None:
    """With any separators, in digits of any scripts."""
    sizes = data.draw(st.sampled_from(_groupings(number)))
    text = data.draw(written(number, sizes))
    assert dict(always_refused(PLACES[field](text)))[field] == screening.CARD_NUMBER


@pytest.mark.parametrize("field", sorted(PLACES))
def test_a_card_number_is_the_only_fault_of_its_field_and_is_named_once(field: str) -> None:
    """No other field is named."""
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
        "6759 4964 8264 3845 3",
        "620550 0000000000004",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "411 111 111 111 111 1",
        "41 11 11 11 11 11 11 11",
        "7: 6799 9901 0000 0000 019 7",
    ],
)
def test_a_number_in_printed_groups_is_found_among_other_numbers(text: str) -> None:
    """An expiry date, a security code or a list beside it does not hide it."""
    assert card_number_in(text)


@pytest.mark.parametrize(
    "text",
    [
        ";4111111111111111=25121010000012345678?",
        "%B4111111111111111^DOE/JOHN^2512101000001234567890?",
        "4111111111111111D2512101000001230",  # 32 or more hexadecimal digits that are no id
        "4111111111111111D251210100000123",
        "4111111111111111D25121010000012300000000",
        "4111111111111111d2512101",
        "5A084111111111111111",
        "5a084111111111111111",
        "9F0607A00000000310105A0841111111111111115F3403251231",
        "5A 08 41 11 11 11 11 11 11 11 5F 24 03 25 12 31",
        "5A08378282246310005F",
        "5A0A6799990100000000019F",
        "57114111111111111111D25121010000012345F",
        "chip=57134000000000000000006D2512101000001234567",
    ],
)
def test_a_track_and_a_chip_hold_a_card_number(text: str) -> None:
    """Tracks 1 and 2, track 2 in binary form, and EMV's tags 5A and 57 in hexadecimal, as terminals log them."""
    assert card_number_in(text)


@pytest.mark.parametrize(
    "number", [VISA, "5555555555554444", "378282246310005", "30569309025904", "4000000000000000006"]
)
@pytest.mark.parametrize("more", ["1227", "2712", "122027", "202712", "1227123", "27121234", "122027123"])
def test_a_number_run_together_with_its_expiry_and_code_is_found(number: str, more: str) -> None:
    """So fields of a form are copied, one behind the other."""
    assert card_number_in(number + more)
    assert card_number_in(f"paid with {number}{more}, thanks")
    assert not card_number_in(number + "1399" + more)


ESCAPED = {
    "URL": "%20",
    "URL, plus": "+",
    "URL, dash": "%2D",
    "URL, no-break space": "%C2%A0",
    "URL, twice": "%2520",
    "HTML": "&nbsp;",
    "HTML, number": "&#160;",
    "HTML, hexadecimal": "&#xA0;",
    "HTML, twice": "&amp;nbsp;",
    "HTML, a tag": "<br/>",
    "HTML, tags": "</td><td class=x>",
    "line break": r"\n",
    "line break, twice": r"\\n",
    "line breaks": r"\r\n",
    "tab": r"\t",
    "JSON": r"\u00a0",
    "string": r"\xa0",
}


@pytest.mark.parametrize("escape", ESCAPED.values(), ids=ESCAPED)
@pytest.mark.parametrize("field", ["user_id", "description", "metadata.value", "card.token"])
def test_an_escape_between_its_groups_hides_no_card_number(field: str, escape: str) -> None:
    """Escapes of URLs, HTML, JSON: a text is often copied from one."""
    for number in ("4111 1111 1111 1111", "3782 822463 10005", "4222 222 222 222"):
        text = number.replace(" ", escape)
        assert dict(always_refused(PLACES[field](text)))[field] == screening.CARD_NUMBER


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"%3{digit}" for digit in VISA),
        "".join(f"&#5{int(d) - 2};" for d in "5555555555554444"),
        "&#xFF14;" + "&#xFF11;" * 15,
        "411&zwj;11111&#8203;11111111",
    ],
)
def test_escaped_digits_are_digits(text: str) -> None:
    assert card_number_in(text)


@pytest.mark.parametrize(
    "text", ["100%4111111111111111", r"C:\4111111111111111", "a<4111111111111111>b", "&4111111111111111;"]
)
def test_a_false_escape_hides_no_card_number(text: str) -> None:
    """A text is read unescaped and as it stands."""
    assert card_number_in(text)


@pytest.mark.parametrize(
    ("brand", "last4"),
    [
        ("411111111111", "1111"),
        ("Visa 4111 1111 1111", "1111"),
        ("37828224631", "0005"),
        ("411111111111 ", "1111"),
        ("visa-4111-1111-1111-", "1111"),
    ],
)
def test_a_brand_that_the_last_four_digits_complete_is_refused(brand: str, last4: str) -> None:
    """Each alone is honest."""
    split = dataclasses.replace(GOOD, card=Card("tok_visa", brand, last4))
    assert always_refused(split) == (("card.brand", screening.CARD_NUMBER),)
    assert always_refused(dataclasses.replace(GOOD, card=Card("tok_visa", brand))) == ()


@pytest.mark.parametrize(
    "brand", ["Visa", "Visa 411111", "411111******", "Visa Debit 2027", "girocard 12/27", "Amex 3782"]
)
def test_a_brand_beside_the_last_four_digits_is_honest_without_most_of_a_number(brand: str) -> None:
    """A scheme's name, and the six digits of the issuer."""
    assert always_refused(dataclasses.replace(GOOD, card=Card("tok_visa", brand, "1111"))) == ()


# ---------------------------------------------------------------- every field, by the descriptor
ONE, MANY = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
TEXT, MESSAGE = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_MESSAGE


def _each_text(message: Message) -> Iterator[tuple[str, Callable[[Any, str], None]]]:
    """The text fields of a message, and a function for each that fills it."""

    def filled(field: Any, fill: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
        def into(target: Any, text: str) -> None:
            inner = getattr(target, field.name)
            fill(inner.add() if field.is_repeated else inner, text)

        return into

    for field in message.DESCRIPTOR.fields:
        name = field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield f"{name}.key", lambda target, text, name=name: getattr(target, name).update({text: "1"})  # type: ignore[misc]
            yield f"{name}.value", lambda target, text, name=name: getattr(target, name).update(a=text)  # type: ignore[misc]
        elif field.message_type is not None:
            inner = message_factory.GetMessageClass(field.message_type)()  # type: ignore[arg-type]  # one of two classes of the same
            for path, fill in _each_text(inner):
                yield f"{name}.{path}", filled(field, fill)
        elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
            yield name, lambda target, text, name=name: getattr(target, name).append(text)  # type: ignore[misc]
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield name, lambda target, text, name=name: setattr(target, name, text)  # type: ignore[misc]


TEXT_FIELDS = dict(_each_text(ChargeRequest()))
TO_FOLLOW: tuple[AnyRequest, ...] = (
    CaptureRequest(
        idempotency_key="capture-1",
        charge_id=GOOD.charge_id,
        amount=common_pb2.Money(minor_units=1, currency_code="EUR"),
        final=True,
    ),
    VoidRequest(idempotency_key="void-1", charge_id=GOOD.charge_id, reason="out of stock"),
    RefundRequest(
        idempotency_key="refund-1",
        charge_id=GOOD.charge_id,
        amount=common_pb2.Money(minor_units=1, currency_code="EUR"),
        reason="broken",
    ),
)
EVERY_REQUEST = (wire(GOOD), *TO_FOLLOW)


def a_copy(message: AnyRequest) -> Any:
    """Screening drops the unknown fields of the message that it gets."""
    copied = type(message)()
    copied.CopyFrom(message)  # type: ignore[arg-type]  # of its own type
    return copied


def test_every_text_field_of_the_contract_is_filled_by_these_tests() -> None:
    """A field that is added to the contract needs a place here, and a rule in screening."""
    assert set(TEXT_FIELDS) == set(PLACES)
    assert {type(message): set(dict(_each_text(message))) for message in TO_FOLLOW} == {
        CaptureRequest: {"idempotency_key", "charge_id", "amount.currency_code"},
        VoidRequest: {"idempotency_key", "charge_id", "reason"},
        RefundRequest: {"idempotency_key", "charge_id", "amount.currency_code", "reason"},
    }


@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_every_text_that_the_descriptor_names_is_searched(field: str) -> None:
    """Each is filled in turn."""
    request = wire(GOOD)
    TEXT_FIELDS[field](request, VISA)
    assert screening.always_refused(request) == ((field, screening.CARD_NUMBER),)


@pytest.mark.parametrize(
    ("message", "field"),
    [(message, field) for message in TO_FOLLOW for field in dict(_each_text(message))],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_text_of_an_operations_request_is_searched(message: AnyRequest, field: str) -> None:
    """Each field that the descriptor names, in turn; it is named once, whatever else it breaks."""
    request = a_copy(message)
    dict(_each_text(message))[field](request, VISA)
    assert screening.always_refused(request) == ((field, screening.CARD_NUMBER),)
    assert screening.always_refused(a_copy(message)) == ()


def _each_message(descriptor: Any, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The message itself and each message in it, by the numbers of the fields that lead to it. An entry of a map is none."""
    yield before
    for field in descriptor.fields:
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from _each_message(field.message_type, (*before, field.number))


UNKNOWN_FIELD = b"\xc0\x3e\x01"  # number 1000, with the value 1


@pytest.mark.parametrize(
    ("message", "numbers"),
    [(message, numbers) for message in EVERY_REQUEST for numbers in _each_message(message.DESCRIPTOR)],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else type(value).__name__,
)
def test_an_unknown_field_is_refused_wherever_it_stands(message: AnyRequest, numbers: tuple[int, ...]) -> None:
    """It might name the amount or the payer: no money moves on half a request."""
    more = UNKNOWN_FIELD
    for number in reversed(numbers):
        more = bytes([number << 3 | 2, len(more)]) + more
    request = a_copy(message)
    request.MergeFromString(more)
    assert screening.always_refused(request) == (("", screening.UNKNOWN_FIELDS),)


def _request_of_tomorrow() -> Any:
    """A message of a possible later contract: a list, bytes, a list of messages, and messages in a map."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tomorrow.proto", package="tomorrow", syntax="proto3", dependency=["charging/v1/common.proto"]
    )
    file.message_type.add(name="Party").field.add(name="name", number=1, label=ONE, type=TEXT)
    request = file.message_type.add()
    ChargeRequest.DESCRIPTOR.CopyToProto(request)
    for field in request.field:
        field.type_name = field.type_name.replace("charging.v1.ChargeRequest", "tomorrow.ChargeRequest")
        if not field.type_name:
            field.ClearField("type_name")
    entry = request.nested_type.add(name="PartiesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=ONE, type=TEXT)
    entry.field.add(name="value", number=2, label=ONE, type=MESSAGE, type_name=".tomorrow.Party")
    request.field.add(name="tags", number=51, label=MANY, type=TEXT)
    request.field.add(name="token_bytes", number=52, label=ONE, type=FieldDescriptorProto.TYPE_BYTES)
    request.field.add(name="payees", number=53, label=MANY, type=MESSAGE, type_name=".tomorrow.Party")
    parties = ".tomorrow.ChargeRequest.PartiesEntry"
    request.field.add(name="parties", number=54, label=MANY, type=MESSAGE, type_name=parties)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tomorrow.ChargeRequest"))


def test_a_field_that_is_added_to_the_contract_is_searched_without_a_line_of_code() -> None:
    """Of any shape."""
    tomorrow = _request_of_tomorrow()
    contents: dict[str, dict[str, Any]] = {
        "tags": {"tags": ["a", VISA]},
        "token_bytes": {"token_bytes": VISA.encode()},
        "payees.name": {"payees": [{"name": "a"}, {"name": VISA}]},
        "parties.key": {"parties": {VISA: {}}},
        "parties.value.name": {"parties": {"a": {"name": VISA}}},
    }
    for field, content in contents.items():
        assert screening.always_refused(tomorrow(idempotency_key="k", **content)) == ((field, screening.CARD_NUMBER),)


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",  # fails Luhn
        "7111111111111114",  # no scheme's prefix
        "411111111111116",  # 15 digits beginning with 4
        "55555555555555557",  # 17 digits beginning with 5
        "411111111111111112",  # a longer run
        "94111111111111111",
        "4111x1111x1111x1111",  # letters are no separators
        "41111111111111111399",  # no month
        "41111111111111111255",  # no plausible year
        "5A074111111111111112",  # a tag with a wrong length
        "0000000000000000",
        "",
        "9" * 16_000,
    ],
)
def test_digits_without_prefix_length_or_check_digit_are_no_card_number(text: str) -> None:
    """All three must fit a whole run, in a card's field as well."""
    assert not card_number_in(text)
    assert not card_number_in(text, of_card=True)


@pytest.mark.parametrize("length", range(10, 21))
def test_luhn_is_computed_by_iso_7812(length: int) -> None:
    """Compared with another implementation: of ten check digits exactly one passes."""
    scheme = next((s for s in SCHEMES if length in s.lengths), None)
    body = (str(scheme.prefixes[0][0]) if scheme else "4000") + "7259136480259137"[: length - 5]
    passing = [digit for digit in string.digits if card_number_in(body + digit, of_card=True)]
    assert passing == ([with_check_digit(body)[-1]] if scheme else [])


@pytest.mark.parametrize(
    "text",
    [
        "44444444-4444-4444-8444-444444444444",
        "order/411111aa-1111-4111-8111-411111111111/1",
        "ttok_4111111111111111aaaabbbbccccdddd",
        "txn_" + "4111111111111111abcdefab" + "0" * 8,
        "ttok_05033b4a1961033c4173917240782001",  # a token of the mock bank's: the fewest letters that an id has
        "4111111111111111abcdefab",
        "4111111111111111" + "ab" * 12,
        "4111111111111111" + "ab" * 24,
    ],
)
def test_uuids_and_hexadecimal_ids_may_hold_any_digits(text: str) -> None:
    """Charge ids, our bank's tokens and transactions, trace ids, digests."""
    assert not card_number_in(text)


def test_an_id_beside_it_does_not_hide_a_card_number() -> None:
    """Only the id's own digits pass."""
    some_id = "44444444-4444-4444-8444-444444444444"
    assert card_number_in(f"{some_id}-4111-1111-1111-1111")
    assert card_number_in(f"{VISA}/{some_id}")


@given(st.text("0123456789abcdef", min_size=16, max_size=16), card_numbers().filter(lambda number: len(number) == 16))
def test_no_uuid_is_refused(head: str, number: str) -> None:
    """Not even one that ends in a card number: in upper or lower case, with prefix and suffix, as in keys."""
    some_id = str(uuid.UUID(head + number))
    for text in (some_id, some_id.upper(), f"order-{some_id}-1", f"txn_{some_id}"):
        assert not card_number_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "4915112345672",  # Germany, mobile
        "4915112345678",
        "+4915112345672",
        "4366412345671",  # Austria
        "0049 151 12345672",
        "49 151 12345672",
        "+49 151 1234 5672",
        "4006381333931",  # EAN-13 of Germany
        "4 006381 333931",
        "4900000000015",  # of Japan
        "501800000009",
    ],
)
def test_phone_and_article_numbers_count_in_a_cards_fields_only(text: str) -> None:
    """13 digits that begin with 4, and the rare lengths of Maestro, unless they are in groups as on a card."""
    for field in sorted(set(PLACES) - set(CARD_PLACES)):
        assert screening.CARD_NUMBER not in dict(always_refused(PLACES[field](text))).values()
    assert dict(always_refused(PLACES["card.token"]("4222222222222"))) == {"card.token": screening.CARD_NUMBER}
    assert not card_number_in("4222222222222")
    assert card_number_in("4222 222 222 222")
    assert card_number_in("4222 2222 2222 2")


@pytest.mark.parametrize("text", ["2611282330050004", "2702281159590008", "2312312359590007"])
def test_an_order_number_that_begins_with_a_time_counts_in_a_cards_fields_only(text: str) -> None:
    """yymmddHHMMSS and four digits: it begins like a Mastercard, in these years."""
    number = with_check_digit(text[:-1])
    assert card_number_in(number, of_card=True)
    assert not card_number_in(number)
    assert not card_number_in(f"order {number}")
    assert card_number_in(with_check_digit("26133" + text[5:-1]))


@pytest.mark.parametrize(
    "text",
    [
        "bench:6187:18ec538375723166:1001",
        "6187-18ec538375723166-1001",
        "18ec538375723166:1001",
    ],
)
def test_digits_inside_a_hexadecimal_word_join_with_nothing(text: str) -> None:
    """In a card's field too: only the run itself is checked."""
    assert card_number_in("538375723166:1001", of_card=True)
    for of_card in (False, True):
        assert not card_number_in(text, of_card=of_card)
        assert card_number_in(f"18ec{VISA}c1")


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
    account = f"{rng.randrange(10**18):018}"
    return f"DE{98 - int(account + '131400') % 97:02}{account}"


def _ean(rng: random.Random) -> str:
    """An article number of Europe, the Americas or Japan, with its check digit."""
    body = f"{rng.choice([rng.randrange(140), rng.randrange(300, 500), rng.randrange(500, 1000)]):03}{rng.randrange(10**9):09}"
    return body + str(-sum(int(digit) * (3 if at % 2 else 1) for at, digit in enumerate(body)) % 10)


def _mobile(rng: random.Random) -> str:
    """A German mobile number without its leading 0: 10 or 11 digits."""
    prefix = rng.choice(
        ["151", "152", "155", "157", "159", "160", "162", "163", "170", "171", "172", "173", "175", "176", "179"]
    )
    return prefix + "".join(rng.choices(string.digits, k=rng.choice([7, 8, 8, 8])))


CALLING_CODES = "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 52 55 60 61 62 63 65 66 81 82 84 86 90 91"


def _foreign_phone(rng: random.Random) -> str:
    """A number in the form of E.164, with any calling code and 11 to 13 digits in all."""
    code: str = rng.choice(re.findall(r"\d+", CALLING_CODES))
    return code + "".join(rng.choices(string.digits, k=rng.choice([11, 12, 12, 13]) - len(code)))


def _hexadecimal_key(rng: random.Random) -> str:
    """A key of our former benchmark: a process, nanoseconds in hexadecimal, a number."""
    return f"bench:{rng.randrange(1000, 99999)}:{_millis(rng) * 10**6 + rng.randrange(10**6):x}:{rng.randrange(10**5)}"


def _structured_key(rng: random.Random) -> str:
    """A shop, a day or a time, and a number, without a letter."""
    when = rng.choice([f"{_when(rng):%Y%m%d}", f"{_when(rng):%Y-%m-%d}", f"{_millis(rng)}", f"{_millis(rng) // 1000}"])
    return rng.choice("-:._/").join([str(rng.randrange(10 ** rng.randrange(2, 6))), when, f"{rng.randrange(10**4):04}"])


# Kinds of honest texts, and the largest share in per cent that may be refused outside of a card's fields.
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
    "yymmddHHMMSS and 4": (0.6, lambda rng: f"{_when(rng):%y%m%d%H%M%S}{rng.randrange(10**4):04}"),
    "UUID": (0, lambda rng: str(uuid.UUID(int=rng.getrandbits(128)))),
    "UUID, time first": (0, lambda rng: str(uuid.UUID(int=_millis(rng) << 80 | rng.getrandbits(80)))),
    "UUID with affixes": (0, lambda rng: f"order-{uuid.UUID(int=rng.getrandbits(128))}-{rng.randrange(10**4):04}"),
    "MD5": (0.01, lambda rng: f"{rng.getrandbits(128):032x}"),
    "SHA-1": (0, lambda rng: f"{rng.getrandbits(160):040x}"),
    "SHA-256": (0, lambda rng: f"{rng.getrandbits(256):064x}"),
    "Mongo id": (0.1, lambda rng: f"{_millis(rng) // 1000:08x}{rng.getrandbits(64):016x}"),
    "hexadecimal, 16": (0.1, lambda rng: f"{rng.getrandbits(64):016x}"),
    "hexadecimal, 48": (0.1, lambda rng: f"{rng.getrandbits(192):048x}"),
    "key with hexadecimal": (0.01, _hexadecimal_key),
    "key of numbers": (0.1, _structured_key),
    "snowflake, Twitter": (0, _snowflake(1288834974657, 22)),
    "snowflake, Discord": (0.1, _snowflake(1420070400000, 22)),
    "snowflake, Sonyflake": (1, _snowflake(1409529600000, 24, tick_ms=10)),
    "snowflake, Instagram": (5, _snowflake(1314220021721, 23)),
    "IMEI": (0, lambda rng: with_check_digit(f"35{rng.randrange(10**12):012}")),
    "EAN-13": (0, _ean),
    "EAN-13, several": (0, lambda rng: ", ".join(_ean(rng) for _ in range(3))),
    "IBAN": (0, _iban),
    "IBAN in groups": (0, lambda rng: re.sub("(....)", r"\1 ", _iban(rng))),
    "mobile, +49": (0, lambda rng: f"+49{_mobile(rng)}"),
    "mobile, 49": (0, lambda rng: f"49{_mobile(rng)}"),
    "mobile, 0049": (0, lambda rng: f"0049{_mobile(rng)}"),
    "mobile, 0": (0, lambda rng: f"0{_mobile(rng)}"),
    "mobile, spaced": (0, lambda rng: re.sub(r"(...)(....)(.*)", r"+49 \1 \2 \3", _mobile(rng))),
    "phone, any country": (0, _foreign_phone),
    "12 digits": (0, _number(12)),
    "13 digits": (0, _number(13)),
    "14 digits": (1, _number(14)),
    "15 digits": (1, _number(15)),
    "16 digits": (6, _number(16)),
    "17 digits": (1, _number(17)),
    "18 digits": (1, _number(18)),
    "19 digits": (4, _number(19)),
    "20 to 23 digits": (0.5, lambda rng: _number(rng.randrange(20, 24))(rng)),
}


def _taken_for_cards(kind: str, count: int, *, of_card: bool = False) -> float:
    rng = random.Random(kind)
    return 100 * sum(card_number_in(HONEST[kind][1](rng), of_card=of_card) for _ in range(count)) / count


@pytest.mark.parametrize("kind", HONEST)
def test_honest_numbers_are_seldom_taken_for_card_numbers(kind: str) -> None:
    """Every run has the same numbers: the seed is the kind's name."""
    assert _taken_for_cards(kind, 5_000) <= HONEST[kind][0]


# ---------------------------------------------------------------- the share of card numbers found
# Rough shares of the world's cards: most accidents concern a Visa or a Mastercard.
_COMMON = (
    "Visa",
    "Visa",
    "Visa",
    "Mastercard",
    "Mastercard",
    "American Express",
    "Discover",
    "Diners Club",
    "JCB",
    "UnionPay",
    "Maestro",
)


def _card(rng: random.Random, schemes: tuple[str, ...] = _COMMON) -> str:
    name = rng.choice(schemes)
    scheme = next(each for each in SCHEMES if each.name == name)
    low, high = rng.choice(scheme.prefixes)
    digits = "".join(rng.choices(string.digits, k=scheme.lengths[0] - 5))
    return with_check_digit(f"{rng.randint(low, high)}{digits}")


def _grouped(number: str, separator: str) -> str:
    sizes = {15: (4, 6, 5), 14: (4, 6, 4)}.get(len(number), (4,) * (len(number) // 4))
    return separator.join(number[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes)))


def _expiry(rng: random.Random) -> str:
    month, year, code = f"{rng.randrange(1, 13):02}", f"{rng.randrange(24, 35)}", f"{rng.randrange(1000):03}"
    return rng.choice([month + year, year + month, f"{month}20{year}"]) + rng.choice(["", code])


def _tagged(rng: random.Random) -> str:
    number = _card(rng)
    padded = number + "F" * (len(number) % 2)
    if rng.random() < 0.5:
        return f"5A{len(padded) // 2:02X}{padded}5F3403{rng.getrandbits(24):06x}"
    track = f"{number}D2712{rng.randrange(10**9):09}"
    track += "F" * (len(track) % 2)
    return f"57{len(track) // 2:02X}{track}"


def _anyhow(rng: random.Random) -> str:
    """In groups of any sizes."""
    return "".join(digit + (" " if rng.random() < 0.25 else "") for digit in _card(rng))


# The notations of a card number, and the least share that must be found: in a card's fields, and elsewhere.
WRITTEN: dict[str, tuple[float, float, Callable[[random.Random], str]]] = {
    "bare": (100, 99.9, _card),
    "old 13 and odd, bare": (100, 0, lambda rng: _card(rng, ("Visa, old", "Maestro, old issuers"))),
    "old 13, 4 3 3 3": (
        100,
        100,
        lambda rng: re.sub(r"(....)(...)(...)(...)", r"\1 \2 \3 \4", _card(rng, ("Visa, old",))),
    ),
    "in a sentence": (100, 99.9, lambda rng: f"please use {_card(rng)}, thanks"),
    "after a word": (100, 99.9, lambda rng: f"card{_card(rng)}"),
    "groups, space or dash": (100, 100, lambda rng: _grouped(_card(rng), rng.choice([" ", "-", ".", "\u00a0", "\n"]))),
    "groups, escaped": (100, 100, lambda rng: _grouped(_card(rng), rng.choice(sorted(ESCAPED.values())))),
    "groups and expiry": (100, 100, lambda rng: f"{_grouped(_card(rng), ' ')} 12/27 {rng.randrange(1000):03}"),
    "run on into expiry": (100, 99, lambda rng: _card(rng) + _expiry(rng)),
    "track 2": (100, 100, lambda rng: f";{_card(rng)}=2712{rng.randrange(10**9):09}?"),
    "EMV, 5A and 57": (100, 100, _tagged),
    "groups of any sizes": (95, 0, _anyhow),
}


def _found(way: str, count: int, *, of_card: bool) -> float:
    rng = random.Random(way)
    return 100 * sum(card_number_in(WRITTEN[way][2](rng), of_card=of_card) for _ in range(count)) / count


@pytest.mark.parametrize("way", WRITTEN)
def test_card_numbers_are_found_in_every_accidental_notation(way: str) -> None:
    """All or nearly all, in every field. The table above marks the notations that count in a card's fields only."""
    in_card, elsewhere, _ = WRITTEN[way]
    assert _found(way, 3_000, of_card=True) >= in_card
    assert _found(way, 3_000, of_card=False) >= elsewhere


# ---------------------------------------------------------------- before the key is looked up
@pytest.mark.parametrize(
    "key",
    ["1", "1001", "k" * 255, "auth0|x", "jane+x@y", str(uuid.UUID(int=7)), "".join(map(chr, range(0x21, 0x7F)))],
)
def test_a_key_of_1_to_255_printable_characters_of_ascii_is_well_formed(key: str) -> None:
    """Every one but the space."""
    assert key_fault(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "k" * 256,
        "k\x7f",
        "k\0",
        " 12345678",
        "12345678\n",
        "12345 678",
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


@pytest.mark.parametrize("message", TO_FOLLOW, ids=lambda message: type(message).__name__)
def test_an_operation_names_its_charge_by_the_id_that_charge_answers(message: AnyRequest) -> None:
    """No charge can have another, so that it is refused before anything is read. A UUID may hold any digits."""
    for charge_id in (GOOD.charge_id, "ffffffff-ffff-8fff-bfff-ffffffffffff", "44444444-4444-4444-8444-444444444444"):
        request = a_copy(message)
        request.charge_id = charge_id
        assert screening.always_refused(request) == ()
    good = GOOD.charge_id
    for charge_id in (
        "order-1001",
        good.upper().replace("0", "A"),
        good[:-1],
        good + "0",
        f" {good}",
        f"{good}\n",
        good * 2,
    ):
        request = a_copy(message)
        request.charge_id = charge_id
        assert screening.always_refused(request) == (("charge_id", screening.CHARGE_ID_MALFORMED),)
    request = a_copy(message)
    request.ClearField("charge_id")
    assert screening.always_refused(request) == (("charge_id", screening.REQUIRED),)


@pytest.mark.parametrize("message", TO_FOLLOW, ids=lambda message: type(message).__name__)
def test_the_key_of_an_operation_has_the_form_of_a_charges(message: AnyRequest) -> None:
    """Each fault is told, the card number of a malformed key first."""
    request = a_copy(message)
    request.idempotency_key = "k" * 256
    assert screening.always_refused(request) == (("idempotency_key", screening.KEY_MALFORMED),)
    request.idempotency_key, request.charge_id = f"{VISA} ", VISA
    assert screening.always_refused(request) == (
        ("idempotency_key", screening.CARD_NUMBER),
        ("charge_id", screening.CARD_NUMBER),
    )


def test_a_known_key_is_found_despite_any_fault_of_the_request() -> None:
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
ADDRESSES = (
    "",
    *(
        "http://a",
        "https://shop.example",
        "https://SHOP.example/",
        "http://127.0.0.1:8080/customer/ttok_1",
        "http://[::1]:1/",
    ),
    *(
        "https://shop.example?order=1",
        "https://shop.example#top",
        "https://shop_2.example:65535/a/../b;c=d?e=f&g=@h#i/j?k",
    ),
    *("https://shop.example/%F0%9F%8E%9F/x'y(z)*!$,+~:[]", "https://xn--caf-dma.example/", "https://a/" + "x" * 2038),
    "https://hooks.stripe.com/3d_secure_2/hosted?merchant=acct_1&payment_intent=pi_3&client_secret=pi_3_secret_x",
)
NO_ADDRESSES = (
    *(
        "x",
        "shop.example",
        "//shop.example/",
        "/back",
        "https:",
        "https://",
        "https:///back",
        "https://?a",
        "https://#a",
    ),
    *("ftp://shop.example", "javascript:alert(1)", "data:text/html,x", "shop://back", "file:///etc/passwd"),
    *("HTTPS://shop.example", "Https://shop.example", "https:shop.example", "https:/shop.example", "http s://a"),
    *("https://bank.example@shop.example", "https://bank.example:443@shop.example/", "https://a:b@c/", "https://@a/"),
    *(
        "https://shop.example\\@bank.example/",
        "https://shop.example\\back",
        "https://shop.example:",
        "https://a:1234567",
    ),
    *("https://a:80a", "https://[::1", "https://::1/", "https://[shop.example]", "https://a b/", "https://a/b c"),
    *(
        " https://a",
        "https://a ",
        "https://a\n",
        "https://a/\r\nLocation: b",
        "https://a/\t",
        "https://a/\0",
        "\ufeffhttps://a",
    ),
    *(
        "https://caf\u00e9.example/",
        "https://shop.example/caf\u00e9",
        "https://sh\u043ep.example",
        "https://a\u3002b",
        "\u202ehttps://a",
    ),
    *("https://a/\u200b", "\uff48ttps://a", "https://a\u2215b@c", *(f"https://a/{sign}" for sign in '"<>^`{|}\\')),
    "https://a/" + "x" * 2039,
)


def _amount(minor_units: int, currency_code: str = "EUR") -> Request:
    return dataclasses.replace(GOOD, amount=Money(minor_units, currency_code))


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        (_amount(0), "amount.minor_units", screening.AMOUNT_NOT_POSITIVE),
        (_amount(-1), "amount.minor_units", screening.AMOUNT_NOT_POSITIVE),
        (_amount(-(2**63)), "amount.minor_units", screening.AMOUNT_NOT_POSITIVE),
        (_amount(100_000_000), "amount.minor_units", screening.AMOUNT_TOO_LARGE),
        *(
            (_amount(100_000_000, code), "amount.minor_units", screening.AMOUNT_TOO_LARGE)
            for code in ("JPY", "USD", "GBP", "CHF", "KWD")
        ),
        *(
            (_amount(1_000_000_000_000, code), "amount.minor_units", screening.AMOUNT_TOO_LARGE)
            for code in ("IDR", "VND", "KRW", "COP", "IRR", "LBP", "UGX")
        ),
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
                *("u" * 256, "a b", "a\0", "a\r\n", "a\x1b", "a\u202eb", "a\u200bb", "\ud800"),
                *("Rene\u0301", "ren\u00e9", "'; DROP", " ", "\uff41", "a\u200db"),
            )
        ),
        (PLACES["user_id"](""), "user_id", screening.REQUIRED),
        (PLACES["card.token"](""), "card.token", screening.REQUIRED),
        *(
            (PLACES["card.token"](token), "card.token", screening.TOKEN_MALFORMED)
            for token in ["t" * 256, "t" * 10_000, "tok visa", "tok_visa\n", "tök", "${x}", "<x>", "'x'"]
        ),
        *(
            (PLACES["card.fingerprint"](fingerprint), "card.fingerprint", screening.FINGERPRINT_MALFORMED)
            for fingerprint in ["f" * 256, "fp 1", "fp\n", "f\u0308p", "${x}", "<x>", "'x'", " "]
        ),
        (PLACES["card.brand"]("V" * 65), "card.brand", screening.BRAND_TOO_LONG),
        (PLACES["card.brand"]("银" * 22), "card.brand", screening.BRAND_TOO_LONG),
        (PLACES["card.brand"]("Vi\nsa"), "card.brand", screening.TEXT_UNPRINTABLE),
        (PLACES["card.brand"]("银\u200d"), "card.brand", screening.TEXT_UNPRINTABLE),
        *(
            (PLACES["card.last4"](last4), "card.last4", screening.LAST4_MALFORMED)
            for last4 in ["424", "42424", "424x", "\uff14\uff12\uff14\uff12", "4242\n", " 4242"]
        ),
        *(
            (PLACES[field](text), field, screening.TEXT_TOO_LONG)
            for field in ("description", "metadata.value")
            for text in ("d" * 1501, "ü" * 751, "猫" * 501, "🎟" * 376)
        ),
        (
            dataclasses.replace(GOOD, metadata=tuple((f"key-{n}", "v" * 1424) for n in range(7))),
            "metadata",
            screening.METADATA_TOO_LARGE,
        ),
        *(
            (PLACES[field](f"pay{character}ment"), field, screening.TEXT_UNPRINTABLE)
            for field in ("description", "metadata.value")
            for character in "\0\r\x1b\x7f\x0b\x85\xad\u200b\u200d\u200e\u202e\u2028\u2066\ufeff\ud800\u3164\u2800\U000e0041"
        ),
        (
            dataclasses.replace(GOOD, metadata=tuple((f"k{i}", "v") for i in range(21))),
            "metadata",
            screening.METADATA_TOO_MANY,
        ),
        *(
            (PLACES["description"](text), "description", screening.TEXT_UNPRINTABLE)
            for text in ("م\u200c\u200dخ", "a\u200d", "\u200d", "\n\u200c", "م\u200c\u202eخ", "a\n\r\nb\rc")
        ),
        *(
            (PLACES[field](text), field, screening.TEXT_TELLS_CODE)
            for field in ("description", "metadata.value")
            for text in (
                *("cvv 123", "CVV: 1234", "cvc=123", "cvv2=123", "CVC2 is 123", "cvv%20123", "cvv&nbsp;123"),
                *("exp 12/27, cvv: 123", "security code 123", "card security code is 1234", '{"cvv":"123"}'),
                *("cvv no. 123", "card verification value: 123", "my CVC code is\n123"),
            )
        ),
        *((PLACES["return_url"](text), "return_url", screening.RETURN_URL_MALFORMED) for text in NO_ADDRESSES),
        *(
            (PLACES["return_url"](f"https://shop.example/{text}"), "return_url", screening.TEXT_TELLS_CODE)
            for text in ("?cvv=123", "#cvc:1234", "?a=security%20code%20123", "?CVV2%3D123")
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
                *(
                    "cvv_1",
                    "cvv1",
                    "cvc.2",
                    "cc_cvv",
                    "card1_cvv",
                    "credit-card-cvv",
                    "cvv_number",
                    "cvc_value",
                    "pin_1",
                ),
            )
        ),
    ],
)
def test_a_new_charge_that_breaks_a_rule_is_refused_with_the_field_and_the_rule(
    request_: Request, field: str, text: str
) -> None:
    """Cases 1 to 26: one fault for one mistake, the field named once."""
    assert faults(request_) == ((field, text),)


@pytest.mark.parametrize(
    "request_",
    [
        _amount(1),
        _amount(99_999_999),
        _amount(99_999_999, "JPY"),
        *(_amount(999_999_999_999, code) for code in ("IDR", "VND", "KRW", "COP", "IRR", "LBP", "UGX")),
        _amount(1250, "KWD"),
        _amount(1251, "UGX"),
        PLACES["user_id"]("u"),
        *(PLACES["user_id"](user_id) for user_id in ("auth0|x", "jane+x@y", "../x", "%00", "${jndi:}", "u" * 255)),
        PLACES["card.token"]("pm_1MtwBwLkdIwHu7ix28a3tqPa"),
        PLACES["card.token"]("t" * 255),
        PLACES["card.token"]("eyJhbGciOi.J9-_~+/="),
        *(PLACES["card.fingerprint"](text) for text in ("", "f", "f" * 255, "Xt5EWLLDS7FJjR1c", "fp:9/a+b==~-_.")),
        PLACES["card.brand"]("银" * 21 + "V"),
        PLACES["card.brand"]("Cartes Bancaires 银联"),
        PLACES["description"](""),
        *map(PLACES["return_url"], ADDRESSES),
        *(
            PLACES[field](text)
            for field in ("description", "metadata.value")
            for text in (
                *("d" * 1500, "ü" * 750, "猫" * 500, "🎟" * 375),
                *(
                    "Line 1\nLine 2\r\n\tindented\n",
                    "👩\u200d👩\u200d👧\u200d👦 👩🏽\u200d🚀 🏳️\u200d🌈 ❤️\u200d🔥",
                    "م\u200cخ",
                    "क्\u200dष and ക്\u200c",
                ),
                *(
                    "CVV result: M",
                    "cvv2 check passed",
                    "PIN 1234",
                    "CID 12345",
                    "cvcx 123",
                    "recv 123",
                    "cvv 12",
                    "cvv 12345",
                ),
            )
        ),
        dataclasses.replace(GOOD, metadata=tuple((f"key-{n}", "v" * 1423) for n in range(7))),
        PLACES["description"]("cafe\u0301, 50\u00a0% off, مرحبا, 日本語, ❤️ '; DROP TABLE ${jndi:} {{7*7}} <b>"),
        PLACES["description"]("\ue000\U000323af"),  # private, unassigned
        PLACES["metadata.key"]("A_z.0:9-" * 5),
        *(
            PLACES["metadata.key"](key)
            for key in ["pincode", "track", "shipping", "civic", "cardholder_id", "pan", "spin", "cvv_result", "1"]
        ),
        dataclasses.replace(GOOD, metadata=tuple((f"k{i}", "v") for i in range(20))),
    ],
)
def test_a_new_charge_within_the_rules_has_no_faults(request_: Request) -> None:
    """The bounds are allowed; texts for people are in any language, NFC or not."""
    assert faults(request_) == ()


def test_all_faults_are_reported_together() -> None:
    """So a client corrects its request once."""
    request = dataclasses.replace(_amount(0, "usd"), user_id="", description="\r", metadata=(("", "\0"), ("pin", "1")))
    assert dict(faults(request)) == {
        "user_id": screening.REQUIRED,
        "amount.currency_code": screening.CURRENCY_UNKNOWN,
        "amount.minor_units": screening.AMOUNT_NOT_POSITIVE,
        "description": screening.TEXT_UNPRINTABLE,
        "metadata.key": screening.METADATA_KEY_MALFORMED,
        "metadata.value": screening.TEXT_UNPRINTABLE,
    }


def test_caps_are_of_eight_digits_or_of_twelve_and_stand_in_the_contract() -> None:
    """The contract lists the currencies of the larger one."""
    eight, twelve = 10**8 - 1, 10**12 - 1
    assert set(currencies.MAX_MINOR_UNITS) == set(EXPONENTS)
    assert set(currencies.MAX_MINOR_UNITS.values()) == {eight, twelve}
    contract = (Path(__file__).parents[2] / "protos/charging/v1/command.proto").read_text()
    listed = re.search(r"999,999,999,999: ([A-Z /\n]*)\.", contract)
    assert listed is not None
    assert re.findall("[A-Z]{3}", listed[1]) == [
        code for code in sorted(EXPONENTS) if currencies.MAX_MINOR_UNITS[code] == twelve
    ]
    assert f"{eight:,} minor units" in contract


def test_a_configured_cap_replaces_the_built_in_one() -> None:
    """For its currency, up or down."""
    caps = {**currencies.MAX_MINOR_UNITS, "EUR": 500, "USD": 10**12 - 1}
    assert faults(_amount(500), caps) == ()
    assert faults(_amount(501), caps) == (("amount.minor_units", screening.AMOUNT_TOO_LARGE),)
    assert faults(_amount(10**12 - 1, "USD"), caps) == ()


def test_the_largest_request_that_the_contract_allows_fits_the_limit_of_a_message() -> None:
    """Every field as long as its rule allows, in bytes."""
    largest = Request(
        charge_id="",
        tenant="",
        idempotency_key="k" * 255,
        actor="",
        user_id="u" * 255,
        card=Card("t" * 255, "银" * 21 + "V", "4242", "f" * 255),
        amount=Money(10**12 - 1, "IDR"),
        description="猫" * 500,
        metadata=tuple((f"{n:02}" + "k" * 38, "猫" * 153 + "v") for n in range(20)),
        return_url="https://" + "a" * 2_040,
    )
    assert (faults(largest), always_refused(largest)) == ((), ())
    assert sum(len(key.encode()) + len(value.encode()) for key, value in largest.metadata) == 10_000
    message = wire(largest)
    message.capture, message.allow_duplicate, message.off_session = command_pb2.CAPTURE_MODE_MANUAL, True, True
    message.not_after.FromMicroseconds(LATEST)
    assert message.ByteSize() <= COMMAND_BYTES
    for more in ("idempotency_key", "user_id", "description", "return_url"):
        longer = dataclasses.replace(largest, **{more: getattr(largest, more) + "x"})
        assert {field for field, _ in faults(longer) + always_refused(longer)} == {more}


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


# ---------------------------------------------------------------- a new operation
def _wish(amount: Money | None = None, reason: str = "") -> Wish:
    return Wish(Kind.REFUND, GOOD.charge_id, "default", "refund-1", "", "anonymous", amount, reason=reason)


@pytest.mark.parametrize(
    "wish",
    [
        _wish(),
        *(_wish(Money(amount, "EUR")) for amount in (1, 1250, 10**8, 2**63 - 1)),
        *(_wish(Money(10, "KWD")), _wish(Money(1, "JPY")), _wish(Money(1, "EUR"), "d" * 1500)),
        *(_wish(reason=text) for text in ("zurück, Größe 38\n\tfalsch", "猫" * 500, "👩\u200d🚀", "PIN 1234")),
    ],
)
def test_a_new_operation_within_the_rules_has_no_faults(wish: Wish) -> None:
    """The amount may be left out. No cap applies: what was once charged may go back, whatever the cap is now."""
    assert screening.faults_to_follow(wish) == ()


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        *((_wish(Money(amount, "EUR")), {"amount.minor_units": screening.AMOUNT_NOT_POSITIVE}) for amount in (0, -1)),
        (_wish(Money(-(2**63), "EUR")), {"amount.minor_units": screening.AMOUNT_NOT_POSITIVE}),
        (_wish(Money(1251, "KWD")), {"amount.minor_units": screening.AMOUNT_LAST_DIGIT}),
        *(
            (_wish(Money(1, code)), {"amount.currency_code": screening.CURRENCY_UNKNOWN})
            for code in ("", "eur", "XXX", "EUR ", "HRK")
        ),
        (
            _wish(Money(0, "")),  # there, but empty: it was not left out
            {"amount.currency_code": screening.CURRENCY_UNKNOWN, "amount.minor_units": screening.AMOUNT_NOT_POSITIVE},
        ),
        *((_wish(reason=text), {"reason": screening.TEXT_UNPRINTABLE}) for text in ("a\0", "a\u202eb", "a\u200bb")),
        *((_wish(reason=text), {"reason": screening.TEXT_TOO_LONG}) for text in ("d" * 1501, "猫" * 501)),
        (_wish(reason="cvv 123"), {"reason": screening.TEXT_TELLS_CODE}),
        (
            _wish(Money(0, "eur"), "\r"),
            {
                "amount.currency_code": screening.CURRENCY_UNKNOWN,
                "amount.minor_units": screening.AMOUNT_NOT_POSITIVE,
                "reason": screening.TEXT_UNPRINTABLE,
            },
        ),
    ],
)
def test_a_new_operation_that_breaks_rules_is_refused_with_all_of_them(wish: Wish, found: dict[str, str]) -> None:
    """Each field once."""
    assert screening.faults_to_follow(wish) == tuple(found.items())


def test_the_largest_request_of_an_operation_fits_the_limit_of_a_message() -> None:
    message = RefundRequest(idempotency_key="k" * 255, charge_id=GOOD.charge_id, reason="猫" * 500)
    message.amount.minor_units, message.amount.currency_code = 2**63 - 1, "IDR"
    assert screening.always_refused(message) == ()
    assert message.ByteSize() <= COMMAND_BYTES


# ---------------------------------------------------------------- the texts of faults
texts = (
    st.text()
    | st.text(st.sampled_from("0123456789\u0663\uff14 -.+_a\u200b"))
    | st.sampled_from([VISA, "cvv", "x" * 1600])
)
requests = st.builds(
    Request,
    charge_id=st.just(GOOD.charge_id),
    tenant=st.just(GOOD.tenant),
    idempotency_key=texts,
    actor=st.just(GOOD.actor),
    user_id=texts,
    card=st.builds(Card, texts, texts, texts, texts),
    amount=st.builds(Money, st.integers(-(2**63), 2**63 - 1), texts | st.sampled_from(sorted(EXPONENTS))),
    description=texts,
    metadata=st.lists(st.tuples(texts, texts), max_size=25).map(tuple),
)
FIXED_TEXTS = {text for name, text in vars(screening).items() if name.isupper() and isinstance(text, str)}
FIXED_FIELDS = {*PLACES, "amount", "amount.minor_units", "metadata"}


@settings(max_examples=300)
@given(requests)
def test_faults_are_fixed_texts_on_fixed_fields_for_any_input(request: Request) -> None:
    """Screening never raises, and repeats no part of the input: neither a value nor a metadata key."""
    for found in (always_refused(request), faults(request)):
        assert {field for field, _ in found} <= FIXED_FIELDS
        assert {text for _, text in found} <= FIXED_TEXTS
        assert len(dict(found)) == len(found)


@given(st.sampled_from(TO_FOLLOW), texts, texts, texts, st.integers(-(2**63), 2**63 - 1))
def test_faults_of_operations_are_fixed_texts_on_fixed_fields_for_any_input(
    message: AnyRequest, key: str, charge_id: str, text: str, minor_units: int
) -> None:
    request = a_copy(message)
    request.idempotency_key, request.charge_id = _encodable(key), _encodable(charge_id)
    if not isinstance(request, CaptureRequest):
        request.reason = _encodable(text)
    found = (*screening.always_refused(request), *screening.faults_to_follow(_wish(Money(minor_units, text), text)))
    assert {field for field, _ in found} <= {
        *("idempotency_key", "charge_id", "reason", "amount.minor_units", "amount.currency_code")
    }
    assert {text for _, text in found} <= FIXED_TEXTS


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


@given(st.text(st.characters()))
def test_a_text_without_faults_is_visible(text: str) -> None:
    """It holds no character that moves a cursor, turns the direction of writing or has no width."""
    if not faults(PLACES["description"](text)):
        seen = re.sub("[\n\t\u200c\u200d]", "", text.replace("\r\n", "\n"))
        assert not {unicodedata.category(character) for character in seen} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def main() -> None:
    """Measure both rates, over 100,000 texts of each kind and notation, and in each field of a request."""
    count = 100_000
    print(f"{'card numbers found, %':28}{'card field':>12}{'other':>12}")
    for way in WRITTEN:
        print(f"{way:28}{_found(way, count, of_card=True):12.3f}{_found(way, count, of_card=False):12.3f}")
    print(f"{'in a request, by field, %':28}{'found':>12}")
    by_accident = [make for way, (_, elsewhere, make) in WRITTEN.items() if elsewhere]
    for field, place in PLACES.items():
        rng = random.Random(field)
        found = sum(field in dict(always_refused(place(rng.choice(by_accident)(rng)))) for _ in range(count // 4))
        print(f"{field:28}{100 * found / (count // 4):12.3f}")
    print(f"{'honest texts refused, %':28}{'card field':>12}{'other':>12}")
    for kind in HONEST:
        print(
            f"{kind:28}{_taken_for_cards(kind, count, of_card=True):12.3f}{_taken_for_cards(kind, count):12.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
