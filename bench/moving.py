"""`python -m bench.moving [RECORDS]`: how fast a journal is copied to PostgreSQL and back, verified, backed up and restored.

It is no part of the page: it says how long a service stands still that is moved in one go (a copy made before shortens it).
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.fill import filled
from command_service.journal.copying import copy_journal
from command_service.journal.location import location
from command_service.operate import restore_journal, verify_journal
from rig.postgres import Node, database, wait_for

UNFINISHED = 1_000


def main() -> None:
    """Measure each once, with a line for each."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    node = Node(settings={"shared_buffers": "128MB", "max_wal_size": "4GB"})  # the first is PostgreSQL's own default
    with tempfile.TemporaryDirectory(dir="build") as folder:
        try:
            wait_for(node.start())
            _measure(Path(folder), records, node)
        finally:
            node.close()


def _measure(folder: Path, records: int, node: Node) -> None:
    path = asyncio.run(filled(folder / "journal.db", records, UNFINISHED))
    file, database_, other, back = (
        location(each)
        for each in (
            f"sqlite:///{path}",
            wait_for(database(node)),
            wait_for(database(node)),
            f"sqlite:///{folder}/back.db",
        )
    )
    database_.migrate()
    other.migrate()
    copy = partial(copy_journal, move=True, tell=partial(print, file=sys.stderr))
    _timed("move, SQLite to PostgreSQL", records, lambda: copy(file, database_))
    _timed("verify-journal, PostgreSQL", records, lambda: verify_journal(database_))
    _timed("backup, PostgreSQL", records, lambda: database_.backup(folder / "backup.db"))
    _timed("restore, PostgreSQL", records, lambda: restore_journal(other, folder / "backup.db"))
    _timed("move, PostgreSQL to SQLite", records, lambda: copy(database_, back))


def _timed(name: str, records: int, work: Callable[[], object]) -> None:
    began_at, cpu_before = time.monotonic(), time.process_time()
    work()
    seconds, cpu = time.monotonic() - began_at, time.process_time() - cpu_before
    print(
        f"{name}: {seconds:.1f} s, {records / seconds:,.0f} records a second, {cpu:.1f} s of CPU in this process",
        flush=True,
    )


if __name__ == "__main__":
    main()
