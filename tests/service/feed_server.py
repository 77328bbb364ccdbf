"""A journal's feed over a real port, the edge of the query server's world: it follows orders, wrong ones too."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from charging.v1 import journal_pb2_grpc
from charging.v1.journal_pb2 import (
    CaughtUp,
    GetAttemptsRequest,
    GetAttemptsResponse,
    Heartbeat,
    Opened,
    Record,
    RecordBatch,
    SubscribeRequest,
    SubscribeResponse,
)
from chassis.refusals import Refusal
from tests.sealed import SealedJournal

DIVERGED = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "JOURNAL_DIVERGED", "diverged", "DO_NOT_RETRY")


class FeedServer(journal_pb2_grpc.JournalServiceServicer):
    """Serves the records of a journal.

    Between `cut` and `mend` it ends every stream. `held_at` is a position that no stream passes. `forged` replaces the
    journal's records by others, and `caught_up_at` the position in its CaughtUp. `attempts` are those that it tells, by charge.
    """

    def __init__(self, journal: SealedJournal) -> None:
        self.journal = journal
        self.held_at: int | None = None
        self.forged: Sequence[Record] | None = None
        self.caught_up_at: int | None = None
        self.batch_records = 500
        self.attempts: dict[str, GetAttemptsResponse] = {}
        self.requests: list[SubscribeRequest] = []
        self.authorizations: list[str | None] = []
        self.address = ""
        self._is_cut = False
        self._cuts = 0
        self._server: grpc.aio.Server | None = None
        self._changed = asyncio.Condition()

    async def start(self, tls: grpc.ServerCredentials | None = None) -> None:
        """Listen on a free port; in plaintext without `tls`."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        journal_pb2_grpc.add_JournalServiceServicer_to_server(self, self._server)
        listen = "127.0.0.1:0"
        port = self._server.add_secure_port(listen, tls) if tls else self._server.add_insecure_port(listen)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Cut all streams and stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def cut(self) -> None:
        """End all streams, and every later one."""
        self._is_cut = True
        self._cuts += 1
        await self.notify()

    def mend(self) -> None:
        """Serve again."""
        self._is_cut = False

    async def notify(self) -> None:
        """Have streams notice a change: records appended to the journal, or a moved hold."""
        async with self._changed:
            self._changed.notify_all()

    async def asked(self, times: int) -> None:
        """Wait until there have been this many subscriptions."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= times)

    async def hold(self, position: int | None) -> None:
        """Move the hold."""
        self.held_at = position
        await self.notify()

    async def Subscribe(self, request: SubscribeRequest, context: Any) -> AsyncIterator[SubscribeResponse]:  # noqa: N802  # the contract's name
        self.requests.append(request)
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        await self.notify()
        if self._is_cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        if not self._fits(request):
            await context.abort_with_status(DIVERGED.status("charging.v1"))
        yield SubscribeResponse(opened=Opened(journal_id=self.journal.journal_id, head_position=self.journal.head))
        position, caught_up, cuts = request.after_position, None, self._cuts
        while self._cuts == cuts:
            records = self.journal.records if self.forged is None else self.forged
            end = len(records) if self.held_at is None else min(len(records), self.held_at)
            if position < end:
                batch = records[position : min(end, position + self.batch_records)]
                yield SubscribeResponse(batch=RecordBatch(records=batch))
                position += len(batch)
            elif position == len(records) and caught_up is None:
                caught_up = (records[-1].position if records else 0) if self.caught_up_at is None else self.caught_up_at
                yield SubscribeResponse(caught_up=CaughtUp(position=caught_up))
            else:
                seen = self._state()
                yield SubscribeResponse(heartbeat=Heartbeat(head_position=self.journal.head))
                async with self._changed:
                    await self._changed.wait_for(lambda: self._state() != seen)  # noqa: B023  # called before it changes

    async def GetAttempts(self, request: GetAttemptsRequest, _: Any) -> GetAttemptsResponse:  # noqa: N802
        return self.attempts.get(request.charge_id, GetAttemptsResponse())

    def _state(self) -> tuple[int, int | None, int]:
        return self.journal.head, self.held_at, self._cuts

    def _fits(self, request: SubscribeRequest) -> bool:
        return (
            request.journal_id in ("", self.journal.journal_id)
            and request.after_position <= self.journal.head
            and request.chain in (b"", self.journal.chain_at(request.after_position))
        )


@asynccontextmanager
async def feeding(journal: SealedJournal, tls: grpc.ServerCredentials | None = None) -> AsyncIterator[FeedServer]:
    """Run a feed server."""
    server = FeedServer(journal)
    await server.start(tls)
    try:
        yield server
    finally:
        await server.stop()
