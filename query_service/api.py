"""The queries over gRPC: from a request to the view and back, with bounds on their number and their waits.

Each answer is read from one state of the view, and names its position and its lag. Nothing here writes.
"""

import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1 import journal_pb2, query_pb2, query_pb2_grpc
from charging.v1.common_pb2 import Card, ChargeStatus, Lag, Money
from chassis.caller import caller_of
from chassis.deadlines import wait_seconds
from chassis.shares import Excess, Shares, Weights
from contract.errors import Reason
from contract.errors import query_refusal as refusal
from query_service.errors import invalid
from query_service.lookup import END, ChargeId, ChargeName, ChargeRows, Conditions, Key, Rows
from query_service.pages import position_of, token_after
from query_service.schema import Entry, Operation, Sum
from query_service.subscriber import State, Subscriber
from query_service.view import Shown, View
from query_service.waiting import Waiting

T = TypeVar("T")

# A live view arrives in milliseconds: after a longer wait an error that names the view's position serves the client better.
LONGEST_WAIT_SECONDS = 5.0
# The command server's limit on ids, keys and users, in characters.
LONGEST_NAME = 255
# Half of the streams that a connection may hold: watches on all of them would block every other call, without an error.
WATCHES_A_CONNECTION = 500
DEFAULT_PAGE = 50
LONGEST_PAGE = 1000
# A page ends before this size, and the next page continues: grpc's clients accept 4 MiB by default.
PAGE_BYTES = 2 << 20
# A longer answer lies in memory until its client has read it. At most MAX_UNREAD do: with clients that do not read, 128 MiB.
LONG_ANSWER_BYTES = 64 << 10
MAX_UNREAD = 64

_STATES = {
    State.CATCHING_UP: query_pb2.VIEW_STATE_CATCHING_UP,
    State.LIVE: query_pb2.VIEW_STATE_LIVE,
    State.DISCONNECTED: query_pb2.VIEW_STATE_DISCONNECTED,
    State.STOPPED: query_pb2.VIEW_STATE_STOPPED,
}
# The events' names, by the numbers of their kinds.
_EVENTS = {
    kind.number: kind.message_type.name
    for kind in journal_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    if kind.message_type is not None
}


