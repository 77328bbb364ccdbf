"""A recording of the journal's system calls, played again on a disk whose power may be cut.

The recording is strace's: every write, truncation, rename, new name and sync of `prove.deaths.writer`, with all bytes, in
order, and between them the acknowledged appends that the writer reported. The rules of the rebuilt disk:

* A sync that returned made the file's earlier writes durable, and nothing else did. A name is durable once its folder
  was synced.
* What was not synced may be there or not, each write for itself, in any combination, torn at sectors of 512 bytes.
* The pages of a sync that failed read back as if stored, and later syncs do not store them: Linux counts them as clean.
"""

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
PAGE = 4096
# A recording of a minute would take gigabytes: every byte is four letters.
RECORDING_SECONDS = 60
TRACED = "openat,pwrite64,write,ftruncate,fdatasync,fsync,rename,unlink"


# ---------------------------------------------------------------- the recording
@dataclass(eq=False, slots=True)
class Call:
    """A system call: its arguments as strace tells them, and its result, None if the process was killed in it."""

    name: str
    arguments: str
    result: int | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A call begins, or (syncs only) is over."""

    call: Call
    is_over: bool


LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$", re.DOTALL)
RESULT = re.compile(r"(.*?)\) += (-?\d+|\?)(?:<.*>)?(?: E[A-Z]+ \(.*\))?(?: \(INJECTED\))?$", re.DOTALL)
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r"\d+<((?:\\x[0-9a-f]{2})*)>")
UNFINISHED = " <unfinished ...>"


def parse(lines: Iterable[str]) -> Iterator[Moment]:
    """The calls of a recording in the order of their beginnings and ends."""
    moments: list[Moment] = []
    unfinished: dict[str, Call] = {}
    for line in lines:
        found = LINE.match(line.rstrip("\n"))
        if found is None:  # a signal, an exit
            continue
        process, name, arguments, resumed, rest = found.groups()
        if resumed:
            call = unfinished.pop(process)
            call.arguments += rest
        else:
            call = Call(name, arguments.removesuffix(UNFINISHED))
            moments.append(Moment(call, is_over=False))
            if arguments.endswith(UNFINISHED):
                unfinished[process] = call
                continue
        if ended := RESULT.match(call.arguments):
            call.arguments = ended[1]
            call.result = int(ended[2]) if ended[2] != "?" else None
            moments.append(Moment(call, is_over=True))
    return iter(moments)


def _bytes(letters: str) -> bytes:
    return bytes.fromhex(letters.replace("\\x", ""))


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the writer: how much it appends, and what strace does to it."""

    appends: int
    arguments: tuple[str, ...] = ()
    inject: str = ""


def record(folder: Path, lives: Iterable[Life]) -> list[Moment]:
    """Record the lives of a writer, one after the other, over one journal."""
    moments: list[Moment] = []
    here = "".join(f"\\x{byte:02x}" for byte in str(folder / "disk").encode())
    for number, life in enumerate(lives):
        trace = folder / f"trace-{number}"
        injection = ["-e", f"inject={life.inject}"] if life.inject else ["--seccomp-bpf"]
        command = ["strace", "-f", "-y", "-xx", "-s", "2000000", "-o", str(trace), "-e", f"trace={TRACED}", *injection]
        writer = [
            sys.executable,
            "-m",
            "prove.deaths.writer",
            str(folder / "disk" / "journal.db"),
            str(folder / "disk" / "told"),
        ]
        (folder / "disk").mkdir(exist_ok=True)
        subprocess.run(  # our own command
            [*command, *writer, str(life.appends), "--seed", str(number), *life.arguments],
            timeout=RECORDING_SECONDS,
            check=False,
            capture_output=True,
        )
        with trace.open() as lines:
            moments += [moment for moment in parse(lines) if here in moment.call.arguments]
        trace.unlink()
    return moments


# ---------------------------------------------------------------- the disk
@dataclass(eq=False, slots=True)
class Change:
    """A write, or (content None) a truncation, that is not known to be durable."""

    offset: int
    content: bytes | None
    is_clean: bool = False
    """Its sync failed: it reads back, and no later sync stores it."""


@dataclass(eq=False, slots=True)
class File:
    """A file: what is durable, and what is not."""

    durable: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    syncing: int = 0
    end: int = 0
    """Where the next `write` goes."""

    def change(self, change: Change) -> None:
        """Change it; a page that is written to again is dirty again, with all that is on it."""
        if change.content is not None:
            first, last = change.offset // PAGE, (change.offset + len(change.content) - 1) // PAGE
            for earlier in self.changes:
                if earlier.is_clean and earlier.content is not None:
                    begin, end = earlier.offset // PAGE, (earlier.offset + len(earlier.content) - 1) // PAGE
                    earlier.is_clean = earlier.is_clean and (last < begin or end < first)
        self.changes.append(change)

    def synced(self, *, failed: bool) -> None:
        """A sync is over that began when `syncing` changes had been made."""
        covered, later = self.changes[: self.syncing], self.changes[self.syncing :]
        if failed:
            for change in covered:
                change.is_clean = change.content is not None  # sizes and names are not pages: they are tried again
            return
        self.changes = [change for change in covered if change.is_clean] + later
        for change in covered:
            if change.is_clean:
                continue
            _apply(self.durable, change, range(change.offset, change.offset + len(change.content or b"")))
            if change.content is None:  # nothing beyond a truncation comes back
                self.changes = [other for other in self.changes if not other.is_clean or other.offset < change.offset]

    def after_cut(self, chance: random.Random, faults: Counter[str]) -> bytes:
        """What a cut may leave of it."""
        content = bytearray(self.durable)
        kept_share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        torn_share = chance.choice((0.0, 0.0, 0.3, 1.0))
        lost_before = False
        for change in self.changes:
            if change.content is None or chance.random() >= torn_share:
                is_kept = chance.random() < kept_share
                pieces = [range(change.offset, change.offset + len(change.content or b""))] if is_kept else []
                faults["unsynced write lost"] += not is_kept
                faults["page of a failed sync lost"] += change.is_clean and not is_kept
                faults["writes reordered"] += is_kept and lost_before
                lost_before |= not is_kept
                if is_kept:
                    _apply(content, change, *pieces)
                continue
            sectors = list(_sectors(change.offset, change.offset + len(change.content)))
            kept = [sector for sector in sectors if chance.random() < 0.5]
            faults["write torn"] += 0 < len(kept) < len(sectors)
            _apply(content, change, *kept)
        return bytes(content)


