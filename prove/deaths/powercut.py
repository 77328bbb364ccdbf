"""Power cuts under the real journal: what it wrote and synced is recorded, and the states that a cut may leave are rebuilt.

`prove.deaths.replay` computes these states. In each of them the journal must open, verify, and hold all records that were
acknowledged before the cut. The controls are the same with `synchronous=NORMAL`, and with starts after a failed sync that
leave out a part: each must lose something.
"""

import asyncio
import random
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from command_service.journal import START, JournalCorrupt, JournalRefused, Place, VersionConflict
from prove.deaths.replay import Disk, Life, Moment, record
from prove.deaths.writer import RECORDS_AN_OPERATION, folder_in_memory, now
from prove.journal_bugs import named, open_journal
from prove.report import Harness, Say
from prove.workers import AT_ONCE, workers


# ---------------------------------------------------------------- what must hold
class _Ended(Exception):
    """The process would have ended here."""


async def lost(folder: Path, told: Iterable[tuple[str, ...]], bug: str = "") -> str:
    """Open a journal with the product's code, perhaps with a bug, and say what of the told is not in it; nothing if all is."""
    promised = {int(words[1]): bytes.fromhex(words[2]) for words in told if words[0] in ("open", "stored")}
    ended = asyncio.Event()

    def end() -> NoReturn:
        ended.set()
        raise _Ended

    try:
        journal = await open_journal(folder / "journal.db", now=now, end_process=end, bug=named(bug))
    except JournalRefused as refused:
        return f"the journal is refused after {max(promised, default=0)} acknowledged records: {refused}"
    try:
        place, chains, versions = START, {0: START.chain}, dict[str, int]()
        while records := await journal.read_after(place):
            chains |= {one.position: one.chain for one in records}
            versions |= {one.charge_id: one.version for one in records}
            place = Place(records[-1].position, records[-1].chain)
        if place != journal.head:
            return f"the head is {journal.head.position}, but records end at {place.position}"
        missing = [position for position, chain in promised.items() if chains.get(position) != chain]
        if missing:
            return f"I7: acknowledged records are lost: {len(missing)} from position {min(missing)} on"
        unfinished = {charge_id for charge_id, version in versions.items() if version % RECORDS_AN_OPERATION}
        if set(await journal.unfinished()) != unfinished:
            return "L1: the table of unfinished charges is not that of the records"
        appending = asyncio.create_task(journal.append(f"{place.position:032x}", 0, [b"after"], finished=True))
        ending = asyncio.create_task(ended.wait())
        await asyncio.wait((appending, ending), return_when=asyncio.FIRST_COMPLETED)
        if ended.is_set():
            appending.cancel()
            return "the journal is refused at an append: the process would have ended"
        ending.cancel()
        outcome = appending.result()
        if isinstance(outcome, VersionConflict) or [one.position for one in outcome] != [place.position + 1]:
            return "an append after the cut is not stored in its place"
    except JournalCorrupt as corrupt:
        return f"the journal is refused where it is read: {corrupt}"
    finally:
        await journal.close()
    return ""


# ---------------------------------------------------------------- the cuts
@dataclass(frozen=True, slots=True)
class Recording:
    """What is recorded, and how a person calls it."""

    name: str
    lives: tuple[Life, ...]


# Few, and many recordings: a sync fails once in two of five, and each time at another place.
CUTS_A_RECORDING = 20
# One of the controls loses something at one or two cuts of a hundred.
CUTS_A_CONTROL = 240
OFTEN = ("--set", "wal_autocheckpoint=24", "--anchor-seconds", "0.02")


def recordings(seed: int) -> Iterator[Recording]:
    """Recordings without end: as shipped, with many checkpoints, killed, with failed syncs; each time at other places."""
    chance = random.Random(seed)
    yield Recording("as shipped", (Life(700, ("--anchor-seconds", "0.1")),))
    while True:
        yield Recording("many checkpoints", (Life(chance.randrange(20, 200), OFTEN), Life(20, OFTEN)))
        failed = ("error=EIO", "failed sync")
        for fault, text in (failed, failed, ("signal=KILL", "killed at a sync")):
            number = chance.randrange(3, 40)
            inject = f"fdatasync:{fault}:when={number}"
            lives = (Life(100, OFTEN, inject), Life(20, OFTEN))
            yield Recording(f"{text} {number}, and a restart", lives)
        killed = Life(100, OFTEN, f"pwrite64:signal=KILL:when={chance.randrange(10, 300)}")
        yield Recording("killed at a write, and a restart", (killed, Life(20, OFTEN)))


