"""From a client's message to a command: every field arrives, is screened, and is refused at the right time."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1.command_pb2 import (
    CAPTURE_MODE_AUTOMATIC,
    CAPTURE_MODE_MANUAL,
    CAPTURE_MODE_UNSPECIFIED,
    CaptureRequest,
    ChargeRequest,
    RefundRequest,
    VoidRequest,
)
from charging.v1.common_pb2 import Card as WireCard
from charging.v1.common_pb2 import Money as WireMoney
from chassis.caller import Caller
from chassis.refusals import Refusal
from command_service import screening
from command_service.charge import Command, Follow
from command_service.codec import charge_id_of, encode, operation_id_of
from command_service.events import ChargeRequested
from command_service.intake import LATEST, screened
from command_service.values import Card, Kind, Money, Request, Wish

NOW = 1_795_000_000_000_000
CALLER = Caller("shop", "till-3")
CHARGE_ID = charge_id_of("shop", "order-1001")
VISA = "4111111111111111"
read = screened({})


def to_charge(**changed: Any) -> ChargeRequest:
    """A valid request, with these fields in place of its own."""
    request = ChargeRequest(
        idempotency_key="order-1001",
        user_id="user-7",
        card=WireCard(token="tok_visa", brand="visa", last4="4242", fingerprint="fp_1"),
        amount=WireMoney(minor_units=1250, currency_code="EUR"),
        description="a book",
        metadata={"order": "1001"},
    )
    request.MergeFrom(ChargeRequest(**changed))
    return request


def command(request: ChargeRequest, reading: Callable[..., Command | Follow] = read) -> Command:
    made = reading(request, CALLER)
    assert isinstance(made, Command)
    return made


def follow(request: CaptureRequest | VoidRequest | RefundRequest) -> Follow:
    made = read(request, CALLER)
    assert isinstance(made, Follow)
    return made


# ================================================================ a charge
def test_every_field_of_a_charge_arrives() -> None:
    not_after = Timestamp(seconds=NOW // 1_000_000 + 60, nanos=1_999)
    request = to_charge(capture=CAPTURE_MODE_MANUAL, not_after=not_after, allow_duplicate=True)
    assert command(request) == Command(
        Request(
            charge_id=CHARGE_ID,
            tenant="shop",
            idempotency_key="order-1001",
            actor="till-3",
            user_id="user-7",
            card=Card("tok_visa", "visa", "4242", "fp_1"),
            amount=Money(1250, "EUR"),
            description="a book",
            metadata=(("order", "1001"),),
            is_held=True,
            not_after=NOW + 60_000_001,
        ),
        allow_duplicate=True,
    )


@pytest.mark.parametrize(
    ("capture", "is_held"),
    [(CAPTURE_MODE_UNSPECIFIED, False), (CAPTURE_MODE_AUTOMATIC, False), (CAPTURE_MODE_MANUAL, True)],
)
def test_money_moves_at_once_unless_the_client_captures_it(capture: Any, is_held: bool) -> None:
    """To leave the mode out is the same request as to name the automatic one."""
    made = command(to_charge(capture=capture))
    assert (made.request.is_held, made.faults) == (is_held, ())
    assert made.request.not_after == 0
    assert not made.allow_duplicate


def test_a_capture_mode_of_a_newer_contract_is_refused() -> None:
    """For a new charge: nobody knows when its money is to move."""
    assert command(to_charge(capture=3)).faults == (("capture", "must be automatic or manual"),)
    assert command(to_charge(capture=-1)).faults == (("capture", "must be automatic or manual"),)


@pytest.mark.parametrize(
    ("not_after", "microseconds"),
    [
        (Timestamp(nanos=1_000), 1),
        (Timestamp(seconds=NOW // 1_000_000, nanos=1_000), NOW + 1),
        (Timestamp(seconds=NOW // 1_000_000 + 1), NOW + 1_000_000),
        (Timestamp(seconds=LATEST // 1_000_000, nanos=999_999_999), LATEST),
    ],
    ids=["a microsecond after 1970", "a microsecond later", "a second later", "the end of the year 9999"],
)
def test_a_time_is_taken_and_can_be_stored(not_after: Timestamp, microseconds: int) -> None:
    """Down to the microsecond."""
    made = command(to_charge(not_after=not_after))
    assert (made.request.not_after, made.faults) == (microseconds, ())
    assert encode(ChargeRequested(made.request))


@pytest.mark.parametrize(
    "not_after",
    [
        Timestamp(),
        Timestamp(nanos=999),
        Timestamp(seconds=-1),
        Timestamp(seconds=1, nanos=-(2**31)),
        Timestamp(seconds=LATEST // 1_000_000 + 1),
        Timestamp(seconds=2**63 - 1, nanos=2**31 - 1),
        Timestamp(seconds=-(2**63), nanos=-(2**31)),
    ],
    ids=[
        *("1970", "1970, to the microsecond", "before 1970", "a time that nanos turn back"),
        *("the year 10000", "the largest numbers", "the smallest numbers"),
    ],
)
def test_a_time_that_no_clock_will_show_is_a_fault(not_after: Timestamp) -> None:
    """An empty time was not left out."""
    assert command(to_charge(not_after=not_after)).faults == (("not_after", screening.NOT_AFTER_MALFORMED),)


def test_all_faults_of_a_charge_come_with_it() -> None:
    """They count for a new key only, and so do not refuse here: the retry of what was accepted must find it."""
    request = to_charge(capture=3, not_after=Timestamp())
    request.user_id = ""
    request.card.fingerprint = "a b"
    assert command(request).faults == (
        ("user_id", screening.REQUIRED),
        ("card.fingerprint", screening.FINGERPRINT_MALFORMED),
        ("capture", "must be automatic or manual"),
        ("not_after", screening.NOT_AFTER_MALFORMED),
    )


def test_an_operators_caps_are_for_charges() -> None:
    """A refund of an older charge may be larger."""
    capped = screened({"EUR": 500})
    assert command(to_charge(), capped).faults == (("amount.minor_units", screening.AMOUNT_TOO_LARGE),)
    for wire in (CaptureRequest, RefundRequest):
        made = capped(
            wire(idempotency_key="k", charge_id=CHARGE_ID, amount=WireMoney(minor_units=10**9, currency_code="EUR")),
            CALLER,
        )
        assert made.faults == ()


# ================================================================ an operation that follows
def _wish(kind: Kind, key: str, amount: Money | None, *, is_final: bool = False, reason: str = "") -> Wish:
    operation_id = operation_id_of(CHARGE_ID, kind, key)
    return Wish(kind, CHARGE_ID, "shop", key, operation_id, "till-3", amount, is_final, reason)


PART = WireMoney(minor_units=400, currency_code="EUR")


def test_every_field_of_an_operation_arrives() -> None:
    """Tenant and actor are the caller's, and the id is made from charge, kind and key."""
    asked_for = CaptureRequest(idempotency_key="c-1", charge_id=CHARGE_ID, amount=PART, final=True)
    assert follow(asked_for) == Follow(_wish(Kind.CAPTURE, "c-1", Money(400, "EUR"), is_final=True))
    told = VoidRequest(idempotency_key="v-1", charge_id=CHARGE_ID, reason="sold out")
    assert follow(told) == Follow(_wish(Kind.VOID, "v-1", None, reason="sold out"))
    back = RefundRequest(idempotency_key="r-1", charge_id=CHARGE_ID, amount=PART, reason="broken")
    assert follow(back) == Follow(_wish(Kind.REFUND, "r-1", Money(400, "EUR"), reason="broken"))


