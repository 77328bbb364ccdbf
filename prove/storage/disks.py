"""A small disk under a real server, filled and freed again and again, and its journal locked by another program in between.

The server refuses, stays up, and goes on once there is room, without repair by hand.
"""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from judge.checker import check
from prove.clients import Clients, Witness
from prove.journal_bugs import A_FULL_DISK_ENDS_IT
from prove.report import Harness
from prove.sabotaged import sabotage
from rig.ports import town_with_kept_ports
from rig.processes import Town
from rig.referee import Referee

# Room for the journal of many rounds; what is left of it is filled.
SMALL_DISK = "16m"
FILL_BYTES = 4096
REST_SECONDS = 60.0
CLIENTS = 4


@dataclass(eq=False)
class SmallDisk:
    """A server on a small disk, and clients of it. Made by `small_disk`."""

    town: Town
    clients: Clients
    ballast: Path
    harness: Harness

    async def harm(self) -> None:
        """One of each."""
        await self.fill_and_free()
        await self.hold_the_lock()

    async def hold_the_lock(self) -> None:
        """Hold the journal's write lock until a charge is refused for it, and let go: all that was begun comes to rest."""
        command, stop, seen = self.town.command, asyncio.Event(), len(self.clients.calls)
        assert command.process is not None
        with contextlib.closing(sqlite3.connect(self.ballast.with_name("journal.db"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            working = [asyncio.create_task(self.clients.work(self.town, CLIENTS, stop))]
            is_busy = False
            for moment in range(int(REST_SECONDS / 0.01)):
                if moment % 100 == 99:
                    working.append(asyncio.create_task(self.clients.work(self.town, 1, stop)))
                is_busy = any(call.reason == "JOURNAL_BUSY" for call in self.clients.calls[seen:])
                if is_busy or command.process.returncode is not None:
                    break
                await asyncio.sleep(0.01)
        stop.set()
        self.harness.tried += 1
        self.harness.faults["write lock held by another program"] += is_busy
        await self._come_to_rest(working, "a busy journal", is_busy)

    async def _come_to_rest(self, working: list["asyncio.Task[None]"], what: str, was_refused: bool) -> bool:
        status = None if self.town.command.process is None else self.town.command.process.returncode
        if status is not None:
            self.harness.violations.append(f"L5: {what} ended the server with {status}")
            for work in working:
                work.cancel()
            return False
        if not was_refused:
            self.harness.violations.append(f"{what}: no charge was refused for it within a minute")
        try:
            async with asyncio.timeout(REST_SECONDS):
                await asyncio.gather(*working)
        except TimeoutError:
            self.harness.violations.append(f"L5: after {what}, charges did not come to rest")
            return False
        return was_refused

    async def fill_and_free(self) -> None:
        """Fill the disk until a charge is refused for it, and free it: all that was begun comes to rest."""
        command, stop, seen = self.town.command, asyncio.Event(), len(self.clients.calls)
        assert command.process is not None
        self._fill()
        working = [asyncio.create_task(self.clients.work(self.town, CLIENTS, stop))]
        is_full = False
        for moment in range(int(REST_SECONDS / 0.01)):
            if moment % 100 == 99:  # those before may all wait for charges that are under way, and so begin none
                working.append(asyncio.create_task(self.clients.work(self.town, 1, stop)))
            is_full = any(call.reason == "JOURNAL_FULL" for call in self.clients.calls[seen:])
            if is_full or command.process.returncode is not None:
                break
            await asyncio.sleep(0.01)
        self.harness.tried += 1
        self.harness.faults["disk full"] += is_full
        stop.set()
        self.ballast.unlink()
        self.harness.faults["disk with room again"] += await self._come_to_rest(working, "a full disk", is_full)

    def _fill(self) -> None:
        with self.ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(FILL_BYTES))


@contextlib.asynccontextmanager
async def small_disk(harness: Harness, seed: int, *, bug: str = "") -> AsyncIterator[SmallDisk | None]:
    """Start a server on a small disk; at the end compare what all sides have. None if there can be no such disk."""
    with tempfile.TemporaryDirectory(prefix="prove-") as place, town_with_kept_ports(Path(place)) as kept:
        folder = Path(place)
        small = folder / "small"
        if not await asyncio.to_thread(_mount, small):
            harness.skipped["full disk"] = "mounting a small tmpfs needs root"
            yield None
            return
        try:
            async with kept as town, Referee(town.bank_url) as referee:
                await town.command.stop()
                if bug:
                    sabotage(town.command, bug)
                journal = f"sqlite:///{small / 'journal.db'}"
                await town.start_command(COMMAND_JOURNAL=journal, COMMAND_FREE_BYTES="0")
                clients = Clients(random.Random(seed), "full")
                yield SmallDisk(town, clients, small / "ballast", harness)
                await town.command.stop()
                shutil.copytree(small, folder, dirs_exist_ok=True)
                found = check(await Witness(referee).at_rest(clients, town))
                harness.violations += [f"{violation} (full disk)" for violation in found]
        finally:
            unmount = ["umount", "--lazy", str(small)]
            await asyncio.to_thread(subprocess.run, unmount, check=False, capture_output=True)


async def is_control_found() -> bool | None:
    """A server that a full disk ends. None if there can be no small disk."""
    harness = Harness("control", "faults")
    async with small_disk(harness, 0, bug=A_FULL_DISK_ENDS_IT) as disk:
        if disk is None:
            return None
        await disk.fill_and_free()
    return harness.found("L5")


async def is_busy_control_found() -> bool | None:
    """A server that a busy journal ends: its sabotage takes any commit that fails for unknown."""
    harness = Harness("control", "faults")
    async with small_disk(harness, 0, bug=A_FULL_DISK_ENDS_IT) as disk:
        if disk is None:
            return None
        await disk.hold_the_lock()
    return harness.found("L5")


def _mount(small: Path) -> bool:
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(small)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # our own command
