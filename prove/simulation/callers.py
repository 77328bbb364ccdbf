"""The clients of a story: what they ask for, over a network that loses and delays, and what they come to know."""

import asyncio
from typing import Any

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import ChargeStatus
from chassis.caller import ANYBODY, GuardedCall
from chassis.refusals import Refusal
from judge.history import Call
from prove.simulation.disk import Disk
from prove.simulation.feeds import cancel
from prove.simulation.host import Process, Rpc
from prove.simulation.plan import Op
from prove.simulation.servers import Servers
from prove.simulation.stage import Stage


class Callers:
    """Clients that call the command server."""

    def __init__(self, stage: Stage, disk: Disk, servers: Servers) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._disk = disk
        self._servers = servers
        self.history: list[Call] = []
        self.known_bodies: dict[tuple[object, ...], Op] = {}

    async def call(self, who: str, op: Op) -> Call:
        """Call Charge once, and note what the client came to know."""
        dice, loop = self._dice, self._stage.loop
        request = _request(op)
        deadline = None if op.timeout_seconds is None else loop.time() + op.timeout_seconds
        rpc = Rpc(request, deadline, loop.create_future(), loop)
        self._stage.note(who, "asks", op.key, f"{op.amount} {op.currency}", op.card, op.spoiled)
        delay = dice.uniform(0.1, 3.0) if dice.fires("rpc_delay") else dice.uniform(0.0005, 0.005)
        if dice.fires("rpc_lose_request"):
            self._stage.later(delay, rpc.answer, None)
        else:
            self._stage.later(delay, self._arrive, rpc)
        patience = min(
            op.timeout_seconds if op.timeout_seconds is not None else 1e9,
            1e9 if op.cancel_after_seconds is None or dice.is_over else op.cancel_after_seconds,
        )
        told: Any = None
        try:
            async with asyncio.timeout(patience):
                told = await rpc.reply
        except TimeoutError:
            dice.fired["client_cancel" if patience == op.cancel_after_seconds else "client_deadline"] += 1
            rpc.is_over = True
            self._stage.later(dice.uniform(0.0, 0.005), cancel, rpc.task)
        match told:
            case (ChargeResponse() as answer, int() as durable_position):
                call = Call.answered(request, answer, durable_position)
            case Refusal():
                call = Call.failed(request, told.reason, told.advice)
            case _:
                call = Call.failed(request)
        self.history.append(call)
        self._stage.note(
            who, "hears", op.key, call.outcome, _status(call.status) if call.status else call.reason, call.position
        )
        return call

    def _arrive(self, rpc: Rpc) -> None:
        server = self._servers.command
        if rpc.is_over:
            return
        if not server.is_up or not server.alive:
            self._stage.later(0.001, rpc.answer, None)
            return
        server.calls[rpc] = None
        rpc.task = server.start(self._serve(server, rpc))

    async def _serve(self, server: Process, rpc: Rpc) -> None:
        """What grpc and the guard around it do with a call."""
        outcome: Any
        try:
            call = GuardedCall("/charging.v1.CommandService/Charge", ANYBODY, rpc)
            response = await server.commands.Charge(rpc.request, call)
            outcome = (response, self._disk.durable_position)
        except Refusal as refused:
            outcome = refused
        except asyncio.CancelledError:
            return
        except Exception as error:
            self._stage.broke("I15", server.name, f"an unexpected error escaped a call: {error!r}")
            outcome = None
        finally:
            server.calls.pop(rpc, None)
        if self._dice.fires("rpc_lose_answer"):
            outcome = None
        self._stage.later(self._dice.uniform(0.0005, 0.005), rpc.answer, outcome)

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
                self.known_bodies[op.key, op.user, op.card, op.amount, op.currency] = op
            for _ in range(op.tries):
                call = await self.call(who, op)
                if call.reason == "IDEMPOTENCY_KEY_REUSED":
                    self._dice.fired["other_body"] += 1
                is_settled = call.status not in (0, ChargeStatus.CHARGE_STATUS_PENDING)
                if is_settled or call.reason in ("INVALID_REQUEST", "IDEMPOTENCY_KEY_REUSED") or self._dice.is_over:
                    break
                await asyncio.sleep(self._dice.uniform(0.0, 2.0))


def _status(status: int) -> str:
    return ChargeStatus.Name(status).removeprefix("CHARGE_STATUS_")  # type: ignore[arg-type]  # an enum's number


def patient(op: Op) -> Op:
    """The same, with all the time in the world."""
    return Op(0.0, op.key, op.user, op.card, op.amount, op.currency, 31.0, None, 1)


def _request(op: Op) -> ChargeRequest:
    request = ChargeRequest(idempotency_key=op.key, user_id=op.user)
    request.card.token, request.amount.minor_units, request.amount.currency_code = op.card, op.amount, op.currency
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