def test_an_amount_left_out_is_none_and_not_nothing() -> None:
    """It means all that is left. An empty amount is a fault."""
    for wire, kind in ((CaptureRequest, Kind.CAPTURE), (RefundRequest, Kind.REFUND)):
        assert follow(wire(idempotency_key="k", charge_id=CHARGE_ID)) == Follow(_wish(kind, "k", None))
        empty = follow(wire(idempotency_key="k", charge_id=CHARGE_ID, amount=WireMoney()))
        assert empty.wish.amount == Money(0, "")
        assert dict(empty.faults) == {
            "amount.currency_code": screening.CURRENCY_UNKNOWN,
            "amount.minor_units": screening.AMOUNT_NOT_POSITIVE,
        }


def test_the_faults_of_an_operation_come_with_it() -> None:
    bad = RefundRequest(idempotency_key="k", charge_id=CHARGE_ID, amount=WireMoney(minor_units=1), reason="\0")
    assert dict(follow(bad).faults) == {
        "amount.currency_code": screening.CURRENCY_UNKNOWN,
        "reason": screening.TEXT_UNPRINTABLE,
    }


# ================================================================ refused before the key is looked up
@pytest.mark.parametrize(
    ("request_", "found"),
    [
        (to_charge(description=VISA), {"description": screening.CARD_NUMBER}),
        (
            to_charge(description=VISA, card=WireCard(fingerprint="a b")),
            {"card.fingerprint": screening.FINGERPRINT_MALFORMED, "description": screening.CARD_NUMBER},
        ),
        (to_charge(card=WireCard(fingerprint=VISA)), {"card.fingerprint": screening.CARD_NUMBER}),
        (
            RefundRequest(idempotency_key="", charge_id="x", reason="\0"),
            {
                "reason": screening.TEXT_UNPRINTABLE,
                "idempotency_key": screening.KEY_MALFORMED,
                "charge_id": screening.CHARGE_ID_MALFORMED,
            },
        ),
        (
            VoidRequest(idempotency_key="k", charge_id=CHARGE_ID, reason=VISA),
            {"reason": screening.CARD_NUMBER},
        ),
        (
            CaptureRequest(idempotency_key=VISA, amount=WireMoney(minor_units=-1, currency_code="EUR")),
            {
                "amount.minor_units": screening.AMOUNT_NOT_POSITIVE,
                "idempotency_key": screening.CARD_NUMBER,
                "charge_id": screening.REQUIRED,
            },
        ),
    ],
)
def test_what_is_refused_whatever_the_key_is_told_with_todays_other_faults(
    request_: Any, found: dict[str, str]
) -> None:
    """Otherwise a client that mends one would learn of the next only then."""
    with pytest.raises(Refusal) as told:
        read(request_, CALLER)
    assert told.value.reason == "INVALID_REQUEST"
    assert {violation.field: violation.text for violation in told.value.violations} == found
    assert len(told.value.violations) == len(found)
