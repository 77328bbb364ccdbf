"""Standard error that never blocks its writers: lines wait in memory, and a separate thread writes them out.

Standard error may be a pipe that nobody reads, a stopped terminal or a file on a disk that hangs: a write to it can last for
ever, and no entry of a log is worth a charge. Lines that find no room are lost and counted, and the count is written as soon
as writing works again.
"""

import atexit
import contextlib
import datetime
import io
import json
import os
import select
import sys
import threading
import time
from queue import Empty, SimpleQueue

# A few megabytes: some minutes of a busy log.
MOST_WAITING = 10_000
# The most lines in one write, and the pause after it, so that a busy log costs few writes and few thread switches.
MOST_AT_ONCE = 500
PAUSE_SECONDS = 0.005
# The time that waiting lines get at the process's end.
DRAIN_SECONDS = 1.0


class StandardError(io.TextIOBase):
    """A text stream onto a file descriptor; its writers never wait."""

    def __init__(self, descriptor: int = 2, most_waiting: int = MOST_WAITING) -> None:
        self._descriptor = descriptor
        self._most_waiting = most_waiting
        # The garbage collector may interrupt a writer, and its own warnings are written here too: no lock may be held.
        self._waiting: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._lost = 0
        self._counting = threading.RLock()
        # A daemon thread does not keep the process alive. It writes to the descriptor, since a thread that is stuck inside
        # Python's own stream makes the interpreter abort at its end.
        threading.Thread(target=self._write_on, name="stderr", daemon=True).start()

    def write(self, text: str) -> int:
        """Queue a text for writing, or lose it. Never waits and never fails."""
        if self._waiting.qsize() >= self._most_waiting:
            self._lose(1)
            return len(text)
        if self._lost:
            self._waiting.put(_gap(self._take_lost()))
        self._waiting.put(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing; see `drain`."""

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Wait until all texts so far are written out, but at most `seconds`."""
        is_out = threading.Event()
        self._waiting.put(is_out)
        is_out.wait(seconds)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Return True: the stream is for writing only."""
        return True

    def _write_on(self) -> None:
        while True:
            batch = [self._waiting.get()]
            with contextlib.suppress(Empty):
                while len(batch) < MOST_AT_ONCE:
                    batch.append(self._waiting.get_nowait())
            texts = [each for each in batch if isinstance(each, str)]
            lost = self._take_lost() if self._waiting.empty() else 0
            try:
                self._put("".join([*texts, _gap(lost)]).encode(errors="backslashreplace"))
            except OSError:
                self._lose(len(texts) + lost)
            for each in batch:
                if isinstance(each, threading.Event):
                    each.set()
            time.sleep(PAUSE_SECONDS)

    def _put(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process that shares the descriptor has made it non-blocking
                select.select([], [self._descriptor], [], 1.0)

    def _lose(self, texts: int) -> None:
        with self._counting:
            self._lost += texts

    def _take_lost(self) -> int:
        with self._counting:
            lost, self._lost = self._lost, 0
            return lost


def _gap(lost: int) -> str:
    if not lost:
        return ""
    entry = {
        "lines": lost,
        "event": "lines of this log were lost: they could not be written",
        "level": "warning",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z"),
    }
    return json.dumps(entry) + "\n"


def install() -> StandardError:
    """Make it this process's `sys.stderr`, so that Python's own output, such as tracebacks, never blocks either."""
    if not isinstance(sys.stderr, StandardError):
        sys.stderr = StandardError()
        atexit.register(sys.stderr.drain)
    return sys.stderr


def drain() -> None:
    """Wait a moment until all lines are written out. A process calls it before it ends itself at once."""
    if isinstance(sys.stderr, StandardError):
        sys.stderr.drain()
