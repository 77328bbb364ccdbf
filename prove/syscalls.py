"""`kill -9` at the n-th system call of one charge, and of a start that recovers one, for all n until a run passes.

strace kills the real command server at the entry of a write, sync, send or receive: all calls before have happened, this
one has not. It counts calls for each thread by itself, so each thread is gone through by itself too; and since gRPC's
threads take work as it comes, what they call is gone through by name as well, whichever thread it is. After every death
the server starts again, the client asks again, and the card must have been charged exactly once.
"""

import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Money
from command_service.operate import verify_journal
from demo.processes import DidNotStart, Town
from prove.checker import check
from prove.clients import CHANNEL_OPTIONS, Clients, Referee
from prove.report import Harness, Say

# What a charge uses of the world outside: the journal's writes and syncs, the sockets, and the wake-ups between threads.
CHARGE_CALLS = "pwrite64,fdatasync,fsync,sendto,recvfrom,sendmsg,recvmsg,write,writev,connect,accept4"
GRPC_CALLS = ("accept4", "recvmsg", "sendmsg")
START_CALLS = "openat,pread64,pwrite64,write,fdatasync,fsync,ftruncate,rename,unlink"
# A charge takes milliseconds, under strace tens of them. A server that is not dead by then was not killed.
CHARGE_SECONDS = 10.0
STOP_SECONDS = 10.0


