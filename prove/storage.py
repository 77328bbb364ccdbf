"""What disks do: errors at the n-th operation, a full disk, flipped bits, files cut short, swapped, lost or old.

* An I/O error at a commit ends the process with status 74, and the next start has all that was acknowledged. A full disk
  is a "no": the process stays up, and stores again once there is room.
* A flipped bit in a record is noticed before anything of it is served, and the position is named.
* A journal whose files are not as they were is refused, or is whole: never anything between.
* A backup taken under load is an exact prefix; a restored journal is noticed by a real query server, which rebuilds.
"""

import asyncio
import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc.aio
import httpx

from charging.v1.command_pb2_grpc import CommandServiceStub
from chassis.sqlite import open_connection
from command_service.journal import START, JournalCorrupt, JournalRefused, Place, Record, anchor
from command_service.journal.sqlite import SqliteJournal
from command_service.journal.table import READER_PRAGMAS, read_after, read_head, read_stream
from command_service.operate import verify_journal
from demo.processes import DidNotStart, Server, Town
from prove.check import read_journal, read_view
from prove.checker import check
from prove.clients import CHANNEL_OPTIONS, Clients, Referee
from prove.powercut import OFTEN, lost
from prove.report import Harness, Say
from prove.writer import EX_FULL, EX_IOERR, EX_REFUSED, end_process, folder_in_memory, now

WRITER_SECONDS = 60.0
# Enough for two checkpoints.
APPENDS = 40
CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "write", "pread64")
# Half of it is the journal's, so that the disk is full within a few hundred charges.
SMALL_DISK = "1m"
REST_SECONDS = 60.0


# ---------------------------------------------------------------- errors at the n-th operation
def _write(folder: Path, appends: int, *, strace: tuple[str, ...] = ()) -> int:
    """Run the writer over a folder's journal, perhaps under strace. Returns its exit status."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "prove.writer",
        str(folder / "journal.db"),
        str(folder / "told"),
        str(appends),
        *OFTEN,
    ]
    return subprocess.run(  # our own command
        [*strace, *command], timeout=WRITER_SECONDS, check=False, capture_output=True
    ).returncode


def _told(folder: Path) -> list[tuple[str, ...]]:
    path = folder / "told"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


async def _fail(folder: Path, call: str, error: str, for_ever: bool, number: int, *, harness: Harness) -> bool:
    """Fail the n-th call on the journal's files. False if there was no such call."""
    trace = folder / "trace"
    when = f"{number}+" if for_ever else str(number)
    injection = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}")
    status = await asyncio.to_thread(
        _write, folder, APPENDS, strace=("strace", "-f", "-o", str(trace), *_paths(folder), *injection)
    )
    fired = trace.read_text().count("(INJECTED)")
    where = f"({error} at {call} {when})"
    told = _told(folder)
    harness.faults[error] += fired
    allowed = {0, EX_IOERR, EX_REFUSED} | ({EX_FULL} if for_ever and error == "ENOSPC" else set())
    if status not in allowed:
        harness.violations.append(f"the writer ended with status {status} {where}")
    if error == "ENOSPC" and call == "pwrite64" and not for_ever and told[:1] and told[0][0] == "open" and status:
        harness.violations.append(f"L5: a disk that was full once ended the process with status {status} {where}")
    if what := await lost(folder, told):
        harness.violations.append(f"{what} {where}")
    harness.faults[f"status {status} after {error}"] += 1
    harness.tried += 1
    shutil.rmtree(folder)
    return fired > 0


