"""The client: a method for each of the contract's, which repeats its request until there is an answer."""

import contextlib
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, Unpack

from chargeonce_client.desk import Desk
from chargeonce_client.feed import Entry, follow
from chargeonce_client.repeating import STREAM_SECONDS, reopened, repeated
from chargeonce_client.settings import Settings
from chargeonce_client.times import timestamp
from charging.v1.command_pb2 import (
    CaptureMode,
    CaptureRequest,
    ChargeRequest,
    ChargeResponse,
    OperationOutcome,
    RefundRequest,
    VoidRequest,
)
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, Money, OperationStatus
from charging.v1.journal_pb2_grpc import JournalServiceStub
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from charging.v1.query_pb2 import (
    Charge,
    ChargeStage,
    ExplainChargeRequest,
    ExplainChargeResponse,
    GetChargeHistoryRequest,
    GetChargeHistoryResponse,
    GetChargeRequest,
    GetChargeResponse,
    GetUserSummaryRequest,
    GetUserSummaryResponse,
    GetViewStatusRequest,
    GetViewStatusResponse,
    ListChargesRequest,
    ListChargesResponse,
    WatchChargeRequest,
    WatchChargeResponse,
)
from charging.v1.query_pb2_grpc import QueryServiceStub

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

    from charging.v1.command_pb2_grpc import CommandServiceAsyncStub
    from charging.v1.journal_pb2_grpc import JournalServiceAsyncStub
    from charging.v1.operator_pb2_grpc import OperatorServiceAsyncStub
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class Positioned(Protocol):
    """What a query can be asked to show: the answer to a command, or a charge of another query."""

    @property
    def position(self) -> int:
        """A position in a journal."""

    @property
    def journal_id(self) -> str:
        """The journal's id."""


class Conditions(TypedDict, total=False):
    """Which charges a list has: those that fit all that is given."""

    user_id: str
    """Of this user."""
    status: "ChargeStatus.ValueType"
    """In this status."""
    requested_from: datetime | None
    """Requested at this time or later."""
    requested_before: datetime | None
    """Requested before this time."""
    stage: "ChargeStage.ValueType"
    """At this stage, such as CHARGE_STAGE_IN_REVIEW or CHARGE_STAGE_UNFINISHED."""
    stage_since_before: datetime | None
    """At their stage since before this time; it needs a stage."""
    hold_expires_before: datetime | None
    """With a hold that lapses before this time."""


class _From(TypedDict):
    min_position: int
    journal_id: str


