"""Backups that are taken under load and restored, and second servers that are started on the same journal meanwhile.

A backup taken under load is an exact prefix. A restored journal is noticed by a real query server, which rebuilds. A second
server on one file says so and ends.
"""

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from charging.v1.command_pb2_grpc import CommandServiceStub
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import verify_journal
from judge.checker import check
from judge.files import read_journal, read_view
from prove.clients import CHANNEL_OPTIONS, Clients, Witness
from prove.journal_bugs import RESTORED_IS_FORGOTTEN
from prove.report import Harness
from prove.sabotaged import sabotage
from rig.ports import town_with_kept_ports
from rig.processes import DidNotStart, Server, Town
from rig.referee import Referee
from rig.world import until

OPERATION_SECONDS = 60.0
REST_SECONDS = 60.0
# A few are load enough for a backup to meet an append; more only make the machine slow for what is beside it.
CLIENTS = 3


@dataclass(eq=False)
class Restored:
    """A town whose journal is replaced by older backups of it. Made by `restored`."""

    town: Town
    clients: Clients
    harness: Harness
    witness: Witness
    restores: int = 0
    is_restored: bool = False
    looked_up: set[str] = field(default_factory=set)
    """Of which charges the bank was asked since it was last asked to do something for them."""

    async def back_up_and_restore(self) -> None:
        """Back up under load, start a second server, go on, restore: the query server notices and rebuilds."""
        town, harness, stop = self.town, self.harness, asyncio.Event()
        working = asyncio.create_task(self.clients.work(town, CLIENTS, stop))
        await self._go_on()
        copy = town.folder / f"backup-{self.restores}.db"
        await asyncio.to_thread(_operate, town.journal, "backup", str(copy))
        await self._go_on()
        await self._start_second()
        stop.set()
        await working
        records, kept = read_journal(town.journal), read_journal(copy)
        harness.faults["backups under load"] += 1
        if kept != records[: len(kept)] or len(kept) == len(records):
            harness.violations.append("I10: a backup under load is not an exact, earlier prefix")
        await self._until_equal()
        await town.command.stop()
        await self._judge_look_ups()
        self.is_restored = True
        await asyncio.to_thread(_operate, town.journal, "restore", str(copy))
        before = town.query.text().count("the journal has diverged")
        await town.start_command()
        harness.faults["restored backups"] += 1
        await self._until_equal()
        try:  # its log is written a little after what it tells
            await until(lambda: town.query.text().count("the journal has diverged") > before)
        except TimeoutError:
            harness.violations.append("I11: the query server did not notice the restored journal")
        copy.unlink()
        self.restores += 1
        harness.tried += 1

    async def _judge_look_ups(self) -> None:
        """See that a server with a restored journal, which may have forgotten a step, asked the bank before each."""
        for call in await self.witness.collect():
            charge = call["reference"]
            if not self.is_restored:
                continue
            if call["method"] == "GET":
                self.looked_up.add(charge)
                continue
            self.harness.faults["steps over a restored journal"] += 1
            if charge not in self.looked_up:
                self.harness.violations.append(f"I4: over a restored journal, {charge} took a step without a look-up")
            self.looked_up.discard(charge)

    async def _start_second(self) -> None:
        """A second server on one file says so and ends."""
        environment = {
            "COMMAND_LISTEN": "127.0.0.1:0",
            "COMMAND_FEED_LISTEN": "127.0.0.1:0",
            "COMMAND_JOURNAL": f"sqlite:///{self.town.journal}",
            "COMMAND_BANK_URL": self.town.bank_url,
        }
        second = Server("command_service", environment, self.town.folder / f"second-{self.restores}.log")
        self.harness.tried += 1
        self.harness.faults["second server on one file"] += 1
        try:
            await second.start()
        except DidNotStart as refused:
            if "another server has the journal" not in str(refused):
                self.harness.violations.append(f"a second server was refused, but not clearly: {refused}")
        else:
            self.harness.violations.append("I10: a second server serves from one journal")
            await second.kill()

    async def _go_on(self) -> None:
        """Wait until some more charges are done. Raises TimeoutError."""
        enough = self.clients.done + 10
        try:
            async with asyncio.timeout(REST_SECONDS):
                while self.clients.done < enough:  # noqa: ASYNC110  # whichever of them it is
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise TimeoutError(f"ten more charges were not done within {REST_SECONDS:g} s") from None

    async def _until_equal(self) -> None:
        """Wait until the view shows this journal, all of it. Raises TimeoutError."""
        try:
            async with asyncio.timeout(REST_SECONDS):
                while not self._is_equal():  # noqa: ASYNC110  # another process's file
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise TimeoutError(f"L3: the view did not show the journal within {REST_SECONDS:g} s") from None

    def _is_equal(self) -> bool:
        with contextlib.suppress(sqlite3.Error, FileNotFoundError):
            records, shown = read_journal(self.town.journal), read_view(self.town.folder / "view.db").checkpoint
            return bool(shown["position"] == len(records) and shown["chain"] == records[-1].chain)
        return False

    async def reckon(self, seed: int) -> None:
        """Let the clients ask again, and compare what all sides have.

        What was charged after a backup is not in the restored journal: those clients ask again, with their keys, and the
        bank, looked up first, knows. What they were told of positions before is of the journal that is gone.
        """
        again = Clients(random.Random(seed), self.clients.prefix, is_calm=True)
        async with grpc.aio.insecure_channel(self.town.command.listen, options=CHANNEL_OPTIONS) as channel:
            stub, limit = CommandServiceStub(channel), asyncio.Semaphore(16)

            async def buy() -> None:
                async with limit:
                    await again.buy(stub)

            await asyncio.gather(*(buy() for _ in range(self.clients.begun)))
        await self._until_equal()
        await self._judge_look_ups()
        found = check(await self.witness.at_rest(again, self.town, has_view=True))
        self.harness.violations += [f"{violation} (restore, seed {seed})" for violation in found]
        before = {call.names: call.transaction_id for call in self.clients.calls if call.transaction_id}
        for call in again.calls:
            if call.transaction_id != before.get(call.names, call.transaction_id):
                text = f"I6: the key {call.key} was told another transaction after a restore"
                self.harness.violations.append(text)
        verify_journal(SqliteFile(self.town.journal))


@contextlib.asynccontextmanager
async def restored(harness: Harness, seed: int, *, bug: str = "") -> AsyncIterator[Restored]:
    """Start all three servers; at the end compare what all sides have."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder, town_with_kept_ports(Path(folder)) as kept:
        if bug:
            sabotage(kept.command, bug)
        async with kept as town, Referee(town.bank_url) as referee:
            await town.start_query()
            clients = Clients(random.Random(seed), f"restore-{seed}", is_calm=True)
            one = Restored(town, clients, harness, Witness(referee))
            yield one
            await one.reckon(seed)


async def is_control_found() -> bool:
    """A server that takes a restored journal for any other takes steps without a look-up."""
    harness = Harness("control", "faults")
    async with restored(harness, 0, bug=RESTORED_IS_FORGOTTEN) as one:
        await one.back_up_and_restore()
    return harness.found("I4")


def _operate(journal: Path, *command: str) -> None:
    subprocess.run(  # our own command
        [sys.executable, "-m", "command_service", *command],
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{journal}"},
        check=True,
        capture_output=True,
        timeout=OPERATION_SECONDS,
    )
