"""`kill -9` at the n-th system call of one charge, and of a start that recovers one, for all n until no run has an n-th.

And of a capture, a void, a refund and a calling off, of which each call is died at in one, in turn.

strace kills the real command server at the entry of a write, sync, send or receive: all calls before have happened, this
one has not. It counts calls for each thread by itself, so each thread is gone through by itself; gRPC's pool, whose threads
take work as it comes, is gone through as one. After every death the server starts again, the client asks again, and the
bank must have executed what was asked for exactly once.

strace is never signalled: asked to end while a whole process dies, it waits for the first thread for ever, and the process
with it. The server is killed when the operation is over, and strace, left with nothing, ends by itself; its log then says
whether there was an n-th call.
"""

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from charging.v1.command_pb2 import CaptureMode, ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, Money
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import verify_journal
from judge.checker import check
from judge.history import Request
from prove.clients import CHANNEL_OPTIONS, Clients, Witness
from prove.report import Harness, Say
from prove.sabotaged import sabotage
from prove.sales import Sale
from rig.asking import reference_of
from rig.processes import DidNotStart, Town
from rig.referee import Referee
from rig.world import until

if TYPE_CHECKING:
    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub

# What an operation uses of the world outside: the journal's writes and syncs, the sockets, and the wake-ups between threads.
OPERATION_CALLS = "pwrite64,fdatasync,fsync,sendto,recvfrom,sendmsg,recvmsg,read,readv,write,writev,connect,accept4"
START_CALLS = "openat,pread64,pwrite64,read,write,fdatasync,fsync,ftruncate,rename,unlink"
# gRPC's name for the threads of its pool.
POOL = "event_engine"
# The place of the thread that writes the journal, after the main one and that of the log.
JOURNAL_PLACE = 2
# What threads do to wake each other differs from time to time: one run without an n-th call is not the last word.
LIVES = 3
# An operation takes milliseconds, under strace tens of them, with a start of the server a second. All the rest is a machine
# that is busy with other things.
OPERATION_SECONDS = 60.0
STOP_SECONDS = 30.0
# The parts of the time, as they end: the two charges, what follows in charges, and what is left for the starts.
FIRST_SHARE, LATER_SHARE, FOLLOWING_SHARE = 0.35, 0.55, 0.75
# What may follow in a charge. A death at each call of each would take four times as long as those of a charge: each call is
# died at in one of them, in turn.
FOLLOWING = ("capture", "void", "refund", "calling off")
IN_TURN = f"in turn {', '.join(FOLLOWING)}: each call is died at in one of them"
# The bank is at a charge, and asks to be asked again when the call is over.
AT_IT: Mapping[str, Any] = {"retry_after": "20", "times": 1_000_000}


def _threads(process: int) -> list[list[int]]:
    """A process's threads, oldest first, the pool's last and as one: start after start the same work in the same place."""
    alone, pool = [], []
    for task in sorted(Path(f"/proc/{process}/task").iterdir(), key=lambda task: int(task.name)):
        if (task / "comm").read_text().strip() == POOL:
            pool.append(int(task.name))
        else:
            alone.append([int(task.name)])
    return [*alone, pool]


async def _attach(threads: Sequence[int], calls: str, number: int, log: Path) -> asyncio.subprocess.Process:
    """Have strace kill at the n-th of some calls from now on, whichever of the threads makes it."""
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-o", str(log), *(word for thread in threads for word in ("-p", str(thread)))),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={number}"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    for _ in threads:
        said = await strace.stderr.readline()
        if b"attached" not in said:
            raise OSError(f"strace cannot attach: {said.decode(errors='replace').strip()}")
    return strace


def killed_in(what: str) -> str:
    """The name of a death in the table."""
    return f"killed at a call of a {what}"


def _most_calls(log: Path) -> int:
    """How many calls a log has of the thread that made the most."""
    begun = re.findall(r"^(\d+ +)?\w+\(", log.read_text(errors="replace"), re.MULTILINE)
    return max(Counter(begun).values(), default=0)


