"""A bank and a command server in this process, for tests and small measurements.

`rig.processes.Town` has real processes, which can be killed. Both are seen from outside only: answers over a channel, the
journal's file, and through a `Referee` the bank's statement and its calls.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from charging.v1 import command_pb2_grpc, journal_pb2_grpc
from charging.v1.command_pb2 import (
    CaptureMode,
    CaptureRequest,
    ChargeRequest,
    ChargeResponse,
    OperationOutcome,
    OutcomeSource,
    RefundRequest,
    VoidRequest,
)
from charging.v1.common_pb2 import Card, ChargeStatus, Money, OperationStatus
from charging.v1.journal_pb2 import Event
from command_service.codec import charge_id_of
from command_service.journal import START, Place
from command_service.parts import Parts
from command_service.serving import Serving
from command_service.settings import Settings
from judge.checker import check
from judge.files import read_anchor, read_journal
from judge.history import Movement, Observed, Record
from rig.errors import told
from rig.referee import PATIENT_SECONDS, Referee
from rig.servers import InProcess

T = TypeVar("T")

PENDING = ChargeStatus.CHARGE_STATUS_PENDING
REQUIRES_ACTION = ChargeStatus.CHARGE_STATUS_REQUIRES_ACTION
CHARGED = ChargeStatus.CHARGE_STATUS_CHARGED
DECLINED = ChargeStatus.CHARGE_STATUS_DECLINED
IN_REVIEW = ChargeStatus.CHARGE_STATUS_IN_REVIEW
ABANDONED = ChargeStatus.CHARGE_STATUS_ABANDONED
AUTHORIZED = ChargeStatus.CHARGE_STATUS_AUTHORIZED
VOIDED = ChargeStatus.CHARGE_STATUS_VOIDED
OPERATION_PENDING = OperationStatus.OPERATION_STATUS_PENDING
OPERATION_EXECUTED = OperationStatus.OPERATION_STATUS_EXECUTED
OPERATION_DECLINED = OperationStatus.OPERATION_STATUS_DECLINED
OPERATION_IN_REVIEW = OperationStatus.OPERATION_STATUS_IN_REVIEW
OPERATION_ABANDONED = OperationStatus.OPERATION_STATUS_ABANDONED
FRESH = OutcomeSource.OUTCOME_SOURCE_FRESH
JOINED = OutcomeSource.OUTCOME_SOURCE_JOINED
REPLAYED = OutcomeSource.OUTCOME_SOURCE_REPLAYED
RECOVERED = OutcomeSource.OUTCOME_SOURCE_RECOVERED

BRIEF_SECONDS = 0.4  # For a call that is to hear PENDING: some time to be accepted, and little to wait.


# ---------------------------------------------------------------- what is asked
def new_key() -> str:
    """A key that nobody has had."""
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


def a_hold(key: str | None = None, **changed: Any) -> ChargeRequest:
    """A valid request for a hold."""
    return a_request(key, capture=CaptureMode.CAPTURE_MODE_MANUAL, **changed)


def money(minor_units: int | None, currency_code: str = "EUR") -> Money | None:
    """An amount; None for all that is left."""
    return None if minor_units is None else Money(minor_units=minor_units, currency_code=currency_code)


def id_of(request: ChargeRequest) -> str:
    """The id of the charge that a request asks for, by which the bank knows it too."""
    return charge_id_of("default", request.idempotency_key)


def apart_from_source(answer: ChargeResponse) -> ChargeResponse:
    """What must be the same for everybody who asks with a key."""
    same = ChargeResponse()
    same.CopyFrom(answer)
    same.ClearField("outcome_source")
    same.ClearField("journal_id")  # a restored journal has a new one
    return same


async def until(seen: Callable[[], Awaitable[object] | object], seconds: float = PATIENT_SECONDS) -> None:
    """Wait until something is seen. Raises TimeoutError if it never is."""
    async with asyncio.timeout(seconds):
        while True:
            value = seen()
            if await value if isinstance(value, Awaitable) else value:
                return
            await asyncio.sleep(0.01)


def is_late(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call's deadline was over before its answer: the machine is busy."""
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def is_behind(error: grpc.aio.AioRpcError) -> bool:
    """Whether a view did not reach the position in time: it is built, or looks for its feed."""
    return told(error).reason == "VIEW_BEHIND"


async def heard(ask: Callable[[], Awaitable[T]], again: Callable[[grpc.aio.AioRpcError], bool] = is_late) -> T:
    """Ask, each time with the same key, until an answer comes. `again` says after which errors; others are raised."""
    async with asyncio.timeout(2 * PATIENT_SECONDS):
        while True:
            try:
                return await ask()
            except grpc.aio.AioRpcError as error:
                if not again(error):
                    raise


# ---------------------------------------------------------------- the journal's file
def head(journal: Path) -> Place:
    """The place of the newest record."""
    found = read_journal(journal)
    return Place(found[-1].position, found[-1].chain) if found else START


def records(journal: Path) -> list[Record]:
    """All records."""
    return read_journal(journal)


def events(journal: Path, charge_id: str) -> list[Event]:
    """A charge's events."""
    return [Event.FromString(record.event) for record in records(journal) if record.charge_id == charge_id]


def story(journal: Path, charge_id: str) -> list[str]:
    """A charge's events by name, as in ["charge_requested", "token_issued", "charged"]."""
    return [str(event.WhichOneof("kind")) for event in events(journal, charge_id)]


