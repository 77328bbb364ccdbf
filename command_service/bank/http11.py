"""HTTP/1.1 over connections that are kept open: the transport under the gate, for a tenth of what httpx's own costs.

It is an `httpx.AsyncBaseTransport`. Beside it has `ask`, which takes and gives bytes: the objects of httpx would cost more than
the exchange of the bytes (measured).

1. A request is written once, to one connection, and never again, not even if the server closed that connection as we wrote.
   Then an exception is raised, and the caller decides.
2. A connection serves one exchange at a time. It is used again only after an answer that was whole, that nothing followed, and
   that allows it. Anything else (an error, a cancelled call, a byte too many) ends it.
3. An answer is read whole, within a limit that counts every byte, before it is handed over. Its extension `end_connection` is a
   function: a caller that does not trust the answer calls it before anything else is awaited, and the connection is never
   used again. A request with the extension `fresh` gets a new connection of its own: no answer to another request can come
   over it.
4. It follows no redirect, decompresses nothing and reads no environment. An answer of status 1xx is skipped; but 101, which
   would be another protocol, is an error.
5. A proxy, if one is given, is asked to CONNECT (RFC 9110, 9.3.6), and TLS with the server begins behind it: the proxy can read
   and change nothing. Without TLS it could, so nothing goes through it then, and nothing ever goes around it.

The parser is llhttp, that of Node.js, in its strict mode. Each answer gets a new one, so that nothing of an answer can
find its way into the next.
"""

import asyncio
import select
import ssl
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import httptools
import httpx

from command_service.bank.tunnel import NoTunnel, Proxy, open_tunnel


class Origin(NamedTuple):
    """Where a connection leads: the scheme, the host as it is looked up, and the port if the URL names one."""

    scheme: str
    host: bytes
    port: int | None

    @classmethod
    def of(cls, url: httpx.URL) -> "Origin":
        """Take it from a URL."""
        return cls(url.scheme, url.raw_host, url.port)


