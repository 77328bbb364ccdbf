"""Errors that a client can act on: a status code, a reason, advice and a fixed text, made from a table.

The texts are fixed: they hold no value of a request, no stack and no SQL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

ReasonT = TypeVar("ReasonT", bound=Enum)

# Details travel in trailers, and a client that receives more than about 16 KB of them sees RESOURCE_EXHAUSTED instead.
MAX_VIOLATIONS = 32


@dataclass(frozen=True, slots=True)
class Violation:
    """A field with an unacceptable value: its path and a fixed text, never the value."""

    field: str
    text: str


@dataclass(eq=False)  # not frozen: Python itself writes an exception's traceback
class Refusal(Exception):
    """An error for the client: fixed texts only, no part of its input."""

    code: grpc.StatusCode
    reason: str
    text: str
    advice: str
    violations: Sequence[Violation] = ()
    retry_after_seconds: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def status(self, domain: str) -> Any:
        """Make the rich status: ErrorInfo always, BadRequest and RetryInfo where they apply."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(
                reason=self.reason, domain=domain, metadata={"advice": self.advice, **self.metadata}
            )
        ]
        if self.violations:
            shown = self.violations[:MAX_VIOLATIONS]
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.text) for v in shown
                    ]
                )
            )
        if self.retry_after_seconds is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_after_seconds * 1000))
            details.append(retry)
        packed = []
        for detail in details:
            packed.append(any_pb2.Any())
            packed[-1].Pack(detail)
        code: tuple[int, str] = self.code.value
        return rpc_status.to_status(status_pb2.Status(code=code[0], message=self.text, details=packed))


@dataclass(frozen=True, slots=True)
class Row:
    """The error for a reason. `advice` is the name of a piece of advice in the contract."""

    code: grpc.StatusCode
    advice: str
    text: str
    retry_after_seconds: float | None = None


class Refusals(Generic[ReasonT]):
    """Makes the errors of a table."""

    def __init__(self, table: Mapping[ReasonT, Row]) -> None:
        self._table = table

    def knows(self, reason: ReasonT) -> bool:
        """Whether the table has a row for a reason."""
        return reason in self._table

    def __call__(
        self,
        reason: ReasonT,
        *,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
        advice: str | None = None,
        text: str | None = None,
        metadata: Mapping[str, str | int] | None = None,
    ) -> Refusal:
        """Make the error of a reason, for a call to raise. Arguments replace the table's values.

        Metadata hold our own words and numbers, never a value of the request.
        """
        row = self._table[reason]
        return Refusal(
            code=row.code,
            reason=reason.name,
            text=text or row.text,
            advice=advice or row.advice,
            violations=violations,
            retry_after_seconds=row.retry_after_seconds if retry_after_seconds is None else retry_after_seconds,
            metadata={name: str(value) for name, value in (metadata or {}).items()},
        )
