"""Reads the journal into a file, in a process of its own: one core reads it while another reads the statement.

Neither has to wait for the other: what is compared is older than the begin of both readings, by more than the clocks differ.
"""

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from command_service.journal import JournalCorrupt, JournalRefused
from command_service.journal.store import Location
from command_service.reconciling.books import EntriesFile
from command_service.reconciling.entries import Entries

_PAUSE_SECONDS = 0.2
# The process begins as a copy of this one, which has one thread and no connection at that time: no start is paid for.
_FORK = multiprocessing.get_context("fork")


class Spilling:
    """The reading of a journal's entries since a moment into a file. Begins at once."""

    def __init__(self, journal: Location, is_wanted: Callable[[str], bool], since: int, to: Path) -> None:
        self._position = _FORK.Value("q", 0)
        self._heard, told = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=self._run, args=(journal, is_wanted, since, to, told), daemon=True)
        self._process.start()
        told.close()

    @property
    def position(self) -> int:
        """How far the journal has been read."""
        return int(self._position.value)

    def wait(self, tell: Callable[[], None]) -> None:
        """Wait for the end; `tell` is called now and then. Raises JournalRefused, or RuntimeError for a fault of ours."""
        while not self._heard.poll(_PAUSE_SECONDS):
            tell()
        try:
            is_refused, text = self._heard.recv()
        except EOFError:
            is_refused, text = False, "the process that read the journal was killed"
        self._process.join()
        if text:
            raise JournalRefused(text) if is_refused else RuntimeError(text)

    def stop(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.join()

    def _run(self, journal: Location, is_wanted: Callable[[str], bool], since: int, to: Path, told: Connection) -> None:
        try:
            with journal.read() as reading:
                entries = Entries(reading, is_wanted)
                file = EntriesFile(to)

                def note() -> None:
                    self._position.value = entries.position
                    if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
                        sys.exit()  # it was killed: nobody waits for this

                file.add(entries.since(since), note)
                note()
                file.close()
        except (JournalRefused, JournalCorrupt, OSError) as error:
            told.send((True, str(error) or type(error).__name__))
        except Exception:  # whatever it is, the parent tells it
            told.send((False, traceback.format_exc()))
        else:
            told.send((False, ""))