async def errors(until: float, say: Say, harness: Harness, *, seed: int = 0) -> None:
    """EIO and ENOSPC, once and for ever, at the n-th call of each kind, for all n until a run passes."""
    if shutil.which("strace") is None:
        harness.skipped["errors at the n-th operation"] = "strace is not installed"
        return
    with folder_in_memory() as folder:
        counts = await asyncio.to_thread(_count, folder / "counting")
        kinds = [(call, error, ever) for call in CALLS for error in ("EIO", "ENOSPC") for ever in (False, True)]
        # In no order, so that a short time tries something of everything.
        ways = [(kind, number) for kind in kinds for number in range(1, counts[kind[0]] + 1)]
        random.Random(seed).shuffle(ways)
        for tried, (kind, number) in enumerate(ways):
            if time.monotonic() > until:
                harness.skipped["every operation"] = f"the time was up after {tried} of {len(ways)} failed operations"
                return
            await _fail(folder / "failing", *kind, number, harness=harness)
            say(f"storage: {tried + 1} of {len(ways)} operations failed, {len(harness.violations)} violations")
        for kind in kinds:  # a run is never quite like another: on until one passes
            number = counts[kind[0]] + 1
            while await _fail(folder / "failing", *kind, number, harness=harness) and time.monotonic() < until:
                number += 1


def _count(folder: Path) -> Counter[str]:
    """How often a writer makes each call on the journal's files, in the thread that makes it most."""
    trace = folder / "trace"
    strace = ("strace", "-f", "-o", str(trace), *_paths(folder), "-e", f"trace={','.join(CALLS)}")
    _write(folder, APPENDS, strace=strace)
    by_thread = Counter(re.findall(r"^(\d+) +(\w+)\(", trace.read_text(), re.MULTILINE))
    counts: Counter[str] = Counter()
    for (_, call), count in by_thread.items():
        counts[call] = max(counts[call], count)
    return counts


def _paths(folder: Path) -> list[str]:
    """What limits strace to the journal's files."""
    names = ("journal.db", "journal.db-wal", "journal.db-journal", "journal.db.anchor.new", "journal.db.anchor")
    return [word for name in names for word in ("-P", str(folder / name))]


# ---------------------------------------------------------------- a full disk
async def full_disk(harness: Harness) -> None:
    """Fill a small disk under a real server; it refuses, stays up, and goes on once there is room, without repair."""
    with tempfile.TemporaryDirectory(prefix="prove-") as place:
        folder = Path(place)
        small = folder / "small"
        mounted = await asyncio.to_thread(_mount, small)
        if not mounted:
            harness.skipped["full disk"] = "mounting a small tmpfs needs root"
            return
        try:
            await _fill(folder, small, harness)
        finally:
            await asyncio.to_thread(
                subprocess.run,
                ["umount", "--lazy", str(small)],
                check=False,
                capture_output=True,
            )


def _mount(small: Path) -> bool:
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(small)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # our own command


async def _fill(folder: Path, small: Path, harness: Harness) -> None:
    async with Town(folder) as town, httpx.AsyncClient(base_url=town.bank_url, trust_env=False) as http:
        await town.command.stop()
        journal = small / "journal.db"
        await town.start_command(COMMAND_JOURNAL=f"sqlite:///{journal}", COMMAND_FREE_BYTES="0")
        ballast = small / "ballast"
        ballast.write_bytes(bytes(400_000))
        clients, referee, stop = Clients(random.Random(0), "full"), Referee(http), asyncio.Event()
        working = asyncio.create_task(clients.work(town, 8, stop))
        for _ in range(int(REST_SECONDS / 0.02)):
            if any(call.reason == "JOURNAL_FULL" for call in clients.calls) or town.command.process is None:
                break
            await asyncio.sleep(0.02)
        assert town.command.process is not None
        harness.tried += 1
        harness.faults["disk full"] += sum(call.reason == "JOURNAL_FULL" for call in clients.calls)
        if town.command.process.returncode is not None:
            harness.violations.append(f"L5: a full disk ended the server with {town.command.process.returncode}")
            working.cancel()
            return
        if not harness.faults["disk full"]:
            harness.violations.append("the small disk was not full within a minute")
        stop.set()
        ballast.unlink()
        try:
            await asyncio.wait_for(working, REST_SECONDS)
        except TimeoutError:
            harness.violations.append("L5: with room again, charges did not come to rest")
            return
        await town.command.stop()
        shutil.copytree(small, folder, dirs_exist_ok=True)
        found = check(await referee.at_rest(clients, town))
        harness.violations += [f"{violation} (full disk)" for violation in found]


