"""Files that are not as they were: flipped bits, files cut short, swapped, lost or old.

A flipped bit in a record is noticed before anything of it is served, and the position is named. A journal whose files are
not as they were is refused, or is whole: never anything between.
"""

import asyncio
import contextlib
import math
import os
import random
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from chassis.sqlite import open_connection
from command_service.journal import START, JournalCorrupt, JournalRefused, Place, Record
from command_service.journal.sqlite import anchor
from command_service.journal.sqlite.table import READER_PRAGMAS, read_after, read_head, read_stream
from prove.deaths.powercut import lost
from prove.deaths.writer import end_process, folder_in_memory, now
from prove.journal_bugs import NO_ANCHOR, open_journal
from prove.report import Harness, Say
from prove.storage.errors import told_in, write


# ---------------------------------------------------------------- flipped bits
async def a_journal(path: Path, charges: int, seed: int) -> list[Record]:
    """A closed journal of so many streams of three records; returns its records."""
    chance = random.Random(seed)
    journal = await open_journal(path, now=now, end_process=end_process)
    for _ in range(charges):
        charge_id = str(uuid.UUID(bytes=chance.randbytes(16)))
        for version in range(3):
            event = chance.randbytes(chance.randrange(58, 120))
            await journal.append(charge_id, version, [event], finished=version == 2)
    records: list[Record] = []
    while more := await journal.read_after(Place(records[-1].position, records[-1].chain) if records else START):
        records += more
    await journal.close()
    return records


def _bytes_of(record: Record, content: bytes) -> range:
    """Where a record lies in the file: its position, its columns' types, and its columns up to the event."""
    chain = content.index(record.chain)
    key = content.rindex(uuid.UUID(record.charge_id).bytes, chain - 40, chain)
    assert content[chain + 32 :].startswith(record.event)
    return range(key - 11, chain + 32 + len(record.event))


def _served(path: Path, record: Record, records: list[Record]) -> tuple[str, bool, bool]:
    """Read a damaged journal whole, and the damaged stream. Returns what was served wrongly, if detected, if named."""
    with contextlib.closing(open_connection(path, read_only=True, pragmas=READER_PRAGMAS)) as connection:
        is_detected, is_named = False, False
        read: list[Record] = []
        try:
            while len(read) < len(records):
                place = Place(read[-1].position, read[-1].chain) if read else START
                more = read_after(place, len(records), connection)
                if not more:
                    return f"I9: reading ended silently after {len(read)} of {len(records)}", False, False
                read += more
        except JournalCorrupt as corrupt:
            is_detected, is_named = True, corrupt.position == record.position
        except sqlite3.Error:
            is_detected = True
        if read != records[: len(read)]:
            return f"I10: something else than record {record.position} was served", is_detected, is_named
        try:
            stream = read_stream(record.charge_id, connection)
        except (JournalCorrupt, sqlite3.Error):
            return "", is_detected, is_named
        if stream != [one for one in records if one.charge_id == record.charge_id]:
            return f"I10: another stream than stored was served for record {record.position}", is_detected, is_named
    return "", is_detected, is_named


async def flips(until: float, say: Say, harness: Harness, *, seed: int = 0, most: int = 2_500) -> None:
    """Flip single bits of records, each time in an otherwise sound journal."""
    chance = random.Random(f"flips {seed}")
    with folder_in_memory() as folder:
        path = folder / "journal.db"
        records = await a_journal(path, 150, seed)
        content = path.read_bytes()
        place = {record.position: _bytes_of(record, content) for record in records}
        with path.open("r+b", buffering=0) as file:
            for number in range(most):
                if time.monotonic() > until:
                    break
                record = chance.choice(records)
                at, bit = chance.choice(place[record.position]), 1 << chance.randrange(8)
                os.pwrite(file.fileno(), bytes([content[at] ^ bit]), at)
                wrong, is_detected, is_named = _served(path, record, records)
                if number % 20 == 0:
                    await asyncio.sleep(0)  # others are at work beside it
                    harness.faults["flipped bits met at a start"] += 1
                    if is_detected and not await _is_refused(path):
                        wrong = "I10: a server started over a flipped bit"
                os.pwrite(file.fileno(), content[at : at + 1], at)
                harness.faults["bit flipped"] += 1
                harness.faults["flipped bits whose position was named"] += is_named
                harness.tried += 1
                where = (
                    f"(seed {seed}, bit {bit} of byte {at - place[record.position].start} of record {record.position})"
                )
                if wrong:
                    harness.violations.append(f"{wrong} {where}")
                # A type of no length to another, of a column that is not read: all that was stored is served, as it was.
                harness.faults["bits flipped that changed nothing"] += not wrong and not is_detected
        say(f"storage: {harness.faults['bit flipped']} bits flipped, {len(harness.violations)} violations")
        name = "integrity_check instead of the chain passes a flipped bit"
        harness.controls[name] = _passes_without_chain(path, place[records[7].position].stop - 1, content)


def _passes_without_chain(path: Path, at: int, content: bytes) -> bool:
    """A control: SQLite's own check, without the chain, passes a flipped bit of an event."""
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    return bool(said == "ok")


async def _is_refused(path: Path) -> bool:
    try:
        journal = await open_journal(path, now=now, end_process=end_process)
    except JournalRefused:
        return True
    await journal.close()
    return False


