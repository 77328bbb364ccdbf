"""A journal is copied from one place to another, or moved: positions, ids and chain stay, so that views go on.

A journal is served from one place: two servers on two copies of it would charge twice. So a copy says from its first moment on
that it is served from where it was copied from. A move copies the rest while no server is at work, notes at the old place that
the journal is served from the new one, and only then the same at the new one. If it is interrupted, neither is served from, and
it is run again.
"""

import time
from collections.abc import Callable

from command_service.journal import JournalCorrupt, JournalRefused, Place
from command_service.journal.store import Copy, Location, Reading, in_chunks

TELL_EVERY_SECONDS = 1.0


def copy_journal(source: Location, target: Location, *, move: bool, tell: Callable[[str], None]) -> str:
    """Copy a journal, going on after what was copied before; with `move`, serve from the copy from now on.

    `tell` hears about once a second how far it has got. Returns a line with the result. Raises JournalRefused.
    """
    with source.read() as found:
        journal_id, restored, home = found.journal_id, found.restored, found.home
    if home and not (move and home == str(target)):
        raise JournalRefused(
            f"the journal {source} is served from {home}: copy it from there, so that nothing is missing"
        )
    # A target that names another home than the source is refused: it may have been moved on from there.
    with target.receive(journal_id, restored=restored, home=str(source)) as copy:
        before = copy.head.position
        with source.read(at_one_moment=True) as journal:
            _compare(journal, source, copy.head, target)
            _copy(journal, copy, tell)
        if move:
            # Also if it was left before: who undoes that move meanwhile is refused, or we are.
            source.leave(str(target), copy.head)
            copy.serve_here()
    end = f"{copy.head.position - before} records copied, up to position {copy.head.position}, chain {copy.head.chain.hex()}"
    if move:
        return f"moved: {end}. Serve from {target} now; no server opens {source} any more"
    return (
        f"copied: {end}. It is served from {source} as before. To serve from the copy, stop its servers and run the same with "
        "--move"
    )


def _compare(journal: Reading, source: Location, reached: Place, target: Location) -> None:
    """See that a copy is a prefix of the journal. Raises JournalRefused."""
    if reached.position > journal.head.position:
        raise JournalRefused(
            f"the copy {target} has reached position {reached.position}, and the journal {source} ends at "
            f"{journal.head.position}: see which of them is the true one"
        )
    if journal.chain_at(reached.position) != reached.chain:
        raise JournalRefused(
            f"the copy {target} differs from the journal {source} up to position {reached.position}: it is a copy of another "
            "course of it. Copy to another place"
        )


def _copy(journal: Reading, copy: Copy, tell: Callable[[str], None]) -> None:
    """Copy what is missing, verified on the way. Raises JournalRefused."""
    began_at, first, told_at = time.monotonic(), copy.head.position, time.monotonic()
    try:
        for chunk in in_chunks(journal.records(copy.head)):
            copy.store(chunk)
            if (now := time.monotonic()) >= told_at + TELL_EVERY_SECONDS:
                told_at = now
                rate = (copy.head.position - first) / (now - began_at)
                rest = journal.head.position - copy.head.position
                tell(
                    f"{copy.head.position} of {journal.head.position} records, {rate:,.0f} a second, "
                    f"{rest / rate:,.0f} s left"
                )
    except JournalCorrupt as error:
        raise JournalRefused(f"the journal is damaged: {error}. What comes before it was copied") from error
    copy.note_unfinished(journal.unfinished())
