"""A server's error, as its client reads it: the one reader of google.rpc's details on this side."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Told:
    """An error as a client reads it: code, reason and advice, and its texts.

    An error without a reason comes from the network or from grpc, not from a server. `everything` holds its texts and
    details as bytes.
    """

    code: grpc.StatusCode
    reason: str
    advice: str
    fields: frozenset[str]
    """The paths of the invalid fields."""
    retry_after_seconds: float | None
    text: str = field(compare=False)
    field_texts: frozenset[str] = field(compare=False)
    metadata: Mapping[str, str] = field(compare=False)
    everything: bytes = field(compare=False)


def told(error: grpc.aio.AioRpcError) -> Told:
    """Read an error. Raises AssertionError if its details are of a foreign kind or contradict its code or text."""
    trailers = {str(name): value for name, value in error.trailing_metadata() or ()}
    packed = trailers.get(DETAILS, b"")
    assert isinstance(packed, bytes)
    status = status_pb2.Status.FromString(packed)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad) or detail.Unpack(retry)
        has_retry |= detail.Is(retry.DESCRIPTOR)
    if status.details:
        assert info.domain == "charging.v1"
        assert (status.message, status.code) == (error.details(), error.code().value[0])
    return Told(
        code=error.code(),
        reason=info.reason,
        advice=info.metadata.get("advice", ""),
        fields=frozenset(violation.field for violation in bad.field_violations),
        retry_after_seconds=retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        text=error.details() or "",
        field_texts=frozenset(violation.description for violation in bad.field_violations),
        metadata=dict(info.metadata),
        everything=b"\n".join([(error.details() or "").encode(), packed, repr(trailers).encode()]),
    )


async def refused(call: Awaitable[object]) -> Told:
    """Wait for a call and return the error that it ends with. Raises AssertionError if it is answered."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return told(error)
    raise AssertionError(f"not refused: {answer}")
