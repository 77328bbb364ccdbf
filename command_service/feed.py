"""The feed: a pipe from the journal to its readers. It decodes nothing.

Readers at the same place share one read of the journal and its encoded bytes, so a hundred readers cost little more than one.
Hence the feed yields serialised SubscribeResponses, and is registered with gRPC without a serialiser: the generated code would
encode each message once for each reader. No database cursor is held while a reader is slow, and a reader that does not read
is cut off.

A reader with a tenant gets that tenant's records, and of all others only their positions and the chain up to them: a charge's
id is made from its tenant and key, so that even others' ids would tell which keys they have used. Reasons: docs/adr/0022.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog

from charging.v1.journal_pb2 import (
    CaughtUp,
    GetAttemptsRequest,
    GetAttemptsResponse,
    Heartbeat,
    Opened,
    SubscribeRequest,
    SubscribeResponse,
)
from chassis.caller import Caller, caller_of
from chassis.refusals import Violation
from chassis.server import end_call
from chassis.shares import Excess, Shares
from chassis.tasks import start_shared
from command_service.errors import refusing
from command_service.journal import Journal, Place, Record
from command_service.observed import UNOBSERVED, Observed
from contract.errors import DOMAIN, Reason
from contract.errors import command_refusal as refusal

log = structlog.get_logger()

# The shortest time between two messages to a reader that has caught up, and the longest delay that batching adds to a live
# view. Under little load a message for each commit costs more than the commit and makes a charge take 1.5 times as long
# (measured).
MESSAGE_EVERY_SECONDS = 0.01
# Readers treat a connection as dead after three missing heartbeats.
HEARTBEAT_SECONDS = 5.0
# Some 4 MB wait in the connection by then. The reader can resume and read the missing records again.
SLOW_READER_SECONDS = 30.0
# A batch has up to about 1 MiB. Readers that are further apart than these batches share no reads.
BATCHES_SHARED = 8

# Far more than the query servers and the exports of one journal.
MAX_READERS = 256
# Calls of GetAttempts at once, each of which may read a stream. People ask for them.
MAX_ASKED = 64

ANY_READER = Caller("", "anonymous")
"""Every reader of the feed where no policy is. It has no tenant: it sees all records."""

# The owners of records, in their order, up to the first whose owner cannot be read. Raises Unreadable if that is the first.
OwnersOf = Callable[[Sequence[Record]], Awaitable[Sequence[str]]]
# (charge id, tenant) -> the attempts at the charge's step. With an empty tenant they are told of any. Raises CallFailed.
AttemptsAt = Callable[[str, str], Awaitable[GetAttemptsResponse]]
_Batch = tuple[bytes, Place, int]
"""A serialised message, the place after it, and the number of its records."""


class Feed:
    """Follows the journal for any number of readers. It needs only an event loop, a journal, and who tells records' owners."""

    def __init__(
        self,
        journal: Journal,
        owners_of: OwnersOf,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        observed: Observed = UNOBSERVED,
    ) -> None:
        self._journal = journal
        self._observed = observed
        self._places: dict[object, Place] = {}  # of the readers, in order
        self._owners_of = owners_of
        self._heartbeat_seconds = heartbeat_seconds
        # Apart, so that readers with a tenant never displace what readers of the whole feed share.
        self._whole, self._parts = _Shared(), _Shared()
        self._waits: dict[asyncio.Timeout, None] = {}  # in order, so that a simulation repeats
        self._is_stopping = False

    @property
    def readers(self) -> int:
        """The number of readers that follow."""
        return len(self._places)

    @property
    def lag_records(self) -> int:
        """The number of records that the reader furthest behind has yet to take; 0 without readers."""
        head = self._journal.head.position
        return max((head - place.position for place in self._places.values()), default=0)

    def stop(self) -> None:
        """End all streams, each at its next message."""
        self._is_stopping = True
        for wait in list(self._waits):
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())

    async def follow(self, request: SubscribeRequest, tenant: str = "") -> AsyncGenerator[bytes, None]:
        """Yield the serialised messages of a stream, by the contract's numbered steps. It ends when the feed stops.

        With a tenant it is this tenant's feed. Raises Refusal if the reader's place is not in this journal, and Unreadable.
        """
        place, reader = await self._place(request, tenant), object()
        self._places[reader] = place
        try:
            async with contextlib.aclosing(self._messages(reader, place, tenant)) as messages:
                async for message in messages:
                    yield message
        finally:
            del self._places[reader]

    async def _messages(self, reader: object, place: Place, tenant: str) -> AsyncGenerator[bytes, None]:
        head = self._journal.head.position
        opened = Opened(journal_id=self._id_for(tenant), head_position=head, tenant=tenant)
        yield SubscribeResponse(opened=opened).SerializeToString()
        is_caught_up = False
        # A reader that has caught up gets the last outcomes too, before the stream ends.
        while not self._is_stopping or (is_caught_up and place.position < self._journal.head.position):
            if place.position < self._journal.head.position:
                batch, place, count = await self._batch_after(place, tenant)
                yield batch
                self._places[reader] = place
                self._observed.feed_records.add(count=count)
                if is_caught_up:
                    await asyncio.sleep(MESSAGE_EVERY_SECONDS)
            elif not is_caught_up:
                is_caught_up = True
                yield SubscribeResponse(caught_up=CaughtUp(position=place.position)).SerializeToString()
            elif not await self._news(place.position):
                heartbeat = Heartbeat(head_position=self._journal.head.position)
                yield SubscribeResponse(heartbeat=heartbeat).SerializeToString()

    def _id_for(self, tenant: str) -> str:
        journal_id = self._journal.journal_id
        return f"{journal_id}/{tenant}" if tenant else journal_id

    async def _place(self, request: SubscribeRequest, tenant: str) -> Place:
        """Find the reader's place in this journal. Raises Refusal, also if the reader followed another journal."""
        if request.after_position < 0:
            raise refusal(Reason.INVALID_REQUEST, violations=[Violation("after_position", "must not be negative")])
        if len(request.chain) not in (0, 32):
            raise refusal(Reason.INVALID_REQUEST, violations=[Violation("chain", "must be empty or 32 bytes")])
        if request.journal_id not in ("", self._id_for(tenant)):
            raise refusal(Reason.JOURNAL_DIVERGED)
        if not await self._journal.reaches(request.after_position):
            raise refusal(Reason.JOURNAL_DIVERGED)
        chain = await self._journal.chain_at(request.after_position)
        if request.chain not in (b"", chain):
            raise refusal(Reason.JOURNAL_DIVERGED)
        return Place(request.after_position, chain)

    async def _batch_after(self, place: Place, tenant: str) -> _Batch:
        """Read and encode the next records, once for all readers at this place who may see the same."""
        if tenant:
            return await self._parts.batch((tenant, place.position), lambda: self._read_part(place, tenant))
        return await self._whole.batch(place.position, lambda: self._read(place))

    async def _read(self, place: Place) -> _Batch:
        records = await self._journal.read_after(place)
        return _batch(records).SerializeToString(), Place(records[-1].position, records[-1].chain), len(records)

    async def _read_part(self, place: Place, tenant: str) -> _Batch:
        records = await self._journal.read_after(place)
        owners = await self._owners_of(records)
        last = records[len(owners) - 1]
        response = _batch([record for record, owner in zip(records, owners, strict=False) if owner == tenant])
        reached = place.position
        for out in response.batch.records:
            if out.position > reached + 1:
                out.chain_before = records[out.position - place.position - 2].chain
            reached = out.position
        if reached < last.position:
            response.batch.passed.to_position, response.batch.passed.chain = last.position, last.chain
        return response.SerializeToString(), Place(last.position, last.chain), len(response.batch.records)

    async def _news(self, position: int) -> bool:
        """Wait for more records or a stop. Returns False after the time of a heartbeat without either."""
        try:
            async with asyncio.timeout(self._heartbeat_seconds) as wait:
                self._waits[wait] = None  # for `stop` to end
                try:
                    await self._journal.beyond(position)
                finally:
                    del self._waits[wait]
        except TimeoutError:
            return self._is_stopping
        return True


