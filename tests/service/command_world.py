"""A command server and its bank, as this folder's tests need them: seen from outside only.

A `World` runs both in the test's own loop: quick, and its bank can go away and come back. Real processes, to be killed,
are `demo.processes.Town`. Of both a test sees what the world sees: answers over a channel, the journal's file, and by a
`Referee` the bank's statement and the calls that it got.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
from google.rpc import error_details_pb2, status_pb2

import gateway_mock
from charging.v1 import command_pb2_grpc, journal_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse, OutcomeSource
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.journal_pb2 import Event
from chassis import settings
from command_service.codec import charge_id_of
from command_service.journal import Place, Record
from command_service.journal.sqlite.file import SqliteFile
from command_service.parts import Parts
from command_service.serving import Serving, serve
from command_service.settings import Settings

PENDING = ChargeStatus.CHARGE_STATUS_PENDING
CHARGED = ChargeStatus.CHARGE_STATUS_CHARGED
DECLINED = ChargeStatus.CHARGE_STATUS_DECLINED
IN_REVIEW = ChargeStatus.CHARGE_STATUS_IN_REVIEW
ABANDONED = ChargeStatus.CHARGE_STATUS_ABANDONED
FRESH = OutcomeSource.OUTCOME_SOURCE_FRESH
JOINED = OutcomeSource.OUTCOME_SOURCE_JOINED
REPLAYED = OutcomeSource.OUTCOME_SOURCE_REPLAYED
RECOVERED = OutcomeSource.OUTCOME_SOURCE_RECOVERED

PATIENT_SECONDS = 25.0  # Longer than any charge here takes on a busy machine.
BRIEF_SECONDS = 0.4  # For a call that is to hear PENDING: some time to be accepted, and little to wait.


# ---------------------------------------------------------------- what is asked
def new_key() -> str:
    return f"order-{uuid.uuid4()}"


def a_request(key: str | None = None, **changed: Any) -> ChargeRequest:
    """A valid request: 12.50 EUR of alice's, under a key of its own unless one is given."""
    request = ChargeRequest(
        idempotency_key=key or new_key(),
        user_id="alice",
        card=Card(token="tok_visa", brand="visa", last4="4242"),
        amount=Money(minor_units=1250, currency_code="EUR"),
        description="one umbrella",
        metadata={"shop": "north"},
    )
    request.MergeFrom(ChargeRequest(**changed))
    return request


def id_of(request: ChargeRequest) -> str:
    return charge_id_of("default", request.idempotency_key)


# ---------------------------------------------------------------- what is answered
@dataclass(frozen=True, slots=True)
class Told:
    """An error as a client reads it. `everything` is all that came of it, texts and details, as bytes."""

    code: grpc.StatusCode
    reason: str
    advice: str
    fields: frozenset[str]
    retry_after_seconds: float | None
    text: str = field(compare=False)
    field_texts: frozenset[str] = field(compare=False)
    everything: bytes = field(compare=False)
    status: str = field(compare=False)


def told(error: grpc.aio.AioRpcError) -> Told:
    trailers = {str(name): value for name, value in error.trailing_metadata() or ()}
    packed = trailers.get("grpc-status-details-bin", b"")
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
        status=info.metadata.get("status", ""),
        everything=b"\n".join([(error.details() or "").encode(), packed, repr(trailers).encode()]),
    )


