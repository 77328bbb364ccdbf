"""Finds the faults of a client's request, before any part of it is stored, logged or sent.

1. `always_refused` counts for every request: an unknown field, a card number in any field, a malformed idempotency key or
   charge id. No other rule applies before the key is looked up, or the retry of an accepted charge would not find it. The
   message is read by its descriptor, so that a field added to the contract is searched without a line here.
2. `faults` are today's rules for a new charge, `faults_to_follow` for a new operation. They may get stricter; what was
   accepted before does not meet them again. The contract's comments state every one of them. `faults_of_step` are all rules for
   a step of the desk.
3. A fault is a field and a text. Both are fixed and repeat nothing of the input, which may be a card number. A metadata
   key is input too, so an entry's field is "metadata.key" or "metadata.value". Each field is named once.
4. Nothing is corrected: "usd" is refused, not read as USD, and ids are compared byte for byte.

One mistake cannot be found: 1250 JPY that was meant as 12.50. The amount is in minor units, and the yen has no smaller unit.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.message import Message

from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from charging.v1.common_pb2 import AnswerKind, Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    AskBankRequest,
    HoldBackRequest,
    LetGoRequest,
    ProposeResolutionRequest,
    RejectResolutionRequest,
    TryNowRequest,
)
from command_service.address import is_address
from command_service.bank.dialect import is_storable
from command_service.card_numbers import card_number_in, may_hold_card_number, unescaped
from command_service.currencies import MAX_MINOR_UNITS
from command_service.values import Card, Money, Request, Wish
from contract.currencies import EXPONENTS

RequestToFollow = CaptureRequest | VoidRequest | RefundRequest
AnyRequest = ChargeRequest | RequestToFollow
StepRequest = (
    TryNowRequest
    | HoldBackRequest
    | LetGoRequest
    | ProposeResolutionRequest
    | RejectResolutionRequest
    | ApproveResolutionRequest
)
DeskRequest = StepRequest | AskBankRequest
Faults = tuple[tuple[str, str], ...]  # (field, text)

# In bytes of UTF-8, so that every request within the contract's limits fits the 16 KiB of a command.
MAX_BRAND_BYTES = 64  # "American Express" has 16; the longer full names fit too.
MAX_TEXT_BYTES = 1_500  # Of a description or metadata value: 500 characters in nearly any script.
MAX_METADATA_ENTRIES = 20
MAX_METADATA_BYTES = 10_000  # Of all keys and values together.

UNKNOWN_FIELDS = "has fields that this server does not know"
CARD_NUMBER = "looks like a card number: send a card token instead"
KEY_MALFORMED = "must be 1 to 255 printable ASCII characters without spaces"
REQUIRED = "is required"
CHARGE_ID_MALFORMED = "must be a charge's id, as Charge answers it"
USER_ID_MALFORMED = KEY_MALFORMED
TOKEN_MALFORMED = "must be 1 to 255 of A-Z a-z 0-9 _ . : ~ + / = -"  # noqa: S105 - a text about tokens, not a token
LAST4_MALFORMED = "must be empty or exactly four digits 0-9"
AMOUNT_NOT_POSITIVE = "must be more than zero"
AMOUNT_TOO_LARGE = "is more than is taken in this currency"
AMOUNT_LAST_DIGIT = "must end in 0: in a currency of three decimals the last one cannot be charged"
CURRENCY_UNKNOWN = "must be the ISO 4217 code, in upper case, of a currency in use"
FINGERPRINT_MALFORMED = "must be empty or at most 255 of A-Z a-z 0-9 _ . : ~ + / = -"
NOT_AFTER_MALFORMED = "must be a time after 1970 and before the year 10000"
RETURN_URL_MALFORMED = "must be an http or https address of at most 2,048 characters, in ASCII and without a user name"
BRAND_TOO_LONG = "must be at most 64 bytes of UTF-8"
TEXT_TOO_LONG = "must be at most 1,500 bytes of UTF-8"
TEXT_UNPRINTABLE = "must not hold control or invisible characters"
TEXT_TELLS_CODE = "must not tell a card's security code: it is never sent"
RESOLUTION_UNKNOWN = "must be a resolution that this server knows"
ANSWER_UNKNOWN = "must be a kind of answer that this server knows"
BANK_ID_MALFORMED = "must be the bank's id: 1 to 128 of A-Z a-z 0-9 _ . : -"
MUST_BE_EMPTY = "must be empty with this resolution"
METADATA_TOO_MANY = "must have at most 20 entries"
METADATA_TOO_LARGE = "must have at most 10,000 bytes of UTF-8 in all its keys and values together"
METADATA_KEY_MALFORMED = "must be 1 to 40 of A-Z a-z 0-9 _ . : -"
METADATA_KEY_FORBIDDEN = "must not name a card's security code, PIN or track: these are never sent"

# Clients' own names, of any form: "1001", "auth0|x", "jane+x@y". They are compared and stored, and never part of a path.
_NAME = re.compile(r"[!-~]{1,255}")
# The characters of banks' and vaults' tokens: words, UUIDs, JWTs, both kinds of base64. No space, quote, bracket, $, % or \,
# so that no program downstream reads markup or a format in it. Stripe promises that no id of its own is longer than 255.
_CARD_TOKEN = re.compile(r"[A-Za-z0-9_.:~+/=-]{1,255}")
_CHARGE_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_RESOLUTIONS = frozenset(Resolution.values()) - {Resolution.RESOLUTION_UNSPECIFIED}
_LAST4 = re.compile(r"[0-9]{4}|")
_METADATA_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,40}")
# The security codes that PCI DSS 4 forbids to keep (3.3), by every scheme's name and whatever the value. A key is compared in
# lower case and without its punctuation.
_CODE_NAME = r"(?:(?:cvv|cvc|cvn|cav)2?|cvp2)"
_SENSITIVE_NAME = re.compile(
    rf"(?:(?:credit|debit|payment|billing|cc)?card|cc)?[0-9]*(?:{_CODE_NAME}(?:code|value|number|no)?|cve|cid|csc"
    r"|securitycode|pin|pinblock|magstripe|track[123]?data|track[123]|cardverification(?:code|value))[0-9]*"
)
# A security code in a text: its name, and beside it three or four digits. Names with other meanings ("CID 123", "PIN 1234")
# are not looked for in texts.
_TOLD_CODE = re.compile(
    rf"(?<![a-z0-9])(?:{_CODE_NAME}|(?:card )?security code|card verification (?:code|value|number))"
    r"(?![a-z])[\W_]*+(?:(?:code|value|number|no|nr|is|ist)(?![a-z])[\W_]*+){0,2}[0-9]{3,4}(?![0-9])",
    re.IGNORECASE | re.ASCII,
)
_THREE_DIGITS = re.compile(r"[0-9]{3}")
# Controls, line separators, lone surrogates, and invisible characters: bidi overrides, zero-width characters, soft hyphens,
# tags. Private and unassigned characters pass: Python knows no emoji newer than itself.
_UNPRINTABLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # Unicode calls them letters or marks.
# A description or metadata value may also hold line breaks and tabs, and the joiners of emoji and of Persian and Indic
# letters, one at a time and only after a character beyond ASCII, where they have an effect.
_LAYOUT = re.compile(r"\r?\n|\t|(?<=[^\x00-\x7f\u200c\u200d])[\u200c\u200d]")


# ---------------------------------------------------------------- the rules
def is_charge_id(text: str) -> bool:
    """Whether a text may be the id of a charge."""
    return _CHARGE_ID.fullmatch(text) is not None


def always_refused(wire: AnyRequest) -> Faults:
    """Find the faults that count before the key is looked up: an unknown field, a card number, a malformed key or charge id."""
    found = _always_refused(wire)
    if malformed := key_fault(wire.idempotency_key):
        found.setdefault("idempotency_key", malformed)
    if isinstance(wire, RequestToFollow) and (
        malformed := _form_fault(_CHARGE_ID, wire.charge_id, CHARGE_ID_MALFORMED)
    ):
        found.setdefault("charge_id", malformed)
    return tuple(found.items())


def _always_refused(wire: Message) -> dict[str, str]:
    """Find card numbers in any field, and fields that this server does not know, which it takes out."""
    found = {}
    serialised = wire.SerializeToString()
    if may_hold_card_number(serialised):
        for field, text in _texts(wire):
            if card_number_in(text, of_card=field.startswith("card.")):
                found[field] = CARD_NUMBER
        if isinstance(wire, ChargeRequest) and "card.last4" not in found and _spans_card_fields(wire):
            found["card.brand"] = CARD_NUMBER  # its beginning, where the last four digits stand beside it
    wire.DiscardUnknownFields()
    if wire.ByteSize() != len(serialised):
        # A field that this server does not know might name the amount or the payer: no money moves on half a request.
        found[""] = UNKNOWN_FIELDS
    return found


def _spans_card_fields(wire: ChargeRequest) -> bool:
    return card_number_in(wire.card.brand + wire.card.last4, of_card=True)


def _texts(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    """Walk a message by its descriptor: every text in it with the name of its field, without indexes and keys of maps."""
    match value:
        case str():
            yield field, value
        case bytes():
            yield field, value.decode(errors="replace")
        case Message():
            for each, content in value.ListFields():
                yield from _texts(content, f"{field}.{each.name}" if field else each.name)
        case Mapping():
            for key, content in value.items():
                yield from _texts(key, f"{field}.key")
                yield from _texts(content, f"{field}.value")
        case Iterable():
            for content in value:
                yield from _texts(content, field)


def key_fault(idempotency_key: str) -> str | None:
    """Return the fault in an idempotency key's form, or None. Its characters are taken as they are."""
    return None if _NAME.fullmatch(idempotency_key) else KEY_MALFORMED


