"""A process that appends to a journal until it is finished, is killed, or ends itself; it prints the acknowledged appends.

    python -m tests.contract.journal_writer PATH WRITERS APPENDS_A_WRITER

It prints "open", then "POSITION CHAIN" for every append, not before it is acknowledged. Its exit status is the server's:
1 if the journal is refused, 74 if the journal ends the process.
"""

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path

from command_service.journal import JournalRefused
from command_service.journal.commits import GroupCommit, Rhythm
from command_service.journal.sqlite.file import SqliteFile
from tests.contract.journal_rigs import add, stream

# So that a test need not wait for an anchor.
OFTEN = Rhythm(look_every_seconds=0.02)


async def main(path: Path, writers: int, appends: int) -> None:
    store = await SqliteFile(path).open()
    journal = await GroupCommit.open(store, now=time.time_ns, end_process=lambda: os._exit(74), rhythm=OFTEN)
    print("open", flush=True)
    numbers = itertools.count(journal.head.position + 1_000_000)

    async def write() -> None:
        for _ in range(appends):
            (record,) = await add(journal, stream(next(numbers)), 0, [b"an event"], finished=False)
            print(record.position, record.chain.hex(), flush=True)

    await asyncio.gather(*(write() for _ in range(writers)))
    await journal.close()


try:
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
except JournalRefused as error:
    sys.exit(f"error: {error}")
