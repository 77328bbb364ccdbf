"""A day of mixed operations, with kills and bank faults, is reconciled to 0.00; then planted differences are found, alone.

    python -m prove.day 100000          or: make day OPERATIONS=100000

Clients charge, hold, capture, void, refund and call off, many at once, through a real command server. Meanwhile it is killed
and started again, and so is the bank; and the bank loses requests and answers, hangs, fails, and answers the wrong question. Once
every client knows how everything ended, `reconcile` must find a difference of 0.00: by the bank's own statement, and by a copy
of it as a bank sends it, in a CSV file. Then differences of all kinds are planted, in the copy and in the bank's ledger, and
`reconcile` must name exactly these.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chassis import process
from prove.clients import Clients
from prove.planted import MAPPING, Planted, in_ledger, in_movements, written
from rig.processes import Town
from rig.referee import Referee

AT_ONCE = 64
KILLS = 8
PLANTED = 20
# Of each two deaths of the command server, one is followed by the bank's.
BANK_AFTER = 2
FAULTS: Mapping[str, Mapping[str, Any]] = {
    "lose_request": {},
    "hang_before": {"seconds": 1},
    "error_before": {"status": 500},
    "throttled": {"retry_after": "0"},
    "in_progress": {"retry_after": "0"},
    "lose_answer": {},
    "hang_after": {"seconds": 1},
    "reset": {},
    "error_after": {"status": 500},
    "garbage": {},
    "half_body": {},
    "delay": {"seconds": 0.2},
    "extra_answer": {},
    "wrong_reference": {},
    "wrong_token": {},
    "expire_token": {},
}
"""The faults, and how they are ordered. None makes a bank that contradicts itself: that is for people, and no balance."""
FAULT_SECONDS = 0.25
SETTINGS = {"COMMAND_BANK_TIMEOUT_SECONDS": "1", "COMMAND_MAX_UNFINISHED": "20000"}


@dataclass(slots=True)
class Day:
    """What came of it."""

    operations: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Empty if everything was as it must be."""


async def day(operations: int, folder: Path, say: Callable[[str], None], *, kills: int = KILLS) -> Day:
    """Have a day of so many operations, reconcile it, plant differences, and reconcile again."""
    found = Day()
    town = Town(folder)
    begun, clock = time.time(), time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock
        found.seconds[name], clock = round(time.monotonic() - clock, 1), time.monotonic()

    try:
        await town.start_bank()
        await town.start_command(**SETTINGS)
        await _busy(town, operations, kills, found, say)
        lap("operations")
        say(
            f"{found.operations:,} operations, {dict(found.ends)}, kills {dict(found.kills)}, faults {dict(found.faults)}"
        )
        await _reconciled(town, begun, found, say)
        lap("reconciled to 0.00")
        await _planted(town, begun, found, say)
        lap("planted differences found")
    finally:
        await town.__aexit__()
    return found


# ---------------------------------------------------------------- the day
async def _busy(town: Town, operations: int, kills: int, found: Day, say: Callable[[str], None]) -> None:
    clients, stop = Clients(random.Random(operations), "day"), asyncio.Event()
    async with Referee(town.bank_url) as referee, asyncio.TaskGroup() as group:
        working = group.create_task(clients.work(town, AT_ONCE, stop))
        troubles = group.create_task(_trouble(referee, found))
        for number in range(1, kills + 2):
            await _until(clients, operations * number // (kills + 1))
            say(f"{clients.done:,} of {operations:,} operations")
            if number <= kills:
                await _kill(town, with_bank=number % BANK_AFTER == 0, found=found)
        stop.set()
        troubles.cancel()
        await asyncio.gather(troubles, return_exceptions=True)
        with contextlib.suppress(Exception):
            await referee.no_more_trouble()
        await working
        found.operations, found.ends = clients.done, clients.ends


async def _until(clients: Clients, done: int) -> None:
    while clients.done < done:  # noqa: ASYNC110  # clients tell nobody
        await asyncio.sleep(0.02)


async def _kill(town: Town, *, with_bank: bool, found: Day) -> None:
    await town.command.kill()
    found.kills["command server"] += 1
    if with_bank:
        await town.bank.kill()
        found.kills["bank"] += 1
        await town.start_bank()
    await town.start_command(**SETTINGS)


async def _trouble(referee: Referee, found: Day) -> None:
    """Order one fault after another; count those that fired. A dead bank has forgotten them."""
    chance, counted = random.Random(1), dict[int, int]()
    while True:
        fault = chance.choice(list(FAULTS))
        on = chance.choice(("token", "execute"))
        try:
            await referee.trouble(on, fault, times=chance.randint(1, 4), **FAULTS[fault])
            known = await referee.faults()
        except Exception:  # whatever a dying bank does to a call
            counted.clear()
        else:
            for each in known:
                found.faults[each["fault"]] += each["fired"] - counted.get(each["id"], 0)
                counted[each["id"]] = each["fired"]
            if len(known) > 500:
                await referee.no_more_trouble()
                counted.clear()
        await asyncio.sleep(FAULT_SECONDS)


# ---------------------------------------------------------------- reconciling it
async def _run(town: Town, begun: float, *arguments: str) -> tuple[int, Mapping[str, Any]]:
    """Run the command; return its exit status and its JSON."""
    out = town.folder / "reconciled.json"
    out.unlink(missing_ok=True)
    begin = time.strftime("%FT%TZ", time.gmtime(begun))
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "command_service", "reconcile", "--from", begin),
        *("--to", time.strftime("%FT%TZ", time.gmtime(time.time() + 1)), "--clock-difference", "0"),
        *("--json", str(out), *arguments),
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{town.journal}", "COMMAND_BANK_URL": town.bank_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await running.communicate()
    assert running.returncode is not None
    if not out.exists():
        return running.returncode, {"findings": [], "result": {}, "said": (said + complained).decode(errors="replace")}
    return running.returncode, json.loads(out.read_text())


