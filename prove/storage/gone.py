"""Files that are taken away from a journal at work: removed, replaced by a copy or another journal, their folder renamed.

The writer ends with status 74 within moments, and is not heard of again. Whatever lies in the journal's place then is
refused, or holds all that was acknowledged: never anything between.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prove.deaths.powercut import lost
from prove.deaths.writer import EX_IOERR, folder_in_memory
from prove.journal_bugs import FILES_ARE_NOT_WATCHED
from prove.report import Harness, Say
from prove.storage.errors import told_in, write

# More than are done before the writer sees that its files are gone; without the watch it ends in order after them.
APPENDS = 3_000
STORED_BEFORE = 30
WRITER_SECONDS = 60.0


def _remove_all(journal: Path) -> None:
    for file in journal.parent.glob("journal.db*"):
        file.unlink()


def _replace_by_copies(journal: Path) -> None:
    for file in (journal, journal.with_name("journal.db-wal")):
        Path(shutil.copy(file, journal.parent / "copy")).rename(file)


def _replace_by_another(journal: Path) -> None:
    for suffix in ("", ".anchor"):
        copy = shutil.copy(journal.parent.parent / "other" / f"journal.db{suffix}", journal.parent / "copy")
        Path(copy).rename(journal.with_name(f"journal.db{suffix}"))


def _rename_folder(journal: Path) -> None:
    journal.parent.rename(journal.parent.with_name("moved"))


GONE: Mapping[str, Callable[[Path], object]] = {
    "journal's files removed under load": _remove_all,
    "journal replaced by a copy under load": _replace_by_copies,
    "journal replaced by another under load": _replace_by_another,
    "journal's folder renamed under load": _rename_folder,
    "WAL removed under load": lambda journal: journal.with_name("journal.db-wal").unlink(),
}


async def take_away(until: float, say: Say, harness: Harness, *, seed: int = 0, only: str = "", bug: str = "") -> None:
    """Take a working writer's files away, in each way, and look at what it did and what it left."""
    ways = [way for way in GONE if only in ("", way)]
    for way in ways:
        with folder_in_memory() as folder:
            await asyncio.to_thread(write, folder / "other", 20, seed=seed + 1)
            status = await asyncio.to_thread(_taken_from, folder, GONE[way], seed, bug)
            harness.tried += 1
            harness.faults[way] += 1
            if status != EX_IOERR:
                harness.violations.append(
                    f"I7: a writer went on without its files, to status {status} ({way}, seed {seed})"
                )
            lies = next(place for place in (folder / "moved", folder / "work") if place.exists())
            what = await lost(lies, told_in(folder))
            if what and not what.startswith("the journal is refused"):
                harness.violations.append(f"{what} ({way}, seed {seed})")
        if time.monotonic() > until:
            break
    say(f"storage: files taken away in {len(ways)} ways, {len(harness.violations)} violations")


def _taken_from(folder: Path, take: Callable[[Path], object], seed: int, bug: str) -> int:
    """Have a writer work, take its files away, and return its exit status."""
    journal, told = folder / "work" / "journal.db", folder / "told"
    journal.parent.mkdir()
    command = [sys.executable, "-m", "prove.deaths.writer", str(journal), str(told), str(APPENDS), "--seed", str(seed)]
    more = ["--anchor-seconds", "0.05", *(("--plant", bug) if bug else ())]
    with subprocess.Popen([*command, *more], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as writer:
        until = time.monotonic() + WRITER_SECONDS
        try:
            while len(told_in(folder)) < STORED_BEFORE and writer.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            take(journal)
            return writer.wait(WRITER_SECONDS)
        finally:
            writer.kill()


async def is_control_found() -> bool:
    """A writer that does not watch its files goes on without them."""
    harness = Harness("control", "faults")
    way = "journal's files removed under load"
    await take_away(0.0, lambda _: None, harness, only=way, bug=FILES_ARE_NOT_WATCHED)
    return harness.found("I7")