# ---------------------------------------------------------------- files that are not as they were
def _killed_journal(folder: Path, seed: int) -> list[tuple[str, ...]]:
    """A journal as a killed writer leaves it: database, WAL, and an anchor at what was told last."""
    write(folder, 60)
    arguments = ["strace", "-f", "-o", "/dev/null", "-P", str(folder / "journal.db-wal")]
    inject = f"inject=fdatasync:signal=KILL:when={15 + seed % 10}"
    write(folder, 200, strace=(*arguments, "-e", "trace=fdatasync", "-e", inject), seed=1)
    told = told_in(folder)
    assert told[-1][0] == "stored", "the writer is killed amid its work, so that there is something to lose"
    with contextlib.closing(
        open_connection(folder / "journal.db", read_only=True, pragmas=READER_PRAGMAS)
    ) as connection:
        head = read_head(connection)
        (journal_id,) = connection.execute("SELECT id FROM journal").fetchone()
    anchor.write(folder / "journal.db", anchor.Anchor(journal_id, head))
    return [*told, ("stored", str(head.position), head.chain.hex())]


OLDER = "older backup in the journal's place"
DAMAGES = (
    *("database cut short", "WAL cut short", "WAL deleted", "database deleted", "database and WAL deleted"),
    *("anchor deleted", "anchor cut short", "database of another journal", "database and WAL of another journal"),
    *("WAL of another journal", "anchor of another journal", OLDER, "page zeroed"),
)


def _damages(journal: Path, other: Path, chance: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways in which files are not as they were."""
    wal, anchored = journal.with_name("journal.db-wal"), journal.with_name("journal.db.anchor")
    for _ in range(6):
        share = chance.random()
        yield "database cut short", lambda share=share: os.truncate(journal, int(journal.stat().st_size * share))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        yield "WAL cut short", lambda share=share: os.truncate(wal, int(wal.stat().st_size * share))  # type: ignore[misc]  # as above
    yield "WAL deleted", wal.unlink
    yield "database deleted", journal.unlink
    yield "database and WAL deleted", lambda: _replace(journal, None)
    yield "anchor deleted", anchored.unlink
    yield "anchor cut short", lambda: os.truncate(anchored, 20)
    yield "database of another journal", lambda: shutil.copyfile(other / "journal.db", journal)
    yield (
        "database and WAL of another journal",
        lambda: [shutil.copyfile(other / name, journal.with_name(name)) for name in ("journal.db", "journal.db-wal")],
    )
    yield "WAL of another journal", lambda: shutil.copyfile(other / "journal.db-wal", wal)
    yield "anchor of another journal", lambda: shutil.copyfile(other / "journal.db.anchor", anchored)
    yield OLDER, lambda: _replace(journal, other / "older.db")
    for _ in range(4):
        page = chance.randrange(max(1, journal.stat().st_size // 4096))
        yield "page zeroed", lambda page=page: _overwrite(journal, page * 4096, bytes(4096))  # type: ignore[misc]  # as above


def _replace(journal: Path, by: Path | None) -> None:
    journal.with_name(journal.name + "-wal").unlink()
    journal.unlink()
    if by is not None:
        shutil.copyfile(by, journal)


def _overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


async def is_control_found() -> bool:
    """An older backup in the journal's place passes a start that does not look at the anchor, and records are lost."""
    harness = Harness("control", "faults")
    await damages(math.inf, lambda _: None, harness, only=OLDER, bug=NO_ANCHOR)
    return harness.found("I7")


async def damages(until: float, say: Say, harness: Harness, *, seed: int = 0, only: str = "", bug: str = "") -> None:
    """Damage a killed writer's files, and open them: refused, or nothing is missing."""
    if shutil.which("strace") is None:
        harness.skipped["damaged files"] = "the journal to be damaged is left by a writer that strace kills"
        return
    chance = random.Random(f"damages {seed}")
    with folder_in_memory() as folder:
        sound, other, damaged = folder / "sound", folder / "other", folder / "damaged"
        for made in (sound, other):
            made.mkdir()
        told, _ = await asyncio.gather(
            asyncio.to_thread(_killed_journal, sound, seed), asyncio.to_thread(_killed_journal, other, seed + 1)
        )
        # The same journal at an earlier time: copied from the state in which the killed one began.
        shutil.copyfile(sound / "journal.db", other / "older.db")
        shutil.copytree(sound, damaged)
        ways = [way for way in _damages(damaged / "journal.db", other, chance) if only in ("", way[0])]
        for name, damage in ways:
            shutil.rmtree(damaged)
            shutil.copytree(sound, damaged, ignore=shutil.ignore_patterns("*.lock", "*-shm"))
            damage()
            what = await lost(damaged, told, bug)
            is_refused = what.startswith("the journal is refused")
            harness.tried += 1
            assert name in DAMAGES, name
            harness.faults[name] += 1
            harness.faults["damaged files refused" if is_refused else "damaged files found whole"] += 1
            if what and not is_refused:
                harness.violations.append(f"{what} ({name}, seed {seed})")
            if time.monotonic() > until:
                break
        say(f"storage: files damaged in {len(ways)} ways, {len(harness.violations)} violations")
