"""Says what is wrong with a client's request, before anything of it is stored, logged or sent.

1. `always_refused` counts for every request: a card number in any field, a malformed idempotency key. Nothing else is
   refused before the key is looked up, or the retry of a charge that was once accepted would not find it.
2. `faults` are today's rules for a new charge. They may get stricter; charges accepted before do not meet them again.
3. A fault is a field and a text. Both are fixed and repeat nothing of the input, which may be a card number. A metadata
   key is input too, so an entry's field is "metadata.key" or "metadata.value". Each field is named once.
4. Nothing is corrected: "usd" is refused, not read as USD, and ids are compared byte for byte.

What cannot be seen: whether 1250 JPY was meant as 12.50. The amount is in minor units, and yen have none smaller.
"""

import re
import unicodedata
from collections.abc import Iterator

from command_service.card_numbers import card_number_in
from command_service.charge import Card, Money, Request
from command_service.currencies import EXPONENTS

Faults = tuple[tuple[str, str], ...]  # (field, text)

MAX_MINOR_UNITS = 99_999_999  # Eight digits, in every currency: the most that Stripe takes for nearly all of them.
MAX_BRAND_CHARACTERS = 32  # "American Express" has 16; the longer full names fit too.
MAX_TEXT_CHARACTERS = 500  # Of a description or metadata value: what Stripe keeps of a metadata value.
MAX_METADATA_ENTRIES = 20  # With keys of 40 and values of 500 ASCII characters they fit the 16 KiB of a command.

CARD_NUMBER = "looks like a card number: send a card token instead"
KEY_MALFORMED = "must be 8 to 128 of A-Z a-z 0-9 _ . : -"
REQUIRED = "is required"
USER_ID_MALFORMED = "must be 1 to 128 of A-Z a-z 0-9 _ . : @ -"
TOKEN_MALFORMED = "must be 1 to 255 of A-Z a-z 0-9 _ . : ~ + / = -"  # noqa: S105 - a text about tokens, not a token
LAST4_MALFORMED = "must be empty or exactly four digits 0-9"
AMOUNT_NOT_POSITIVE = "must be more than zero"
AMOUNT_TOO_LARGE = "must be at most 99,999,999 minor units"
AMOUNT_LAST_DIGIT = "must end in 0: in a currency of three decimals the last one cannot be charged"
CURRENCY_UNKNOWN = "must be the ISO 4217 code, in upper case, of a currency in use"
TEXT_TOO_LONG = "is too long"
TEXT_UNPRINTABLE = "must not hold control or invisible characters"
METADATA_TOO_MANY = "must have at most 20 entries"
METADATA_KEY_MALFORMED = "must be 1 to 40 of A-Z a-z 0-9 _ . : -"
METADATA_KEY_FORBIDDEN = "must not name a card's security code, PIN or track: these are never sent"

_KEY = re.compile(r"[A-Za-z0-9_.:-]{8,128}")
_USER_ID = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
# What banks and vaults make tokens of: words, UUIDs, JWTs, both kinds of base64. No space, quote, bracket, $, % or \, so
# that nobody downstream finds markup or a format in it. Stripe promises that no id of its own is longer than 255.
_CARD_TOKEN = re.compile(r"[A-Za-z0-9_.:~+/=-]{1,255}")
_LAST4 = re.compile(r"[0-9]{4}|")
_METADATA_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,40}")
# What PCI DSS 4 forbids to keep (3.3), by every scheme's name for it, whatever the value. A key is compared in lower case and
# without its punctuation.
_SENSITIVE_NAME = re.compile(
    r"(?:card)?(?:(?:cvv|cvc|cvn|cav)2?|cvp2|cve|cid|csc|cv[vc]code|securitycode|pin|pinblock|magstripe"
    r"|track[123]?data|track[123])|cardverification(?:code|value)"
)
# Controls, line separators, lone surrogates, and all that is there and cannot be seen: bidi overrides, zero-width
# characters, soft hyphens, tags. It costs joined emoji and the zero-width joiners of Persian and Indic scripts, as the
# contract says. Private and unassigned characters pass: Python knows no emoji newer than itself.
_UNPRINTABLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # Unicode calls them letters or marks.


