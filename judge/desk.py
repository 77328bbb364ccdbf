"""What operators may do about a charge, by the contract: the steps of the desk, and what must follow an approval.

Like `judge.streams` it is worked out a second time, and shares nothing with the servers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from charging.v1.common_pb2 import DeclineReason, Resolution

STEPS = frozenset(
    {
        *("try_requested", "held_back", "let_go"),
        *("resolution_proposed", "resolution_rejected", "resolution_approved"),
    }
)
_FOUND_NOT_EXECUTED = DeclineReason.DECLINE_REASON_FOUND_NOT_EXECUTED


@dataclass(frozen=True, slots=True)
class Verdict:
    """What two people found to be the outcome of an operation: the contents of the proposal and of its approval."""

    proposed: Any
    approved: Any

    @property
    def is_refunded(self) -> bool:
        """Whether they found that the money has gone back since, in whatever way."""
        return bool(self.proposed.resolution == Resolution.RESOLUTION_REFUNDED)

    @property
    def may_be_untrue(self) -> bool:
        """Whether it was approved without the bank's word: what the event names may then be broken."""
        return bool(self.approved.contradicts_bank)

    def must_follow(self, moved: str, *, opens: bool) -> Iterator[tuple[str, Mapping[str, object]]]:
        """The events that must follow, each with the fields that it must have. `moved` is the event of an execution."""
        if self.proposed.resolution == Resolution.RESOLUTION_NOT_EXECUTED:
            yield "charge_declined" if opens else "operation_declined", {"reason": _FOUND_NOT_EXECUTED}
            return
        yield moved, {"transaction_id": self.proposed.transaction_id}
        if self.is_refunded:
            key = f"desk-{self.approved.proposal}"
            yield "refund_requested", {"idempotency_key": key, "actor": self.approved.actor}
            yield "token_issued", {"token": self.proposed.refund_transaction_id}
            yield "refunded", {"transaction_id": self.proposed.refund_transaction_id}


@dataclass(slots=True)
class Desk:
    """The desk of one charge."""

    is_held_back: bool = False
    proposal: tuple[int, Any] | None = None
    """The open proposal: its position and content."""
    expected: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    """What must follow an approval still."""

    def take(self, position: int, kind: str, step: Any, *, is_under_way: bool, is_in_review: bool) -> str:
        """Take a step. Returns why it may not be taken here; empty if it may."""
        why = ""
        if self.expected:
            why = f"{kind} where {self.expected[0][0]} must follow"
        match kind:
            case "try_requested" | "held_back":
                if not is_under_way or self.is_held_back:
                    why = f"{kind} for a charge that is at rest or held back"
                self.is_held_back |= kind == "held_back"
            case "let_go":
                if not self.is_held_back:
                    why = "a charge is let go that is not held back"
                self.is_held_back = False
            case "resolution_proposed":
                if not is_in_review or self.proposal is not None:
                    why = "a proposal for a charge that is not in review, or has an open one"
                self.proposal = position, step
            case _:
                if self.proposal is None or self.proposal[0] != step.proposal:
                    why = f"{kind} for a proposal that is not open"
                elif kind == "resolution_approved" and self.proposal[1].actor == step.actor:
                    why = f"{step.actor} proposed it, and approved it"
                self.proposal = None
        return why

    def expect(self, verdict: Verdict, moved: str, *, opens: bool) -> None:
        """Note what must follow an approval."""
        self.expected = list(verdict.must_follow(moved, opens=opens))

    def found(self, kind: str, body: Any) -> str:
        """Take any other event. Returns why it is not what two people found; empty if it is, or nothing was to be found."""
        if not self.expected:
            is_found = "declined" in kind and getattr(body, "reason", None) == _FOUND_NOT_EXECUTED
            return f"{kind} for what people found, and nobody has approved it" if is_found else ""
        (wanted, fields), *self.expected = self.expected
        told = {name: getattr(body, name, None) for name in fields}
        return "" if (kind, told) == (wanted, fields) else f"{kind} {told} follows an approval of {wanted} {fields}"