# ---------------------------------------------------------------- flipped bits
async def a_journal(path: Path, charges: int, seed: int) -> list[Record]:
    """A closed journal of so many streams of three records; returns its records."""
    chance = random.Random(seed)
    journal = await SqliteJournal.open(path, now=now, end_process=end_process)
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
        journal = await SqliteJournal.open(path, now=now, end_process=end_process)
    except JournalRefused:
        return True
    await journal.close()
    return False


# ---------------------------------------------------------------- files that are not as they were
def _killed_journal(folder: Path, seed: int) -> list[tuple[str, ...]]:
    """A journal as a killed writer leaves it: database, WAL, and an anchor at what was told last."""
    _write(folder, 60)
    arguments = ["strace", "-f", "-o", "/dev/null", "-P", str(folder / "journal.db-wal")]
    inject = f"inject=fdatasync:signal=KILL:when={15 + seed % 10}"
    _write(folder, 60, strace=(*arguments, "-e", "trace=fdatasync", "-e", inject))
    told = _told(folder)
    with contextlib.closing(
        open_connection(folder / "journal.db", read_only=True, pragmas=READER_PRAGMAS)
    ) as connection:
        head = read_head(connection)
        (journal_id,) = connection.execute("SELECT id FROM journal").fetchone()
    anchor.write(folder / "journal.db", anchor.Anchor(journal_id, head))
    return [*told, ("stored", str(head.position), head.chain.hex())]


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
    yield "older backup in the journal's place", lambda: _replace(journal, other / "older.db")
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


async def damages(until: float, say: Say, harness: Harness, *, seed: int = 0) -> None:
    """Damage a killed writer's files, and open them: refused, or nothing is missing."""
    if shutil.which("strace") is None:
        harness.skipped["damaged files"] = "the journal to be damaged is left by a writer that strace kills"
        return
    chance = random.Random(f"damages {seed}")
    with folder_in_memory() as folder:
        sound, other, damaged = folder / "sound", folder / "other", folder / "damaged"
        for made in (sound, other):
            made.mkdir()
        told = await asyncio.to_thread(_killed_journal, sound, seed)
        await asyncio.to_thread(_killed_journal, other, seed + 1)
        # The same journal at an earlier time: copied from the state in which the killed one began.
        shutil.copyfile(sound / "journal.db", other / "older.db")
        shutil.copytree(sound, damaged)
        ways = list(_damages(damaged / "journal.db", other, chance))
        for name, damage in ways:
            shutil.rmtree(damaged)
            shutil.copytree(sound, damaged, ignore=shutil.ignore_patterns("*.lock", "*-shm"))
            damage()
            what = await lost(damaged, told)
            is_refused = what.startswith("the journal is refused")
            harness.tried += 1
            harness.faults[name] += 1
            harness.faults["damaged files refused" if is_refused else "damaged files found whole"] += 1
            if what and not is_refused:
                harness.violations.append(f"{what} ({name}, seed {seed})")
            if time.monotonic() > until:
                break
        say(f"storage: files damaged in {len(ways)} ways, {len(harness.violations)} violations")