class Arrived(NamedTuple):
    """An answer that has arrived whole."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    end_connection: Callable[[], None]
    """Ends the connection that brought it. It is called before anything else is awaited, or not at all."""


class Http11Transport(httpx.AsyncBaseTransport):
    """Sends requests with a body of bytes and returns responses that are already read. Any failure is an exception.

    It has no time limit of its own: the caller cancels. The IPv4 and IPv6 addresses of a name are tried in turn.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        max_connections: int,
        idle_seconds: float,
        max_answer_bytes: int,
        proxy: Proxy | None = None,
    ) -> None:
        """`tls` names the authorities to trust. A call that finds `max_connections` busy waits for its turn, first come first.

        A connection is closed when it was idle for `idle_seconds`. An answer of more than `max_answer_bytes`, head included,
        is an error.
        """
        self._tls = tls
        self._turns = asyncio.Semaphore(max_connections)
        self._idle_seconds = idle_seconds
        self._max_answer_bytes = max_answer_bytes
        # The times at which connections became idle, the latest last. The latest is used first: it is the least likely to be
        # closed by now, and connections that are not needed grow old.
        self._idle: dict[_Connection, float] = {}
        self._ageing: asyncio.TimerHandle | None = None
        self._proxy = proxy
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it once and read the answer whole; see `ask`. Raises also httpx.LocalProtocolError for a malformed request."""
        fresh = request.extensions.get("fresh", False)
        got = await self.ask(Origin.of(request.url), _as_written(request), fresh=fresh)
        return httpx.Response(
            got.status,
            headers=got.headers,
            stream=httpx.ByteStream(got.body),
            extensions={"end_connection": got.end_connection},
        )

    async def ask(self, origin: Origin, message: bytes, *, fresh: bool) -> Arrived:
        """Send a request, made by `written`, once, and read the answer whole. Cancelling ends the connection.

        Raises OSError, ssl.SSLError, httpx.ProtocolError or NoTunnel.
        """
        async with self._turns:
            connection = await self._connection(origin, fresh=fresh)
            try:
                return await connection.exchange(message, self._max_answer_bytes)
            finally:
                self._put_back(connection)

    async def aclose(self) -> None:
        """Close the idle connections now, and each busy one after its exchange."""
        self._closed = True
        if self._ageing is not None:
            self._ageing.cancel()
        for connection in list(self._idle):
            connection.end()

    async def _connection(self, origin: Origin, *, fresh: bool) -> "_Connection":
        """Take an idle connection, else a new one. With the turns, there are never more than `max_connections`."""
        if self._closed:
            raise httpx.ConnectError("the transport is closed")
        if fresh and self._idle:
            next(iter(self._idle)).end()  # The oldest makes room for it.
        while self._idle and not fresh:
            connection, _ = self._idle.popitem()
            if connection.origin == origin and connection.is_quiet():
                return connection
            connection.end()  # The server has just closed it; or it is another server's, and its place is needed.
        tls = self._tls if origin.scheme == "https" else None
        host, port = origin.host.decode("ascii"), origin.port or (443 if tls else 80)
        if self._proxy is not None:
            return await self._connection_through(self._proxy, origin, host, port, tls)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(origin, self._idle), host, port, ssl=tls
        )
        if tls is None and not connection.is_quiet():  # Over TLS a server may send session tickets first.
            connection.end()
            raise httpx.RemoteProtocolError("the server spoke before it was asked")
        return connection

    async def _connection_through(
        self, proxy: Proxy, origin: Origin, host: str, port: int, tls: ssl.SSLContext | None
    ) -> "_Connection":
        if tls is None:
            raise NoTunnel("nothing goes through a proxy without TLS", our_setup=True)
        wire = await open_tunnel(proxy, host, port)
        connection = _Connection(origin, self._idle)
        connection.connection_made(wire)  # until there is TLS over it: it may end meanwhile
        # If it fails or is cancelled, it closes the wire.
        encrypted = await asyncio.get_running_loop().start_tls(wire, connection, tls, server_hostname=host)
        if encrypted is None:
            raise NoTunnel("the way through the proxy ended at once")
        connection.connection_made(encrypted)
        return connection

    def _put_back(self, connection: "_Connection") -> None:
        if self._closed or not connection.reusable:
            connection.end()
            return
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.time()
        if self._ageing is None:
            self._ageing = loop.call_later(self._idle_seconds, self._end_old)

    def _end_old(self) -> None:
        """Close those that are old. One timer serves all, as the first connection is the oldest."""
        loop = asyncio.get_running_loop()
        self._ageing = None
        for connection, since in list(self._idle.items()):
            if since + self._idle_seconds > loop.time():
                self._ageing = loop.call_at(since + self._idle_seconds, self._end_old)
                break
            connection.end()


class _Connection(asyncio.Protocol):
    """One connection. If it ends while it is in `idle`, it takes itself out."""

    def __init__(self, origin: Origin, idle: dict["_Connection", float]) -> None:
        self.origin = origin
        self.reusable = False
        self._idle = idle
        self._ended = False
        self._answered: asyncio.Future[None] | None = None  # If it is done, or None, no call waits for an answer.

    async def exchange(self, message: bytes, max_answer_bytes: int) -> Arrived:
        """Write a request and wait for its answer."""
        if self._ended:
            raise httpx.ConnectError("closed before it was used")
        self.reusable = False
        self._whole = False
        self._room = max_answer_bytes
        self._status = 0  # Until a head is complete.
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._answered = asyncio.get_running_loop().create_future()
        self._wire.write(message)
        try:
            await self._answered
        finally:
            del self._parser  # It refers back to us.
        return Arrived(self._status, self._headers, b"".join(self._body), self.end)

    def end(self, error: Exception | None = None) -> None:
        """Close at once and drop unsent bytes. A call that waits for the answer fails."""
        self._ended = True
        self.reusable = False
        self._idle.pop(self, None)
        self._wire.abort()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or httpx.RemoteProtocolError("closed before the answer was whole"))

    def is_quiet(self) -> bool:
        """Whether the socket has nothing to read: neither bytes after the last answer nor the end of the connection.

        The event loop may have yet to report either.
        """
        return not self._arrivals.poll(0)

    # ------------------------------------------------------------ from the connection
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._arrivals = select.poll()
        self._arrivals.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc)

    def eof_received(self) -> None:
        if self._answered is not None and not self._answered.done() and self._status and not self._is_framed():
            self._answered.set_result(None)
        self.end()

    def data_received(self, data: bytes) -> None:
        if self._answered is None or self._answered.done():
            self.end()  # These bytes answer no request.
            return
        failure: Exception | None = None
        try:
            self._room -= len(data)
            if self._room < 0:
                raise httpx.RemoteProtocolError("too large")
            # The last byte goes by itself: the parser says that an answer has ended, and not after how many bytes.
            self._parser.feed_data(data[:-1])
            if self._whole:
                raise httpx.RemoteProtocolError("more bytes than an answer has")
            self._parser.feed_data(data[-1:])
        except Exception as error:  # The parser's or ours: the answer cannot be read on from here.
            failure = httpx.RemoteProtocolError(f"not readable: {error}")
        if self._whole:
            self._answered.set_result(None)
        if failure is not None:
            self.end(failure)

    # ------------------------------------------------------------ from the parser
    def on_message_begin(self) -> None:
        if self._whole:
            raise httpx.RemoteProtocolError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:  # Otherwise it is a trailer, and no trailer is believed.
            self._headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def _is_framed(self) -> bool:
        """Whether the head tells where the body ends. Otherwise it ends with the connection."""
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def on_message_complete(self) -> None:
        if self._status == 101:
            raise httpx.RemoteProtocolError("another protocol")
        if self._status < 200:
            self._status = 0
            self._headers.clear()
            return
        self._whole = True
        self.reusable = self._parser.should_keep_alive()


def written(request_line: bytes, prepared: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Write a request as bytes. `prepared` are lines of the head with their ends, made by `lines`, and trusted.

    Raises httpx.LocalProtocolError for a line within a line: it would be read as another request.
    """
    return b"%b\r\n%b%b\r\n%b" % (_line(request_line), prepared, lines(headers), body)


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write lines of a head with their ends. Raises httpx.LocalProtocolError for a line within a line."""
    return b"".join([b"%b\r\n" % _line(b"%b: %b" % header) for header in headers])


def _line(line: bytes) -> bytes:
    if b"\r" in line or b"\n" in line:
        raise httpx.LocalProtocolError("a line within a line")
    return line


def _as_written(request: httpx.Request) -> bytes:
    """Write a request of httpx. The extension `target` replaces the URL's path, as in httpx's own transport."""
    if request.method in ("HEAD", "CONNECT"):
        raise httpx.LocalProtocolError(f"{request.method} has answers of another form")
    if "transfer-encoding" in request.headers:
        raise httpx.LocalProtocolError("a body is bytes")
    target = request.extensions.get("target", request.url.raw_path)
    line = b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target)
    return written(line, b"", request.headers.raw, request.read())