def _sectors(begin: int, end: int) -> Iterator[range]:
    while begin < end:
        boundary = min(end, (begin // SECTOR + 1) * SECTOR)
        yield range(begin, boundary)
        begin = boundary


def _apply(content: bytearray, change: Change, *pieces: range) -> None:
    if change.content is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    for piece in pieces:
        if len(content) < piece.stop:
            content.extend(bytes(piece.stop - len(content)))
        content[piece.start : piece.stop] = change.content[piece.start - change.offset : piece.stop - change.offset]


@dataclass(eq=False, slots=True)
class Naming:
    """A change of a folder: the file that a name has from now on, or None."""

    name: str
    file: File | None
    old_name: str = ""


@dataclass(eq=False, slots=True)
class Disk:
    """One folder of a disk, through a recording."""

    folder: str
    files: dict[str, File] = field(default_factory=dict)
    """As the running system sees them."""
    durable_names: dict[str, File] = field(default_factory=dict)
    namings: list[Naming] = field(default_factory=list)
    syncing: int = 0
    told: list[tuple[str, ...]] = field(default_factory=list)

    def play(self, moment: Moment) -> None:
        """Do what the recording says."""
        call = moment.call
        if call.name in ("fdatasync", "fsync"):
            self._sync(moment)
        elif moment.is_over or (call.result is not None and call.result < 0):
            return
        elif call.name == "openat":
            self._open(call)
        elif call.name in ("write", "pwrite64"):
            self._write(call)
        elif call.name == "ftruncate":
            if file := self._file(call):
                size = int(call.arguments.rsplit(",", 1)[1])
                file.change(Change(size, None))
        elif call.name == "rename":
            old, new = (_bytes(name).decode() for name in STRING.findall(call.arguments))
            if self._is_here(old):
                self.files[new] = self.files.pop(old)
                self.namings.append(Naming(new, self.files[new], old))
        elif call.name == "unlink":
            name = _bytes(STRING.findall(call.arguments)[0]).decode()
            if self._is_here(name) and name in self.files:
                del self.files[name]
                self.namings.append(Naming(name, None))

    def _is_here(self, name: str) -> bool:
        return name.startswith(self.folder + "/")

    def _named(self, call: Call) -> str:
        found = DESCRIPTOR.match(call.arguments)
        return _bytes(found[1]).decode() if found else ""

    def _file(self, call: Call) -> File | None:
        return self.files.get(self._named(call))

    def _open(self, call: Call) -> None:
        name = _bytes(STRING.findall(call.arguments)[0]).decode()
        if not self._is_here(name) or call.result is None:
            return
        if name not in self.files and "O_CREAT" in call.arguments:
            self.files[name] = File()
            self.namings.append(Naming(name, self.files[name]))
        if "O_TRUNC" in call.arguments:
            self.files[name].change(Change(0, None))
            self.files[name].end = 0

    def _write(self, call: Call) -> None:
        file = self._file(call)
        if file is None:
            return
        found = STRING.search(call.arguments)
        assert found is not None
        content = _bytes(found[1])
        if self._named(call).endswith("/told"):
            self.told += [tuple(line.split()) for line in content.decode().splitlines()]
        elif call.name == "pwrite64":
            file.change(Change(int(call.arguments.rsplit(",", 1)[1]), content))
        else:
            file.change(Change(file.end, content))
            file.end += len(content)

    def _sync(self, moment: Moment) -> None:
        failed = moment.call.result != 0
        if self._named(moment.call) == self.folder:
            if not moment.is_over:
                self.syncing = len(self.namings)
            elif not failed:
                for naming in self.namings[: self.syncing]:
                    _rename(self.durable_names, naming)
                self.namings = self.namings[self.syncing :]
        elif file := self._file(moment.call):
            if not moment.is_over:
                file.syncing = len(file.changes)
            else:
                file.synced(failed=failed)

    def after_cut(self, chance: random.Random, faults: Counter[str]) -> dict[str, bytes]:
        """What a cut may leave: the content of each file by its name."""
        names = dict(self.durable_names)
        kept_share = chance.choice((0.0, 0.5, 1.0))
        for naming in self.namings:
            if chance.random() < kept_share:
                _rename(names, naming)
            else:
                faults["name lost"] += 1
        # What maps the WAL for readers is built again at start, and a lock lives in the system that was cut.
        left = {name: file for name, file in names.items() if not name.endswith(("-shm", ".lock", "/told"))}
        return {Path(name).name: file.after_cut(chance, faults) for name, file in left.items()}


def _rename(names: dict[str, File], naming: Naming) -> None:
    if naming.old_name:
        names.pop(naming.old_name, None)
    if naming.file is None:
        names.pop(naming.name, None)
    else:
        names[naming.name] = naming.file
