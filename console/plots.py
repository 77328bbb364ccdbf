"""What the pages draw: a charge's timeline, and small plots. Each is an SVG with words for whoever hears it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from charging.v1.query_pb2 import HistoryEntry
from console import words
from console.html import Child, Html, tag

DESK_EVENTS = frozenset(
    {"TryRequested", "HeldBack", "LetGo", "ResolutionProposed", "ResolutionRejected", "ResolutionApproved"}
)
_WIDTH, _TOP, _LANE, _ROW, _LONGEST_GAP = 340, 18, 16, 40, 44
_PLOT_WIDTH, _PLOT_HEIGHT = 180, 40
# In words: what the events of the contract say to people. All others by their names.
_SAID = {
    "ChargeRequested": "Requested",
    "TokenIssued": "The bank gave a token",
    "TokenExpired": "The token expired",
    "Charged": "Charged",
    "ChargeDeclined": "Declined",
    "ReviewRequired": "In review",
    "ChargeAbandoned": "Abandoned",
    "ChargeCalledOff": "Called off",
    "NotAfterPassed": "Its time has passed",
    "ActionRequired": "The customer is asked",
    "TryRequested": "Tried now, by an operator",
    "HeldBack": "Held back by an operator",
    "LetGo": "Let go by an operator",
    "ResolutionProposed": "Resolution proposed",
    "ResolutionRejected": "Resolution rejected",
    "ResolutionApproved": "Resolution approved",
}


def event_words(event: str) -> str:
    """Write an event's name for people."""
    return _SAID.get(event, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", event).capitalize())


@dataclass(frozen=True, slots=True)
class _Point:
    entry: HistoryEntry
    x: int
    y: float
    lane: int
    after: timedelta | None


def timeline(entries: Sequence[HistoryEntry], waiting_for: str) -> Html:
    """Draw a charge's events, oldest first, on a line for each operation. The distance of two tells their time, on a log scale.

    `waiting_for` is what it waits for now; empty if it is at rest.
    """
    lanes: dict[tuple[int, str], int] = {}
    points: list[_Point] = []
    y = float(_TOP)
    for entry in entries:
        after = None
        if points:
            after = _time(entry) - _time(points[-1].entry)
            y += _ROW + _gap(after)
        lane = (
            0 if entry.event in DESK_EVENTS else lanes.setdefault((entry.operation, entry.idempotency_key), len(lanes))
        )
        lane = min(lane, 5)  # further ones would leave no room for words
        points.append(_Point(entry, 12 + lane * _LANE, y, lane, after))
    right = 12 + (max((point.lane for point in points), default=0) + 1) * _LANE
    shown: list[Child] = [_lines(points)]
    for point in points:
        shown += [_mark(point), _said(point, right)]
    height = y + _TOP
    if waiting_for and points:
        last = points[-1]
        end = height + _ROW - _TOP
        shown += [
            tag.line(x1=last.x, y1=last.y, x2=last.x, y2=end, class_="waiting"),
            tag.circle(cx=last.x, cy=end, r=5, class_="open"),
            tag.text(f"Now: {waiting_for}", x=right, y=end + 4, class_="now"),
        ]
        height = end + _TOP
    said = "; ".join(f"{event_words(entry.event)} at {_time(entry):%H:%M:%S}" for entry in entries)
    return tag.svg(
        shown,
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        width=_WIDTH,
        height=f"{height:.0f}",
        class_="timeline",
        role="img",
        aria_label=f"Timeline: {said}",
    )


def plot(values: Sequence[float | None], said: str) -> Html:
    """Draw values over time, the newest at the right; there is a gap where a value is None. `said` says what they are."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    step = _PLOT_WIDTH / max(len(values) - 1, 1)
    lines: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            lines.append([])
        else:
            lines[-1].append(f"{number * step:.1f},{_PLOT_HEIGHT - 2 - value / top * (_PLOT_HEIGHT - 4):.1f}")
    drawn = [
        tag.polyline(points=" ".join(line)) if len(line) > 1 else tag.circle(**_spot(line[0])) for line in lines if line
    ]
    return tag.svg(
        drawn,
        viewBox=f"0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}",
        width=_PLOT_WIDTH,
        height=_PLOT_HEIGHT,
        class_="plot",
        role="img",
        aria_label=said,
    )


def _spot(place: str) -> dict[str, str]:
    x, _, y = place.partition(",")
    return {"cx": x, "cy": y, "r": "2"}


def _time(entry: HistoryEntry) -> datetime:
    return entry.recorded_at.ToDatetime(UTC)


def _gap(after: timedelta) -> float:
    """Return the length that a time is drawn with: 1 ms none, a day the whole."""
    seconds = max(after.total_seconds(), 0.001)
    return min(_LONGEST_GAP, _LONGEST_GAP * math.log10(seconds / 0.001) / 8)


def _lines(points: Sequence[_Point]) -> Child:
    drawn: list[Child] = []
    for lane in sorted({point.lane for point in points}):
        own = [point for point in points if point.lane == lane]
        first, last = own[0], own[-1]
        if lane:
            before = max((point.y for point in points if point.y < first.y), default=first.y)
            drawn.append(
                tag.path(d=f"M12 {before:.0f} C12 {first.y:.0f} {first.x} {before:.0f} {first.x} {first.y:.0f}")
            )
        drawn.append(tag.line(x1=first.x, y1=first.y, x2=last.x, y2=last.y))
    return tag.g(drawn, class_="lines")


def _mark(point: _Point) -> Child:
    x, y = point.x, point.y
    if point.entry.event in DESK_EVENTS:
        return tag.path(d=f"M{x} {y - 7:.0f} l7 7 l-7 7 l-7 -7 z", class_="desk")
    return tag.circle(cx=x, cy=f"{y:.0f}", r=5, class_="event")


def _said(point: _Point, x: int) -> Child:
    entry, y = point.entry, point.y
    details = [f"{_time(entry):%H:%M:%S}"] if point.after is None else [f"+{words.span(point.after)}"]
    # All events of an operation name who asked for it; what the bank did was not done by him.
    if entry.actor and (entry.event in DESK_EVENTS or entry.event.endswith("Requested")):
        actor = entry.actor if len(entry.actor) <= 28 else f"{entry.actor[:27]}…"
        details.append(f"by {actor}")
    if entry.contradicts_bank:
        details.append("without the bank's word")
    return [
        tag.text(event_words(entry.event), x=x, y=f"{y:.0f}"),
        tag.text(" · ".join(details), x=x, y=f"{y + 14:.0f}", class_="aside"),
    ]
