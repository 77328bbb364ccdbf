"""The way to a server through an HTTP proxy, which is asked to CONNECT (RFC 9110, 9.3.6)."""

import asyncio
import re
from typing import NamedTuple, cast

import httpx

# The head of a proxy's answer has some hundred bytes.
MAX_ANSWER_BYTES = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")
_NOT_LET_THROUGH = frozenset({b"401", b"403", b"407"})


class Proxy(NamedTuple):
    """Where an HTTP proxy listens."""

    host: str
    port: int


class NoTunnel(httpx.ProxyError):
    """The proxy opened no way to the server, and nothing was sent there. Its text is in our own words."""

    def __init__(self, text: str, *, our_setup: bool = False) -> None:
        """`our_setup`: the proxy does not let us through, until people mend that."""
        super().__init__(text)
        self.our_setup = our_setup


async def open_tunnel(proxy: Proxy, host: str, port: int) -> asyncio.Transport:
    """Open a connection that leads to a server. Raises NoTunnel. It has no time limit of its own: the caller cancels."""
    try:
        _, connection = await asyncio.get_running_loop().create_connection(_ToProxy, *proxy)
    except OSError as error:
        raise NoTunnel("the proxy cannot be reached") from error
    return await connection.ask_for(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


class _ToProxy(asyncio.Protocol):
    """A connection to a proxy, until it leads to the server."""

    def __init__(self) -> None:
        self._got = b""
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask_for(self, authority: str) -> asyncio.Transport:
        """Ask for the way to a server, by its host and port. Raises NoTunnel."""
        try:
            self._wire.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
            await self._opened
        except BaseException:  # cancelled, too
            self._wire.abort()
            raise
        return self._wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        self._end(NoTunnel("the proxy closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, rest = self._got.partition(b"\r\n\r\n")
        if not end and len(self._got) <= MAX_ANSWER_BYTES:
            return
        status = _STATUS.match(head + b"\r\n")
        if not end or status is None:
            self._end(NoTunnel("the proxy's answer is not readable"))
        elif status[1] != b"200":
            self._end(NoTunnel(f"the proxy answered {int(status[1])}", our_setup=status[1] in _NOT_LET_THROUGH))
        elif rest:
            self._end(NoTunnel("somebody spoke through the proxy before being asked"))
        else:
            self._wire.pause_reading()  # what comes now is for whoever takes the connection over
            self._end(None)

    def _end(self, failure: NoTunnel | None) -> None:
        if not self._opened.done():
            self._opened.set_result(None) if failure is None else self._opened.set_exception(failure)
