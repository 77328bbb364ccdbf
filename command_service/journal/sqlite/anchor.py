"""The anchor: a file beside the journal that says how far the journal had got.

A chain cannot show that its tail is lost (a deleted WAL, an older copy put in place). The anchor can: it is written each
second that brought commits, so a journal that is behind its anchor has lost acknowledged records.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from chassis.sqlite import sync_directory
from command_service.journal import JournalRefused, Place
from command_service.journal.sqlite import owner


@dataclass(frozen=True, slots=True)
class Anchor:
    """A journal's id, and a place that the journal had reached."""

    journal_id: str
    place: Place


def path_beside(journal: Path) -> Path:
    """Return the anchor's path."""
    return journal.with_name(journal.name + ".anchor")


def write(journal: Path, anchor: Anchor) -> None:
    """Replace the anchor durably: after a power cut there is the old one or the new one, whole. Raises OSError."""
    path = path_beside(journal)
    draft = path.with_name(path.name + ".new")
    text = json.dumps(
        {
            "journal_id": anchor.journal_id,
            "position": anchor.place.position,
            "chain": anchor.place.chain.hex(),
        }
    )
    with draft.open("w") as file:
        with contextlib.suppress(PermissionError):
            owner.give(file.fileno(), owner.owner_beside(journal, path))
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def read(journal: Path) -> Anchor | None:
    """Read the anchor; None if there is none. Raises JournalRefused if it is damaged."""
    try:
        values = json.loads(path_beside(journal).read_bytes())
        return Anchor(str(values["journal_id"]), Place(int(values["position"]), bytes.fromhex(values["chain"])))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise JournalRefused(
            f"the anchor {path_beside(journal)} cannot be read, so nobody knows whether the journal is whole: run "
            "verify-journal, and if you trust the file, run restore to give it a new id"
        ) from None