def faults(request: Request, max_minor_units: Mapping[str, int] = MAX_MINOR_UNITS) -> Faults:
    """Find the rules of today that a request breaks. They count for a new charge only.

    Money(0, "") stands for a missing amount. `max_minor_units` is the largest amount accepted, by currency.
    """
    found: dict[str, str] = {}
    for field, fault in _all_faults(request, max_minor_units):
        if fault:
            found.setdefault(field, fault)
    return tuple(found.items())


def faults_to_follow(wish: Wish) -> Faults:
    """Find the rules of today that an operation breaks. They count for a new operation only.

    No cap applies: an amount that was once charged may go back, whatever the cap has become since.
    """
    found = dict(_amount_faults(wish.amount)) if wish.amount is not None else {}
    found["reason"] = _text_fault(wish.reason)
    return tuple((field, fault) for field, fault in found.items() if fault)


def faults_of_step(wire: DeskRequest) -> Faults:
    """Find the rules that a step of the desk breaks, card numbers and unknown fields included."""
    found: dict[str, str] = _always_refused(wire)
    for field, fault in _step_faults(wire):
        if fault:
            found.setdefault(field, fault)
    return tuple(found.items())


def _step_faults(wire: DeskRequest) -> Iterator[tuple[str, str | None]]:
    yield "charge_id", _form_fault(_CHARGE_ID, wire.charge_id, CHARGE_ID_MALFORMED)
    if isinstance(wire, AskBankRequest):
        return
    yield "reason", _text_fault(wire.reason) if wire.reason.strip() else REQUIRED
    if isinstance(wire, RejectResolutionRequest | ApproveResolutionRequest):
        yield "proposal", None if wire.proposal > 0 else REQUIRED
    if isinstance(wire, ApproveResolutionRequest):
        yield "overrules", None if wire.overrules in AnswerKind.values() else ANSWER_UNKNOWN
    if isinstance(wire, ProposeResolutionRequest):
        yield from _proposal_faults(wire)


