"""Finds card numbers in text, so that none enters the system: runs of digits that a card scheme could have given out.

`card_number_in` is the one question. It is asked of every text in a request, and of every id that a bank sends.

The rules depend on the field, since a tenth of all numbers pass Luhn and honest ids would be refused:

1. Everywhere: a scheme's number as a run of digits that stands whole, bare or in groups as on a card (4 4 4 4, 4 6 5,
   4 3 3 3, 6 13, or digits by ones, twos or threes).
2. In a card's own fields also in any other groups, and with the lengths that phone and article numbers have: Visa's old
   13, and 12 to 15, 17 and 18 of Maestro. Elsewhere these count only in groups that begin with four digits.
3. Everywhere: a number run together with its expiry date, or with date and security code; a number in a chip's encoding,
   after the tags 5A and 57 in hexadecimal; a number whose separators are escapes of URLs, HTML or JSON.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Scheme:
    """The card numbers of a scheme: the range of their first four digits, and their lengths."""

    name: str
    prefixes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    odd: bool = False  # Phone and article numbers have this length too: counts in a card's own fields, or in groups.


# Prefix and length must both fit, or honest ids would be refused: a tenth of all numbers pass Luhn. Sources: the table of
# braintree/credit-card-type (src/lib/card-types.ts) and Wikipedia's "Payment card number". Where they differ on a length
# that hardly any card has, it is left out if honest numbers have it: decimal ids have 17 and 18 digits, phone numbers and
# barcodes 12 and 13.
SCHEMES = (
    Scheme("Visa", ((4000, 4999),), (16, 19)),
    Scheme("Visa, old", ((4000, 4999),), (13,), odd=True),
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
        odd=True,
    ),
    Scheme("RuPay", ((6000, 6099), (8200, 8299)), (16,)),
    Scheme("Mir", ((2200, 2204),), (16,)),
    Scheme("Troy", ((9792, 9792),), (16,)),
)
SHORTEST, LONGEST = 12, 19


def _prefixes(*, odd: bool) -> dict[int, frozenset[str]]:
    """List the first four digits by the number's length."""
    return {
        length: frozenset(
            str(prefix)
            for scheme in SCHEMES
            if length in scheme.lengths and scheme.odd <= odd
            for low, high in scheme.prefixes
            for prefix in range(low, high + 1)
        )
        for length in range(SHORTEST, LONGEST + 1)
    }