# ---------------------------------------------------------------- the books
async def assert_books_agree(journal: Path, referee: Referee, *, apart_from: Container[str] = ()) -> None:
    """The journal, the bank's statement and the calls that the bank got pass the history checker.

    `apart_from` names the invariants that a test has broken itself.
    """
    observed = Observed(
        read_journal(journal),
        movements=await referee.movements(),
        bank_calls=await referee.bank_calls(),
        anchor=read_anchor(journal),
    )
    violations = [violation for violation in check(observed) if violation.invariant not in apart_from]
    assert violations == [], "\n".join(map(str, violations))


# ---------------------------------------------------------------- the world
class World:
    """A bank and a command server in this loop. `settings` are the server's, by their names in the environment."""

    broken: Container[str] = ()
    """The invariants that a test has broken itself."""
    referee: Referee
    channel: grpc.aio.Channel
    commands: "command_pb2_grpc.CommandServiceAsyncStub"
    journals: "journal_pb2_grpc.JournalServiceAsyncStub"

    def __init__(
        self, folder: Path, settings: Mapping[str, str], make_parts: Callable[[Settings], Parts] = Parts
    ) -> None:
        self.journal = folder / "journal.db"
        self._settings = dict(settings)
        self._servers = InProcess(folder, make_parts=make_parts)
        self._channels = contextlib.AsyncExitStack()

    @property
    def running(self) -> Serving:
        """The command server as it is at work."""
        return self._servers.running

    @property
    def bank_url(self) -> str:
        """The bank's address, which stays the same."""
        return f"http://{self._servers.bank}"

    async def bank_up(self) -> None:
        """Open the bank, where it was if it has been open."""
        await self._servers.bank_up()

    async def bank_down(self) -> None:
        """Close the bank: connections are refused. It keeps its ledger."""
        await self._servers.bank_down()

    async def start(self, **more: str) -> None:
        """Start the command server, over the same journal if there is one."""
        self._settings.update(more)
        only_bank = {} if "COMMAND_BANKS" in self._settings else {"COMMAND_BANK_URL": self.bank_url}
        await self._servers.command_up({**only_bank, **self._settings})
        self.channel = grpc.aio.insecure_channel(str(self.running.listen))
        self.feed_channel = grpc.aio.insecure_channel(str(self.running.feed_listen))
        for channel in (self.channel, self.feed_channel):
            await self._channels.enter_async_context(channel)
        self.commands = command_pb2_grpc.CommandServiceStub(self.channel)
        self.journals = journal_pb2_grpc.JournalServiceStub(self.feed_channel)

    async def drain(self) -> None:
        """Stop the command server as SIGTERM does, with clients still connected."""
        await self._servers.command_down()

    async def stop(self) -> None:
        """Hang up, and stop the command server."""
        await self._channels.aclose()
        await self.drain()

    async def charge(self, request: ChargeRequest, seconds: float = PATIENT_SECONDS) -> ChargeResponse:
        """Charge, with a deadline in so many seconds."""
        return await self.commands.Charge(request, timeout=seconds)

    async def capture(
        self,
        charge_id: str,
        minor_units: int | None = None,
        *,
        key: str | None = None,
        final: bool = False,
        seconds: float = PATIENT_SECONDS,
    ) -> OperationOutcome:
        """Capture, under a key of its own unless one is given."""
        request = CaptureRequest(
            idempotency_key=key or new_key(), charge_id=charge_id, amount=money(minor_units), final=final
        )
        return (await self.commands.Capture(request, timeout=seconds)).outcome

    async def void(
        self, charge_id: str, *, key: str | None = None, seconds: float = PATIENT_SECONDS
    ) -> OperationOutcome:
        """Void, under a key of its own unless one is given."""
        request = VoidRequest(idempotency_key=key or new_key(), charge_id=charge_id)
        return (await self.commands.Void(request, timeout=seconds)).outcome

    async def refund(
        self,
        charge_id: str,
        minor_units: int | None = None,
        *,
        key: str | None = None,
        currency_code: str = "EUR",
        seconds: float = PATIENT_SECONDS,
    ) -> OperationOutcome:
        """Refund, under a key of its own unless one is given."""
        request = RefundRequest(
            idempotency_key=key or new_key(), charge_id=charge_id, amount=money(minor_units, currency_code)
        )
        return (await self.commands.Refund(request, timeout=seconds)).outcome

    async def moved(self) -> list[tuple[str, int]]:
        """The kinds and amounts of all movements, in the order of the bank's statement."""
        return [(movement.kind, movement.minor_units) for movement in await self.referee.movements()]

    async def pending(self, request: ChargeRequest) -> ChargeResponse:
        """Charge, and do not wait for the outcome that does not come."""
        answer = await heard(lambda: self.charge(request, BRIEF_SECONDS))
        assert answer.status == PENDING
        return answer

    def events(self, request: ChargeRequest) -> list[Event]:
        """The events of the charge that a request asks for."""
        return events(self.journal, id_of(request))

    def story(self, request: ChargeRequest) -> list[str]:
        """These by name."""
        return story(self.journal, id_of(request))

    async def asked(self, request: ChargeRequest) -> list[str]:
        """What the bank was asked about the charge."""
        return await self.referee.asked(id_of(request))

    async def movements(self, request: ChargeRequest) -> list[Movement]:
        """The money that it moved."""
        return await self.referee.movements(id_of(request))

    def trouble(self, on: str, fault: str, **details: Any) -> Awaitable[int]:
        """The bank's next calls of a step go wrong. Returns the fault's number."""
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
            await assert_books_agree(world.journal, world.referee, apart_from=world.broken)
    finally:
        await world.stop()
        await world.bank_down()
