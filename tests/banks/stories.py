"""What is tried at every fake: requests, how each must end, and what the fake's books must hold then.

A story is told plainly, and once for each call that its last request makes and each trouble which that call can meet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from charging.v1.common_pb2 import Card
from judge.history import Request
from rig.world import (
    AUTHORIZED,
    CHARGED,
    DECLINED,
    OPERATION_EXECUTED,
    a_hold,
    a_request,
    id_of,
    money,
    new_key,
)
from tests.banks.street import Street, Trouble

Done = tuple[str, int]
"""A kind of movement and its amount in minor units: ("charge", 1250)."""


@dataclass(frozen=True, slots=True)
class Story:
    """A charge or a hold, and what follows in it, if anything. The calls are told by what a request begins with."""

    status: int
    """What the client is told at the end."""
    done: Sequence[Done]
    calls: Sequence[bytes]
    """Those of the last request, at the fake that it is told at."""
    is_held: bool = False
    is_declined: bool = False
    follow: Callable[[str], Request] | None = None
    """Makes the request that follows in a charge."""

    async def tell(self, street: Street, call: bytes = b"", trouble: Trouble | None = None) -> ChargeRequest:
        """Make the requests, the last one in trouble, and return that for the charge."""
        card = Card(token=street.declined_card if self.is_declined else street.approved_card)
        charge = a_hold(card=card) if self.is_held else a_request(card=card)
        last: Request = charge
        if self.follow is not None:
            told = await street.settle(charge)
            assert told.status == (AUTHORIZED if self.is_held else CHARGED), told
            last = self.follow(id_of(charge))
        told = await (street.settle(last) if trouble is None else street.suffer(last, call, trouble))
        assert told.status == self.status, told
        return charge


def _refund(charge_id: str) -> Request:
    return RefundRequest(idempotency_key=new_key(), charge_id=charge_id, amount=money(500))


def _capture(charge_id: str) -> Request:
    return CaptureRequest(idempotency_key=new_key(), charge_id=charge_id, amount=money(750), final=True)


def _void(charge_id: str) -> Request:
    return VoidRequest(idempotency_key=new_key(), charge_id=charge_id)


def stories(calls: Mapping[str, Sequence[bytes]]) -> Mapping[str, Story]:
    """Make the stories that can be told at a fake, by the calls that each kind of request makes there."""
    opening = calls["charge"]
    return {
        "charge": Story(CHARGED, [("charge", 1250)], opening),
        "authorize": Story(AUTHORIZED, [("authorize", 1250)], opening, is_held=True),
        "declined": Story(DECLINED, [("declined", 1250)], opening, is_declined=True),
        "refund": Story(OPERATION_EXECUTED, [("charge", 1250), ("refund", 500)], calls["refund"], follow=_refund),
        "capture": Story(
            OPERATION_EXECUTED,
            [("authorize", 1250), ("capture", 750), ("let go", 500)],
            calls["capture"],
            is_held=True,
            follow=_capture,
        ),
        "void": Story(
            OPERATION_EXECUTED, [("authorize", 1250), ("void", 1250)], calls["void"], is_held=True, follow=_void
        ),
    }
