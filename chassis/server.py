"""The life of a gRPC server: start, health, reflection, the guard around each method, fixed error texts, drain.

The guard hands a handler its caller: see chassis/caller.py.

A handler refuses a call by raising a `Refusal`, which reaches the client as google.rpc.Status with its details. Any other
exception of a handler reaches the client as one fixed text, and the log as a type and the lines that it passed: grpc itself
would send the exception's own text, which may quote a request.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from chassis.caller import ANYBODY, Caller, GuardedCall
from chassis.exposure import is_loopback
from chassis.gate import Door, Gate
from chassis.health import Health
from chassis.observing import Work, calls_observed
from chassis.reflection import Reflection
from chassis.refusals import Refusal, Violation
from chassis.settings import Address
from chassis.telemetry import log_unexpected
from chassis.tls import HANDSHAKE_SECONDS, ServerTls

log = structlog.get_logger()

# A dead link is detected within one and a half times this; grpc's own default is two hours.
KEEPALIVE_MILLISECONDS = 15_000
# gRPC looks at certificates only when a client connects. So a client is asked to connect anew this often, and shows the
# certificate that it has then; calls and streams under way end in their own time. An authority that was taken away lets no
# client stay, and a certificate that is renewed so long before its end is never refused.
CONNECTION_MILLISECONDS = 900_000
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MILLISECONDS // 2),
    # The timeout above waits for TCP's acknowledgement. This one waits for the peer's answer, which never comes if the peer
    # hangs; grpc's own default is a minute (measured).
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MILLISECONDS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
]
# For our own clients: they ping an idle link too, which our servers permit. A web proxy named by the environment would cut us
# off from our own servers, or would see every user's history.
CHANNEL_OPTIONS = [*_KEEPALIVE, ("grpc.http2.max_pings_without_data", 0), ("grpc.enable_http_proxy", 0)]
_SERVER_OPTIONS = [
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MILLISECONDS // 3),
    ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_SECONDS * 1_000)),  # grpc's own default is two minutes
    ("grpc.so_reuseport", 0),  # with it, a second server binds the same port silently and takes half of the calls
    # grpc.aio takes calls one by one. Under load they wait in grpc, unseen by a service's own limit; beyond these numbers grpc
    # cancels them itself, at random between the two, without advice and at next to no cost. Reasons: docs/adr/0018.
    ("grpc.server.max_pending_requests", 1_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_500),
    # grpc's limit on a message. A service's own limit is far below, and refuses a larger message with details; grpc's own
    # refusal has none, and a code on which clients try again.
    ("grpc.max_receive_message_length", 256 << 10),
]


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands in for a request that is not read, so that the refusal is ours and not grpc's text."""

    refusal: Refusal


