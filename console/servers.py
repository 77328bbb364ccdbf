"""What the console asks the servers, each time in the name of one person."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from grpc import StatusCode

import chargeonce_client
from chargeonce_client import CallFailed, Refused, Unsettled
from charging.v1.operator_pb2 import GetServerStatusRequest
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from charging.v1.query_pb2 import GetViewStatusRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from console.sessions import Session
from console.settings import Settings

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

    from charging.v1.operator_pb2_grpc import OperatorServiceAsyncStub
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub

T = TypeVar("T")
Request = TypeVar("Request")
Answer = TypeVar("Answer")

# A query with a position waits at most 5 s.
DEADLINE_SECONDS = 7.0
# An approval asks the bank first.
DESK_SECONDS = 20.0
# Whoever looks at a page waits no longer for one of its parts.
PART_SECONDS = 4.0
# A stream is opened anew this often, so that no call is without a deadline.
STREAM_SECONDS = 900.0


class SignInNeeded(Exception):
    """The servers do not know who asks."""


@dataclass(frozen=True, slots=True)
class CommandServer:
    """A command server, for its desk."""

    address: str
    channel: grpc.aio.Channel
    desk: "OperatorServiceAsyncStub"


@dataclass(frozen=True, slots=True)
class QueryServer:
    """A query server."""

    address: str
    channel: grpc.aio.Channel
    queries: "QueryServiceAsyncStub"


@dataclass(frozen=True, slots=True)
class Servers:
    """All servers."""

    commands: Sequence[CommandServer]
    queries: Sequence[QueryServer]

    def away(self) -> Sequence[str]:
        """Say which servers cannot be reached at the moment. To those that nobody has asked yet, it begins to connect."""
        named = [("The command server", each) for each in self.commands]
        named += [("The query server", each) for each in self.queries]  # type: ignore[misc]  # both have the two fields
        return [
            f"{what} at {each.address} cannot be reached."
            for what, each in named
            if each.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        ]


@asynccontextmanager
async def connected(chosen: Settings) -> AsyncIterator[Servers]:
    """Make channels to all servers. They connect when they are used. Raises OSError if a certificate cannot be read."""
    # Who asks is said with each call: the channel knows no token.
    client = chargeonce_client.Settings(tls=chosen.servers_tls)
    async with contextlib.AsyncExitStack() as stack:

        async def channel(address: str) -> grpc.aio.Channel:
            made: grpc.aio.Channel = await stack.enter_async_context(client.channel(address))
            return made

        commands, queries = [], []
        for address in map(str, chosen.commands):
            opened = await channel(address)
            commands.append(CommandServer(address, opened, OperatorServiceStub(opened)))
        for address in map(str, chosen.queries):
            opened = await channel(address)
            queries.append(QueryServer(address, opened, QueryServiceStub(opened)))
        yield Servers(commands, queries)


class Asker:
    """One person who asks the servers. Every method raises CallFailed, and SignInNeeded if nobody knows the person."""

    def __init__(self, servers: Servers, session: Session, *, may_be_nobody: bool) -> None:
        """The token stays with the session: once that has ended, nothing more is asked in its name."""
        self.servers = servers
        self._session = session
        self._tenant = session.tenant
        self._may_be_nobody = may_be_nobody and not session.token

    @property
    def _metadata(self) -> list[tuple[str, str]]:
        """Who asks. Raises SignInNeeded if that is nobody who may."""
        self.check()
        metadata = []
        if self._session.token:
            metadata.append(("authorization", f"Bearer {self._session.token}"))
        if self._tenant:
            metadata.append(("chargeonce-tenant", self._tenant))
        return metadata

    def check(self) -> None:
        """Raise SignInNeeded if there is no token, or none any more, where there must be one."""
        if not (self._session.token or self._may_be_nobody):
            raise SignInNeeded

    async def ask(
        self,
        method: "UnaryUnaryMultiCallable[Request, Answer]",
        request: Request,
        seconds: float = DEADLINE_SECONDS,
    ) -> Answer:
        """Ask one server once."""
        metadata = self._metadata
        try:
            return await method(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from None

    async def query(
        self,
        method: Callable[["QueryServiceAsyncStub"], "UnaryUnaryMultiCallable[Request, Answer]"],
        request: Request,
        seconds: float = DEADLINE_SECONDS,
    ) -> Answer:
        """Ask the first query server that answers."""
        *others, last = self.servers.queries
        for server in others:
            try:
                return await self.ask(method(server.queries), request, seconds)
            except CallFailed as failure:
                if not _is_away(failure):
                    raise
        return await self.ask(method(last.queries), request, seconds)

    async def look(
        self,
        method: Callable[["QueryServiceAsyncStub"], "UnaryUnaryMultiCallable[Request, Answer]"],
        request: Request,
        seconds: float = DEADLINE_SECONDS,
    ) -> Answer | CallFailed:
        """Ask as `query`, and return a failure: the page has other parts."""
        return await tried(self.query(method, request, seconds))

    async def desk(
        self,
        method: Callable[["OperatorServiceAsyncStub"], "UnaryUnaryMultiCallable[Request, Answer]"],
        request: Request,
    ) -> Answer:
        """Take a step of the desk at the first command server that knows the charge.

        To take it at a second one, after the first has not answered, is safe: both share a journal, where a step that would
        change nothing stores nothing. Raises Refused if nothing was stored, and Unsettled if one of them may have stored it.
        """
        told: CallFailed | None = None
        is_open = False
        for server in self.servers.commands:
            try:
                return await self.ask(method(server.desk), request, DESK_SECONDS)
            except CallFailed as failure:
                is_open = is_open or _may_be_stored(failure)
                if told is None or failure.reason != "CHARGE_NOT_FOUND":  # whoever does not answer may have the charge
                    told = failure
                if not _is_elsewhere(failure):
                    break
        assert told is not None, "there is a command server"
        raise (Unsettled if is_open else Refused)(*told.args)

    async def stream(
        self, open_call: Callable[["QueryServiceAsyncStub"], Callable[..., Any]], request: Any
    ) -> AsyncIterator[Any]:
        """Yield the messages of a stream of the first query server."""
        call = open_call(self.servers.queries[0].queries)(request, timeout=STREAM_SECONDS, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from None
        finally:
            call.cancel()

    async def reconcile(self, requests: AsyncIterator[Any], server: int = 0) -> AsyncIterator[Any]:
        """Yield the messages of a reconciliation at a command server."""
        call = self.servers.commands[server].desk.Reconcile(requests, metadata=self._metadata)
        try:
            async for message in call:
                yield message
                self.check()
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from None
        finally:
            call.cancel()

    @staticmethod
    def _failed(error: grpc.aio.AioRpcError) -> CallFailed:
        failure = CallFailed(error)
        if failure.code is StatusCode.UNAUTHENTICATED:
            raise SignInNeeded from None
        return failure


async def is_guarded(servers: Servers) -> bool:
    """Whether no server lets in somebody whose token is nobody's. One that does has no policy: there everybody is everybody."""

    async def lets_in(method: Any, request: Any) -> bool:
        try:
            await method(request, timeout=PART_SECONDS, metadata=[("authorization", "Bearer nobody")])
        except grpc.aio.AioRpcError as error:
            return error.code() is StatusCode.PERMISSION_DENIED
        return True

    asked = [lets_in(server.queries.GetViewStatus, GetViewStatusRequest()) for server in servers.queries]
    asked += [lets_in(server.desk.GetServerStatus, GetServerStatusRequest()) for server in servers.commands]
    return not any(await asyncio.gather(*asked))


async def tried(answer: Awaitable[T]) -> T | CallFailed:
    """Return the answer, or why there is none: a page has other parts."""
    try:
        return await answer
    except CallFailed as failure:
        return failure


def _is_away(failure: CallFailed) -> bool:
    return not failure.reason and failure.code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)


def _may_be_stored(failure: CallFailed) -> bool:
    """Whether a step of the desk may be stored although it failed: there is no word of the service that it is not."""
    is_refused = not failure.may_be_repeated and failure.code is not StatusCode.DATA_LOSS
    return not (is_refused or failure.is_safe_without_a_key or failure.code is StatusCode.UNIMPLEMENTED)


def _is_elsewhere(failure: CallFailed) -> bool:
    return _is_away(failure) or failure.reason == "CHARGE_NOT_FOUND"