class QueryService(query_pb2_grpc.QueryServiceServicer):
    """Answers queries, up to a number at once."""

    def __init__(
        self,
        view: View,
        subscriber: Subscriber,
        waiting: Waiting,
        *,
        max_calls: int,
        max_watchers: int,
        weights: Weights,
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        """`weights` split the limits. `longest_wait_seconds`: no query waits longer for its position, whatever its deadline."""
        self._view = view
        self._subscriber = subscriber
        self._waiting = waiting
        self._longest_wait_seconds = longest_wait_seconds
        self._calls = Shares(max_calls, weights)
        # A limit of their own: while the view lags, calls that wait for it would keep out calls that could be answered.
        self._waiters = Shares(max_calls, weights)
        self._watchers = Shares(max_watchers, weights)
        self._unread = Shares(MAX_UNREAD, weights)
        self._watches: Counter[str] = Counter()

    async def GetCharge(  # noqa: N802  # the contract's names, here and below
        self, request: query_pb2.GetChargeRequest, context: Any
    ) -> query_pb2.GetChargeResponse:
        """Show a charge; see the contract."""
        name = _name(request)
        shown = await self._answer(lambda rows: rows.charge(name), request.min_position, context)
        if shown.found is None:
            raise _not_found(shown)
        return query_pb2.GetChargeResponse(charge=_charge(shown.found), **self._freshness(shown))

    async def ListCharges(  # noqa: N802
        self, request: query_pb2.ListChargesRequest, context: Any
    ) -> query_pb2.ListChargesResponse:
        """List charges; see the contract."""
        conditions = _conditions(request)
        page_size = _page_size(request)
        below = position_of(request) if request.page_token else END
        if below is None:
            raise invalid("page_token", "must be a next_page_token, sent with the conditions of the page it came with")
        # One more than the page shows: if it exists, there is a next page.
        shown = await self._answer(
            lambda rows: rows.charges(conditions, below, limit=page_size + 1), request.min_position, context
        )
        response = query_pb2.ListChargesResponse(**self._freshness(shown))
        size = 0
        for rows in shown.found[:page_size]:
            charge = _charge(rows)
            size += charge.ByteSize()
            if size > PAGE_BYTES and response.charges:
                break
            response.charges.append(charge)
        count = len(response.charges)
        if count < len(shown.found):
            response.next_page_token = token_after(shown.found[count - 1].charge.requested_position, request)
        if size > LONG_ANSWER_BYTES:
            self._hold_place_until_read(context)
        return response

    async def WatchCharge(  # noqa: N802
        self, request: query_pb2.WatchChargeRequest, context: Any
    ) -> AsyncIterator[query_pb2.WatchChargeResponse]:
        """Show a charge, and show it again after each change; see the contract."""
        name, tenant = _name(request), caller_of(context).tenant
        with _place(self._watchers, tenant), self._watching_over(context.peer()):
            await self._reach(request.min_position, context)
            first = await self._view.read(tenant, lambda rows: rows.charge(name))
            if first.found is None:
                raise _not_found(first)
            charge_id = first.found.charge.charge_id
            sent = 0  # the position of the last state sent
            # The watch begins before the next read, so that no change is missed.
            with self._waiting.watching(charge_id) as changed:
                while not self._waiting.is_stopping:
                    changed.clear()
                    shown = await self._view.read(tenant, lambda rows: rows.charge(ChargeId(charge_id)))
                    if shown.found is None or shown.found.charge.position < sent:
                        raise self._behind()  # the view is being rebuilt and has not reached this charge
                    if shown.found.charge.position > sent:
                        sent = shown.found.charge.position
                        yield query_pb2.WatchChargeResponse(charge=_charge(shown.found), **self._freshness(shown))
                    await changed.wait()
        raise refusal(Reason.SERVER_STOPPING)

    async def GetChargeHistory(  # noqa: N802
        self, request: query_pb2.GetChargeHistoryRequest, context: Any
    ) -> query_pb2.GetChargeHistoryResponse:
        """List the events of a charge; see the contract."""
        name = _name(request)
        shown = await self._answer(lambda rows: rows.history(name), request.min_position, context)
        if shown.found is None:
            raise _not_found(shown)
        (charge, operations), entries = shown.found
        return query_pb2.GetChargeHistoryResponse(
            charge_id=_text_of(charge.charge_id),
            entries=[_entry(entry, operations[entry.operation_number]) for entry in entries],
            **self._freshness(shown),
        )

    async def GetUserSummary(  # noqa: N802
        self, request: query_pb2.GetUserSummaryRequest, context: Any
    ) -> query_pb2.GetUserSummaryResponse:
        """Sum up a user's charges; see the contract."""
        if not request.user_id:
            raise invalid("user_id", "must not be empty")
        _check_length("user_id", request.user_id)
        shown = await self._answer(lambda rows: rows.sums(request.user_id), request.min_position, context)
        return query_pb2.GetUserSummaryResponse(
            user_id=request.user_id, currencies=_currencies(shown.found), **self._freshness(shown)
        )

    async def GetViewStatus(  # noqa: N802
        self, request: query_pb2.GetViewStatusRequest, context: Any
    ) -> query_pb2.GetViewStatusResponse:
        """Report the state of the view; see the contract."""
        shown = await self._answer(Rows.totals, request.min_position, context)
        return query_pb2.GetViewStatusResponse(
            journal_id=shown.checkpoint.journal_id,
            head_position=max(self._subscriber.head_position, shown.checkpoint.position),
            state=_STATES[self._subscriber.state_of(shown.checkpoint.position)],
            charge_count=shown.found.charge_count,
            **self._freshness(shown),
        )

    async def _answer(self, find: Callable[[Rows], T], min_position: int, context: Any) -> Shown[T]:
        tenant = caller_of(context).tenant
        # A call that waits keeps its place for the read, so that it is not refused after its wait.
        places = self._waiters if min_position > self._waiting.position else self._calls
        with _place(places, tenant):
            await self._reach(min_position, context)
            return await self._view.read(tenant, find)

    async def _reach(self, min_position: int, context: Any) -> None:
        if min_position < 0:
            raise invalid("min_position", "must not be negative")
        if not await self._waiting.reach(
            min_position, wait_seconds(context.time_remaining(), self._longest_wait_seconds)
        ):
            raise self._behind()

    def _hold_place_until_read(self, context: Any) -> None:
        tenant = caller_of(context).tenant
        _take(self._unread, tenant)
        context.add_done_callback(lambda _: self._unread.give_back(tenant))

    @contextmanager
    def _watching_over(self, connection: str) -> Iterator[None]:
        if self._watches[connection] >= WATCHES_A_CONNECTION:
            raise refusal(Reason.TOO_MANY_WATCHES)
        self._watches[connection] += 1
        try:
            yield
        finally:
            self._watches[connection] -= 1
            if not self._watches[connection]:
                del self._watches[connection]

    def _behind(self) -> Exception:
        positions = {"as_of_position": self._waiting.position, "head_position": self._subscriber.head_position}
        return refusal(Reason.VIEW_BEHIND, metadata=positions)

    def _freshness(self, shown: Shown[Any]) -> dict[str, Any]:
        """Return the fields of the position that an answer shows, and of its lag."""
        position = shown.checkpoint.position
        silence = self._subscriber.silence_seconds
        lag = Lag(
            records=max(0, self._subscriber.head_position - position),
            silence_milliseconds=-1 if silence is None else int(silence * 1000),
        )
        return {"as_of_position": position, "lag": lag}


@contextmanager
def _place(places: Shares, tenant: str) -> Iterator[None]:
    """Hold a place. A call for which there is none is refused at once."""
    _take(places, tenant)
    try:
        yield
    finally:
        places.give_back(tenant)


def _take(places: Shares, tenant: str) -> None:
    match places.take(tenant):
        case None:
            pass
        case Excess.SERVER:
            raise refusal(Reason.TOO_MANY_CALLS)
        case Excess.TENANT:
            raise refusal(Reason.TENANT_LIMIT)


# ---------------------------------------------------------------- from requests
def _name(
    request: query_pb2.GetChargeRequest | query_pb2.WatchChargeRequest | query_pb2.GetChargeHistoryRequest,
) -> ChargeName:
    by = request.WhichOneof("by")
    if by is None:
        raise invalid("by", "must be a charge_id or an idempotency_key")
    name: str = getattr(request, by)
    if not name:
        raise invalid(by, "must not be empty")
    _check_length(by, name)
    return ChargeId(_bytes_of(name)) if by == "charge_id" else Key(name)


def _check_length(field: str, value: str) -> None:
    if len(value) > LONGEST_NAME:
        raise invalid(field, f"must have at most {LONGEST_NAME} characters")


def _bytes_of(charge_id: str) -> bytes:
    """Read an id. A malformed id names no charge, just as an id that was never issued."""
    try:
        named = uuid.UUID(charge_id)
    except ValueError:
        return b""
    return named.bytes if str(named) == charge_id.lower() else b""


def _text_of(charge_id: bytes) -> str:
    return str(uuid.UUID(bytes=charge_id))


def _conditions(request: query_pb2.ListChargesRequest) -> Conditions:
    _check_length("user_id", request.user_id)
    if request.status not in ChargeStatus.values():
        raise invalid("status", "must be a known status, or unspecified for any")
    return Conditions(
        user_id=request.user_id or None,
        status=request.status or None,
        requested_from=_microseconds(request, "requested_from"),
        requested_before=_microseconds(request, "requested_before"),
    )


def _microseconds(request: query_pb2.ListChargesRequest, field: str) -> int | None:
    """Read a bound of a range of times; rounded up, since records are timed to the microsecond."""
    if not request.HasField(field):  # type: ignore[arg-type]  # one of two names in the contract
        return None
    time: Timestamp = getattr(request, field)
    try:
        return -(-time.ToNanoseconds() // 1000)
    except ValueError:
        raise invalid(field, "must be a time from the year 1 to 9999, with 0 to 999,999,999 nanoseconds") from None


def _page_size(request: query_pb2.ListChargesRequest) -> int:
    if request.page_size < 0:
        raise invalid("page_size", "must not be negative")
    return min(request.page_size, LONGEST_PAGE) or DEFAULT_PAGE


# ---------------------------------------------------------------- to responses
def _not_found(shown: Shown[Any]) -> Exception:
    return refusal(Reason.CHARGE_NOT_FOUND, metadata={"as_of_position": shown.checkpoint.position})


def _charge(rows: ChargeRows) -> query_pb2.Charge:
    charge, opening, newest = rows.charge, rows.operations[0], rows.operations[-1]
    shown = query_pb2.Charge(
        charge_id=_text_of(charge.charge_id),
        idempotency_key=charge.idempotency_key,
        user_id=charge.user_id,
        card=Card(
            token=charge.card_token,
            brand=charge.card_brand,
            last4=charge.card_last4,
            fingerprint=charge.card_fingerprint,
        ),
        amount=Money(minor_units=charge.minor_units, currency_code=charge.currency_code),
        description=charge.description,
        metadata=json.loads(charge.metadata),
        status=charge.status,
        transaction_id=opening.transaction_id,
        decline_reason=opening.decline_reason,
        review_reason=newest.review_reason,  # nothing follows an operation in review
        requested_at=_time(charge.requested_at),
        updated_at=_time(charge.updated_at),
        version=charge.version,
        position=charge.position,
        capture=charge.capture,
        authorized_minor_units=charge.authorized_minor_units,
        captured_minor_units=charge.captured_minor_units,
        refunded_minor_units=charge.refunded_minor_units,
        held_minor_units=charge.held_minor_units,
        operations=[_operation(operation, charge.currency_code) for operation in rows.operations],
    )
    if charge.not_after:
        shown.not_after.FromMicroseconds(charge.not_after)
    if charge.hold_expires_at:
        shown.hold_expires_at.FromMicroseconds(charge.hold_expires_at)
    return shown


def _operation(operation: Operation, currency_code: str) -> query_pb2.Operation:
    return query_pb2.Operation(
        kind=operation.kind,
        idempotency_key=operation.idempotency_key,
        amount=Money(minor_units=operation.minor_units, currency_code=currency_code),
        status=operation.status,
        transaction_id=operation.transaction_id,
        decline_reason=operation.decline_reason,
        review_reason=operation.review_reason,
        requested_at=_time(operation.requested_at),
        updated_at=_time(operation.updated_at),
        reason=operation.reason,
        final=bool(operation.final),
        actor=operation.actor,
    )


def _entry(entry: Entry, operation: Operation) -> query_pb2.HistoryEntry:
    return query_pb2.HistoryEntry(
        position=entry.position,
        version=entry.version,
        recorded_at=_time(entry.recorded_at),
        event=_EVENTS[entry.event],
        status=entry.status,
        operation=operation.kind,
        idempotency_key=operation.idempotency_key,
        actor=operation.actor,
    )


def _currencies(sums: Iterable[Sum]) -> Iterator[query_pb2.CurrencySummary]:
    """Put the sums of each currency into one message, whose fields bear their names."""
    for currency_code, of_currency in groupby(sums, key=lambda sum_: sum_.currency_code):
        summary = query_pb2.CurrencySummary(currency_code=currency_code)
        for sum_ in of_currency:
            setattr(summary, f"{sum_.name}_minor_units", sum_.minor_units)
            setattr(summary, f"{sum_.name}_count", sum_.charge_count)
        summary.net_minor_units = summary.charged_minor_units - summary.refunded_minor_units
        yield summary


def _time(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time
