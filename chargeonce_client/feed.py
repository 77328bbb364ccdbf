"""The feed, read record by record: verified, without gaps or repeats, across every restart of the server."""

import contextlib
import hashlib
import struct
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from chargeonce_client.errors import FeedBroken
from chargeonce_client.repeating import STREAM_SECONDS, reopened
from charging.v1.journal_pb2 import Event, Opened, Record, RecordBatch, SubscribeRequest

if TYPE_CHECKING:
    from charging.v1.journal_pb2_grpc import JournalServiceAsyncStub

# Four missed heartbeats: after this silence a feed counts as lost, even if its connection is open.
SILENCE_SECONDS = 20.0
_CHAINED = struct.Struct(">32sq16sqq32s")


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of the journal with its event.

    A reader that wants to go on later keeps `journal_id`, `record.position` and `record.chain` once it has dealt with it.
    """

    journal_id: str
    """The journal's id; in a tenant's feed with the tenant."""
    record: Record
    """The record as the feed brought it."""
    event: Event
    """Its event, decoded."""

    @property
    def name(self) -> str:
        """The event's name, such as ChargeRequested."""
        return self.content.DESCRIPTOR.name

    @property
    def content(self) -> Message:
        """What the event tells: a ChargeRequested, a TokenIssued, ..."""
        content: Message = getattr(self.event, str(self.event.WhichOneof("kind")))
        return content


@dataclass(slots=True)
class _Reader:
    """A reader's place in the journal: the last position, the chain up to it if it is known, and whose feed it is."""

    position: int
    journal_id: str
    chain: bytes
    is_of_tenant: bool = False

    def request(self) -> SubscribeRequest:
        return SubscribeRequest(after_position=self.position, journal_id=self.journal_id, chain=self.chain)

    def opened(self, opened: Opened) -> None:
        self.journal_id, self.is_of_tenant = opened.journal_id, bool(opened.tenant)

    def read(self, record: Record) -> Entry:
        """Go on to a record. Raises FeedBroken if it is not the next one."""
        if record.position != self.position + 1 and not (self.is_of_tenant and record.position > self.position):
            raise FeedBroken(f"record {record.position} follows record {self.position}")
        before = (
            (record.chain_before if self.is_of_tenant else b"") or self.chain or (b"" if self.position else bytes(32))
        )
        if before and record.chain != _chain_after(before, record):
            raise FeedBroken(f"record {record.position} does not fit the chain of the records before it")
        event = Event.FromString(record.event)
        if event.WhichOneof("kind") is None:
            raise FeedBroken(
                f"record {record.position} is of a kind that is unknown here: this client is to be updated"
            )
        self.position, self.chain = record.position, record.chain
        return Entry(self.journal_id, record, event)

    def passed(self, batch: RecordBatch) -> None:
        """Pass over records of other tenants that follow a batch's own."""
        if self.is_of_tenant and batch.HasField("passed"):
            self.position, self.chain = batch.passed.to_position, batch.passed.chain


async def follow(
    feed: "JournalServiceAsyncStub",
    *,
    after_position: int,
    journal_id: str,
    chain: bytes,
    live: bool,
    patience: float,
    deadline: float,
) -> AsyncGenerator[Entry, None]:
    """See Client.follow."""
    reader = _Reader(after_position, journal_id, chain)
    messages = reopened(
        lambda: feed.Subscribe(reader.request(), timeout=STREAM_SECONDS),
        patience=patience,
        deadline=deadline,
        silence=SILENCE_SECONDS,
    )
    async with contextlib.aclosing(messages):
        async for message in messages:
            match message.WhichOneof("item"):
                case "opened":
                    reader.opened(message.opened)
                case "batch":
                    for record in message.batch.records:
                        yield reader.read(record)
                    reader.passed(message.batch)
                case "caught_up" if not live:
                    return


def _chain_after(before: bytes, record: Record) -> bytes:
    """Return the chain up to a record: see JournalService."""
    place = (record.position, uuid.UUID(record.charge_id).bytes, record.version, record.recorded_at.ToMicroseconds())
    return hashlib.sha256(_CHAINED.pack(before, *place, hashlib.sha256(record.event).digest())).digest()
