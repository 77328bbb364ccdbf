"""What may go wrong in a call, read from the details that the service sends with each error."""

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

_DETAILS = "grpc-status-details-bin"
# With the advice ASK_STATUS: a query that may be asked again as it is.
_ASK_AGAIN = frozenset({StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.INTERNAL})


# The service's word that nothing was stored, and that the same request may be let in later.
_NOTHING_STORED = frozenset(
    {
        "TOO_MANY_CALLS",
        "TENANT_LIMIT",
        "DEADLINE_PASSED",
        "JOURNAL_FULL",
        "JOURNAL_BUSY",
        "JOURNAL_AWAY",
        "BANK_UNREACHABLE",
    }
)


class ChargeonceError(Exception):
    """Every error of this package."""


class CallFailed(ChargeonceError):
    """A call that ended with an error: either `Refused` or `Unsettled`."""

    code: StatusCode
    """gRPC's status code."""
    text: str
    """The service's fixed words on the reason, or gRPC's own."""
    reason: str
    """The reason, such as IDEMPOTENCY_KEY_REUSED; empty for an error of gRPC's own, such as a lost connection."""
    advice: str
    """RETRY_SAME_KEY, USE_NEW_KEY, ASK_STATUS or DO_NOT_RETRY; empty for an error of gRPC's own."""
    metadata: dict[str, str]
    """What else belongs to the reason, such as the "status" of the charge that has the key."""
    violations: dict[str, str]
    """What is wrong with which field of an invalid request."""
    retry_after: float | None
    """The seconds until a repeat is useful, if the service told them."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        """Read an error of grpc.aio."""
        self.code, self.text = error.code(), error.details() or ""
        self.reason, self.advice, self.metadata, self.violations, self.retry_after = "", "", {}, {}, None
        packed = dict(error.trailing_metadata() or ()).get(_DETAILS, b"")
        for detail in status_pb2.Status.FromString(packed).details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info) and info.domain == "charging.v1":  # a proxy's says nothing of the service
                self.reason, self.metadata = info.reason, dict(info.metadata)
                self.advice = self.metadata.pop("advice", "")
            elif detail.Unpack(bad):
                self.violations = {violation.field: violation.description for violation in bad.field_violations}
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        super().__init__(error)
        self.__cause__ = error

    def __str__(self) -> str:
        named = " ".join(filter(None, [self.code.name, self.reason]))
        return "; ".join([f"{named}: {self.text}", *(f"{field}: {text}" for field, text in self.violations.items())])

    @property
    def may_be_repeated(self) -> bool:
        """Whether the same request, with the same key, may have another answer later."""
        if not self.reason:
            return True
        match self.advice:
            case "RETRY_SAME_KEY":
                # A query that finds nothing gives this advice on the charge, and not on the query.
                return self.code is not StatusCode.NOT_FOUND
            case "USE_NEW_KEY" | "DO_NOT_RETRY":
                return False
            case _:  # ASK_STATUS; and advice of a later contract counts as that
                return self.code in _ASK_AGAIN

    @property
    def is_safe_without_a_key(self) -> bool:
        """Whether nothing was stored, by the service's word, so that a request without a key may be sent again."""
        return self.reason in _NOTHING_STORED


class Refused(CallFailed):
    """The service refuses this request as it is, and a repeat is useless: see `reason` and `advice`.

    The refusal is of this call. Unless the advice is USE_NEW_KEY, an earlier one with the key may have moved money.
    """


class Unsettled(CallFailed):
    """It is not known whether the request is done: no answer came while there was patience, or none can come now.

    The latter is so if a repeat is refused before the service looks for its key, as with a credential that has expired. The
    fields are those of the last error. The same request with the same key is safe at any time. A step of the desk has no key:
    look at the charge's history before it is repeated.
    """


class FeedBroken(ChargeonceError):
    """The feed has a gap, a repeat, a record that does not fit its chain, or an event that is unknown here."""