class _Shared:
    """The newest batches, each read once for all who ask for it."""

    def __init__(self) -> None:
        self._reading: OrderedDict[Hashable, asyncio.Task[_Batch]] = OrderedDict()

    async def batch(self, key: Hashable, read: Callable[[], Coroutine[None, None, _Batch]]) -> _Batch:
        """Return the batch of a key; `read` reads it if nobody has begun to."""
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = start_shared(read())
            if len(self._reading) > BATCHES_SHARED:
                self._reading.popitem(last=False)
        try:
            return await asyncio.shield(reading)  # one reader's end must not end the others' read
        except Exception:
            self._reading.pop(key, None)
            raise


def _batch(records: Sequence[Record]) -> SubscribeResponse:
    """Make a batch. Setting the fields in place takes half the time of constructing the messages."""
    response = SubscribeResponse()
    add = response.batch.records.add
    for position, charge_id, version, recorded_at, chain, event in records:
        out = add()
        out.position = position
        out.charge_id = charge_id
        out.version = version
        out.chain = chain
        out.event = event
        time = out.recorded_at
        time.seconds, microseconds = divmod(recorded_at, 1_000_000)
        time.nanos = microseconds * 1_000
    return response


async def no_attempts(_charge_id: str, _tenant: str) -> GetAttemptsResponse:
    """Tell of no attempts: where no charges run."""
    return GetAttemptsResponse()


