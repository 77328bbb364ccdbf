"""The scenarios of the crash points: a charge, what follows in it, and the moment at which deaths begin."""

from dataclasses import dataclass
from enum import Enum

from charging.v1.command_pb2 import CaptureRequest, RefundRequest, VoidRequest
from charging.v1.common_pb2 import Money

AMOUNT, PART = 1250, 500


class Before(Enum):
    """How far the charge is when deaths begin."""

    NOTHING = "nobody has asked for it"
    AT_REST = "it is charged or authorised"
    UNDER_WAY = "the bank is at its execution"
    EXECUTED = "the bank has executed it, and has told nobody"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A charge of a card, what follows in it, and what moves at the bank in all, in order.

    `fault`: of the bank's execute step, once, of the operation with which deaths begin. `is_late`: the charge's time is over
    as soon as the bank was asked for a token. `customer`: what the customer does who is sent to the bank: confirm or refuse.
    """

    name: str
    moves: tuple[str, ...]
    card: str = "tok_visa"
    fault: str = ""
    before: Before = Before.NOTHING
    follows: tuple[CaptureRequest | VoidRequest | RefundRequest, ...] = ()
    is_held: bool = False
    is_late: bool = False
    customer: str = ""
    is_off_session: bool = False


def _part() -> Money:
    return Money(minor_units=PART, currency_code="EUR")


def _captures() -> tuple[CaptureRequest, ...]:
    return CaptureRequest(amount=_part()), CaptureRequest(amount=_part(), final=True)


SCENARIOS = (
    Scenario("approved", ("charge",)),
    Scenario("declined", (), "tok_declined"),
    Scenario("token expired", ("charge",), fault="expire_token"),
    Scenario("answer lost", ("charge",), fault="lose_answer"),
    Scenario("captured", ("authorize", "capture", "capture"), before=Before.AT_REST, follows=_captures(), is_held=True),
    Scenario("voided", ("authorize", "void"), before=Before.AT_REST, follows=(VoidRequest(),), is_held=True),
    Scenario(
        "refunded",
        ("charge", "refund", "refund"),
        before=Before.AT_REST,
        follows=(RefundRequest(amount=_part()), RefundRequest()),
    ),
    Scenario("refund declined", ("charge",), "tok_refund_declined", before=Before.AT_REST, follows=(RefundRequest(),)),
    Scenario(
        "refund's token expired", ("charge", "refund"), "tok_visa", "expire_token", Before.AT_REST, (RefundRequest(),)
    ),
    Scenario(
        "refund's answer lost", ("charge", "refund"), "tok_visa", "lose_answer", Before.AT_REST, (RefundRequest(),)
    ),
    Scenario("called off", (), before=Before.UNDER_WAY, follows=(VoidRequest(),)),
    Scenario("called off by its time", (), is_late=True),
    Scenario("called off too late", ("charge",), before=Before.EXECUTED, follows=(VoidRequest(),)),
    Scenario(
        "hold called off too late",
        ("authorize", "void"),
        before=Before.EXECUTED,
        follows=(VoidRequest(),),
        is_held=True,
    ),
    Scenario("customer confirms", ("charge",), "tok_3ds", customer="confirm"),
    Scenario("customer refuses", (), "tok_3ds", customer="refuse"),
    Scenario(
        "customer confirms a hold",
        ("authorize", "void"),
        "tok_3ds",
        follows=(VoidRequest(),),
        is_held=True,
        customer="confirm",
    ),
    Scenario("customer is not there", (), "tok_3ds", is_off_session=True),
)


def named(name: str) -> Scenario:
    """Return a scenario by its name."""
    return next(scenario for scenario in SCENARIOS if scenario.name == name)