def _proposal_faults(wire: ProposeResolutionRequest) -> Iterator[tuple[str, str | None]]:
    resolution = wire.resolution
    is_known = resolution in _RESOLUTIONS
    yield "resolution", None if is_known else REQUIRED if not resolution else RESOLUTION_UNKNOWN
    yield "evidence", _text_fault(wire.evidence) if wire.evidence.strip() else REQUIRED
    if is_known:
        is_executed = resolution != Resolution.RESOLUTION_NOT_EXECUTED
        yield "transaction_id", _bank_id_fault(wire.transaction_id, is_wanted=is_executed)
        is_refunded = resolution == Resolution.RESOLUTION_REFUNDED
        yield "refund_transaction_id", _bank_id_fault(wire.refund_transaction_id, is_wanted=is_refunded)


def _bank_id_fault(bank_id: str, *, is_wanted: bool) -> str | None:
    if not is_wanted:
        return MUST_BE_EMPTY if bank_id else None
    if not bank_id:
        return REQUIRED
    return None if is_storable(bank_id) else BANK_ID_MALFORMED


def _all_faults(request: Request, max_minor_units: Mapping[str, int]) -> Iterator[tuple[str, str | None]]:
    yield "user_id", _form_fault(_NAME, request.user_id, USER_ID_MALFORMED)
    yield from _card_faults(request.card)
    if request.amount == Money(0, ""):
        yield "amount", REQUIRED
    else:
        yield from _amount_faults(request.amount, max_minor_units)
    if request.return_url:
        yield "return_url", _code_fault(request.return_url) if is_address(request.return_url) else RETURN_URL_MALFORMED
    yield "description", _text_fault(request.description)
    yield "metadata", METADATA_TOO_MANY if len(request.metadata) > MAX_METADATA_ENTRIES else None
    size = sum(_bytes_of(text) for entry in request.metadata for text in entry)
    yield "metadata", METADATA_TOO_LARGE if size > MAX_METADATA_BYTES else None
    for key, value in request.metadata:
        yield "metadata.key", None if _METADATA_KEY.fullmatch(key) else METADATA_KEY_MALFORMED
        yield "metadata.key", METADATA_KEY_FORBIDDEN if _names_a_secret(key) else None
        yield "metadata.value", _text_fault(value)


