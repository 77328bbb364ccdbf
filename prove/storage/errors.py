"""Errors of the disk at the n-th operation of a writer, by strace: once and for ever, for all n.

An I/O error at a commit ends the process with status 74, and the next start has all that was acknowledged. A full disk is a
"no": the process stays up, and stores again once there is room.
"""

import asyncio
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from prove.deaths.powercut import OFTEN, lost
from prove.deaths.writer import EX_FULL, EX_IOERR, EX_REFUSED, folder_in_memory
from prove.journal_bugs import A_QUOTA_ENDS_IT
from prove.report import Harness, Say

WRITER_SECONDS = 60.0
# Enough for two checkpoints.
APPENDS = 40
# ENOSPC, and what SQLite takes for an I/O error, but is a disk that is full for this user.
NO_ROOM = ("ENOSPC", "EDQUOT")
CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "write", "pread64")


def write(folder: Path, appends: int, *, strace: tuple[str, ...] = (), bug: str = "", seed: int = 0) -> int:
    """Run the writer over a folder's journal, perhaps under strace, perhaps with a bug. Returns its exit status.

    With the seed of a writer before it, it would begin the same charges, and end at once.
    """
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "prove.deaths.writer",
        str(folder / "journal.db"),
        str(folder / "told"),
        str(appends),
        *("--seed", str(seed)),
        *OFTEN,
        *(("--plant", bug) if bug else ()),
    ]
    return subprocess.run(  # our own command
        [*strace, *command], timeout=WRITER_SECONDS, check=False, capture_output=True
    ).returncode


def told_in(folder: Path) -> list[tuple[str, ...]]:
    """What the writer over a folder's journal told, line by line."""
    path = folder / "told"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


async def fail(
    folder: Path, call: str, error: str, for_ever: bool, number: int, *, harness: Harness, bug: str = ""
) -> bool:
    """Fail the n-th call on the journal's files. False if there was no such call."""
    trace = folder / "trace"
    when = f"{number}+" if for_ever else str(number)
    injection = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}")
    strace = ("strace", "--seccomp-bpf", "-f", "-o", str(trace), *_paths(folder), *injection)
    status = await asyncio.to_thread(write, folder, APPENDS, strace=strace, bug=bug)
    fired = trace.read_text().count("(INJECTED)")
    where = f"({error} at {call} {when})"
    told = told_in(folder)
    harness.faults[error] += fired
    allowed = {0, EX_IOERR, EX_REFUSED} | ({EX_FULL} if for_ever and error in NO_ROOM else set())
    if status not in allowed:
        harness.violations.append(f"the writer ended with status {status} {where}")
    if error == "ENOSPC" and call == "pwrite64" and not for_ever and told[:1] and told[0][0] == "open" and status:
        harness.violations.append(f"L5: a disk that was full once ended the process with status {status} {where}")
    if error == "EDQUOT" and for_ever and told[:1] and told[0][0] == "open" and status == EX_IOERR:
        harness.violations.append(f"L5: a quota that is used up ended the process with status {status} {where}")
    if what := await lost(folder, told):
        harness.violations.append(f"{what} {where}")
    harness.faults[f"status {status} after {error}"] += 1
    harness.tried += 1
    shutil.rmtree(folder)
    return fired > 0


async def fail_all(until: float, say: Say, harness: Harness, *, seed: int = 0) -> None:
    """EIO and ENOSPC, once and for ever, at the n-th call of each kind, for all n until a run passes."""
    if shutil.which("strace") is None:
        harness.skipped["errors at the n-th operation"] = "strace is not installed"
        return
    with folder_in_memory() as folder:
        counts = await asyncio.to_thread(_count, folder / "counting")
        kinds = [(call, error, ever) for call in CALLS for error in ("EIO", "ENOSPC") for ever in (False, True)]
        kinds += [("pwrite64", "EDQUOT", ever) for ever in (False, True)]
        # In no order, so that a short time tries something of everything.
        ways = [(kind, number) for kind in kinds for number in range(1, counts[kind[0]] + 1)]
        random.Random(seed).shuffle(ways)
        left, rest, failed = iter(ways), iter(kinds), itertools.count(1)

        async def work(own: Path) -> None:
            for kind, number in left:
                if time.monotonic() > until:
                    return
                await fail(own, *kind, number, harness=harness)
                say(f"storage: {next(failed)} of {len(ways)} operations failed, {len(harness.violations)} violations")
            for kind in rest:  # a run is never quite like another: on until one passes
                number = counts[kind[0]] + 1
                while time.monotonic() <= until and await fail(own, *kind, number, harness=harness):
                    number += 1

        await asyncio.gather(*(work(folder / f"failing-{number}") for number in range(os.cpu_count() or 1)))
        tried = next(failed) - 1
        if tried == len(ways):
            harness.enumerated["failed operations of a writer"] = tried
        else:
            harness.skipped["every operation"] = f"the time was up after {tried} of {len(ways)} failed operations"
    outcomes = [kind for kind in harness.faults if kind.startswith("status ")]
    harness.complete |= dict.fromkeys(outcomes, "an outcome of the errors, not a fault")


async def is_control_found() -> bool:
    """A writer that takes a full disk for stored loses what it told."""
    harness = Harness("control", "faults")
    with folder_in_memory() as folder:
        await fail(
            folder / "failing", "pwrite64", "ENOSPC", False, 40, harness=harness, bug="a full disk is taken for stored"
        )
    return harness.found("I7")


async def is_quota_control_found() -> bool:
    """A writer that a used up quota ends."""
    harness = Harness("control", "faults")
    with folder_in_memory() as folder:
        await fail(folder / "failing", "pwrite64", "EDQUOT", True, 40, harness=harness, bug=A_QUOTA_ENDS_IT)
    return harness.found("L5")


def _count(folder: Path) -> Counter[str]:
    """How often a writer makes each call on the journal's files, in the thread that makes it most."""
    trace = folder / "trace"
    strace = ("strace", "-f", "-o", str(trace), *_paths(folder), "-e", f"trace={','.join(CALLS)}")
    write(folder, APPENDS, strace=strace)
    by_thread = Counter(re.findall(r"^(\d+) +(\w+)\(", trace.read_text(), re.MULTILINE))
    counts: Counter[str] = Counter()
    for (_, call), count in by_thread.items():
        counts[call] = max(counts[call], count)
    return counts


def _paths(folder: Path) -> list[str]:
    """What limits strace to the journal's files, and to their folder, whose sync makes their names durable."""
    names = ("journal.db", "journal.db-wal", "journal.db-journal", "journal.db.anchor.new", "journal.db.anchor", "")
    return [word for name in names for word in ("-P", str(folder / name))]
