"""A command server with a bug planted into it, for the controls of the harnesses that start real processes.

    PROVE_SABOTAGE="reply before the commit" python -m prove.sabotaged

It is the product's own server otherwise, and nothing of the product reads that variable. The bugs are those of
`prove.canaries`, and some that the simulation cannot tell from what is right.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import command_service.journal.sqlite as journal_sqlite
from chassis.stderr import StandardError
from command_service.__main__ import main
from command_service.journal import Place, anchor, upkeep
from command_service.journal.lock import Lock
from command_service.journal.sqlite import SqliteJournal
from command_service.parts import Parts
from prove import canaries
from prove.simulation.loop import patched
from rig.processes import Server

P = TypeVar("P", bound=Parts)
VARIABLE = "PROVE_SABOTAGE"
A_FULL_DISK_ENDS_IT = "a full disk ends the server"
A_QUOTA_ENDS_IT = "a quota is no full disk"
RESTORED_IS_FORGOTTEN = "a restored journal is taken for any other"
FILES_ARE_NOT_WATCHED = "files that were taken away are not missed"
NO_ANCHOR = "a start does not look at the anchor"
WRITES_ITS_LOG_ITSELF = "who logs waits for standard error"


def _a_full_disk_ends_it() -> list[tuple[Any, str, Any]]:
    async def why_not_stored(_self: SqliteJournal, _error: Exception) -> None:
        return None

    return [(SqliteJournal, "_why_not_stored", why_not_stored)]


def _a_quota_ends_it() -> list[tuple[Any, str, Any]]:
    return [(journal_sqlite, "has_room", lambda _: True)]


def _restored_is_forgotten() -> list[tuple[Any, str, Any]]:
    def prepare(*arguments: Any) -> Any:
        journal_id, _, head = real(*arguments)
        return journal_id, False, head

    real = upkeep.prepare
    return [(journal_sqlite, "prepare", prepare)]


def _write_anchor(journal: SqliteJournal, head: Place) -> None:
    anchor.write(journal._path, anchor.Anchor(journal.journal_id, head))


def _files_are_not_watched() -> list[tuple[Any, str, Any]]:
    return [(Lock, "refuse_changes", lambda _: None), (SqliteJournal, "_write_anchor", _write_anchor)]


def _no_anchor() -> list[tuple[Any, str, Any]]:
    return [(upkeep, "check_anchor", lambda *_: None), (SqliteJournal, "_write_anchor", _write_anchor)]


def _writes_its_log_itself() -> list[tuple[Any, str, Any]]:
    def write(_self: StandardError, text: str) -> int:
        return os.write(2, text.encode())

    return [(StandardError, "write", write)]


_OWN: dict[str, Callable[[], list[tuple[Any, str, Any]]]] = {
    A_FULL_DISK_ENDS_IT: _a_full_disk_ends_it,
    A_QUOTA_ENDS_IT: _a_quota_ends_it,
    RESTORED_IS_FORGOTTEN: _restored_is_forgotten,
    FILES_ARE_NOT_WATCHED: _files_are_not_watched,
    NO_ANCHOR: _no_anchor,
    WRITES_ITS_LOG_ITSELF: _writes_its_log_itself,
}


@contextmanager
def planted(bug: str, parts: type[P]) -> Iterator[type[P]]:
    """Put a bug into a server's parts; it is there for as long as the context lasts. Without a name: none."""
    if bug in _OWN or not bug:
        with patched(_OWN[bug]() if bug else []):
            yield parts
    else:
        with canaries.planted(bug, parts) as wrong:
            yield wrong


def sabotage(server: Server, bug: str) -> None:
    """Have a command server start with a bug from now on."""
    server.module, server.environment = "prove.sabotaged", {**server.environment, VARIABLE: bug}


if __name__ == "__main__":
    with planted(os.environ[VARIABLE], Parts) as parts_with_a_bug:
        main(parts_with_a_bug)