@contextlib.asynccontextmanager
async def _killing(threads: Sequence[str], calls: str, number: int) -> AsyncIterator[None]:
    """Have strace kill at the n-th of some calls from now on; leaving ends strace."""
    strace = await asyncio.create_subprocess_exec(
        *("strace", *threads, "-o", "/dev/null"),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={number}"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    said = await strace.stderr.readline()
    if b"attached" not in said:
        raise OSError(f"strace cannot attach: {said.decode(errors='replace').strip()}")
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            strace.terminate()
        await asyncio.wait_for(strace.wait(), STOP_SECONDS)


def _threads(process: int) -> list[int]:
    """A process's threads, oldest first: the same work lies with the same place in the list, start after start."""
    return sorted(int(task.name) for task in Path(f"/proc/{process}/task").iterdir())


def _put_back(kept: Path, folder: Path) -> None:
    """Put the journal's files back as they were kept."""
    for file in folder.glob("journal.db*"):
        file.unlink()
    for file in kept.iterdir():
        shutil.copyfile(file, folder / file.name)


@dataclass(eq=False)
class Trial:
    """A town, its clients, and the harness."""

    town: Town
    clients: Clients
    referee: Referee
    harness: Harness

    async def charge(self) -> None:
        """Charge until the outcome is known."""
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            await asyncio.wait_for(self.clients.charge(CommandServiceStub(channel)), CHARGE_SECONDS * 3)

    async def die_in_charge(self, place: int | None, calls: str, number: int) -> bool:
        """Kill at the n-th call of the thread in a place, or of any, during one charge. False if it lived."""
        process = self.town.command.process
        assert process is not None
        charging = None
        pid = process.pid
        threads = ("-f", "-p", str(pid)) if place is None else ("-p", str(_threads(pid)[place]))
        try:
            async with _killing(threads, calls, number):
                charging = asyncio.create_task(self.charge())
                dying = asyncio.create_task(process.wait())
                await asyncio.wait((charging, dying), return_when=asyncio.FIRST_COMPLETED)
                dying.cancel()
            is_dead = process.returncode is not None
            if is_dead:
                await self.town.start_command()
        finally:
            if charging is not None:
                await charging
        return is_dead

    async def every_call_of_a_charge(self, until: float, say: Say) -> None:
        """Go through all threads and, in each, all calls."""
        assert self.town.command.process is not None
        places = range(len(_threads(self.town.command.process.pid)))
        for place, calls in [*((None, name) for name in GRPC_CALLS), *((place, CHARGE_CALLS) for place in places)]:
            number = 1
            what = calls if place is None else f"thread {place}"
            while await self.die_in_charge(place, calls, number):
                self.harness.tried += 1
                self.harness.faults["killed at a call of a charge"] += 1
                say(f"system calls: killed at call {number} of {what}")
                if time.monotonic() > until:
                    self.harness.skipped["every call of a charge"] = f"the time was up at call {number} of {what}"
                    return
                number += 1

    async def every_call_of_a_start(self, until: float, say: Say) -> None:
        """Leave a charge whose money has moved unknown to the journal, and kill the start that finds it, at every call."""
        await self.referee.order(on="execute", fault="hang_after", seconds=CHARGE_SECONDS * 3)
        async with grpc.aio.insecure_channel(self.town.command.listen) as channel:
            request = ChargeRequest(idempotency_key="found-at-start", user_id="alice")
            request.card.CopyFrom(Card(token="tok_visa"))  # noqa: S106  # a token of the mock bank's
            request.amount.CopyFrom(Money(minor_units=4200, currency_code="EUR"))
            asking = asyncio.create_task(self.clients.ask(CommandServiceStub(channel), request))
            while not await self.referee.has_fired():  # noqa: ASYNC110  # it is the bank's event
                await asyncio.sleep(0.01)
            await self.town.command.kill()
            await asking
        await self.referee.http.delete("/faults")
        folder = self.town.folder
        kept = folder / "found"
        kept.mkdir()
        for file in folder.glob("journal.db*"):
            if not file.name.endswith((".lock", "-shm")):
                shutil.copyfile(file, kept / file.name)
        for names in (("journal.db", "journal.db-wal"), ("journal.db.anchor.new", "journal.db.anchor")):
            number = 1
            while await self._die_in_start(kept, names, number):
                self.harness.tried += 1
                self.harness.faults["killed at a call of a start"] += 1
                say(f"system calls: killed at call {number} of a start on {names[0]}")
                if time.monotonic() > until:
                    self.harness.skipped["every call of a start"] = f"the time was up at call {number} on {names[0]}"
                    return
                number += 1

    async def _die_in_start(self, kept: Path, names: tuple[str, ...], number: int) -> bool:
        """Kill a start at the n-th call on some of the journal's files, and start again. False if it lived."""
        _put_back(kept, self.town.folder)
        paths = [word for name in names for word in ("-P", str(self.town.folder / name))]
        injection = ("-e", f"trace={START_CALLS}", "-e", f"inject={START_CALLS}:signal=KILL:when={number}")
        self.town.command.prefix = ("strace", "-f", "-o", "/dev/null", *paths, *injection)
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            request = ChargeRequest(idempotency_key="found-at-start", user_id="alice")
            request.card.CopyFrom(Card(token="tok_visa"))  # noqa: S106  # a token of the mock bank's
            request.amount.CopyFrom(Money(minor_units=4200, currency_code="EUR"))
            stub = CommandServiceStub(channel)
            is_dead = False
            try:
                await self.town.start_command()
                is_dead = (await self.clients.ask(stub, request)).outcome != "ok"
            except DidNotStart:
                is_dead = True
            finally:
                if self.town.command.process is not None and self.town.command.process.returncode is None:
                    await self.town.command.kill()
                self.town.command.prefix = ()
            await self.town.start_command()
            await self.clients.ask(stub, request, is_again=True)
        await self.town.command.stop()
        await self.reckon(f"start killed at call {number} on {names[0]}")
        return is_dead

    async def reckon(self, where: str) -> None:
        """Compare what all sides have."""
        verify_journal(self.town.journal)
        observed = await self.referee.at_rest(self.clients, self.town)
        self.harness.violations += [f"{violation} ({where})" for violation in check(observed)]


async def run(seconds: float, say: Say) -> Harness:
    """Go through a charge's calls and then a start's, until all are tried or the time is used up."""
    harness = Harness("system calls", "calls")
    began = time.monotonic()
    if shutil.which("strace") is None:
        harness.skipped["system calls"] = "strace is not installed"
        return harness
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        async with Town(Path(folder)) as town, httpx.AsyncClient(base_url=town.bank_url, trust_env=False) as http:
            trial = Trial(town, Clients(random.Random(0), "syscall"), Referee(http), harness)
            try:
                await trial.every_call_of_a_charge(began + seconds * 0.6, say)
            except OSError as error:
                harness.skipped["system calls"] = str(error)
                return harness
            await trial.reckon("killed at the calls of a charge")
            await trial.every_call_of_a_start(began + seconds, say)
    harness.seconds = time.monotonic() - began
    return harness


if __name__ == "__main__":
    print(asyncio.run(run(float(sys.argv[1]), print)).as_json())
