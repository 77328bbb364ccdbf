"""The operator's command on a bank: hold it to its promises, with money that moves there."""

import argparse
import asyncio
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, TypeVar

import httpx
import structlog

from chassis.documents import listed
from chassis.exposure import is_loopback
from chassis.settings import SettingsError, number, whole
from chassis.watched import Files
from command_service.bank import Bank
from command_service.bank.conformance.checks import OPENINGS, CannotBeTried, Finding
from command_service.bank.conformance.subject import Between, Subject
from command_service.bank.conformance.suite import findings
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.lines import THE_ONLY_ONE
from command_service.currencies import MOST_DIGITS
from command_service.parts import Parts
from command_service.values import DeclineReason, Money

T = TypeVar("T")

_LIVE_KEYS = (b"sk_live_", b"rk_live_")


@dataclass(frozen=True, slots=True)
class Means:
    """What a bank is tried with: test cards, and amounts of money."""

    approved: str = ""
    other: str = ""
    declined: tuple[tuple[str, DeclineReason], ...] = ()
    customer: str = ""
    currency: str = "EUR"
    other_currency: str = "USD"
    minor_units: int = 1250
    lag_seconds: float = 0.0
    """For how long a search may not find what was just opened."""


_MOCK = Means(
    "tok_visa",
    "tok_mastercard",
    (
        ("tok_declined", DeclineReason.CARD_DECLINED),
        ("tok_insufficient_funds", DeclineReason.INSUFFICIENT_FUNDS),
        ("tok_expired_card", DeclineReason.EXPIRED_CARD),
    ),
    "tok_3ds",
)
MEANS: Mapping[str, Means] = {
    "two_step": _MOCK,
    "one_step": replace(_MOCK, customer=""),  # it declines the card of 3-D Secure
    "stripe": Means(
        "pm_card_visa",
        "pm_card_mastercard",
        (
            ("pm_card_visa_chargeDeclined", DeclineReason.CARD_DECLINED),
            ("pm_card_visa_chargeDeclinedInsufficientFunds", DeclineReason.INSUFFICIENT_FUNDS),
            ("pm_card_chargeDeclinedExpiredCard", DeclineReason.EXPIRED_CARD),
        ),
        "pm_card_authenticationRequired",
        lag_seconds=90.0,
    ),
}
"""The cards of each kind of bank, unless others are named: the mock bank's, and those of Stripe's test mode.

Those of Stripe are at https://docs.stripe.com/testing, by PaymentMethod. "Under normal operating conditions, data is searchable
in under 1 minute" (https://docs.stripe.com/search#data-freshness).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: the bank's name, and what is to be other than `MEANS` has it."""
    parser.add_argument(
        "bank",
        nargs="?",
        default=THE_ONLY_ONE,
        metavar="NAME",
        help="a bank of COMMAND_BANKS; without it, that of COMMAND_BANK_URL",
    )
    parser.add_argument(
        "--yes-this-is-a-test-bank",
        action="store_true",
        dest="is_test_bank",
        help="needed elsewhere than on this machine",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="print what was found as JSON")
    for member, flag, metavar, text in (
        ("approved", "--approved-card", "TOKEN", "a card for which everything is executed"),
        ("other", "--other-card", "TOKEN", "another one"),
        ("customer", "--customer-card", "TOKEN", "a card for which the bank wants a step of the customer"),
        ("currency", "--currency", "CODE", "of the amounts"),
        ("other_currency", "--other-currency", "CODE", "another one"),
    ):
        parser.add_argument(flag, metavar=metavar, dest=member, help=text)
    parser.add_argument(
        "--amount",
        metavar="MINOR_UNITS",
        dest="minor_units",
        type=_of(whole(4, 10**MOST_DIGITS - 1)),
        help="of each charge, 4 or more",
    )
    parser.add_argument(
        "--look-up-lag",
        metavar="SECONDS",
        dest="lag_seconds",
        type=_of(number(0, 3600)),
        help="how long a search may not find what was just opened; it is waited for, twice",
    )
    parser.add_argument(
        "--declined-card",
        metavar="TOKEN=REASON",
        dest="declined",
        action="append",
        type=_of(_declined),
        help="a card whose charges are declined, and the reason, which is one of "
        f"{listed(reason.value for reason in DeclineReason)}; may be given again",
    )