async def refused(call: Awaitable[object]) -> Told:
    """The error that a call ends with. An answer instead fails the test."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return told(error)
    raise AssertionError(f"not refused: {answer}")


def apart_from_source(answer: ChargeResponse) -> ChargeResponse:
    """What must be the same for everybody who asks with a key."""
    same = ChargeResponse()
    same.CopyFrom(answer)
    same.ClearField("outcome_source")
    return same


async def until(seen: Callable[[], Awaitable[object] | object]) -> None:
    """Wait until something is seen. Raises TimeoutError if it never is."""
    async with asyncio.timeout(PATIENT_SECONDS):
        while True:
            value = seen()
            if await value if isinstance(value, Awaitable) else value:
                return
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- the journal's file
def head(journal: Path) -> Place:
    with SqliteFile(journal).read() as reading:
        return reading.head


def records(journal: Path) -> list[Record]:
    with SqliteFile(journal).read() as reading:
        return list(reading.records())


def events(journal: Path, charge_id: str) -> list[Event]:
    return [Event.FromString(record.event) for record in records(journal) if record.charge_id == charge_id]


def story(journal: Path, charge_id: str) -> list[str]:
    """A charge's events by name, as in ["charge_requested", "token_issued", "charged"]."""
    return [str(event.WhichOneof("kind")) for event in events(journal, charge_id)]


# ---------------------------------------------------------------- the bank's side
@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved, as the bank's statement says."""

    reference: str
    transaction_id: str
    minor_units: int
    currency_code: str


class Referee:
    """Orders faults at the bank, and reads what it was asked and what it did."""

    def __init__(self, url: str) -> None:
        # It speaks plain HTTP only: loading certificates would take longer than most tests.
        self._http = httpx.AsyncClient(base_url=url, timeout=PATIENT_SECONDS, trust_env=False, verify=False)

    async def trouble(self, on: str, fault: str, **details: Any) -> None:
        """The next calls of a step go wrong; see gateway_mock."""
        (await self._http.post("/faults", json={"on": on, "fault": fault, **details})).raise_for_status()

    async def no_more_trouble(self) -> None:
        (await self._http.delete("/faults")).raise_for_status()

    async def unfired(self) -> list[str]:
        """The faults that have not come up as often as they were ordered."""
        faults = (await self._http.get("/faults")).raise_for_status().json()
        return [fault["fault"] for fault in faults if fault["fired"] < fault["times"]]

    async def calls(self, after: int = 0) -> list[dict[str, Any]]:
        return list((await self._http.get(f"/calls?after={after}")).raise_for_status().json())

    async def asked(self, charge_id: str) -> list[str]:
        """What the bank was asked about a charge, in order: token, execute, look_up."""
        return [
            _step(call) for call in await self.calls() if call["reference"] == charge_id or charge_id in call["path"]
        ]

    async def movements(self, charge_id: str | None = None) -> list[Movement]:
        statement = (await self._http.get("/statement")).raise_for_status().json()["movements"]
        return [
            Movement(line["reference"], line["transaction_id"], line["minor_units"], line["currency_code"])
            for line in statement
            if charge_id in (None, line["reference"])
        ]

    async def __aenter__(self) -> "Referee":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()


def _step(call: Mapping[str, Any]) -> str:
    if call["method"] == "GET":
        return "look_up"
    return "execute" if call["path"].endswith("/execute") else "token"


async def assert_books_agree(journal: Path, referee: Referee) -> None:
    """No charge moved money twice; what the journal says of money is what the statement says, field by field.

    And no token was executed before the journal held it.
    """
    moved = await referee.movements()
    assert len({movement.reference for movement in moved}) == len(moved), "charged twice"
    by_reference = {movement.reference: movement for movement in moved}
    tokens = set()
    for record in records(journal):
        event = Event.FromString(record.event)
        match event.WhichOneof("kind"):
            case "token_issued":
                tokens.add(event.token_issued.token)
            case "charged":
                amount = event.charged.amount
                assert by_reference.get(record.charge_id) == Movement(
                    record.charge_id, event.charged.transaction_id, amount.minor_units, amount.currency_code
                )
            case "charge_declined" | "charge_abandoned":
                assert record.charge_id not in by_reference
    for call in await referee.calls():
        if executed := re.fullmatch(r"/transactions/([^/]+)/execute", call["path"]):
            assert executed[1] in tokens


