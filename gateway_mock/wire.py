"""HTTP/1.1 on a socket, answered well or badly.

The server asks a function for the reply to each request, and can reply in ways that no web framework offers: nothing at all
after the work is done, half an answer, a reset. h11 keeps the protocol, and this module knows no bank. Bytes,
connections and waits are limited.
"""

import asyncio
import os
import signal
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import assert_never

import h11

from chassis import telemetry
from chassis.tls import HANDSHAKE_SECONDS

MAX_BODY_BYTES = 64 * 1024  # A request of ours has 200; this leaves room for a test's nonsense.
MAX_HEAD_BYTES = 16 * 1024  # This is h11's own default.
READ_BYTES = MAX_HEAD_BYTES  # A larger read could bring a longer head whole, and h11 measures incomplete ones only.
MAX_TARGET_BYTES = 512  # The longest of ours has 150. The log of calls keeps them all.
MAX_CONNECTIONS = 1_000  # It is ten times what a command server opens, and below the usual limit of 1,024 descriptors.
# The next request arrives whole in this time, idle time included: longer than a client keeps a connection.
REQUEST_SECONDS = 60.0
SEND_SECONDS = (
    60.0  # A client takes an answer in this time: one that stopped reading must not hold its connection for ever.
)
STOP_SECONDS = (
    1.0  # Requests at work when the server stops have this time. All work but an ordered delay takes milliseconds.
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has arrived whole. `path` and `query` are as they were sent, percent-encoded.

    Of the headers that came twice, `headers` has the last. Their names are in lower case.
    """

    method: str
    path: str
    query: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A proper answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class HalfAnswer:
    """The head and half of the body it promises; then the connection is closed."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class SlowAnswer:
    """The head, then the body by single bytes, a pause before each."""

    answer: Answer
    seconds: float


@dataclass(frozen=True, slots=True)
class AnswerAndMore:
    """A proper answer, and `seconds` later an unrequested one, if the connection is still open."""

    answer: Answer
    more: Answer
    seconds: float


@dataclass(frozen=True, slots=True)
class Silence:
    """Not a byte. After `seconds`, or when the client leaves, the connection is closed, or reset."""

    seconds: float = 0.0
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Death:
    """This process kills itself, as `kill -9` would."""


Reply = Answer | HalfAnswer | SlowAnswer | AnswerAndMore | Silence | Death

Respond = Callable[[Request], Awaitable[Reply]]


def address_of(listen: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port". Raises `ValueError`."""
    host, colon, port = listen.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("not of the form host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


@asynccontextmanager
async def serving(
    listen: str, respond: Respond, *, stop_seconds: float = STOP_SECONDS, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve at "host:port", port 0 for any; yield the real address. At the end requests at work get their answers.

    `respond` is called once for each request, concurrently for several connections. If it raises, the error is logged and the
    connection closed without an answer: a client must hear nothing of work that may or may not have been done.
    """
    host, port = address_of(listen)
    clients = _Clients(respond, stop_seconds)
    server = await asyncio.start_server(
        clients.welcome,
        host,
        port,
        backlog=MAX_CONNECTIONS,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
        ssl_shutdown_timeout=STOP_SECONDS if tls else None,
    )
    try:
        bound = server.sockets[0].getsockname()
        yield f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
    finally:
        server.close()
        await clients.leave()
        await server.wait_closed()


class _Clients:
    """The connections, a task each."""

    def __init__(self, respond: Respond, stop_seconds: float) -> None:
        self._respond = respond
        self._stop_seconds = stop_seconds
        self._lines: dict[asyncio.Task[None], _Line] = {}
        self._stopping = False

    def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping or len(self._lines) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        line = _Line(reader, writer)
        task = asyncio.create_task(self._converse(line))
        self._lines[task] = line
        task.add_done_callback(self._lines.pop)

    async def _converse(self, line: "_Line") -> None:
        try:
            usable = True
            while usable and not self._stopping and (request := await line.receive()) is not None:
                reply = await self._respond(request)
                usable = await line.send(reply, last=self._stopping)
        except (TimeoutError, OSError):
            pass  # The client has gone or is too slow: there is no one to answer.
        except Exception as error:
            telemetry.log_unexpected("a request got no answer", error)
        finally:
            await line.close()

    async def leave(self) -> None:
        self._stopping = True
        for task, line in self._lines.items():
            if line.idle:
                task.cancel()
        if self._lines:
            await asyncio.wait(self._lines, timeout=self._stop_seconds)
        for task in self._lines:
            task.cancel()
        if self._lines:
            await asyncio.wait(self._lines)


class _Line:
    """One connection: requests in, replies out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head_only = False
        self.idle = False
        """Whether it waits for a request, so that nothing is lost if it is ended."""

    async def receive(self) -> Request | None:
        """Wait for the next request. None: there is none, because the client left or sent a request that was refused here."""
        self.idle = True
        body = bytearray()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await self._event()
                if not isinstance(head, h11.Request):
                    return None
                while isinstance(part := await self._event(), h11.Data):
                    body += part.data
                    if len(body) > MAX_BODY_BYTES:
                        await self._refuse(413)
                        return None
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
            return None
        if len(head.target) > MAX_TARGET_BYTES:
            await self._refuse(414)
            return None
        self.idle = False
        self._head_only = head.method == b"HEAD"
        path, _, query = head.target.decode("ascii").partition("?")
        headers = {name.decode("ascii"): said.decode("latin-1") for name, said in head.headers}
        return Request(head.method.decode("ascii"), path, query, bytes(body), headers)

    async def send(self, reply: Reply, *, last: bool = False) -> bool:
        """Send the reply, and return whether the connection can be used again. With `last` the reply says that it cannot."""
        match reply:
            case Answer():
                await self._write(self._head(reply, last) + self._body(reply.body) + self._end())
            case AnswerAndMore(answer, more, seconds):
                usable = await self.send(answer, last=last)
                asyncio.get_running_loop().call_later(seconds, self._add, more)
                return usable
            case HalfAnswer(answer):
                await self._write(self._head(answer, last) + self._body(answer.body[: len(answer.body) // 2]))
                return False
            case SlowAnswer(answer, seconds):
                await self._write(self._head(answer, last))
                for n in range(len(answer.body)):
                    if await self._leaves_within(seconds):
                        return False
                    await self._write(self._body(answer.body[n : n + 1]))
                await self._write(self._end())
            case Silence(seconds, reset):
                await self._leaves_within(seconds)
                if reset:
                    # Zero seconds to linger: the kernel drops the connection with a RST instead of a FIN.
                    line: socket.socket = self._writer.get_extra_info("socket")
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self._writer.transport.abort()
                return False
            case Death():
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError("still alive after SIGKILL")
            case _:
                assert_never(reply)
        if self._http.our_state is h11.MUST_CLOSE:
            return False
        self._http.start_next_cycle()
        return True

    def _add(self, more: Answer) -> None:
        """Write it past the protocol, which has no place for it."""
        if not self._writer.is_closing():
            lines = (
                f"HTTP/1.1 {more.status} More",
                "content-type: application/json",
                f"content-length: {len(more.body)}",
            )
            self._writer.write("\r\n".join((*lines, "", "")).encode() + more.body)

    async def close(self) -> None:
        """Close the connection. Bytes that were written get a moment to be sent."""
        self._writer.close()
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._writer.wait_closed()
        self._writer.transport.abort()

    async def _refuse(self, status: int) -> None:
        # Closing with bytes unread would reset the connection and could destroy this answer on its way.
        with suppress(h11.LocalProtocolError):
            await self.send(Answer(status, b'{"error": "bad_http"}'), last=True)
            if self._writer.can_write_eof():  # TLS has no half-closed connections
                self._writer.write_eof()
            await self._leaves_within(STOP_SECONDS)

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _leaves_within(self, seconds: float) -> bool:
        """Wait, but no longer than the client stays, and return whether it left. Bytes that it sends meanwhile are lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._reader.read(READ_BYTES):
                    pass
                return True
        return False

    def _head(self, answer: Answer, last: bool) -> bytes:
        own = [("content-type", answer.content_type), ("content-length", str(len(answer.body)))]
        closing = [("connection", "close")] if last else []
        head = h11.Response(status_code=answer.status, headers=[*own, *closing, *answer.headers])
        return self._http.send(head) or b""

    def _body(self, part: bytes) -> bytes:
        return b"" if self._head_only else self._http.send(h11.Data(data=part)) or b""

    def _end(self) -> bytes:
        return self._http.send(h11.EndOfMessage()) or b""

    async def _write(self, sent: bytes) -> None:
        self._writer.write(sent)
        async with asyncio.timeout(SEND_SECONDS):
            await self._writer.drain()
