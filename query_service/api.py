"""The queries over gRPC: from a request to the views and back, with bounds on their number and their waits.

Each answer is read from one state of each view that it shows, and names its position and its lag. Nothing here writes.
"""

import asyncio
import contextlib
import heapq
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1 import query_pb2, query_pb2_grpc
from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import ChargeStage
from chassis.caller import caller_of
from chassis.deadlines import wait_seconds
from chassis.shares import Excess, Shares, Weights
from contract.errors import Reason
from contract.errors import query_refusal as refusal
from query_service.errors import invalid
from query_service.explaining import explain
from query_service.lookup import END, ChargeId, ChargeName, ChargeRows, Conditions, History, Key, Rows
from query_service.messages import charge_of, currencies_of, entries_of, freshness_of, stage_of, status_of, text_of
from query_service.mirrors import Mirror, Seen
from query_service.pages import places_of, token_after
from query_service.situations import NOT_ASKED, UNDER_WAY, Asked
from query_service.subscriber import State

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
# The longest wait until a change that a command server has told of is in the view, before a charge is explained without it.
AGAIN_SECONDS = 0.5
# The number of times that command servers are asked about a charge that moves on meanwhile.
ASKED_AT_MOST = 3

AnyQuery = (
    query_pb2.GetChargeRequest
    | query_pb2.ListChargesRequest
    | query_pb2.WatchChargeRequest
    | query_pb2.GetChargeHistoryRequest
    | query_pb2.GetUserSummaryRequest
    | query_pb2.GetViewStatusRequest
    | query_pb2.ExplainChargeRequest
)
OfOneCharge = (
    query_pb2.GetChargeRequest
    | query_pb2.WatchChargeRequest
    | query_pb2.GetChargeHistoryRequest
    | query_pb2.ExplainChargeRequest
)