class JournalService:
    """The feed over gRPC, up to a number of readers: cuts off those that do not read. And the attempts that no feed shows."""

    def __init__(
        self,
        feed: Feed,
        readers: Shares | None = None,
        attempts: AttemptsAt = no_attempts,
        *,
        slow_reader_seconds: float = SLOW_READER_SECONDS,
    ) -> None:
        """Each reader takes a place in `readers`: those that begin at places of their own share no reads."""
        self._feed = feed
        self._readers = readers or Shares(MAX_READERS)
        self._attempts = attempts
        self._asked = Shares(MAX_ASKED)
        self._slow_reader_seconds = slow_reader_seconds

    @property
    def limits(self) -> Mapping[str, Shares]:
        """What is limited, by its name in the metrics."""
        return {"feed_readers": self._readers, "attempts_asked": self._asked}

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server, the feed without a serialiser: its messages are sent unchanged."""
        subscribe: grpc.RpcMethodHandler[SubscribeRequest, bytes] = grpc.unary_stream_rpc_method_handler(
            self.Subscribe, SubscribeRequest.FromString
        )
        get_attempts: grpc.RpcMethodHandler[GetAttemptsRequest, GetAttemptsResponse] = (
            grpc.unary_unary_rpc_method_handler(
                self.GetAttempts, GetAttemptsRequest.FromString, GetAttemptsResponse.SerializeToString
            )
        )
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"Subscribe": subscribe, "GetAttempts": get_attempts}
        server.add_registered_method_handlers("charging.v1.JournalService", methods)

    async def GetAttempts(  # noqa: N802  # the contract's names, here and below
        self, request: GetAttemptsRequest, context: Any
    ) -> GetAttemptsResponse:
        """Tell of the attempts at a charge's step, as far as the caller's tenant may know."""
        tenant = caller_of(context).tenant
        if self._asked.take(tenant) is not None:
            raise refusal(Reason.TOO_MANY_CALLS)
        try:
            with refusing():
                return await self._attempts(request.charge_id, tenant)
        finally:
            self._asked.give_back(tenant)

    async def Subscribe(  # noqa: N802
        self, request: SubscribeRequest, context: Any
    ) -> AsyncGenerator[bytes, None]:
        """Follow the journal, as far as the caller's tenant may see it."""
        loop, call = asyncio.get_running_loop(), asyncio.current_task()
        assert call is not None
        tenant = caller_of(context).tenant
        if (excess := self._readers.take(tenant)) is not None:
            raise refusal(Reason.TOO_MANY_CALLS if excess is Excess.SERVER else Reason.TENANT_LIMIT)
        try:
            with refusing():
                async with contextlib.aclosing(self._feed.follow(request, tenant)) as messages:
                    async for message in messages:
                        # The next line does not return while the reader does not read: only a timer can end the wait.
                        cutting = loop.call_later(self._slow_reader_seconds, _cut_off, call, context)
                        try:
                            yield message
                        finally:
                            cutting.cancel()
        finally:
            self._readers.give_back(tenant)
        raise refusal(Reason.SERVER_STOPPING)


def _cut_off(call: "asyncio.Task[Any]", context: Any) -> None:
    """End a stream from outside: leave the status for the reader, and free the call's memory here."""
    log.warning("a reader of the feed did not read for too long and was cut off")
    end_call(context, call, refusal(Reason.READER_TOO_SLOW), DOMAIN)
