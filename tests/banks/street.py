"""A fake of a bank, a proxy before it that does wrong on order, and a command server that can be killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import grpc.aio

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeResponse, OperationOutcome
from judge.history import Request, Response
from prove.clients import CHANNEL_OPTIONS
from prove.network.faultproxy import Fault, Kind, Proxy
from rig.asking import awaits_customer, is_decided, send, told_by
from rig.processes import Server, free_address
from rig.world import until
from tests.banks.fakes import KEY

CALL_SECONDS = 5.0
# Short, since a request that got lost is made again after it.
BANK_SECONDS = 1.0
HUNG_SECONDS = 60.0
Told = ChargeResponse | OperationOutcome


class Trouble(Enum):
    """What happens to a call at the fake."""

    LOST_ANSWER = "its answer is lost after the work"
    LOST_REQUEST = "its connection is cut before it arrives"
    NO_ANSWER = "its answer does not come in time"
    LATE_REQUEST = "it arrives after it was given up"
    KILLED_AFTER = "the server is killed after the work, before it hears of it"
    KILLED_BEFORE = "the server is killed before it arrives"

    def fault(self, call: bytes) -> Fault:
        """Return it as the proxy does it to a call, by its first bytes."""
        match self:
            case Trouble.LOST_ANSWER:
                return Fault(Kind.LOSE_ANSWER, when=call, seconds=0.0)
            case Trouble.NO_ANSWER | Trouble.KILLED_AFTER:
                return Fault(Kind.LOSE_ANSWER, when=call, seconds=HUNG_SECONDS)
            case Trouble.LOST_REQUEST:
                return Fault(Kind.RESET, when=call)
            case Trouble.LATE_REQUEST:
                return Fault(Kind.DELAY, when=call, seconds=BANK_SECONDS * 1.5)
            case Trouble.KILLED_BEFORE:
                return Fault(Kind.BLACK_HOLE, when=call)

    @property
    def kills(self) -> bool:
        """Whether the server is to be killed when it happens."""
        return self in (Trouble.KILLED_AFTER, Trouble.KILLED_BEFORE)


@dataclass(eq=False)
class Street:
    """A fake, the proxy before it, and the command server, with its journal."""

    fake: str
    """Its address."""
    approved_card: str
    declined_card: str
    proxy: Proxy
    command: Server
    channel: grpc.aio.Channel

    def log_of_fake(self) -> str:
        """What the fake has printed so far."""
        return (self.command.log.parent / "fake.log").read_text(errors="replace")

    async def settle(self, request: Request, *, ends: bool = False) -> Told:
        """Send a request until it is decided, return what is told. With `ends` a step of the customer is waited for."""
        stub = command_pb2_grpc.CommandServiceStub(self.channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer: Response = await send(stub, request, timeout=CALL_SECONDS, wait_for_ready=True)
                if is_decided(answer) or (awaits_customer(answer) and not ends):
                    return told_by(answer)
            await asyncio.sleep(0.05)

    async def suffer(self, request: Request, call: bytes, trouble: Trouble, *, ends: bool = False) -> Told:
        """The same, while a call that it makes at the fake meets trouble."""
        fault = trouble.fault(call)
        before = self.proxy.fired[fault.kind]
        self.proxy.order(fault)
        settling = asyncio.create_task(self.settle(request, ends=ends))
        if trouble.kills:
            await until(lambda: self.proxy.fired[fault.kind] > before)
            await self.command.kill()
            await self.command.start()
        told = await settling
        assert self.proxy.fired[fault.kind] == before + 1, f"no such call was made: {call!r}"
        return told


@asynccontextmanager
async def a_street(
    fake: str, cards: tuple[str, str], folder: Path, kind: str, options: Sequence[str] = ()
) -> AsyncIterator[Street]:
    """Start the proxy and the command server, for a fake at an address; `options` are lines of the bank's table."""
    async with Proxy(lambda: ("127.0.0.1", int(fake.rpartition(":")[2]))) as proxy:
        (folder / "key").write_text(KEY)
        banks = folder / "banks.toml"
        lines = ("[banks.fake]", f'kind = "{kind}"', f'url = "http://{proxy.address}"', 'key_file = "key"')
        banks.write_text("\n".join([*lines, f"timeout_seconds = {BANK_SECONDS}", *options]))
        command = Server(
            "tests.banks.command",
            {
                "COMMAND_LISTEN": free_address(),
                "COMMAND_FEED_LISTEN": free_address(),
                "COMMAND_JOURNAL": f"sqlite:///{folder / 'journal.db'}",
                "COMMAND_BANKS": str(banks),
            },
            folder / "command.log",
        )
        await command.start()
        try:
            async with grpc.aio.insecure_channel(command.listen, options=CHANNEL_OPTIONS) as channel:
                yield Street(fake, *cards, proxy, command, channel)
        finally:
            await command.kill()