async def _reconciled(town: Town, begun: float, found: Day, say: Callable[[str], None]) -> None:
    mapping, statement = town.folder / "mapping.toml", town.folder / "statement.csv"
    mapping.write_text(MAPPING)
    async with Referee(town.bank_url) as referee:
        referee.http.timeout = 120.0
        movements = (await referee.http.get("/statement")).raise_for_status().json()["movements"]
    written(statement, movements)
    (town.folder / "movements.json").write_text(json.dumps(movements))
    for name, arguments in (("bank", ()), ("CSV", ("--csv", str(statement), "--mapping", str(mapping)))):
        status, told = await _run(town, begun, *arguments)
        matched = sum(int(day["matched"]) for day in told["result"].get("days", []))
        say(f"{name}: exit status {status}, {matched:,} of {len(movements):,} movements matched")
        if status != 0 or matched != len(movements):
            found.problems.append(
                f"{name}: exit status {status}, {matched} of {len(movements)} matched: {_first(told)}"
            )


async def _planted(town: Town, begun: float, found: Day, say: Callable[[str], None]) -> None:
    movements = json.loads((town.folder / "movements.json").read_text())
    unmoved = _unmoved(town.journal, {movement["reference"] for movement in movements})
    changed, planted = in_movements(random.Random(2), movements, unmoved, PLANTED)
    statement = town.folder / "planted.csv"
    written(statement, changed)
    await _expect(
        "CSV", town, begun, planted, found, say, "--csv", str(statement), "--mapping", str(town.folder / "mapping.toml")
    )
    await town.bank.stop()
    with contextlib.closing(sqlite3.connect(town.folder / "bank.db", isolation_level=None)) as ledger:
        planted = in_ledger(random.Random(3), ledger, unmoved, PLANTED)
    await town.start_bank()
    await _expect("ledger", town, begun, planted, found, say)


async def _expect(
    where: str,
    town: Town,
    begun: float,
    planted: Sequence[Planted],
    found: Day,
    say: Callable[[str], None],
    *arguments: str,
) -> None:
    status, told = await _run(town, begun, *arguments)
    listed = ("FINDING_KIND_FEE", "FINDING_KIND_PAYOUT", "FINDING_KIND_CHARGEBACK")
    named = sorted(
        (each["kind"].removeprefix("FINDING_KIND_").lower(), each["reference"])
        for each in told["findings"]
        if each["kind"] not in listed
    )
    wanted = sorted((each.kind, each.reference) for each in planted)
    say(
        f"planted in the {where}: {len(wanted)} of {len(Counter(kind for kind, _ in wanted))} kinds, found {len(named)}"
    )
    if named != wanted or status != 1:
        missed, extra = set(wanted) - set(named), set(named) - set(wanted)
        found.problems.append(f"{where}: exit status {status}, missed {missed}, not planted {extra} {_first(told)}")


def _unmoved(journal: Path, moved: set[str]) -> list[str]:
    """Charges of the journal of which no money moved."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
        keys = connection.execute("SELECT charge_id FROM record WHERE version = 1 ORDER BY position").fetchall()
    ids = (key.hex() for (key,) in keys)
    named = (f"{it[:8]}-{it[8:12]}-{it[12:16]}-{it[16:20]}-{it[20:]}" for it in ids)
    return [charge_id for charge_id in named if charge_id not in moved]


def _first(told: Mapping[str, Any]) -> str:
    return f"{told.get('said', '')}{[(each['kind'], each['text']) for each in told['findings'][:3]]}"


def main() -> int:
    """Have a day of as many operations as the command line says; return 1 if anything was not as it must be."""
    parser = process.parser("python -m prove.day", "A day of operations, kills and faults, reconciled to 0.00.")
    parser.add_argument("operations", type=int, nargs="?", default=100_000)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files there")
    chosen: argparse.Namespace = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="chargeonce-day-") as scratch:
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(day(chosen.operations, folder, say))
    for problem in found.problems:
        say(f"PROBLEM: {problem}")
    say(f"{'as it must be' if not found.problems else 'NOT as it must be'}; seconds: {found.seconds}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