async def second_server(harness: Harness) -> None:
    """A second server on one file says so and ends."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        async with Town(Path(folder)) as town:
            environment = {
                "COMMAND_LISTEN": "127.0.0.1:0",
                "COMMAND_FEED_LISTEN": "127.0.0.1:0",
                "COMMAND_JOURNAL": f"sqlite:///{town.journal}",
                "COMMAND_BANK_URL": town.bank_url,
            }
            second = Server("command_service", environment, town.folder / "second.log")
            harness.tried += 1
            harness.faults["second server on one file"] += 1
            try:
                await second.start()
            except DidNotStart as refused:
                if "another server has the journal" not in str(refused):
                    harness.violations.append(f"a second server was refused, but not clearly: {refused}")
            else:
                harness.violations.append("I10: a second server serves from one journal")
                await second.kill()


# ---------------------------------------------------------------- backup and restore
def _operate(journal: Path, *command: str) -> None:
    subprocess.run(  # our own command
        [sys.executable, "-m", "command_service", *command],
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{journal}"},
        check=True,
        capture_output=True,
        timeout=WRITER_SECONDS,
    )


async def restores(until: float, say: Say, harness: Harness, *, seed: int = 0, most: int = 100) -> None:
    """Back up under load, go on, restore: the query server notices, rebuilds, and all agree again."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        async with Town(Path(folder)) as town, httpx.AsyncClient(base_url=town.bank_url, trust_env=False) as http:
            await town.start_query()
            clients, referee = Clients(random.Random(seed), f"restore-{seed}"), Referee(http)
            for number in range(most):
                await _restore(town, clients, number, harness)
                harness.tried += 1
                say(f"storage: restored {number + 1} backups, {len(harness.violations)} violations")
                if time.monotonic() > until:
                    break
            # What was charged after a backup is not in the restored journal: those clients ask again, with their keys, and
            # the bank, looked up first, knows. What they were told of positions before is of the journal that is gone.
            again = Clients(random.Random(seed), f"restore-{seed}")
            async with grpc.aio.insecure_channel(town.command.listen, options=CHANNEL_OPTIONS) as channel:
                stub = CommandServiceStub(channel)
                for _ in range(clients.begun):
                    await again.charge(stub)
            await _until_equal(town)
            found = check(await referee.at_rest(again, town, has_view=True))
            before = {call.key: call.transaction_id for call in clients.calls if call.transaction_id}
            changed = [
                call.key for call in again.calls if call.transaction_id != before.get(call.key, call.transaction_id)
            ]
            harness.violations += [f"{violation} (restore, seed {seed})" for violation in found]
            harness.violations += [
                f"I6: the charge {key} was told another transaction after a restore" for key in changed
            ]
            verify_journal(town.journal)


async def _restore(town: Town, clients: Clients, number: int, harness: Harness) -> None:
    stop = asyncio.Event()
    working = asyncio.create_task(clients.work(town, 8, stop))
    await _go_on(clients)
    copy = town.folder / f"backup-{number}.db"
    await asyncio.to_thread(_operate, town.journal, "backup", str(copy))
    await _go_on(clients)
    stop.set()
    await working
    records, kept = read_journal(town.journal), read_journal(copy)
    harness.faults["backups under load"] += 1
    if kept != records[: len(kept)] or len(kept) == len(records):
        harness.violations.append("I10: a backup under load is not an exact, earlier prefix")
    await _until_equal(town)
    await town.command.stop()
    await asyncio.to_thread(_operate, town.journal, "restore", str(copy))
    await town.start_command()
    harness.faults["restored backups"] += 1
    before = town.query.text().count("the journal has diverged")
    await _until_equal(town)
    if not before and not town.query.text().count("the journal has diverged"):
        harness.violations.append("I11: the query server did not notice the restored journal")


async def _go_on(clients: Clients) -> None:
    """Wait until some more charges are done."""
    enough = clients.done + 10
    async with asyncio.timeout(REST_SECONDS):
        while clients.done < enough:  # noqa: ASYNC110  # whichever of them it is
            await asyncio.sleep(0.01)


async def _until_equal(town: Town) -> None:
    """Wait until the view shows this journal, all of it. Raises TimeoutError."""
    async with asyncio.timeout(REST_SECONDS):
        while True:
            with contextlib.suppress(sqlite3.Error, FileNotFoundError):
                records, shown = read_journal(town.journal), read_view(town.folder / "view.db").checkpoint
                if shown["position"] == len(records) and shown["chain"] == records[-1].chain:
                    return
            await asyncio.sleep(0.05)


async def run(seconds: float, say: Say, *, seed: int = 0) -> Harness:
    """Try all of it, the longer kinds as far as the time goes."""
    harness = Harness("storage", "faults")
    began = time.monotonic()
    await second_server(harness)
    await full_disk(harness)
    await damages(began + seconds * 0.3, say, harness, seed=seed)
    await flips(began + seconds * 0.45, say, harness, seed=seed)
    await restores(began + seconds * 0.6, say, harness, seed=seed)
    await errors(began + seconds, say, harness, seed=seed)
    harness.seconds = time.monotonic() - began
    return harness


if __name__ == "__main__":
    print(asyncio.run(run(float(sys.argv[1]), print)).as_json())