class _Guard:
    """Wraps each method: admits the caller, observes the call, and lets only refusals and fixed texts out.

    Services register with it as if it were the server. An interceptor could do the same, but would search for the method on
    each call (measured).
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        gate: Gate,
        door: Callable[[str], Door],
        domain: str,
        unreadable: Refusal,
        unexpected: Refusal,
        request_bytes: int,
        observed: Work,
    ) -> None:
        self._server = server
        self._gate = gate
        self._door = door
        self._domain = domain
        self._unreadable = _Unreadable(unreadable)
        too_large = Violation("", f"must have at most {request_bytes} bytes, uncompressed")
        self._too_large = _Unreadable(replace(unreadable, violations=[too_large]))
        self._unexpected = unexpected
        self._request_bytes = request_bytes
        self._observed = observed
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        guarded = {name: self._guard(f"/{service}/{name}", method) for name, method in methods.items()}
        self._server.add_registered_method_handlers(service, guarded)

    def add_generic_rpc_handlers(self, _: Any) -> None:
        """Do nothing: these are the same methods again, for servers without registered methods."""

    def _guard(self, name: str, method: Any) -> Any:
        door = self._door(name)
        read, write = self._reader(method.request_deserializer), method.response_serializer
        if method.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(name, door, method.stream_stream), read, write)
        if method.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, door, method.unary_stream), read, write)
        return grpc.unary_unary_rpc_method_handler(self._unary(name, door, method.unary_unary), read, write)

    def _reader(self, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def read(serialised: bytes) -> Any:
            if len(serialised) > self._request_bytes:
                return self._too_large
            try:
                return deserialize(serialised)
            except DecodeError:
                return self._unreadable

        return read

    def _unary(self, name: str, door: Door, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        method = _label(name)
        succeeded, cancelled = (method, "OK"), (method, "CANCELLED")

        async def guarded(request: Any, context: Any) -> Any:
            self._enter()
            try:
                with self._observed.of_call(method, context) as piece:
                    piece.result = cancelled
                    try:
                        admitted = door.admit_call(
                            context
                        )  # first: to a stranger even the fault of a request is not told
                        response = await behaviour(_readable(request), GuardedCall(name, admitted.caller, context))
                    except Exception as error:
                        refusal = self._told(error)
                        piece.result = (method, _code(refusal, context))
                        await self._abort(context, refusal)
                    piece.result = succeeded
                    return response
            finally:
                self._leave()

        return guarded

    def _stream(self, name: str, door: Door, behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Any:
        method = _label(name)

        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            self._enter()
            try:
                with self._observed.piece() as piece:  # a stream has no span: it may last for days
                    piece.result = (method, "CANCELLED")
                    try:
                        admitted = door.admit_call(context)
                        read = _each_readable(request) if isinstance(request, AsyncIterator) else _readable(request)
                        with self._gate.keeping(admitted, self._cut(context)):
                            async for response in behaviour(read, GuardedCall(name, admitted.caller, context)):
                                yield response
                    except Exception as error:
                        refusal = self._told(error)
                        piece.result = (method, _code(refusal, context))
                        await self._abort(context, refusal)
                    piece.result = (method, "OK")
            finally:
                self._leave()

        return guarded

    def _cut(self, context: Any) -> Callable[[Refusal], None]:
        call = asyncio.current_task()
        assert call is not None
        return lambda refusal: end_call(context, call, refusal, self._domain)

    def _enter(self) -> None:
        self.calls += 1
        self.idle.clear()

    def _leave(self) -> None:
        self.calls -= 1
        if not self.calls:
            self.idle.set()

    def _told(self, error: Exception) -> "Refusal | grpc.aio.AbortError":
        """Return what a client is told of an error."""
        if isinstance(error, Refusal | grpc.aio.AbortError):
            return error
        log_unexpected("a call failed unexpectedly", error)
        return self._unexpected

    async def _abort(self, context: Any, error: "Refusal | grpc.aio.AbortError") -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        error.__traceback__ = None  # it keeps all that the handler held, a long answer say, until garbage is collected
        try:
            await context.abort_with_status(error.status(self._domain))
        except grpc.aio.UsageError:
            # `end_call` has left a status, and cancels the call in a moment. Of another one grpc would log a traceback.
            raise asyncio.CancelledError from None
        raise AssertionError("abort_with_status always raises")


def _label(method: str) -> str:
    """Return a method as a label tells it: CommandService/Charge."""
    return method.rpartition(".")[2]


def _code(error: "Refusal | grpc.aio.AbortError", context: Any) -> str:
    code = error.code if isinstance(error, Refusal) else context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"


def end_call(context: Any, call: "asyncio.Task[Any]", refusal: Refusal, domain: str) -> None:
    """End a stream from outside: leave the status for its client, and free the call's memory here."""
    leaving = asyncio.ensure_future(context.abort_with_status(refusal.status(domain)))
    leaving.add_done_callback(lambda done: done.cancelled() or done.exception())
    asyncio.get_running_loop().call_later(0.1, call.cancel)


