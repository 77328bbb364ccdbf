"""The clients of a story: what they ask for, and what they come to know."""

import asyncio
import dataclasses
from typing import Any

from charging.v1.command_pb2 import (
    CaptureMode,
    CaptureRequest,
    ChargeRequest,
    RefundRequest,
    VoidRequest,
)
from charging.v1.common_pb2 import ChargeStatus, OperationStatus
from chassis.caller import ANYBODY
from chassis.refusals import Refusal
from judge.history import PENDING, Call, Request, charge_id_of
from prove.simulation.network import Network, Told
from prove.simulation.ops import Op
from prove.simulation.stage import Stage

# The refusals of what a charge's book does not allow.
UNFIT = frozenset({"MORE_THAN_IS_LEFT", "OPERATION_DOES_NOT_FIT"})
# The refusals after which the same request is not sent again.
FOR_GOOD = UNFIT | {"INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED", "CHARGE_IN_REVIEW"}


class Callers:
    """Clients that call the command server."""

    def __init__(self, stage: Stage, network: Network) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._network = network
        self.history: list[Call] = []
        self.known_bodies: dict[Op, None] = {}
        """Sound requests, each as a patient client sends it, in the order of their first calls."""

    def knows(self, charge_id: str) -> bool:
        """Whether a client was ever told that a charge is stored."""
        return any(call.outcome == "ok" and call.charge_id == charge_id for call in self.history)

    async def call(self, who: str, op: Op, not_after: int = 0) -> Call:
        """Call the op's method once, and note what the client came to know. `not_after`: microseconds since 1970; 0: none."""
        request = _request(op, not_after)
        method = "" if op.method == "charge" else f"{op.method} in {op.charge_key}"
        self._stage.note(who, "asks", method, op.key, f"{op.amount} {op.currency}", op.card, op.spoiled)
        told = await self._network.call(
            f"/charging.v1.CommandService/{type(request).__name__.removesuffix('Request')}",
            request,
            ANYBODY,
            timeout_seconds=op.timeout_seconds,
            cancel_after_seconds=op.cancel_after_seconds,
        )
        match told:
            case Told(answer, durable_position):
                call = Call.answered(request, answer, durable_position)
            case Refusal():
                call = Call.failed(request, told.reason, told.advice)
            case _:
                call = Call.failed(request)
        self.history.append(call)
        heard = _status(call) if call.status else call.reason
        self._stage.note(who, "hears", op.key, call.outcome, heard, call.position)
        return call

    async def client(self, number: int, ops: list[tuple[int, Op]]) -> None:
        """Want one thing after the other, each as patiently as its plan says."""
        who = f"client {number}"
        for index, op in ops:
            if (number, index) in self._stage.mask.ops:
                continue
            await asyncio.sleep(op.pause_seconds if not self._dice.is_over else 0.0)
            if op.planted:
                self._dice.fired["card_number"] += 1
            elif op.spoiled:
                self._dice.fired["invalid_request"] += 1
            else:
                self.known_bodies.setdefault(patient(op))
            not_after = 0
            if op.not_after_seconds is not None:
                not_after = self._stage.now() + int(op.not_after_seconds * 1_000_000)
            for _ in range(op.tries):
                call = await self.call(who, op, not_after)
                if call.reason == "IDEMPOTENCY_KEY_REUSED":
                    self._dice.fired["other_body"] += 1
                elif call.reason in FOR_GOOD and call.reason != "INVALID_REQUEST":
                    self._dice.fired["other_refusal"] += 1
                if (call.status and not is_open(call)) or call.reason in FOR_GOOD or self._dice.is_over:
                    break
                await asyncio.sleep(self._dice.uniform(0.0, 2.0))


def is_open(call: Call) -> bool:
    """Whether it was told that its operation is under way: pending, or that the bank wants a step of the customer."""
    awaits_customer = call.operation == "charge" and call.status == ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
    return call.status == PENDING or awaits_customer


def _status(call: Call) -> str:
    statuses: Any = ChargeStatus if call.operation == "charge" else OperationStatus
    return str(statuses.Name(call.status)).rpartition("STATUS_")[2]


def patient(op: Op) -> Op:
    """The same, with all the time in the world."""
    return dataclasses.replace(
        op, pause_seconds=0.0, timeout_seconds=31.0, cancel_after_seconds=None, tries=1, not_after_seconds=None
    )


def _request(op: Op, not_after: int) -> Request:
    if op.method != "charge":
        return _following(op)
    request = ChargeRequest(idempotency_key=op.key, user_id=op.user)
    request.card.token, request.amount.minor_units, request.amount.currency_code = op.card, op.amount or 0, op.currency
    if op.is_held:
        request.capture = CaptureMode.CAPTURE_MODE_MANUAL
    request.off_session = op.is_off_session
    if not_after:
        request.not_after.FromMicroseconds(not_after)
    match op.spoiled:
        case "amount":
            request.amount.minor_units = -1
        case "currency":
            request.amount.currency_code = "usd"
        case "key":
            request.idempotency_key = op.planted or "a b"
        case "user":
            request.user_id = op.planted or "x" * 300
        case "card":
            request.card.token = op.planted
        case "description":
            request.description = f"card {op.planted}"
        case "unknown_field":
            request.MergeFromString(b"\xfa\x01\x01x")
    return request


def _following(op: Op) -> Request:
    charge_id = charge_id_of("default", op.charge_key)
    request: CaptureRequest | VoidRequest | RefundRequest
    match op.method:
        case "capture":
            request = CaptureRequest(idempotency_key=op.key, charge_id=charge_id, final=op.is_final)
        case "refund":
            request = RefundRequest(idempotency_key=op.key, charge_id=charge_id)
        case _:
            return VoidRequest(idempotency_key=op.key, charge_id=charge_id)
    if op.amount is not None:
        request.amount.minor_units, request.amount.currency_code = op.amount, op.currency
    return request