async def cut(
    moments: list[Moment], folder: Path, cuts: int, chance: random.Random, harness: Harness, name: str, until: float
) -> int:
    """Cut the power so often, at random moments of a recording. Returns how often something acknowledged was lost."""
    disk = Disk(str(folder / "disk"))
    losses = 0
    # Half of the cuts after the first failed sync, if there was one: what comes then is rare otherwise.
    failed = next((index for index, moment in enumerate(moments) if moment.call.result == -1), 0)
    at = sorted(chance.randrange(chance.choice((0, failed)), len(moments)) for _ in range(cuts))
    rebuilt = folder / "rebuilt"
    for index, moment in enumerate(moments):
        disk.play(moment)
        while at and at[0] == index:
            at.pop(0)
            if time.monotonic() > until:
                return losses
            rebuilt.mkdir()
            for file, content in disk.after_cut(chance, harness.faults).items():
                (rebuilt / file).write_bytes(content)
            if what := await lost(rebuilt, disk.told):
                losses += 1
                harness.violations.append(f"{name}, cut after call {index} of {len(moments)}: {what}")
            harness.tried += 1
            shutil.rmtree(rebuilt)
    return losses


# The twelfth sync is a commit's: there is something in the WAL, and the database is older.
FAILED = Life(100, ("--anchor-seconds", "0.02"), "fdatasync:error=EIO:when=12")
CONTROLS = {
    "synchronous=NORMAL": Recording("", (Life(150, ("--set", "synchronous=1")),)),
    "a start after a failed sync that stores nothing again": Recording(
        "", (FAILED, Life(0, (*OFTEN, "--leave-out", "checkpoint", "--leave-out", "store_wal_again")))
    ),
    # The probe's sync would make the old WAL's end durable, and so hide most of this.
    "a start after a failed sync that moves the WAL without storing it again": Recording(
        "", (FAILED, Life(0, (*OFTEN, "--leave-out", "store_wal_again", "--leave-out", "probe")))
    ),
}


def cut_recording(recording: Recording, cuts: int, seed: str, until: float) -> Harness:
    """Record, and cut the power so often, in a folder of its own; `tried` is how often."""
    tried = Harness(recording.name, "power cuts")
    with folder_in_memory() as folder:
        moments = record(folder, recording.lives)
        tried.faults["sync failed"] += sum(
            moment.is_over and moment.call.name == "fdatasync" and moment.call.result == -1 for moment in moments
        )
        name = f"{recording.name} (seed {seed})"
        asyncio.run(cut(moments, folder, cuts, random.Random(seed), tried, name, until))
    return tried


# What a cut does to what was not synced, and what came before it.
KINDS = (
    "sync failed",
    "unsynced write lost",
    "page of a failed sync lost",
    "writes reordered",
    "write torn",
    "name lost",
)


def run(seconds: float, say: Say, *, seed: int = 0, cuts: int = 2_500) -> Harness:
    """Cut the power so often, and on until every kind of fault has fired often enough; or until the time is up."""
    harness = Harness("power cuts", "power cuts")
    harness.knows(KINDS)
    until = time.monotonic() + seconds
    if shutil.which("strace") is None:
        harness.skipped["power cuts"] = "strace is not installed"
        return harness
    with workers() as pool:
        controls = {
            # A control that is cut short shows nothing, so it has some time however little there is.
            name: pool.submit(cut_recording, recording, CUTS_A_CONTROL, str(seed), until + 10.0)
            for name, recording in CONTROLS.items()
        }
        endless = enumerate(recordings(seed))
        cutting: list[Future[Harness]] = []
        while time.monotonic() < until and (harness.tried < cuts or harness.rare):
            while len(cutting) < AT_ONCE:
                number, recording = next(endless)
                cutting.append(pool.submit(cut_recording, recording, CUTS_A_RECORDING, f"{seed}/{number}", until))
            harness.add(cutting.pop(0).result())
            say(f"power cuts: {harness.tried} tried, {len(harness.violations)} lost something")
        for last in cutting:
            harness.add(last.result())
        harness.controls = {name: bool(tried.result().violations) for name, tried in controls.items()}
    return harness


if __name__ == "__main__":
    print(run(float(sys.argv[1]), print).as_json())