def _of(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Tell what is wrong with an argument as the parser of a setting tells it."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _declined(text: str) -> tuple[str, DeclineReason]:
    card, _, reason = text.partition("=")
    if not card or reason not in {known.value for known in DeclineReason}:
        raise ValueError("must be TOKEN=REASON")
    return card, DeclineReason(reason)


def check_bank(parts: Parts, asked: argparse.Namespace, *, tell: Callable[[Finding], None]) -> Sequence[Finding]:
    """Try the bank that the command line names. Each finding is told at once; all are returned.

    Raises SettingsError if the bank may not be tried, or cannot be made; CannotBeTried if nothing comes of it.
    """
    banks = parts.configured.banks
    if asked.bank not in banks:
        known = "COMMAND_BANKS is not set" if THE_ONLY_ONE in banks else f"name one of: {listed(banks)}"
        raise SettingsError(f"there is no such bank: {known}")
    bank = banks[asked.bank]
    _refuse_real_money(bank, is_test_bank=asked.is_test_bank)
    means = _means(bank, asked)
    if not means.approved:
        raise SettingsError(
            f"no test cards are known for a bank of the kind {bank.kind}: name one with --approved-card"
        )
    last_word = _LastWord()
    structlog.configure(processors=[last_word])
    try:
        return asyncio.run(_found(_subject(parts, bank, means), tell))
    except CannotBeTried as reason:
        why = f"; what was logged of the last call without an answer: {last_word.why}" if last_word.why else ""
        raise CannotBeTried(f"{bank.url} could not be tried: {reason}{why}") from None


def _means(bank: BankSettings, asked: argparse.Namespace) -> Means:
    named = {member.name: given for member in fields(Means) if (given := getattr(asked, member.name)) is not None}
    if asked.declined is not None:
        named["declined"] = tuple(asked.declined)
    return replace(MEANS.get(bank.kind, Means()), **named)


def _refuse_real_money(bank: BankSettings, *, is_test_bank: bool) -> None:
    """Raise SettingsError if the bank may move people's money."""
    if bank.key_file is not None and Files().read(bank.key_file).lstrip().startswith(_LIVE_KEYS):
        raise SettingsError(f"{bank.key_file} holds a key of Stripe's live mode: only a bank for tests may be tried")
    is_here = is_loopback(httpx.URL(bank.url).host) and not bank.proxy
    if not is_here and not is_test_bank:
        raise SettingsError(
            f"this moves money at {bank.url}: if that is a bank for tests, say so with --yes-this-is-a-test-bank"
        )


def _subject(parts: Parts, bank: BankSettings, means: Means) -> Subject:
    def open_bank(between: Between) -> Bank:
        return KINDS[bank.kind](bank, between(parts.wire(bank)), parts.watched)

    return Subject(
        open_bank=open_bank,
        approved_card=means.approved,
        other_card=means.other,
        declined_cards={kind: dict(means.declined) for kind in OPENINGS},
        customer_card=means.customer,
        price=Money(means.minor_units, means.currency),
        other_currency=means.other_currency,
        lag_seconds=means.lag_seconds,
        looks_up=bank.options.get("looks_up", True) is True,
    )


async def _found(subject: Subject, tell: Callable[[Finding], None]) -> Sequence[Finding]:
    found = []
    async for finding in findings(subject):
        tell(finding)
        found.append(finding)
    return found


class _LastWord:
    """Keeps why the last call came to no answer, and drops the log: answers are thrown away by the dozen."""

    def __init__(self) -> None:
        self.why = ""

    def __call__(self, _logger: object, _method: str, entry: MutableMapping[str, Any]) -> NoReturn:
        self.why = str(entry.get("why", self.why))
        raise structlog.DropEvent