# ---------------------------------------------------------------- the rules
def always_refused(request: Request) -> Faults:
    """Tell what is refused before the key is looked up: a card number anywhere, a malformed key."""
    found = {field: CARD_NUMBER for field, text in _texts(request) if card_number_in(text)}
    if malformed := key_fault(request.idempotency_key):
        found.setdefault("idempotency_key", malformed)
    return tuple(found.items())


def key_fault(idempotency_key: str) -> str | None:
    """Tell what is wrong with the form of an idempotency key, or None. Its characters are taken as they are."""
    return None if _KEY.fullmatch(idempotency_key) else KEY_MALFORMED


def faults(request: Request) -> Faults:
    """Tell what a request breaks of today's rules. They count for a new charge only.

    A request without an amount comes as Money(0, "").
    """
    found: dict[str, str] = {}
    for field, fault in _all_faults(request):
        if fault:
            found.setdefault(field, fault)
    return tuple(found.items())


def _all_faults(request: Request) -> Iterator[tuple[str, str | None]]:
    yield "user_id", _form_fault(_USER_ID, request.user_id, USER_ID_MALFORMED)
    yield from _card_faults(request.card)
    yield from _amount_faults(request.amount)
    yield "description", _text_fault(request.description, MAX_TEXT_CHARACTERS)
    yield "metadata", METADATA_TOO_MANY if len(request.metadata) > MAX_METADATA_ENTRIES else None
    for key, value in request.metadata:
        yield "metadata.key", None if _METADATA_KEY.fullmatch(key) else METADATA_KEY_MALFORMED
        yield "metadata.key", METADATA_KEY_FORBIDDEN if _names_a_secret(key) else None
        yield "metadata.value", _text_fault(value, MAX_TEXT_CHARACTERS)


def _card_faults(card: Card) -> Iterator[tuple[str, str | None]]:
    yield "card.token", _form_fault(_CARD_TOKEN, card.token, TOKEN_MALFORMED)
    yield "card.brand", _text_fault(card.brand, MAX_BRAND_CHARACTERS)
    yield "card.last4", None if _LAST4.fullmatch(card.last4) else LAST4_MALFORMED


def _amount_faults(amount: Money) -> Iterator[tuple[str, str | None]]:
    """Judge an amount. A minimum above zero is the bank's to know: it depends on what it settles in, and it declines."""
    if amount == Money(0, ""):
        yield "amount", REQUIRED
        return
    exponent = EXPONENTS.get(amount.currency_code)
    yield "amount.currency_code", CURRENCY_UNKNOWN if exponent is None else None
    if amount.minor_units <= 0:
        yield "amount.minor_units", AMOUNT_NOT_POSITIVE
    elif amount.minor_units > MAX_MINOR_UNITS:
        yield "amount.minor_units", AMOUNT_TOO_LARGE
    elif exponent == 3 and amount.minor_units % 10 != 0:
        # Stripe's rule for its payment partners. It holds for every bank, lest a charge's validity hang on the bank.
        yield "amount.minor_units", AMOUNT_LAST_DIGIT


def _form_fault(form: re.Pattern[str], text: str, fault: str) -> str | None:
    if not text:
        return REQUIRED
    return None if form.fullmatch(text) else fault


def _text_fault(text: str, max_characters: int) -> str | None:
    """Judge a text for people. Its characters are stored as they come, in NFC or not: no text is ever compared."""
    if len(text) > max_characters:
        return TEXT_TOO_LONG
    if text.isascii():
        return None if text.isprintable() else TEXT_UNPRINTABLE
    unprintable = not text.isprintable() and any(unicodedata.category(c) in _UNPRINTABLE_CATEGORIES for c in text)
    return TEXT_UNPRINTABLE if unprintable or not _BLANK_LETTERS.isdisjoint(text) else None


def _names_a_secret(metadata_key: str) -> bool:
    return bool(_SENSITIVE_NAME.fullmatch(re.sub(r"[_.:-]", "", metadata_key.lower())))


def _texts(request: Request) -> Iterator[tuple[str, str]]:
    yield "idempotency_key", request.idempotency_key
    yield "user_id", request.user_id
    yield "card.token", request.card.token
    yield "card.brand", request.card.brand
    yield "card.last4", request.card.last4
    yield "amount.currency_code", request.amount.currency_code
    yield "description", request.description
    for key, value in request.metadata:
        yield "metadata.key", key
        yield "metadata.value", value
