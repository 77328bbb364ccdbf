"""Every failure of a call has a row in the table, and so reaches the client with advice."""

from collections.abc import Iterator

import pytest

from command_service import failures
from command_service.errors import reason_of
from command_service.failures import CallFailed, JournalCorrupt
from contract.errors import command_refusal


def leaves(kind: type[CallFailed]) -> Iterator[type[CallFailed]]:
    """The failures that are raised: the leaves of the tree."""
    kinds = kind.__subclasses__()
    if not kinds:
        yield kind
    for each in kinds:
        yield from leaves(each)


@pytest.mark.parametrize("kind", list(leaves(CallFailed)))
def test_every_failure_has_a_reason_with_advice(kind: type[CallFailed]) -> None:
    """A new leaf of the tree without a row fails here."""
    failure = JournalCorrupt(None) if kind is JournalCorrupt else kind()
    assert command_refusal(reason_of(failure)).advice


def test_the_picture_of_the_tree_is_the_tree() -> None:
    """The docstring of the module names each kind, indented under its parent."""
    doc = failures.__doc__ or ""
    drawn = [line for line in doc.splitlines() if line.startswith("    ")]
    depth = {line.lstrip(" │├└─").split()[0]: (len(line) - len(line.lstrip(" │├└─"))) // 4 - 1 for line in drawn}

    def walk(kind: type[CallFailed], level: int) -> dict[str, int]:
        found = {kind.__name__: level}
        for each in kind.__subclasses__():
            found |= walk(each, level + 1)
        return found

    assert depth == walk(CallFailed, 0)
