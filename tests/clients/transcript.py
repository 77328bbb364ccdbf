"""What a client printed on its tour, compared line by line with what each must print (clients/tour.jsonl)."""

import difflib
import json
from pathlib import Path
from typing import Any

from judge.history import charge_id_of

EXPECTED = Path(__file__).parent.parent.parent / "clients" / "tour.jsonl"
CHARGES = (*(f"tour-{number}" for number in range(1, 8)), *(f"tour-page-{number}" for number in range(1, 6)))
"""The keys of all charges of the tour, in their order."""


def differences(printed: str, *, tenant: str = "default", is_troubled: bool = False) -> str:
    """Return what is different from the expected transcript, for people; empty if nothing is.

    Charges are named by their keys. Among faults a call may have to be repeated, so that the source of an outcome and the first
    status that a watch shows may be others than in quiet: `is_troubled` leaves these open, if they are of their kind at all.
    """
    names = {charge_id_of(tenant, key): f"<{key}>" for key in CHARGES}
    for charge_id, name in names.items():
        printed = printed.replace(charge_id, name)
    expected, seen = (
        [_line(line, is_troubled=is_troubled) for line in text.rstrip("\n").split("\n")]
        for text in (EXPECTED.read_text(), printed)
    )
    return "\n".join(difflib.unified_diff(expected, seen, "expected", "printed", n=1, lineterm=""))


def _line(line: str, *, is_troubled: bool) -> str:
    """One form of a step, whatever the order of its members; a line that is none as it stands."""
    try:
        seen = json.loads(line)
        step = seen.pop("step")
    except (ValueError, AttributeError, TypeError, KeyError):
        return f"no step: {line}"
    if is_troubled:
        _leave_open(seen, "outcome_source", "OUTCOME_SOURCE_")
        if step == "watch":
            _leave_open(seen, "first", "CHARGE_STATUS_")
    return f"{step}: {json.dumps(seen, sort_keys=True)}"


def _leave_open(seen: dict[str, Any], member: str, kind: str) -> None:
    if str(seen.get(member, "")).startswith(kind):
        seen[member] = f"{kind}..."
