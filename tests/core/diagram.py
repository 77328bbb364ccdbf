"""Reads the grammar's tables in the docstring of `command_service.operation`, and makes the judge's grammar from them.

    python -m tests.core.diagram        writes judge/grammar.py again

The judge shares no code with the servers, so that it shares no mistake. So its grammar is a generated file.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from command_service import operation

GRAMMAR = Path(__file__).parents[2] / "judge" / "grammar.py"
# The rows of these events and states are for the kinds that can be called off.
CALLING_OFF = frozenset({"NotAfterPassed", "VoidRequested", "CallingOff", "ActionRequired", "AwaitingCustomer"})

Row = Sequence[Sequence[str]]
"""A line of a table: its cells, and the names in each."""


def diagram(kind: str) -> dict[tuple[str, str], str]:
    """Map a state and an event to the next state, for an operation of a kind."""
    means = kinds()[kind]
    absent = frozenset() if means["CalledOff"] else CALLING_OFF
    return {
        (state, event): after
        for (state,), names, (after,) in _tables()[0]
        for name in names
        if absent.isdisjoint({state, name})
        for event in means.get(name, [name])
    }


def kinds() -> dict[str, Mapping[str, Sequence[str]]]:
    """Map each kind of operation to what the states' table calls Requested, Moved, Declined, Abandoned and CalledOff in it."""
    head, *rows = _tables()[1]
    return {
        kind: {name: [] if events == ["-"] else events for (name,), events in zip(head[1:], cells, strict=True)}
        for (kind,), *cells in rows
    }


def _tables() -> tuple[list[Row], list[Row]]:
    """Read the states' table without its head, and the kinds' with it."""
    lines = [line.strip() for line in (operation.__doc__ or "").splitlines() if line.startswith("    ")]
    rows: list[Row] = [
        [cell.split(", ") for cell in re.split("  +", line)] for line in lines if not line.startswith("--")
    ]
    second = next(number for number, row in enumerate(rows) if row[0] == ["kind"])
    return rows[1:second], rows[second:]


def grammar() -> str:
    """Make the text of judge/grammar.py: the same grammar by the events' names in the contract."""
    steps = [
        f'    ("{kind}", "{state}", "{_in_the_contract(event)}"): "{after}",'
        for kind in kinds()
        for (state, event), after in diagram(kind).items()
    ]
    moved = [f'    "{kind}": "{_in_the_contract(means["Moved"][0])}",' for kind, means in kinds().items()]
    return "\n".join(
        [
            '"""The order of events in an operation of each kind: made from the tables in command_service/operation.py.',
            "",
            "Make it anew by `python -m tests.core.diagram`.",
            '"""',
            "",
            "from collections.abc import Mapping",
            "",
            "NEXT: Mapping[tuple[str, str, str], str] = {",
            *steps,
            "}",
            '"""The next state, by the kind of operation, its state and an event."""',
            "MOVED: Mapping[str, str] = {",
            *moved,
            "}",
            '"""The event with which an operation of each kind is executed."""',
            f"TOKEN_LIMIT = {operation.TOKEN_LIMIT}",
            '"""The expired tokens after which an operation goes into review."""',
            "",
        ]
    )


def _in_the_contract(event: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event).lower()


if __name__ == "__main__":
    GRAMMAR.write_text(grammar())
