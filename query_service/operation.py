"""The course of one operation of a charge. Pure: no I/O, no clock, no decision."""

from dataclasses import dataclass
from typing import Any

from charging.v1.common_pb2 import DeclineReason, OperationKind, OperationStatus, ReviewReason
from query_service.schema import OPERATION_MOVES_FROM, Operation
from query_service.words import NOT_DECLINED, NOT_IN_REVIEW, UNDER_WAY


@dataclass(slots=True)
class OperationCourse:
    """The course of one operation. `asked` are the columns of its row that never change, in their order."""

    asked: tuple[Any, ...]
    number: int
    kind: OperationKind.ValueType
    minor_units: int
    updated_at: int
    is_final: bool = False
    status: OperationStatus.ValueType = UNDER_WAY
    transaction_id: str = ""
    decline_reason: DeclineReason.ValueType = NOT_DECLINED
    review_reason: ReviewReason.ValueType = NOT_IN_REVIEW

    @classmethod
    def resumed(cls, row: Operation) -> "OperationCourse":
        """Go on with an operation as an earlier batch left it."""
        return cls(
            row[:OPERATION_MOVES_FROM],
            row.number,
            row.kind,
            row.minor_units,
            row.updated_at,
            bool(row.final),
            row.status,
            row.transaction_id,
            row.decline_reason,
            row.review_reason,
        )

    def row(self) -> tuple[Any, ...]:
        """Make the row of the operation as it stands now."""
        asked, updated_at = self.asked, self.updated_at
        return *asked, self.status, self.transaction_id, self.decline_reason, self.review_reason, updated_at
