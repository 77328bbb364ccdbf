"""How long a reconciliation of a million lines takes, and how much memory: python -m bench.reconciling [LINES]

A journal of as many charges, three records each, is made in build/, and a CSV statement of them, with a fee in each line. The
command is a process of its own, as an operator runs it. All must be matched.
"""

import argparse
import asyncio
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.fill import RECORDS_A_CHARGE, filled
from bench.machine import cost, load_average
from bench.results import BUILD
from chassis import process
from command_service.codec import charge_id_of

MAPPING = """
delimiter = ";"
[columns]
reference = "Reference"
transaction_id = "Transaction"
type = "Type"
amount = "Amount"
currency = "Currency"
time = "Time"
fee = "Fee"
[amounts]
decimal = ","
[times]
format = "%d.%m.%Y %H:%M:%S"
[types]
Sale = "charge"
"""
POLL_SECONDS = 0.2


def statement(file: Path, lines: int) -> None:
    """Write the lines of the journal's charges."""
    now = datetime.now(UTC)
    with file.open("w", encoding="utf-8") as out:
        out.write("Reference;Transaction;Type;Amount;Currency;Time;Fee\n")
        for number in range(lines):
            reference = charge_id_of("default", f"filled:{number}")
            at = now - timedelta(seconds=120 + number % 600)
            out.write(f"{reference};txn_{number:012x};Sale;12,50;EUR;{at:%d.%m.%Y %H:%M:%S};0,25\n")


async def measure(lines: int) -> int:
    """Run it and print the figures; return 1 if it was not balanced."""
    folder = BUILD / "reconciling"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):  # the journal's times are those of its making
        if old.is_file():
            old.unlink()
    print(f"making a journal of {lines:,} charges ...", flush=True)
    journal = await filled(folder / "journal.db", RECORDS_A_CHARGE * lines)
    statement(folder / "statement.csv", lines)
    (folder / "mapping.toml").write_text(MAPPING)
    await asyncio.sleep(2)
    begun = time.monotonic()
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "command_service", "reconcile", "--clock-difference", "1"),
        *("--from", (datetime.now(UTC) - timedelta(hours=6)).isoformat(), "--to", datetime.now(UTC).isoformat()),
        *("--csv", str(folder / "statement.csv"), "--mapping", str(folder / "mapping.toml")),
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{journal}"},
    )
    ended, memory_mb, cpu_seconds = asyncio.create_task(running.wait()), 0.0, 0.0
    while not ended.done():
        spent = cost(running.pid)
        memory_mb, cpu_seconds = max(memory_mb, spent.memory_mb), max(cpu_seconds, spent.cpu_seconds)
        await asyncio.wait((ended,), timeout=POLL_SECONDS)
    took = time.monotonic() - begun
    print(
        f"{lines:,} lines, {RECORDS_A_CHARGE * lines:,} records: {took:.1f} s, {cpu_seconds:.1f} s of CPU, at most "
        f"{memory_mb:,.0f} MB; exit status {running.returncode}; load average {load_average():.1f} on {os.cpu_count()} cores"
    )
    return int(running.returncode != 0)


def main() -> int:
    """Measure; see the module."""
    parser = process.parser("python -m bench.reconciling", "Measures a reconciliation.")
    parser.add_argument("lines", type=int, nargs="?", default=1_000_000)
    chosen: argparse.Namespace = parser.parse_args()
    return asyncio.run(measure(chosen.lines))


if __name__ == "__main__":
    sys.exit(main())