_PREFIXES, _ALL_PREFIXES = _prefixes(odd=False), _prefixes(odd=True)
_DOUBLED = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}  # less 9 where above 9
# UTF-8 with every letter made the same one, and all but letters and digits dropped: a run of digits is unbroken in it.
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LETTERS_TO_X = bytes.maketrans(_LETTERS, b"x" * len(_LETTERS))
_SEPARATORS = bytes(set(range(256)) - set(_LETTERS) - set(b"0123456789"))
_LONG_RUN = re.compile(rb"[0-9]{%d}" % SHORTEST)
# A character that is not ASCII, or the beginning of an escape.
_UNUSUAL = re.compile(rb"[\xc2-\xf4][\x80-\xbf]|[%&<\\]")
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
# Invisible characters that can stand in a run of digits: joiners, soft hyphens, variation selectors.
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+")
# The first characters of escapes in URLs, in HTML or of markup itself, in JSON and program text.
_ESCAPES = ("%", "&", "<", "\\")
_MARKUP = re.compile(r"<[^<>]*>")
_BACKSLASHED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|[a-zA-Z])")
# Digits, and between them anything but letters: spaces, dashes, dots, slashes, emoji.
_CHAIN = re.compile(rf"[0-9](?:[\W_]*+[0-9]){{{SHORTEST - 1},}}")
_GROUP = re.compile(r"[0-9]+")
# Ids that hold digit runs by chance: UUIDs, and hexadecimal ids and digests (24 Mongo; 32 our bank's and trace ids; 40, 64
# SHA) with at least three letters. The binary form of a card's track 2 is all digits but one or two and is not meant. Of random
# ids of 32 one in three million has fewer letters and looks like a card number.
_OPAQUE_ID = re.compile(
    r"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?=(?:[0-9]*+[a-f]){3})(?:[0-9a-f]{24}|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}))(?![0-9a-z])",
    re.IGNORECASE | re.ASCII,
)
# A bank account's number, recognised by its own check digits.
_IBAN = re.compile(
    r"(?<![0-9A-Za-z])([A-Z]{2}[0-9]{2})((?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?)(?![0-9A-Za-z])", re.ASCII
)
# A hexadecimal word with letters between its digits, which join with nothing outside of it.
_HEXADECIMAL_WORD = re.compile(
    r"(?<![0-9a-z])(?=[0-9a-f]*[0-9][a-f]+[0-9])[0-9a-f]{8,}(?![0-9a-z])", re.IGNORECASE | re.ASCII
)
# EMV's tags in hexadecimal: 5A, length and number; 57, length and track 2: number, D and date.
_NO_WORD = re.compile(r"[\W_]+")
_TAGGED = re.compile(r"5A0[6-9A]([0-9]{12,19})|57(?:0[89A-F]|1[0-3])([0-9]{12,19})D[0-9]{4}", re.IGNORECASE)
# Month and year or year and month, of two digits or four, and the security code, as people type and copy them.
_EXPIRY = re.compile(r"(?:(?:0[1-9]|1[0-2])(?:20)?[2-4][0-9]|(?:20)?[2-4][0-9](?:0[1-9]|1[0-2]))(?:[0-9]{3,4})?")
_LONGEST_WITH_EXPIRY = LONGEST + 6 + 4
# yymmddHHMMSS of these years, and four digits: an order number, though it begins like a Mastercard.
_TIMED = re.compile(
    r"2[3-7](?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])[0-5][0-9][0-5][0-9][0-9]{4}"
)
_SHORTEST_GROUP = 3  # Digits, but for the last one: Visa's old 13 were printed 4 3 3 3.
_LONGEST_EQUAL_GROUP = 4
_UNEQUAL_GROUPS = frozenset({(4, 6, 5), (4, 6, 4), (4, 3, 3, 3), (6, 13)})
_MOST_GROUPS = LONGEST // _SHORTEST_GROUP + 1


def card_number_in(text: str, *, of_card: bool = False) -> bool:
    """Say whether a text holds a card number. `of_card`: it is the text of a card's own field.

    Digits of all scripts count, full-width ones too. A run is written with or without separators, which are anything but
    letters and digits. Whole means that it stands alone, or that it consists of whole groups among others, as in
    "4111 1111 1111 1111 12/27" or on a track: then only the last of its groups may have fewer than three digits, or every
    other time of day would be searched for cards. A longer run of bare digits is a card number only with an expiry date.

    UUIDs, hexadecimal ids and IBANs pass, and outside of a card's fields order numbers that begin with a time (yymmddHHMMSS
    and four digits). tests/core/test_screening.py measures the numbers found and the honest ids refused. A number hidden on
    purpose, for instance in base64, is not found.

    It takes 0.3 to 1.5 us where there are no 12 digits in a row, and 4 to 20 us where there are (measured).
    """
    if len(text) < SHORTEST or not may_hold_card_number(text.encode(errors="surrogatepass")):
        return False
    return any(_written_in(reading, of_card=of_card) for reading in _readings(text))


def _readings(text: str) -> Iterator[str]:
    """Read a text as it stands and unescaped, each with invisible characters as separators and without them."""
    for read in (text, unescaped(text)) if _has_escapes(text) else (text,):
        plain = read if read.isascii() else _FOREIGN_DIGIT.sub(_ascii_digit, read)
        yield plain
        if not read.isascii() and (dense := _INVISIBLE.sub("", plain)) != plain:
            yield dense


def _ascii_digit(digit: re.Match[str]) -> str:
    return str(unicodedata.decimal(digit[0]))


