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
from dataclasses import dataclass

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


# ---------------------------------------------------------------- card numbers
@dataclass(frozen=True, slots=True)
class Scheme:
    """The card numbers of a scheme: how their first four digits read, from and to, and how many digits they have."""

    name: str
    prefixes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]


# Prefix and length must both fit, or honest ids suffer: a tenth of all numbers pass Luhn. Sources: the table of
# braintree/credit-card-type (src/lib/card-types.ts) and Wikipedia's "Payment card number". Where they differ on a length
# that hardly any card has, it is left out if honest numbers have it: decimal ids have 17 and 18 digits, phone numbers and
# barcodes 12 and 13.
SCHEMES = (
    Scheme("Visa", ((4000, 4999),), (13, 16, 19)),
    Scheme("Mastercard", ((2221, 2720), (5100, 5599)), (16,)),
    Scheme("American Express", ((3400, 3499), (3700, 3799)), (15,)),
    Scheme("Discover", ((6011, 6011), (6440, 6599)), (16, 19)),
    Scheme("Diners Club", ((3000, 3059), (3095, 3095), (3600, 3699), (3800, 3999)), (14, 16, 19)),
    Scheme("JCB", ((3528, 3589),), (16, 17, 18, 19)),
    Scheme("UnionPay", ((6200, 6299), (8100, 8171)), (16, 17, 18, 19)),
    Scheme("Maestro", ((5000, 5099), (5600, 5899), (6300, 6399), (6700, 6799)), (16, 19)),
    # Other lengths of Maestro count only for the issuers that Wikipedia lists.
    Scheme(
        "Maestro, old issuers",
        ((5018, 5018), (5020, 5020), (5038, 5038), (5893, 5893), (6304, 6304), (6759, 6759), (6761, 6763)),
        (12, 13, 14, 15, 17, 18),
    ),
    Scheme("RuPay", ((6000, 6099), (8200, 8299)), (16,)),
    Scheme("Mir", ((2200, 2204),), (16,)),
    Scheme("Troy", ((9792, 9792),), (16,)),
)
SHORTEST, LONGEST = 12, 19
LONGEST_PHONE = 13  # E.164 allows 15 digits, but 14 and 15 would let whole schemes through.

_PREFIXES = {
    length: frozenset(
        str(prefix)
        for scheme in SCHEMES
        if length in scheme.lengths
        for low, high in scheme.prefixes
        for prefix in range(low, high + 1)
    )
    for length in range(SHORTEST, LONGEST + 1)
}
_DOUBLED = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}  # less 9 where above 9
# ASCII text with its letters made one and all but letters and digits dropped: a run of digits shows in it unbroken.
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LETTERS_TO_X = bytes.maketrans(_LETTERS, b"x" * len(_LETTERS))
_SEPARATORS = bytes(set(range(128)) - set(_LETTERS) - set(b"0123456789"))
_LONG_RUN = re.compile(rb"[0-9]{%d}" % SHORTEST)
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
# Digits, and between them anything but letters: spaces, dashes, dots, slashes, zero-width characters, emoji.
_CHAIN = re.compile(rf"[0-9](?:[\W_]*+[0-9]){{{SHORTEST - 1},}}")
_GROUP = re.compile(r"[0-9]+")
# Ids that hold digit runs by chance: UUIDs, and hexadecimal ids and digests (24 Mongo; 32 our bank's and trace ids; 40, 64
# SHA) with at least four letters. The binary form of a card's track 2 is all digits but one or two and is not meant.
_OPAQUE_ID = re.compile(
    r"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?=(?:[0-9]*+[a-f]){4})(?:[0-9a-f]{24}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}))(?![0-9a-z])",
    re.IGNORECASE | re.ASCII,
)
_SHORTEST_GROUP = 3  # Digits, but for the last one: Visa's old 13 were printed 4 3 3 3.
_MOST_GROUPS = LONGEST // _SHORTEST_GROUP + 1


def card_number_in(text: str) -> bool:
    """Say whether a text holds a card number: a whole run of digits that has a scheme's prefix and length and passes Luhn.

    Digits of all scripts count, full-width ones too. A run is written with or without separators, which are anything but
    letters and digits. Whole means that it stands alone, however it is grouped, or that it consists of whole groups
    among others, as in "4111 1111 1111 1111 12/27" or on a track: then only the last of its groups may have fewer than
    three digits, or every other time of day would be searched for cards. A longer run of bare digits is no card number.

    Let through are UUIDs, hexadecimal ids and, as phone numbers, runs of at most 13 digits after a "+". What suffers all
    the same is measured in tests/core/test_screening.py: above all a tenth of the 13-digit numbers that begin with 4,
    for there are old cards like that. Whoever hides a number on purpose, in base64 say, is not found.

    It takes 0.1 to 0.6 us where there are no 12 digits in a row, and 4 to 7 us where there are (measured).
    """
    if len(text) < SHORTEST:
        return False
    if not text.isascii():
        text = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    elif not _LONG_RUN.search(text.encode().translate(_LETTERS_TO_X, _SEPARATORS)):
        return False
    # Most texts hold nothing suspicious, so that ids are looked for only in those that do.
    return _run_in(text) and _run_in(_OPAQUE_ID.sub("x", text))


def _run_in(text: str) -> bool:
    return any(
        _is_card_number(run) and not (len(run) <= LONGEST_PHONE and text[start - 1 : start] == "+")
        for chain in _CHAIN.finditer(text)
        for start, run in _runs(chain)
    )


def _runs(chain: re.Match[str]) -> Iterator[tuple[int, str]]:
    """Read a chain of digit groups in all the ways that count: as one run, and as runs of some of its groups."""
    groups = [(chain.start() + group.start(), group[0]) for group in _GROUP.finditer(chain[0])]
    yield chain.start(), "".join(digits for _, digits in groups)
    for first, (start, _) in enumerate(groups):
        run = ""
        for _, digits in groups[first : first + _MOST_GROUPS]:
            run += digits
            if len(run) >= SHORTEST:
                yield start, run
            if len(digits) < _SHORTEST_GROUP:
                break


def _is_card_number(digits: str) -> bool:
    if digits[:4] not in _PREFIXES.get(len(digits), ()):
        return False
    return (sum(map(int, digits[-1::-2])) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % 10 == 0