def _card_faults(card: Card) -> Iterator[tuple[str, str | None]]:
    yield "card.token", _form_fault(_CARD_TOKEN, card.token, TOKEN_MALFORMED)
    yield "card.brand", BRAND_TOO_LONG if _bytes_of(card.brand) > MAX_BRAND_BYTES else _visible_fault(card.brand)
    yield "card.last4", None if _LAST4.fullmatch(card.last4) else LAST4_MALFORMED
    if card.fingerprint:
        yield "card.fingerprint", _form_fault(_CARD_TOKEN, card.fingerprint, FINGERPRINT_MALFORMED)


def _amount_faults(amount: Money, max_minor_units: Mapping[str, int] | None = None) -> Iterator[tuple[str, str | None]]:
    """Judge an amount. The bank declines one below its minimum, which depends on the currency that it settles in."""
    exponent = EXPONENTS.get(amount.currency_code)
    yield "amount.currency_code", CURRENCY_UNKNOWN if exponent is None else None
    if amount.minor_units <= 0:
        yield "amount.minor_units", AMOUNT_NOT_POSITIVE
    elif exponent is not None and max_minor_units and amount.minor_units > max_minor_units[amount.currency_code]:
        yield "amount.minor_units", AMOUNT_TOO_LARGE
    elif exponent == 3 and amount.minor_units % 10 != 0:
        # Stripe's rule for its payment partners. It holds for every bank: no charge's validity depends on its bank.
        yield "amount.minor_units", AMOUNT_LAST_DIGIT


def _form_fault(form: re.Pattern[str], text: str, fault: str) -> str | None:
    if not text:
        return REQUIRED
    return None if form.fullmatch(text) else fault


def _text_fault(text: str) -> str | None:
    """Judge a text for people. Its characters are stored as they come, in NFC or not: no text is ever compared."""
    if _bytes_of(text) > MAX_TEXT_BYTES:
        return TEXT_TOO_LONG
    if _visible_fault(text) and _visible_fault(_LAYOUT.sub("", text)):
        return TEXT_UNPRINTABLE
    return _code_fault(text)


def _code_fault(text: str) -> str | None:
    is_told = _THREE_DIGITS.search(text) and (_TOLD_CODE.search(text) or _TOLD_CODE.search(unescaped(text)))
    return TEXT_TELLS_CODE if is_told else None


def _visible_fault(text: str) -> str | None:
    if text.isascii():
        return None if text.isprintable() else TEXT_UNPRINTABLE
    unprintable = not text.isprintable() and any(unicodedata.category(c) in _UNPRINTABLE_CATEGORIES for c in text)
    return TEXT_UNPRINTABLE if unprintable or not _BLANK_LETTERS.isdisjoint(text) else None


def _bytes_of(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _names_a_secret(metadata_key: str) -> bool:
    return bool(_SENSITIVE_NAME.fullmatch(re.sub(r"[_.:-]", "", metadata_key.lower())))
