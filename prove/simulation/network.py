"""The network between the command servers and those who call them: it loses requests and answers, and delays them."""

import asyncio
from typing import Any, NamedTuple

from chassis.caller import Caller
from chassis.refusals import Refusal
from prove.simulation.disk import Disk
from prove.simulation.host import Process, Rpc
from prove.simulation.servers import Servers
from prove.simulation.stage import Stage


class Told(NamedTuple):
    """An answer, and the journal's durable head when it was given."""

    answer: Any
    durable_position: int


class Network:
    """The way to whatever command server is up, and back."""

    def __init__(self, stage: Stage, disk: Disk, servers: Servers) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._disk = disk
        self._servers = servers

    async def call(
        self,
        method: str,
        request: Any,
        caller: Caller,
        *,
        timeout_seconds: float | None = None,
        cancel_after_seconds: float | None = None,
    ) -> Told | Refusal | None:
        """Call a method, by its service and name; None: no answer came. The caller leaves when its patience is over."""
        dice, loop = self._dice, self._stage.loop
        deadline = None if timeout_seconds is None else loop.time() + timeout_seconds
        rpc = Rpc(method, request, caller, deadline, loop.create_future(), loop)
        delay = dice.uniform(0.1, 3.0) if dice.fires("rpc_delay") else dice.uniform(0.0005, 0.005)
        if dice.fires("rpc_lose_request"):
            self._stage.later(delay, rpc.answer, None)
        else:
            self._stage.later(delay, self._arrive, rpc)
        patience = min(
            timeout_seconds if timeout_seconds is not None else 1e9,
            1e9 if cancel_after_seconds is None or dice.is_over else cancel_after_seconds,
        )
        told: Told | Refusal | None = None
        try:
            async with asyncio.timeout(patience):
                told = await rpc.reply
        except TimeoutError:
            dice.fired["client_cancel" if patience == cancel_after_seconds else "client_deadline"] += 1
            rpc.is_over = True
            self._stage.later(dice.uniform(0.0, 0.005), rpc.leave)
        return told

    def _arrive(self, rpc: Rpc) -> None:
        server = self._servers.a_command()
        if rpc.is_over:
            return
        if not server.is_up or not server.alive:
            self._stage.later(0.001, rpc.answer, None)
            return
        server.calls[rpc] = None
        rpc.task, rpc.calls = server.start(self._serve(server, rpc)), server.calls

    async def _serve(self, server: Process, rpc: Rpc) -> None:
        """What grpc and the guard around it do with a call."""
        outcome: Told | Refusal | None
        rpc.has_begun = True
        try:
            response = await server.handler(rpc.method)(rpc.request, rpc.guarded())
            outcome = Told(response, self._disk.durable.position)
            server.has_answered(response)
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
