"""What was found at a bank, as lines for people, and as JSON for programs."""

import json
from collections.abc import Iterator, Sequence
from typing import assert_never

from command_service.bank.conformance.checks import Broken, Check, Finding, Kept, NotTried
from command_service.values import Kind

_WORDS: dict[type[Kept | Broken | NotTried], str] = {Kept: "kept", Broken: "BROKEN", NotTried: "-"}


def progress(finding: Finding) -> str:
    """One line as soon as a check has ended."""
    match finding.end:
        case Kept():
            end, why = "kept", ""
        case Broken(seen):
            end, why = "BROKEN", f": {seen}"
        case NotTried(reason):
            end, why = "not tried", f": {reason}"
        case _:
            assert_never(finding.end)
    return f"{end:<10} {finding.kind.value:<10} {finding.check.name}{why}"


def table(found: Sequence[Finding]) -> str:
    """A row for each check, a column for each kind; then what was broken and what was not tried, and one line of verdict."""
    return "\n".join([*_rows(found), *_broken(found), *_not_tried(found), "", verdict(found)])


def _rows(found: Sequence[Finding]) -> Iterator[str]:
    checks = list(dict.fromkeys(finding.check for finding in found))
    width = max(len(check.name) for check in checks)
    yield _row("", "", width, [kind.value for kind in Kind])
    for check in checks:
        words = {finding.kind: _WORDS[type(finding.end)] for finding in found if finding.check is check}
        yield _row(str(check.promise), check.name, width, [words.get(kind, "") for kind in Kind])


def _row(promise: str, name: str, width: int, cells: Sequence[str]) -> str:
    return f"{promise:<3}{name:<{width}}  {''.join(f'{cell:<11}' for cell in cells)}".rstrip()


def _broken(found: Sequence[Finding]) -> Iterator[str]:
    seen = [(finding, finding.end.seen) for finding in found if isinstance(finding.end, Broken)]
    if seen:
        yield "\nbroken:"
    for finding, what in seen:
        yield f"  {finding.check.promise}  {finding.kind.value}: {finding.check.name}; {what}"


def _not_tried(found: Sequence[Finding]) -> Iterator[str]:
    """By reason, since one reason keeps many checks from being tried."""
    reasons: dict[str, dict[Check, list[Kind]]] = {}
    for finding in found:
        if isinstance(finding.end, NotTried):
            reasons.setdefault(finding.end.reason, {}).setdefault(finding.check, []).append(finding.kind)
    if reasons:
        yield "\nnot possible to try:"
    for reason, checks in reasons.items():
        yield f"  {reason}:"
        for check, kinds in checks.items():
            yield f"    {check.promise}  {check.name} ({', '.join(kind.value for kind in kinds)})"


def verdict(found: Sequence[Finding]) -> str:
    """One line: how many, and which promises are broken."""
    broken = sorted({finding.check.promise for finding in found if isinstance(finding.end, Broken)})
    kept, not_tried = (sum(isinstance(each.end, end) for each in found) for end in (Kept, NotTried))
    counts = f"{kept} kept, {len(found) - kept - not_tried} broken, {not_tried} not possible to try"
    if not is_broken(found):
        return f"{counts}: it keeps each promise that was tried"
    return f"{counts}: it breaks promise{'s' * (len(broken) > 1)} {', '.join(map(str, broken))}"


def is_broken(found: Sequence[Finding]) -> bool:
    """Whether the bank broke a rule."""
    return any(isinstance(finding.end, Broken) for finding in found)


def as_json(found: Sequence[Finding]) -> str:
    """One document: for each finding its promise, check, kind and end, and what was seen or why it was not tried."""
    ends = {Kept: "kept", Broken: "broken", NotTried: "not_tried"}
    return json.dumps(
        [
            {
                "promise": finding.check.promise,
                "check": finding.check.name,
                "kind": finding.kind.value,
                "end": ends[type(finding.end)],
                "why": "" if isinstance(finding.end, Kept) else _why(finding.end),
            }
            for finding in found
        ],
        indent=1,
    )


def _why(end: Broken | NotTried) -> str:
    return end.seen if isinstance(end, Broken) else end.reason
