"""Finds card numbers in text, so that none enters the system: whole runs of digits that a card scheme could have given out.

`card_number_in` is the one question. It is asked of every text in a request, and of every id that a bank sends.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass


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
