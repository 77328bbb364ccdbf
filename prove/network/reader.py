"""A reader of the feed of our own making: it resumes from where it is, and believes nothing that it has not verified.

It shares no code with the query server's, so that a fault in that one is seen by this one.
"""

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from charging.v1.journal_pb2 import Record, SubscribeRequest, SubscribeResponse
from charging.v1.journal_pb2_grpc import JournalServiceStub

# Each reader has a connection of its own, and tries it again at once: it is the server that is on trial.
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # In truth the least time that an attempt is given: with 50, a hundred readers that find a busy machine do nothing but
    # give up and begin again, until every descriptor is used up (seen).
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 7_500),
    ("grpc.http2.ping_timeout_ms", 7_500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
]
GENESIS = bytes(32)


class FeedBroken(Exception):
    """The feed broke a promise; the text says where."""


class Reader:
    """Follows a feed from its start, over as many streams as that takes."""

    def __init__(self, address: str, *, keep: bool = False) -> None:
        """`keep`: the records are wanted, not only the place."""
        self.address = address
        self.position = 0
        self.chain = GENESIS
        self.journal_id = ""
        self.streams = 0
        self.breaks: list[grpc.StatusCode] = []
        self.records: list[Record] = []
        self.behind_seconds = 0.0
        self._keep = keep
        self._moved = asyncio.Condition()

    async def follow(self, until: int | None = None) -> None:
        """Read until that position, or until cancelled. Raises FeedBroken."""
        while until is None or self.position < until:
            try:
                async for _ in self.messages():
                    if until is not None and self.position >= until:
                        return
            except grpc.aio.AioRpcError as error:
                self.breaks.append(error.code())
                await asyncio.sleep(0.02)

    async def messages(self) -> AsyncIterator[SubscribeResponse]:
        """One stream from where we are, verified. Raises FeedBroken and AioRpcError."""
        request = SubscribeRequest(
            after_position=self.position,
            journal_id=self.journal_id,
            chain=self.chain if self.position else b"",
        )
        async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            is_first = True
            async for message in JournalServiceStub(channel).Subscribe(request, wait_for_ready=True):
                if is_first != message.HasField("opened"):
                    raise FeedBroken(
                        f"I9 at position {self.position}: Opened is not the first message, or not the only one"
                    )
                is_first = False
                match message.WhichOneof("item"):
                    case "opened":
                        self.streams += 1
                        self.journal_id = message.opened.journal_id
                    case "batch":
                        for record in message.batch.records:
                            self._take(record)
                    case "caught_up" if message.caught_up.position != self.position:
                        raise FeedBroken(
                            f"I9: caught up at {message.caught_up.position}, but {self.position} were sent"
                        )
                async with self._moved:
                    self._moved.notify_all()
                yield message

    async def reaches(self, position: int, seconds: float) -> None:
        """Wait until that position has been read. Raises TimeoutError."""
        async with asyncio.timeout(seconds), self._moved:
            await self._moved.wait_for(lambda: self.position >= position)

    def _take(self, record: Record) -> None:
        if record.position != self.position + 1:
            raise FeedBroken(f"I9: after position {self.position} came {record.position}")
        recorded_at = record.recorded_at.ToMicroseconds()
        charge_id = bytes.fromhex(record.charge_id.replace("-", ""))
        fixed = struct.pack(">q16sqq", record.position, charge_id, record.version, recorded_at)
        chain = hashlib.sha256(self.chain + fixed + hashlib.sha256(record.event).digest()).digest()
        if chain != record.chain:
            raise FeedBroken(f"I10: the record at position {record.position} does not fit the chain")
        self.position, self.chain = record.position, chain
        if self._keep:
            self.records.append(record)


@contextlib.asynccontextmanager
async def following(*readers: Reader) -> AsyncIterator[None]:
    """Let readers follow in the background; what breaks them is raised at the end."""
    tasks = [asyncio.create_task(reader.follow()) for reader in readers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ended:
        if isinstance(end, Exception):
            raise end
