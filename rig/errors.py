"""A server's error, as its client reads it: the one reader of google.rpc's details on this side."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Told:
    """An error: what a client decides by, and its texts.

    Without a reason it is not one of the servers' own words, but the network's or grpc's. `everything` is all that came
    of it, texts and details, as bytes.
    """

    code: grpc.StatusCode
    reason: str
    advice: str
    fields: frozenset[str]
    """The paths of those that may not be as they are."""
    retry_after_seconds: float | None
    text: str = field(compare=False)
    field_texts: frozenset[str] = field(compare=False)
    metadata: Mapping[str, str] = field(compare=False)
    everything: bytes = field(compare=False)


def told(error: grpc.aio.AioRpcError) -> Told:
    """Read an error. Details that do not agree with what they come with, or of a foreign kind, fail an assertion."""
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
    """The error that a call ends with. An answer instead fails an assertion."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return told(error)
    raise AssertionError(f"not refused: {answer}")
