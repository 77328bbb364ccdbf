"""Reads the grammar's table in the docstring of `command_service.operation`, and makes the judge's grammar from it.

    python -m tests.core.diagram        writes judge/grammar.py again

The judge shares no code with the servers, so that it shares no mistake. So its grammar is a generated file.
"""

import re
from pathlib import Path

from command_service import operation

GRAMMAR = Path(__file__).parents[2] / "judge" / "grammar.py"


def diagram() -> dict[tuple[str, str], str]:
    """Map a state and an event to the next state."""
    rows = [line.split() for line in (operation.__doc__ or "").splitlines() if line.startswith("    ")]
    return {(row[0], event.rstrip(",")): row[-1] for row in rows[2:] for event in row[1:-1]}


def grammar() -> str:
    """Make the text of judge/grammar.py: the same grammar by the events' names in the contract."""
    table = diagram()
    followers: dict[str, list[str]] = {state: [] for state in ("Absent", *table.values())}
    for state, event in table:
        followers[state].append(_in_the_contract(event))
    lines = [_line("None", followers["Absent"])]
    lines += [
        _line(f'"{_in_the_contract(event)}"', followers[state])
        for event, state in dict.fromkeys((event, state) for (_, event), state in table.items())
    ]
    return "\n".join(
        [
            '"""The events that may follow each event in a stream: made from the table in command_service/operation.py.',
            "",
            "Make it anew by `python -m tests.core.diagram`.",
            '"""',
            "",
            "from collections.abc import Mapping",
            "",
            "FOLLOWS: Mapping[str | None, frozenset[str]] = {",
            *lines,
            "}",
            f"TOKEN_LIMIT = {operation.TOKEN_LIMIT}",
            '"""The expired tokens after which a charge goes into review."""',
            "",
        ]
    )


def _in_the_contract(event: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event).lower()


def _line(event: str, followers: list[str]) -> str:
    names = ", ".join(f'"{name}"' for name in followers)
    return f"    {event}: frozenset({{{names}}})," if names else f"    {event}: frozenset(),"


if __name__ == "__main__":
    GRAMMAR.write_text(grammar())