def _sale(key: str, *, is_held: bool = False) -> Sale:
    """A charge that succeeds, for another card's would make other calls."""
    card, amount = Card(token="tok_visa"), Money(minor_units=4200, currency_code="EUR")  # noqa: S106  # the mock bank's
    capture = CaptureMode.CAPTURE_MODE_MANUAL if is_held else CaptureMode.CAPTURE_MODE_UNSPECIFIED
    return Sale(ChargeRequest(idempotency_key=key, user_id="alice", card=card, amount=amount, capture=capture))


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
    witness: Witness
    harness: Harness

    async def prepare(self, what: str) -> tuple[Request, ...]:
        """Do what precedes; return what is then asked for, at once, for an operation of a kind.

        A charge that is to be called off is one that the bank is at, until the next faults.
        """
        self.clients.begun += 1
        sale = _sale(f"{self.clients.prefix}-{self.clients.begun:08}", is_held=what in ("capture", "void"))
        match what:
            case "charge":
                return (sale.opening,)
            case "capture" | "void" | "refund":
                await self.ask(sale.opening)
                follows: Mapping[str, Request] = {
                    "capture": sale.capture("one", sale.amount // 2),
                    "void": sale.void("one"),
                    "refund": sale.refund("one", sale.amount // 2),
                }
                return (follows[what],)
            case _:
                await self.witness.referee.no_more_trouble()
                await self.witness.referee.trouble(
                    "execute", "in_progress", reference=reference_of(sale.opening), **AT_IT
                )
                async with self._stub() as stub:
                    asking = asyncio.create_task(self.clients.ask(stub, sale.opening))
                    await until(self.witness.referee.has_fired)
                    asking.cancel()
                    await asyncio.wait((asking,))
                return sale.opening, sale.void("one")

    @contextlib.asynccontextmanager
    async def _stub(self) -> "AsyncIterator[CommandServiceAsyncStub]":
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            yield CommandServiceStub(channel)

    async def ask(self, *requests: Request) -> None:
        """Ask until the outcomes are known. Raises TimeoutError."""
        async with self._stub() as stub, asyncio.timeout(OPERATION_SECONDS):
            await asyncio.gather(*(self.clients.until_known(stub, request) for request in requests))

    async def die_in(self, what: str, place: int, number: int) -> bool:
        """Kill at the n-th call of the threads in a place, during one operation. False if there was no n-th."""
        process = self.town.command.process
        assert process is not None
        requests = await self.prepare(what)
        log = self.town.folder / "strace.log"
        server = os.pidfd_open(process.pid)
        try:
            strace = await _attach(_threads(process.pid)[place], OPERATION_CALLS, number, log)
            asking, dying = asyncio.create_task(self.ask(*requests)), asyncio.create_task(process.wait())
            await asyncio.wait((asking, dying), return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(server, signal.SIGKILL)
        finally:
            os.close(server)
        await asyncio.wait_for(asyncio.gather(dying, strace.wait()), STOP_SECONDS)
        where = f"killed at call {number} of thread {place}, {what}"
        early = await self.witness.executed_too_early(self.town.journal)
        self.harness.violations += [f"{text} ({where})" for text in early]
        await self.town.start_command()
        try:
            await asking
        except TimeoutError:
            self.harness.violations.append(f"L1: it did not end within {OPERATION_SECONDS:.0f} s ({where})")
        return _most_calls(log) >= number

    async def every_call(
        self, name: str, kinds: Sequence[str], until: float, say: Say, *, is_first: bool = False
    ) -> None:
        """Go through all calls: of all threads the first, then the second, so that a short run meets them all.

        Of several kinds each call is one's, in turn. `is_first`: the operation is the first of its server, which connects to
        the bank, and else a later one.
        """
        assert self.town.command.process is not None
        turn, number = itertools.cycle(kinds), 1
        places = list(range(len(_threads(self.town.command.process.pid))))
        while places:
            for place in list(places):
                lives = LIVES
                while lives:
                    if time.monotonic() > until:
                        why = f"the time was up at each thread's call {number}"
                        self.harness.skipped[f"every call of {name}"] = why
                        return
                    # The server that recovered the last charge is not yet like any other.
                    if is_first:
                        await self.town.command.kill()
                        await self.town.start_command()
                    else:
                        await self.ask(*(await self.prepare("charge")))
                    what = next(turn)
                    try:
                        if await self.die_in(what, place, number):
                            break
                    except OSError:
                        # A thread of the pool may have ended just now. A strace that never can attach is another matter.
                        if not self.harness.tried:
                            raise
                        continue
                    lives -= 1
                if not lives:
                    places.remove(place)
                    continue
                self.harness.tried += 1
                self.harness.faults[killed_in(what)] += 1
                say(f"system calls: killed at call {number} of thread {place}, {name}: {what}")
            number += 1

    async def every_call_of_a_start(self, until: float, say: Say) -> None:
        """Leave a charge whose money has moved unknown to the journal, and kill the start that finds it, at every call."""
        await self.witness.referee.trouble("execute", "hang_after", seconds=OPERATION_SECONDS)
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            asking = asyncio.create_task(self.clients.ask(CommandServiceStub(channel), _sale("found-at-start").opening))
            async with asyncio.timeout(OPERATION_SECONDS):
                while not await self.witness.referee.has_fired():  # noqa: ASYNC110  # it is the bank's event
                    await asyncio.sleep(0.01)
            await self.town.command.kill()
            await asking
        await self.witness.referee.no_more_trouble()
        folder = self.town.folder
        kept = folder / "found"
        kept.mkdir()
        for file in folder.glob("journal.db*"):
            if not file.name.endswith((".lock", "-shm")):
                shutil.copyfile(file, kept / file.name)
        for names in (("journal.db", "journal.db-wal"), ("journal.db.anchor.new", "journal.db.anchor")):
            number, lives = 1, LIVES
            while lives:
                if time.monotonic() > until:
                    self.harness.skipped["every call of a start"] = f"the time was up at call {number} on {names[0]}"
                    return
                if not await self._die_in_start(kept, names, number):
                    lives -= 1
                    continue
                self.harness.tried += 1
                self.harness.faults[killed_in("start")] += 1
                say(f"system calls: killed at call {number} of a start on {names[0]}")
                number, lives = number + 1, LIVES

    async def _die_in_start(self, kept: Path, names: tuple[str, ...], number: int) -> bool:
        """Kill a start, or the stop after it, at the n-th call on some of the journal's files. False if it lived."""
        _put_back(kept, self.town.folder)
        paths = [word for name in names for word in ("-P", str(self.town.folder / name))]
        injection = ("-e", f"trace={START_CALLS}", "-e", f"inject={START_CALLS}:signal=KILL:when={number}")
        self.town.command.prefix = ("strace", "-f", "-o", "/dev/null", *paths, *injection)
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            request = _sale("found-at-start").opening
            stub = CommandServiceStub(channel)
            # A charge may be answered before the start has stored all it stores: its end in order is waited for, too.
            with contextlib.suppress(DidNotStart):
                await self.town.start_command()
                await self.clients.ask(stub, request)
            # strace passes the request on to the server only, and ends as the server did.
            is_dead = await self.town.command.stop() == -signal.SIGKILL
            self.town.command.prefix = ()
            await self.town.start_command()
            await self.clients.ask(stub, request, is_again=True)
        await self.town.command.stop()
        await self.reckon(f"start killed at call {number} on {names[0]}")
        return is_dead

    async def reckon(self, where: str) -> None:
        """Compare what all sides have."""
        verify_journal(SqliteFile(self.town.journal))
        observed = await self.witness.at_rest(self.clients, self.town)
        self.harness.violations += [f"{violation} ({where})" for violation in check(observed)]


# A bug of the command server, and what a death at one of the first calls of the journal's thread must show of it.
CANARY, BROKEN, CANARY_CALLS = "execute before the token is durable", "I3", 16


async def is_canary_found() -> bool:
    """Whether the planted bug is found: between the execution and the token's commit there are some calls to die at."""
    harness = Harness("canary", "calls")
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        town = Town(Path(folder))
        sabotage(town.command, CANARY)
        async with town, Referee(town.bank_url) as referee:
            trial = Trial(town, Clients(random.Random(0), "canary"), Witness(referee), harness)
            for number in range(1, CANARY_CALLS + 1):
                await trial.die_in("charge", JOURNAL_PLACE, number)
                if harness.found(BROKEN):
                    return True
    return False


async def run(seconds: float, say: Say) -> Harness:
    """Go through a charge's calls and then a start's, until all are tried or the time is used up."""
    harness = Harness("system calls", "calls")
    harness.knows((*map(killed_in, ("charge", *FOLLOWING)), killed_in("start")))
    began = time.monotonic()
    if shutil.which("strace") is None:
        harness.skipped["system calls"] = "strace is not installed"
        return harness
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        async with Town(Path(folder)) as town, Referee(town.bank_url) as referee:
            trial = Trial(town, Clients(random.Random(0), "syscall"), Witness(referee), harness)
            try:
                await trial.every_call(
                    "the first charge", ("charge",), began + seconds * FIRST_SHARE, say, is_first=True
                )
                await trial.every_call("a later charge", ("charge",), began + seconds * LATER_SHARE, say)
                await trial.every_call("what follows", FOLLOWING, began + seconds * FOLLOWING_SHARE, say)
                await referee.no_more_trouble()
            except OSError as error:
                harness.skipped["system calls"] = str(error)
                return harness
            await trial.reckon("killed at the calls of an operation")
            harness.canaries_planted += 1
            harness.canaries_found += await is_canary_found()
            await trial.every_call_of_a_start(began + seconds, say)
    if not harness.skipped:
        harness.skipped["every call of each operation that follows"] = IN_TURN
        harness.unit = f"of {harness.tried:,} calls"
        harness.complete = dict.fromkeys(harness.faults, "there are no more calls")
        harness.complete |= dict.fromkeys(map(killed_in, FOLLOWING), "a quarter of the calls each")
    harness.seconds = time.monotonic() - began
    return harness


if __name__ == "__main__":
    print(asyncio.run(run(float(sys.argv[1]), print)).as_json())
