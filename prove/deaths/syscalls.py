"""`kill -9` at the n-th system call of one charge, and of a start that recovers one, for all n until no run has an n-th.

strace kills the real command server at the entry of a write, sync, send or receive: all calls before have happened, this
one has not. It counts calls for each thread by itself, so each thread is gone through by itself; gRPC's pool, whose threads
take work as it comes, is gone through as one. After every death the server starts again, the client asks again, and the
card must have been charged exactly once.

strace is never signalled: asked to end while a whole process dies, it waits for the first thread for ever, and the process
with it. The server is killed when the charge is over, and strace, left with nothing, ends by itself; its log then says
whether there was an n-th call.
"""

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import verify_journal
from judge.checker import check
from prove.clients import CHANNEL_OPTIONS, PAUSE_SECONDS, Clients, Witness
from prove.report import Harness, Say
from prove.sabotaged import sabotage
from rig.processes import DidNotStart, Town
from rig.referee import Referee

# What a charge uses of the world outside: the journal's writes and syncs, the sockets, and the wake-ups between threads.
CHARGE_CALLS = "pwrite64,fdatasync,fsync,sendto,recvfrom,sendmsg,recvmsg,read,readv,write,writev,connect,accept4"
START_CALLS = "openat,pread64,pwrite64,read,write,fdatasync,fsync,ftruncate,rename,unlink"
# gRPC's name for the threads of its pool.
POOL = "event_engine"
# The place of the thread that writes the journal, after the main one and that of the log.
JOURNAL_PLACE = 2
# What threads do to wake each other differs from charge to charge: one run without an n-th call is not the last word.
LIVES = 3
# A charge takes milliseconds, under strace tens of them, with a start of the server a second. All the rest is a machine
# that is busy with other things.
CHARGE_SECONDS = 60.0
STOP_SECONDS = 30.0
# The parts of the time, as they end: the two charges, and what is left for the starts.
FIRST_CHARGE_SHARE, LATER_CHARGE_SHARE = 0.45, 0.7


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


def _most_calls(log: Path) -> int:
    """How many calls a log has of the thread that made the most."""
    begun = re.findall(r"^(\d+ +)?\w+\(", log.read_text(errors="replace"), re.MULTILINE)
    return max(Counter(begun).values(), default=0)