# ---------------------------------------------------------------- the world
class World:
    """A bank and a command server in this loop. `settings` are the server's, by their names in the environment."""

    referee: Referee
    running: Serving
    channel: grpc.aio.Channel
    commands: "command_pb2_grpc.CommandServiceAsyncStub"
    journals: "journal_pb2_grpc.JournalServiceAsyncStub"

    def __init__(
        self, folder: Path, settings: Mapping[str, str], make_parts: Callable[[Settings], Parts] = Parts
    ) -> None:
        self._make_parts = make_parts
        self.journal = folder / "journal.db"
        self._settings = dict(settings)
        self._ledger = folder / "bank.db"
        self._bank_listen = "127.0.0.1:0"
        self._bank = contextlib.AsyncExitStack()
        self._server = contextlib.AsyncExitStack()
        self._channels = contextlib.AsyncExitStack()

    @property
    def bank_url(self) -> str:
        return f"http://{self._bank_listen}"

    async def bank_up(self) -> None:
        """Open the bank, where it was if it has been open."""
        self._bank_listen = await self._bank.enter_async_context(gateway_mock.serve(self._bank_listen, self._ledger))

    async def bank_down(self) -> None:
        """Close the bank: connections are refused. It keeps its ledger."""
        await self._bank.aclose()

    async def start(self, **more: str) -> None:
        """Start the command server, over the same journal if there is one."""
        self._settings.update(more)
        environment = {
            "COMMAND_LISTEN": "127.0.0.1:0",
            "COMMAND_FEED_LISTEN": "127.0.0.1:0",
            "COMMAND_JOURNAL": f"sqlite:///{self.journal}",
            "COMMAND_BANK_URL": self.bank_url,
            "COMMAND_DRAIN_SECONDS": "1",
            **self._settings,
        }
        self.running = await self._server.enter_async_context(
            serve(settings.read(Settings, environment), self._make_parts)
        )
        self.channel = grpc.aio.insecure_channel(str(self.running.listen))
        self.feed_channel = grpc.aio.insecure_channel(str(self.running.feed_listen))
        for channel in (self.channel, self.feed_channel):
            await self._channels.enter_async_context(channel)
        self.commands = command_pb2_grpc.CommandServiceStub(self.channel)
        self.journals = journal_pb2_grpc.JournalServiceStub(self.feed_channel)

    async def drain(self) -> None:
        """Stop the command server as SIGTERM does, with clients still connected."""
        await self._server.aclose()

    async def stop(self) -> None:
        """Hang up, and stop the command server."""
        await self._channels.aclose()
        await self.drain()

    async def charge(self, request: ChargeRequest, seconds: float = PATIENT_SECONDS) -> ChargeResponse:
        """Charge, with a deadline in so many seconds."""
        return await self.commands.Charge(request, timeout=seconds)

    async def pending(self, request: ChargeRequest) -> ChargeResponse:
        """Charge, and do not wait for the outcome that does not come."""
        while True:
            try:
                answer = await self.charge(request, BRIEF_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:  # That is a busy machine: the same key again.
                    raise
            else:
                assert answer.status == PENDING
                return answer

    def events(self, request: ChargeRequest) -> list[Event]:
        return events(self.journal, id_of(request))

    def story(self, request: ChargeRequest) -> list[str]:
        return story(self.journal, id_of(request))

    async def asked(self, request: ChargeRequest) -> list[str]:
        return await self.referee.asked(id_of(request))

    async def movements(self, request: ChargeRequest) -> list[Movement]:
        return await self.referee.movements(id_of(request))

    def trouble(self, on: str, fault: str, **details: Any) -> Awaitable[None]:
        return self.referee.trouble(on, fault, **details)


@asynccontextmanager
async def a_world(
    folder: Path, make_parts: Callable[[Settings], Parts] = Parts, **settings: str
) -> AsyncIterator[World]:
    """A bank and a command server. When a test is through, bank and journal must agree."""
    world = World(folder, settings, make_parts)
    await world.bank_up()
    try:
        async with Referee(world.bank_url) as world.referee:
            await world.start()
            yield world
            await world.stop()
            await assert_books_agree(world.journal, world.referee)
    finally:
        await world.stop()
        await world.bank_down()
