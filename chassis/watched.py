"""Values made from files, and made again while the server runs when the files change.

The bytes are compared, not times or names: a mounted secret is replaced by a link, a copy may keep its time. A set of files may
be seen half replaced, such as a new certificate beside the former key: it is refused like any other that cannot be used, the
former value stays, and the next look makes it from the whole set.
"""

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from chassis.disk import LocalThread
from chassis.settings import SettingsError
from chassis.telemetry import log_unexpected

log = structlog.get_logger()

LOOK_SECONDS = 1.0
# Far more than certificates, keys, a policy or a key set have.
MAX_BYTES = 1 << 20
# A value is made again this often without a change, so that what depends on the date is told: a certificate nears its end.
AGAIN_SECONDS = 24 * 3600.0

T = TypeVar("T")


class Unusable(SettingsError):
    """Files cannot be used; the text names the file and the reason, and quotes nothing that a file holds."""


def _open(path: str, flags: int) -> int:
    """Open a file, and nothing that is none. A pipe that nobody writes to would stop the looks at all files for good."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unusable(f"{path}: is no file")
    return descriptor


class Files:
    """The files that a value is made of. It is made again when the bytes of one of them change, or when one appears."""

    def __init__(self) -> None:
        self._seen: dict[Path, bytes | None] = {}

    def read(self, path: Path) -> bytes:
        """Return the content of a file. Raises Unusable if it is none, cannot be read, or is larger than MAX_BYTES."""
        content = self.read_if_there(path)
        if content is None:
            raise Unusable(f"{path}: there is no such file")
        return content

    def read_if_there(self, path: Path) -> bytes | None:
        """Return the content of a file, None if there is none. Raises Unusable as `read`."""
        self._seen[path] = None
        try:
            with open(path, "rb", opener=_open) as file:
                content = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # a ValueError: no file's name has a zero byte
            return None
        except OSError as error:
            raise Unusable(f"{path}: {os.strerror(error.errno or 0)}") from None
        if len(content) > MAX_BYTES:
            raise Unusable(f"{path}: larger than {MAX_BYTES} bytes")
        self._seen[path] = hashlib.sha256(content).digest()
        return content

    def have_changed(self) -> bool:
        """Look whether a file is another one now. Raises Unusable as `read`."""
        now = Files()
        for path in self._seen:
            now.read_if_there(path)
        return now._seen != self._seen


class Watched(Generic[T]):
    """A value made from files; `value` is the one of the latest files that could be used."""

    value: T

    def __init__(self, make: Callable[[Files], T], *, what: str) -> None:
        """Make the first value; `what` is what the log calls it. Raises as `make`.

        `make` reads its files through the `Files` that it is given, and raises Unusable if they cannot be used. It is called in
        a thread later, and again at each look while they cannot be used, since the time may mend them.
        """
        self._make = make
        self._what = what
        self._files = Files()
        self._why_refused: str | None = None
        self.value = make(self._files)
        self._again_at = time.monotonic() + AGAIN_SECONDS

    def refresh(self) -> bool:
        """Look at the files, make the value again if they changed, and return whether there is a new one. Never raises.

        New files that cannot be used are told once, and the former value stays.
        """
        try:
            is_due = self._why_refused is not None or time.monotonic() >= self._again_at
            has_changed = self._files.have_changed()
            if not (is_due or has_changed):
                return False
            files = self._files = Files()
            self._again_at = time.monotonic() + AGAIN_SECONDS
            self.value = self._make(files)
        except Unusable as error:
            self._refuse(str(error))
            return False
        except Exception as error:
            if self._why_refused != type(error).__name__:
                log_unexpected("files could not be read for a reason that was not foreseen", error, what=self._what)
            self._refuse(type(error).__name__)
            return False
        if has_changed or self._why_refused is not None:
            log.info("changed files are in use", what=self._what)
        self._why_refused = None
        return True

    def _refuse(self, why: str) -> None:
        if self._why_refused != why:
            log.error("files cannot be used: the former ones stay in use", what=self._what, why=why)
        self._why_refused = why


async def keep_fresh(watched: Sequence[Watched[Any]]) -> None:
    """Look at the files of these values every second until cancelled, in a thread: a disk that hangs stops no call."""
    if not watched:
        return
    thread = LocalThread("files")
    try:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for each in watched:
                await thread.run(each.refresh)
    finally:
        thread.end()