def _request(key: str) -> ChargeRequest:
    """A charge that succeeds: another card's would make other calls."""
    card, amount = Card(token="tok_visa"), Money(minor_units=4200, currency_code="EUR")  # noqa: S106  # the mock bank's
    return ChargeRequest(idempotency_key=key, user_id="alice", card=card, amount=amount)


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

    async def charge(self) -> None:
        """Charge until the outcome is known."""
        self.clients.begun += 1
        request = _request(f"{self.clients.prefix}-{self.clients.begun:08}")
        async with (
            grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel,
            asyncio.timeout(CHARGE_SECONDS),
        ):
            stub = CommandServiceStub(channel)
            known = await self.clients.ask(stub, request)
            while known.status in (0, ChargeStatus.CHARGE_STATUS_PENDING):
                if known.outcome != "ok":
                    await asyncio.sleep(PAUSE_SECONDS)
                known = await self.clients.ask(stub, request, is_again=True)

    async def die_in_charge(self, place: int, number: int) -> bool:
        """Kill at the n-th call of the threads in a place, during one charge. False if there was no n-th."""
        process = self.town.command.process
        assert process is not None
        log = self.town.folder / "strace.log"
        server = os.pidfd_open(process.pid)
        try:
            strace = await _attach(_threads(process.pid)[place], CHARGE_CALLS, number, log)
            charging, dying = asyncio.create_task(self.charge()), asyncio.create_task(process.wait())
            await asyncio.wait((charging, dying), return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(server, signal.SIGKILL)
        finally:
            os.close(server)
        await asyncio.wait_for(asyncio.gather(dying, strace.wait()), STOP_SECONDS)
        where = f"killed at call {number} of thread {place}"
        early = await self.witness.executed_too_early(self.town.journal)
        self.harness.violations += [f"{text} ({where})" for text in early]
        await self.town.start_command()
        try:
            await charging
        except TimeoutError:
            self.harness.violations.append(f"L1: a charge did not end within {CHARGE_SECONDS:.0f} s ({where})")
        return _most_calls(log) >= number

    async def every_call_of_a_charge(self, until: float, say: Say, *, is_first: bool) -> None:
        """Go through all calls: of all threads the first, then the second, so that a short run meets them all.

        The charge is the first of its server, which connects to the bank, or a later one.
        """
        assert self.town.command.process is not None
        what = "the first charge" if is_first else "a later charge"
        number = 1
        places = list(range(len(_threads(self.town.command.process.pid))))
        while places:
            for place in list(places):
                lives = LIVES
                while lives:
                    if time.monotonic() > until:
                        why = f"the time was up at each thread's call {number}"
                        self.harness.skipped[f"every call of {what}"] = why
                        return
                    # The server that recovered the last charge is not yet like any other.
                    if is_first:
                        await self.town.command.kill()
                        await self.town.start_command()
                    else:
                        await self.charge()
                    try:
                        if await self.die_in_charge(place, number):
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
                self.harness.faults["killed at a call of a charge"] += 1
                say(f"system calls: killed at call {number} of thread {place}, {what}")
            number += 1

    async def every_call_of_a_start(self, until: float, say: Say) -> None:
        """Leave a charge whose money has moved unknown to the journal, and kill the start that finds it, at every call."""
        await self.witness.referee.trouble("execute", "hang_after", seconds=CHARGE_SECONDS)
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            asking = asyncio.create_task(self.clients.ask(CommandServiceStub(channel), _request("found-at-start")))
            async with asyncio.timeout(CHARGE_SECONDS):
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
                self.harness.faults["killed at a call of a start"] += 1
                say(f"system calls: killed at call {number} of a start on {names[0]}")
                number, lives = number + 1, LIVES

    async def _die_in_start(self, kept: Path, names: tuple[str, ...], number: int) -> bool:
        """Kill a start, or the stop after it, at the n-th call on some of the journal's files. False if it lived."""
        _put_back(kept, self.town.folder)
        paths = [word for name in names for word in ("-P", str(self.town.folder / name))]
        injection = ("-e", f"trace={START_CALLS}", "-e", f"inject={START_CALLS}:signal=KILL:when={number}")
        self.town.command.prefix = ("strace", "-f", "-o", "/dev/null", *paths, *injection)
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            request = _request("found-at-start")
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
                await trial.die_in_charge(JOURNAL_PLACE, number)
                if harness.found(BROKEN):
                    return True
    return False


async def run(seconds: float, say: Say) -> Harness:
    """Go through a charge's calls and then a start's, until all are tried or the time is used up."""
    harness = Harness("system calls", "calls")
    harness.knows(("killed at a call of a charge", "killed at a call of a start"))
    began = time.monotonic()
    if shutil.which("strace") is None:
        harness.skipped["system calls"] = "strace is not installed"
        return harness
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        async with Town(Path(folder)) as town, Referee(town.bank_url) as referee:
            trial = Trial(town, Clients(random.Random(0), "syscall"), Witness(referee), harness)
            try:
                await trial.every_call_of_a_charge(began + seconds * FIRST_CHARGE_SHARE, say, is_first=True)
                await trial.every_call_of_a_charge(began + seconds * LATER_CHARGE_SHARE, say, is_first=False)
            except OSError as error:
                harness.skipped["system calls"] = str(error)
                return harness
            await trial.reckon("killed at the calls of a charge")
            harness.canaries_planted += 1
            harness.canaries_found += await is_canary_found()
            await trial.every_call_of_a_start(began + seconds, say)
    if not harness.skipped:
        harness.unit = f"of {harness.tried:,} calls"
        harness.complete = dict.fromkeys(harness.faults, "there are no more calls")
    harness.seconds = time.monotonic() - began
    return harness


if __name__ == "__main__":
    print(asyncio.run(run(float(sys.argv[1]), print)).as_json())
