"""The time that each server takes to start with large files: python -m bench.startup [RECORDS]

From the start of the process to its "serving" log entry, so the interpreter and the imports count.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.fill import filled
from rig.processes import Server, Town

STARTS = 5
# Enough for a view of a million records to be built before the measured starts.
PATIENCE_SECONDS = 300.0


async def main(records: int) -> None:
    """Fill a journal, build its view, and start both servers several times."""
    with tempfile.TemporaryDirectory() as folder:
        town = Town(Path(folder))
        print(f"filling a journal with {records:,} records ...", flush=True)
        await filled(town.journal, records)
        await town.start_bank()
        try:
            command = []
            for _ in range(STARTS):
                began = time.perf_counter()
                await town.start_command()
                command.append(time.perf_counter() - began)
                await town.command.stop()
            await town.start_command()
            await town.start_query()
            await _caught_up(town.query)
            query = []
            for _ in range(STARTS):
                await town.query.stop()
                began = time.perf_counter()
                await town.start_query()
                query.append(time.perf_counter() - began)
        finally:
            await town.__aexit__()
    for name, seconds in (("command server", command), ("query server", query)):
        print(
            f"{name}: serving after {statistics.median(seconds):.2f} s (median of {STARTS}; most {max(seconds):.2f} s)"
        )


async def _caught_up(query: Server) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not any(e.get("event") == "the view has caught up" for e in query.entries()):  # noqa: ASYNC110  # a file tells no event
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