class QueryService(query_pb2_grpc.QueryServiceServicer):
    """Answers queries, up to a number at once."""

    def __init__(
        self,
        mirrors: Sequence[Mirror],
        *,
        max_calls: int,
        max_watchers: int,
        weights: Weights,
        now: Callable[[], int],
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        """`weights` split the limits, and `now` gives microseconds since 1970.

        `longest_wait_seconds`: no query waits longer for its position, whatever its deadline.
        """
        self._mirrors = mirrors
        self._longest_wait_seconds = longest_wait_seconds
        self._now = now
        self._calls = Shares(max_calls, weights)
        # A limit of their own: while the view lags, calls that wait for it would keep out calls that could be answered.
        self._waiters = Shares(max_calls, weights)
        self._watchers = Shares(max_watchers, weights)
        self._unread = Shares(MAX_UNREAD, weights)
        self._watches: Counter[str] = Counter()

    @property
    def limits(self) -> Mapping[str, Shares]:
        """What is limited, by its name in the metrics."""
        return {
            "calls": self._calls,
            "waiting_calls": self._waiters,
            "watches": self._watchers,
            "unread_answers": self._unread,
        }

    async def GetCharge(  # noqa: N802  # the contract's names, here and below
        self, request: query_pb2.GetChargeRequest, context: Any
    ) -> query_pb2.GetChargeResponse:
        """Show a charge; see the contract."""
        name = _name(request)
        async with self._asked(request, context) as tenant:
            seen = await self._find(tenant, request.journal_id, lambda rows: rows.charge(name), "charge")
        return query_pb2.GetChargeResponse(charge=charge_of(seen.found, seen.journal_id), **freshness_of([seen]))

    async def ListCharges(  # noqa: N802
        self, request: query_pb2.ListChargesRequest, context: Any
    ) -> query_pb2.ListChargesResponse:
        """List charges; see the contract."""
        conditions = _conditions(request)
        page_size = _page_size(request)
        async with self._asked(request, context) as tenant:
            # Taken once: the first contact with a journal may come between the reads.
            named = {mirror: mirror.journal_id for mirror in self._mirrors}
            places = _places(request, list(named.values()))

            def find_below(position: int) -> Callable[[Rows], list[ChargeRows]]:
                # One more than the page shows: if it exists, there is a next page.
                return lambda rows: rows.charges(conditions, position, limit=page_size + 1)

            seen = [
                await mirror.read(tenant, find_below(places[journal_id]), "charges")
                for mirror, journal_id in named.items()
            ]
        # Where the next page begins in a journal of which this one shows nothing: what is requested later moves no page.
        below = {one.journal_id: min(places.get(one.journal_id, END), one.checkpoint.position + 1) for one in seen}
        if request.page_token and below.keys() != places.keys():
            raise _no_such_page()  # another journal has taken the place of one
        response = query_pb2.ListChargesResponse(**freshness_of(seen))
        size = 0
        for one, rows in _newest_first(seen):
            charge = charge_of(rows, one.journal_id)
            size += charge.ByteSize()
            if len(response.charges) == page_size or (size > PAGE_BYTES and response.charges):
                response.next_page_token = token_after(below, request)
                break
            response.charges.append(charge)
            below[one.journal_id] = rows.charge.requested_position
        if size > LONG_ANSWER_BYTES:
            self._hold_place_until_read(context)
        return response

    async def WatchCharge(  # noqa: N802
        self, request: query_pb2.WatchChargeRequest, context: Any
    ) -> AsyncIterator[query_pb2.WatchChargeResponse]:
        """Show a charge, and show it again after each change; see the contract."""
        name, tenant = _name(request), caller_of(context).tenant
        with _place(self._watchers, tenant), self._watching_over(context.peer()):
            await self._reach(self._awaited(request), request.min_position, context)
            first = await self._find(tenant, request.journal_id, lambda rows: rows.charge(name), "charge")
            mirror, charge_id = first.mirror, first.found.charge.charge_id
            sent = 0  # the position of the last state sent
            # The watch begins before the next read, so that no change is missed.
            with mirror.waiting.watching(charge_id) as changed:
                while not mirror.waiting.is_stopping:
                    changed.clear()
                    seen = await mirror.read(tenant, lambda rows: rows.charge(ChargeId(charge_id)), "charge")
                    if seen.found is None or seen.found.charge.position < sent:
                        raise _behind(mirror)  # the view is being rebuilt and has not reached this charge
                    if seen.found.charge.position > sent:
                        sent = seen.found.charge.position
                        charge = charge_of(seen.found, seen.journal_id)
                        yield query_pb2.WatchChargeResponse(charge=charge, **freshness_of([seen]))
                    await changed.wait()
        raise refusal(Reason.SERVER_STOPPING)

    async def GetChargeHistory(  # noqa: N802
        self, request: query_pb2.GetChargeHistoryRequest, context: Any
    ) -> query_pb2.GetChargeHistoryResponse:
        """List the events of a charge; see the contract."""
        name = _name(request)
        async with self._asked(request, context) as tenant:
            seen = await self._find(tenant, request.journal_id, lambda rows: rows.history(name), "history")
        return query_pb2.GetChargeHistoryResponse(
            charge_id=text_of(seen.found.rows.charge.charge_id),
            entries=entries_of(seen.found),
            **freshness_of([seen]),
        )

    async def ExplainCharge(  # noqa: N802
        self, request: query_pb2.ExplainChargeRequest, context: Any
    ) -> query_pb2.ExplainChargeResponse:
        """Explain a charge; see the contract."""
        name = _name(request)
        async with self._asked(request, context) as tenant:
            seen = await self._find(tenant, request.journal_id, lambda rows: rows.history(name), "history")
            asked = NOT_ASKED
            if stage_of(seen.found.rows.charge) in UNDER_WAY:
                asked, seen = await self._ask(tenant, seen)
        charge = charge_of(seen.found.rows, seen.journal_id)
        answer = explain(charge, list(entries_of(seen.found)), asked, now=self._now())
        answer.MergeFrom(query_pb2.ExplainChargeResponse(**freshness_of([seen])))
        return answer

    async def _ask(self, tenant: str, seen: Seen[History]) -> tuple[Asked, Seen[History]]:
        """Ask the command servers about a charge under way. Returns their answer, and the charge as of that answer.

        Attempts are at a step, so they are told of the charge as it was then and of no other: after the token money may move.
        """
        mirror, charge_id = seen.mirror, seen.found.rows.charge.charge_id
        has_stopped = False
        for _ in range(ASKED_AT_MOST):
            asked = await mirror.ask(text_of(charge_id))
            seen = await self._reached(tenant, mirror, charge_id, asked.version)
            charge = seen.found.rows.charge
            if stage_of(charge) not in UNDER_WAY:
                return NOT_ASKED, seen
            if charge.version < asked.version:
                return Asked(unknown_because="The view does not show the charge's newest event yet: ask again."), seen
            is_sure = has_stopped or not asked.is_stopped  # one that has begun a moment ago may have no attempts yet
            if asked.version in (0, charge.version) and is_sure:
                is_away = asked.is_away or (seen.state is State.DISCONNECTED and asked.attempts is None)
                return asked._replace(is_away=is_away and not asked.is_stopped), seen
            has_stopped = asked.is_stopped
        return Asked(unknown_because="The charge moved on each time its server was asked: ask again."), seen

    async def _reached(self, tenant: str, mirror: Mirror, charge_id: bytes, version: int) -> Seen[History]:
        """Read a charge's history once it is shown at a version, or after AGAIN_SECONDS as it is shown then."""
        with mirror.waiting.watching(charge_id) as changed:
            end = asyncio.get_running_loop().time() + AGAIN_SECONDS
            while True:
                changed.clear()
                shown = await mirror.read(tenant, lambda rows: rows.history(ChargeId(charge_id)), "history")
                if shown.found is None:
                    raise _behind(mirror)  # the view is being rebuilt and has not reached this charge
                if shown.found.rows.charge.version >= version or asyncio.get_running_loop().time() >= end:
                    return Seen(shown.found, shown.checkpoint, mirror)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(end):
                        await changed.wait()

    async def GetUserSummary(  # noqa: N802
        self, request: query_pb2.GetUserSummaryRequest, context: Any
    ) -> query_pb2.GetUserSummaryResponse:
        """Sum up a user's charges; see the contract."""
        if not request.user_id:
            raise invalid("user_id", "must not be empty")
        _check_length("user_id", request.user_id)
        async with self._asked(request, context) as tenant:
            seen = [
                await mirror.read(tenant, lambda rows: rows.sums(request.user_id), "sums") for mirror in self._mirrors
            ]
        return query_pb2.GetUserSummaryResponse(
            user_id=request.user_id, currencies=currencies_of(one.found for one in seen), **freshness_of(seen)
        )

    async def GetViewStatus(  # noqa: N802
        self, request: query_pb2.GetViewStatusRequest, context: Any
    ) -> query_pb2.GetViewStatusResponse:
        """Report the state of the views; see the contract."""
        async with self._asked(request, context) as tenant:
            return status_of([await mirror.read(tenant, Rows.totals, "totals") for mirror in self._mirrors])

    @asynccontextmanager
    async def _asked(self, request: AnyQuery, context: Any) -> AsyncIterator[str]:
        """Hold a place, and wait until the view shows the request's position. Gives the tenant that asks."""
        tenant, mirror = caller_of(context).tenant, self._awaited(request)
        # A call that waits keeps its place for the read, so that it is not refused after its wait.
        places = self._waiters if request.min_position > mirror.waiting.position else self._calls
        with _place(places, tenant):
            await self._reach(mirror, request.min_position, context)
            yield tenant

    def _awaited(self, request: AnyQuery) -> Mirror:
        """The mirror of the journal that the request's position is of. Without a position any one will do."""
        if request.min_position < 0:
            raise invalid("min_position", "must not be negative")
        if request.journal_id:
            return self._named(request.journal_id)
        if request.min_position and len(self._mirrors) > 1:
            raise invalid("journal_id", "must name the journal of min_position, since several are followed here")
        return self._mirrors[0]

    def _named(self, journal_id: str) -> Mirror:
        for mirror in self._mirrors:
            if journal_id in (mirror.journal_id, mirror.view.journal_id):
                return mirror
        for mirror in self._mirrors:
            if not mirror.journal_id:
                raise _behind(mirror)  # its feed may have this journal
        raise refusal(Reason.JOURNAL_NOT_FOLLOWED)

    async def _reach(self, mirror: Mirror, min_position: int, context: Any) -> None:
        seconds = wait_seconds(context.time_remaining(), self._longest_wait_seconds)
        if not await mirror.waiting.reach(min_position, seconds):
            raise _behind(mirror)

    async def _find(self, tenant: str, journal_id: str, find: Callable[[Rows], T | None], query: str) -> Seen[T]:
        """Find a charge, in the journal of this id or, if it is empty, in all."""
        asked = [self._named(journal_id)] if journal_id else self._mirrors
        seen = [await mirror.read(tenant, find, query) for mirror in asked]
        found = [Seen(one.found, one.checkpoint, one.mirror) for one in seen if one.found is not None]
        if len(found) > 1:
            # Two clusters were asked for one charge: which of the two is meant is not ours to say.
            journal_ids = {"journal_ids": " ".join(one.journal_id for one in found)}
            raise refusal(Reason.CHARGE_IN_SEVERAL_JOURNALS, metadata=journal_ids)
        if not found:
            raise _not_found(seen)
        return found[0]

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
def _name(request: OfOneCharge) -> ChargeName:
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


def _conditions(request: query_pb2.ListChargesRequest) -> Conditions:
    _check_length("user_id", request.user_id)
    if request.status not in ChargeStatus.values():
        raise invalid("status", "must be a known status, or unspecified for any")
    if request.stage not in ChargeStage.values():
        raise invalid("stage", "must be a known stage, or unspecified for any")
    if request.HasField("stage_since_before") and not request.stage:
        raise invalid("stage_since_before", "must come with a stage: each has a time of its own")
    return Conditions(
        user_id=request.user_id or None,
        status=request.status or None,
        requested_from=_microseconds(request, "requested_from"),
        requested_before=_microseconds(request, "requested_before"),
        stage=request.stage or None,
        stage_since_before=_microseconds(request, "stage_since_before"),
        hold_expires_before=_microseconds(request, "hold_expires_before"),
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


def _places(request: query_pb2.ListChargesRequest, journal_ids: Sequence[str]) -> dict[str, int]:
    """The positions below which a page begins, each in the journal of this id."""
    if not request.page_token:
        return dict.fromkeys(journal_ids, END)
    places = places_of(request, journal_ids)
    if places is None:
        raise _no_such_page()
    return places


def _page_size(request: query_pb2.ListChargesRequest) -> int:
    if request.page_size < 0:
        raise invalid("page_size", "must not be negative")
    return min(request.page_size, LONGEST_PAGE) or DEFAULT_PAGE


# ---------------------------------------------------------------- to answers
def _newest_first(seen: Sequence[Seen[list[ChargeRows]]]) -> Iterator[tuple[Seen[list[ChargeRows]], ChargeRows]]:
    """Merge the charges by the times of their requests. Those of a journal keep their order, whatever its clock did."""
    journals = [[(one, rows) for rows in one.found] for one in seen]
    return heapq.merge(*journals, key=lambda found: -found[1].charge.requested_at)


def _not_found(seen: Sequence[Seen[Any]]) -> Exception:
    if len(seen) > 1:
        told = " ".join(f"{one.journal_id}:{one.checkpoint.position}" for one in seen)
        return refusal(Reason.CHARGE_NOT_FOUND, metadata={"as_of_positions": told})
    return refusal(Reason.CHARGE_NOT_FOUND, metadata={"as_of_position": seen[0].checkpoint.position})


def _behind(mirror: Mirror) -> Exception:
    positions = {"as_of_position": mirror.waiting.position, "head_position": mirror.subscriber.head_position}
    return refusal(Reason.VIEW_BEHIND, metadata=positions)


def _no_such_page() -> Exception:
    return invalid("page_token", "must be a next_page_token, sent with the conditions of the page it came with")