def may_hold_card_number(encoded: bytes) -> bool:
    """Take a quick look at UTF-8, of a text or of a whole message. False is certain; True calls for a closer look."""
    return (
        _LONG_RUN.search(encoded.translate(_LETTERS_TO_X, _SEPARATORS)) is not None
        or _UNUSUAL.search(encoded) is not None
    )


def _has_escapes(text: str) -> bool:
    return any(escape in text for escape in _ESCAPES)


def unescaped(text: str) -> str:
    """Read a text as a browser or a parser would, twice: escaped text is often escaped once more on its way."""
    for _ in range(2 if _has_escapes(text) else 0):
        text = _MARKUP.sub(" ", html.unescape(unquote(_BACKSLASHED.sub(_character, text))))
    return text


def _character(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else " "


def _written_in(text: str, *, of_card: bool) -> bool:
    # Most texts hold nothing suspicious: only a suspicious one is searched for ids.
    return _tagged_in(text) or (
        _run_in(text, of_card=of_card)
        and _run_in(
            _HEXADECIMAL_WORD.sub(r"x\g<0>x", _IBAN.sub(_without_iban, _OPAQUE_ID.sub("x", text))), of_card=of_card
        )
    )


def _without_iban(found: re.Match[str]) -> str:
    turned = (found[2] + found[1]).replace(" ", "")
    return "x" if int("".join(str(int(each, 36)) for each in turned)) % 97 == 1 else found[0]


def _tagged_in(text: str) -> bool:
    return any(
        _is_card_number((found[1] or found[2])[:length], _ALL_PREFIXES)
        for found in _TAGGED.finditer(_NO_WORD.sub("", text))
        for length in _ALL_PREFIXES
    )


def _run_in(text: str, *, of_card: bool) -> bool:
    return any(
        _counts(digits, groups, of_card=of_card)
        for chain in _CHAIN.finditer(text)
        for digits, groups in _runs(_GROUP.findall(chain[0]))
    )


def _runs(groups: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Read a chain of digit groups in every way that counts: as one run, and as runs of some of its groups."""
    yield "".join(groups), groups
    for first in range(len(groups)):
        run = ""
        for last in range(first, min(len(groups), first + _MOST_GROUPS)):
            run += groups[last]
            if len(run) >= SHORTEST:
                yield run, groups[first : last + 1]
            if len(groups[last]) < _SHORTEST_GROUP:
                break


def _counts(digits: str, groups: list[str], *, of_card: bool) -> bool:
    prefixes = _ALL_PREFIXES if of_card else _PREFIXES
    if len(groups) == 1:
        if not of_card and _TIMED.fullmatch(digits):
            return False
        return _is_card_number(digits, prefixes) or _has_expiry(digits, prefixes)
    if of_card:
        return _is_card_number(digits, prefixes)
    if len(groups[0]) == _LONGEST_EQUAL_GROUP:
        prefixes = _ALL_PREFIXES
    return _is_card_number(digits, prefixes) and _are_as_on_a_card(tuple(map(len, groups)))


def _are_as_on_a_card(sizes: tuple[int, ...]) -> bool:
    size, last = sizes[0], sizes[-1]
    equal = size <= _LONGEST_EQUAL_GROUP and last <= size and sizes[:-1].count(size) == len(sizes) - 1
    return equal or sizes in _UNEQUAL_GROUPS


def _has_expiry(digits: str, prefixes: dict[int, frozenset[str]]) -> bool:
    return SHORTEST + 4 <= len(digits) <= _LONGEST_WITH_EXPIRY and any(
        _EXPIRY.fullmatch(digits, length) and _is_card_number(digits[:length], prefixes) for length in prefixes
    )


def _is_card_number(digits: str, prefixes: dict[int, frozenset[str]]) -> bool:
    if digits[:4] not in prefixes.get(len(digits), ()):
        return False
    return (sum(map(int, digits[-1::-2])) + sum(_DOUBLED[digit] for digit in digits[-2::-2])) % 10 == 0