def _readable(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise replace(request.refusal)  # a copy: an exception raised repeatedly keeps every frame that it passed
    return request


async def _each_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


class Server:
    """A gRPC server that listens, reports its health, and drains."""

    def __init__(self, server: grpc.aio.Server, guard: _Guard, health: Health, address: Address) -> None:
        self._server = server
        self._guard = guard
        self._health = health
        self.address = address

    @classmethod
    async def start(
        cls,
        listen: Address,
        register: Callable[[grpc.aio.Server], None],
        *,
        services: Sequence[str],
        gate: Gate,
        domain: str,
        unreadable: Refusal,
        unexpected: Refusal,
        request_bytes: int,
        reflect: bool,
        tls: ServerTls | None = None,
        descriptors: bytes = b"",
        calls_a_connection: int = 1_000,
        connection_milliseconds: int = CONNECTION_MILLISECONDS,
        anybody: Caller = ANYBODY,
        observed: Work | None = None,
    ) -> "Server":
        """Listen with the services that `register` adds and `services` names in full. Health begins as NOT_SERVING.

        `gate` admits each call; while it asks for no identity, the caller is `anybody`. Without `tls` the server speaks
        plaintext. Reflection serves `descriptors`, a FileDescriptorSet with comments. Requests above `request_bytes` are
        refused with `unreadable`'s code and advice. Calls of one connection beyond `calls_a_connection` wait in their client,
        or grpc refuses them without advice, at next to no cost (REFUSED_STREAM, which clients of grpc try once more by
        themselves). After `connection_milliseconds` a client is asked to connect anew.
        `observed` is what the calls are observed by.

        Raises OSError if the address cannot be bound; its text names the remedy. Raises NoRow if the gate has no row for a
        method.
        """
        of_connections = [
            ("grpc.max_concurrent_streams", calls_a_connection),
            ("grpc.max_connection_age_ms", connection_milliseconds),
        ]
        server = grpc.aio.server(options=[*_SERVER_OPTIONS, *of_connections])
        door = partial(gate.door, on_loopback=is_loopback(listen.host), anybody=anybody)
        observed = observed or calls_observed(lambda: 0.0)
        guard = _Guard(server, gate, door, domain, unreadable, unexpected, request_bytes, observed)
        register(cast("grpc.aio.Server", guard))
        # Guarded too, but by a guard whose calls no drain waits for: a watcher of health never hangs up.
        beside = _Guard(server, gate, door, domain, unreadable, unexpected, request_bytes, observed)
        common = cast("grpc.aio.Server", beside)
        health = Health(services)
        health_pb2_grpc.add_HealthServicer_to_server(health, common)
        if reflect:
            Reflection(descriptors, [*services, "grpc.health.v1.Health"]).register(common)
        try:
            if tls is None:
                port = server.add_insecure_port(str(listen))
            else:
                port = server.add_secure_port(str(listen), tls.grpc_credentials())
        except RuntimeError:
            port = 0
        if not port:
            raise OSError(f"cannot listen on {listen}: is another server running there?")
        await server.start()
        return cls(server, guard, health, Address(listen.host, port))

    async def set_serving(self, serving: bool) -> None:
        """Set the health that load balancers read: whether to send calls here."""
        self._health.set(HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING)

    async def drain(self, grace_seconds: float) -> None:
        """Take no new calls, let those under way end within the grace, then close."""
        self._health.set(HealthCheckResponse.NOT_SERVING, is_final=True)
        stopping = asyncio.create_task(self._server.stop(grace_seconds))
        try:
            if self._guard.calls:  # a wait of zero seconds would time out even without calls
                # Not the server's own wait, which would last the whole grace for a watcher of health.
                await asyncio.wait_for(self._guard.idle.wait(), grace_seconds)
        except TimeoutError:
            log.warning("calls were cut off by the end of the drain", calls=self._guard.calls)
        await self._server.stop(0.1)
        await stopping