class Client:
    """Talks to the servers. Made by `connect`.

    Each method repeats its request, with the same key, until there is an answer or `patience` seconds are over. The answers are
    the contract's messages. Every method raises

    * Refused, if the service refuses the request as it is, and a repeat is useless;
    * Unsettled, if no answer came while there was patience, or an earlier try is open and its repeats are not let in;
    * TypeError or ValueError, if an argument cannot be part of a request.
    """

    def __init__(
        self,
        commands: "CommandServiceAsyncStub",
        queries: "QueryServiceAsyncStub",
        feed: "JournalServiceAsyncStub",
        operators: "OperatorServiceAsyncStub",
        settings: Settings,
    ) -> None:
        self.commands, self.queries, self.feed = commands, queries, feed
        self._patience, self._deadline = settings.patience, settings.deadline
        self._metadata: Sequence[tuple[str, str]] = settings.metadata()
        self.desk = Desk(operators, settings)
        """What operators do about charges, and ask a command server."""

    def traced(self, traceparent: str) -> "Client":
        """Return a client over the same connections whose requests belong to a trace: the W3C context of the caller's span."""
        traced = copy.copy(self)
        traced._metadata = [*self._metadata, ("traceparent", traceparent)]
        return traced

    # ------------------------------------------------------------ commands
    async def charge(
        self,
        key: str,
        *,
        user_id: str,
        card: str | Card,
        amount: Money,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
        manual: bool = False,
        not_after: datetime | None = None,
        allow_duplicate: bool = False,
        off_session: bool = False,
        return_url: str = "",
        patience: float | None = None,
    ) -> ChargeResponse:
        """Charge a card once, however often this is called with the key; `manual` only holds the money.

        `card` is the bank's token of it, or a Card with what else is known. Returns the outcome, or REQUIRES_ACTION with the
        address to send the customer to; PENDING only if patience was over: the charge then goes on.
        """
        request = ChargeRequest(
            idempotency_key=key,
            user_id=user_id,
            card=Card(token=card) if isinstance(card, str) else card,
            amount=amount,
            description=description,
            metadata=metadata,
            capture=CaptureMode.CAPTURE_MODE_MANUAL if manual else CaptureMode.CAPTURE_MODE_UNSPECIFIED,
            not_after=timestamp(not_after),
            allow_duplicate=allow_duplicate,
            off_session=off_session,
            return_url=return_url,
        )
        return await self._ask(
            self.commands.Charge, request, patience, lambda answer: answer.status == ChargeStatus.CHARGE_STATUS_PENDING
        )

    async def capture(
        self,
        key: str,
        charge_id: str,
        *,
        amount: Money | None = None,
        final: bool = False,
        patience: float | None = None,
    ) -> OperationOutcome:
        """Move money that a charge holds: the amount, or all that is left. `final` lets go of the rest.

        The key belongs to the charge. Returns the outcome; PENDING only if patience was over. So do `void` and `refund`.
        """
        request = CaptureRequest(idempotency_key=key, charge_id=charge_id, amount=amount, final=final)
        answer = await self._ask(self.commands.Capture, request, patience, lambda answer: _is_pending(answer.outcome))
        return answer.outcome

    async def void(
        self, key: str, charge_id: str, *, reason: str = "", patience: float | None = None
    ) -> OperationOutcome:
        """Let go of what a charge still holds, or call a charge off that is under way."""
        request = VoidRequest(idempotency_key=key, charge_id=charge_id, reason=reason)
        answer = await self._ask(self.commands.Void, request, patience, lambda answer: _is_pending(answer.outcome))
        return answer.outcome

    async def refund(
        self, key: str, charge_id: str, *, amount: Money | None = None, reason: str = "", patience: float | None = None
    ) -> OperationOutcome:
        """Give money back: the amount, or all that is left."""
        request = RefundRequest(idempotency_key=key, charge_id=charge_id, amount=amount, reason=reason)
        answer = await self._ask(self.commands.Refund, request, patience, lambda answer: _is_pending(answer.outcome))
        return answer.outcome

    # ------------------------------------------------------------ queries
    async def get(
        self, *, charge_id: str = "", key: str = "", after: Positioned | None = None, patience: float | None = None
    ) -> GetChargeResponse:
        """Return a charge, by its id or its key.

        `after` is the answer to a command: the charge is shown with what that has done. Raises Refused with
        CHARGE_NOT_FOUND if the view has no such charge, which is no reason for a new key: the view may be behind.
        """
        return await self._ask(self.queries.GetCharge, _named(GetChargeRequest, charge_id, key, after), patience)

    async def history(
        self, *, charge_id: str = "", key: str = "", after: Positioned | None = None, patience: float | None = None
    ) -> GetChargeHistoryResponse:
        """Return the events of a charge, by its id or its key."""
        request = _named(GetChargeHistoryRequest, charge_id, key, after)
        return await self._ask(self.queries.GetChargeHistory, request, patience)

    async def explain(
        self, *, charge_id: str = "", key: str = "", after: Positioned | None = None, patience: float | None = None
    ) -> ExplainChargeResponse:
        """Return what happened to a charge, where it stands, and what may be done about it, in fields and in words."""
        request = _named(ExplainChargeRequest, charge_id, key, after)
        return await self._ask(self.queries.ExplainCharge, request, patience)

    async def pages(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        after: Positioned | None = None,
        patience: float | None = None,
        **conditions: Unpack[Conditions],
    ) -> AsyncGenerator[ListChargesResponse, None]:
        """Yield the pages of the charges that fit all conditions, newest first. A page size of 0 means 50."""
        fields: dict[str, Any] = {
            name: timestamp(value) if isinstance(value, datetime) else value for name, value in conditions.items()
        }
        request = ListChargesRequest(
            **fields,
            page_size=page_size,
            page_token=page_token,
            **_from(after),
        )
        while True:
            page = await self._ask(self.queries.ListCharges, request, patience)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def list(
        self,
        *,
        page_size: int = 0,
        after: Positioned | None = None,
        patience: float | None = None,
        **conditions: Unpack[Conditions],
    ) -> AsyncGenerator[Charge, None]:
        """Yield the charges of all pages."""
        async for page in self.pages(page_size=page_size, after=after, patience=patience, **conditions):
            for charge in page.charges:
                yield charge

    async def watch(
        self, *, charge_id: str = "", key: str = "", after: Positioned | None = None, patience: float | None = None
    ) -> AsyncGenerator[WatchChargeResponse, None]:
        """Yield a charge as it is now, and again after each change, until the caller ends it.

        A stream that ends is opened again, and what was yielded is not repeated. `patience` is for how long that is tried.
        """
        request = _named(WatchChargeRequest, charge_id, key, after)
        messages = reopened(
            lambda: self.queries.WatchCharge(request, timeout=STREAM_SECONDS, metadata=self._metadata),
            patience=self._patience if patience is None else patience,
            deadline=self._deadline,
        )
        version = 0
        async with contextlib.aclosing(messages):
            async for message in messages:
                if message.charge.version > version:
                    version = message.charge.version
                    request.min_position, request.journal_id = message.charge.position, message.charge.journal_id
                    yield message

    async def summary(
        self, user_id: str, *, after: Positioned | None = None, patience: float | None = None
    ) -> GetUserSummaryResponse:
        """Return the sums of a user's charges, per currency."""
        request = GetUserSummaryRequest(user_id=user_id, **_from(after))
        return await self._ask(self.queries.GetUserSummary, request, patience)

    async def view_status(
        self, *, after: Positioned | None = None, patience: float | None = None
    ) -> GetViewStatusResponse:
        """Return how far the query server's view is."""
        return await self._ask(self.queries.GetViewStatus, GetViewStatusRequest(**_from(after)), patience)

    # ------------------------------------------------------------ the feed
    def follow(
        self,
        *,
        after_position: int = 0,
        journal_id: str = "",
        chain: bytes = b"",
        live: bool = True,
        patience: float | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """Yield the records of the journal after a position, each once and in order; with `live`, the new ones too, for ever.

        `journal_id` and `chain` are those of the entry at that position, if they are known. A stream that ends is opened
        again. Raises FeedBroken, and Refused with JOURNAL_DIVERGED if this journal is not the one that was followed.
        """
        return follow(
            self.feed,
            after_position=after_position,
            journal_id=journal_id,
            chain=chain,
            live=live,
            patience=self._patience if patience is None else patience,
            deadline=self._deadline,
        )

    async def _ask(
        self,
        method: "UnaryUnaryMultiCallable[_Request, _Answer]",
        request: _Request,
        patience: float | None,
        is_pending: Callable[[_Answer], bool] = lambda _: False,
    ) -> _Answer:
        return await repeated(
            lambda seconds: method(request, timeout=seconds, metadata=self._metadata),
            patience=self._patience if patience is None else patience,
            deadline=self._deadline,
            is_pending=is_pending,
        )


@contextlib.asynccontextmanager
async def connect(settings: Settings | None = None) -> AsyncIterator[Client]:
    """Make a client, by the settings or else those of the environment. It connects when it is used.

    A program needs one client: any number of tasks may use it at once. Raises OSError if a certificate cannot be read.
    """
    chosen = settings or Settings.from_environment()
    async with contextlib.AsyncExitStack() as stack:
        command, query, journal = [
            await stack.enter_async_context(chosen.channel(address))
            for address in (chosen.command, chosen.query, chosen.feed)
        ]
        yield Client(
            CommandServiceStub(command),
            QueryServiceStub(query),
            JournalServiceStub(journal),
            OperatorServiceStub(command),
            chosen,
        )


def money(minor_units: int, currency_code: str) -> Money:
    """Return an amount: money(1250, "EUR") is 12.50 euros. Raises TypeError for anything but a whole number."""
    return Money(minor_units=minor_units, currency_code=currency_code)


def _is_pending(outcome: OperationOutcome) -> bool:
    return outcome.status == OperationStatus.OPERATION_STATUS_PENDING


def _from(after: Positioned | None) -> _From:
    if after is None:
        return {"min_position": 0, "journal_id": ""}
    return {"min_position": after.position, "journal_id": after.journal_id}


def _named(request: Callable[..., _Request], charge_id: str, key: str, after: Positioned | None) -> _Request:
    if bool(charge_id) == bool(key):
        raise ValueError("a charge is named by its id or by its key")
    name: dict[str, Any] = {"charge_id": charge_id} if charge_id else {"idempotency_key": key}
    return request(**name, **_from(after))
