"""A small HTTP proxy that is asked to CONNECT, for trying and for tests, and the listener that it stands on."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Listen on a free port, which is given, and serve each connection until `serve` returns or the context ends."""
    serving: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(accept(reader, writer)))

    server = await asyncio.start_server(begin, host, 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving)


@dataclass
class ConnectProxy:
    """Leads to wherever it is asked to, or to another place, and notes where it was asked to lead."""

    leads_to: str = ""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The hosts with their ports, in the order of the connections."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        method, authority, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        assert method == "CONNECT", "nothing else is asked of it"
        self.asked.append(authority)
        host, _, port = (self.leads_to or authority).rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while some := await reader.read(65536):
                writer.write(some)
                await writer.drain()
    finally:
        writer.transport.abort()


@asynccontextmanager
async def a_proxy(leads_to: str = "") -> AsyncIterator[ConnectProxy]:
    """Run a proxy on a free port of this machine."""
    proxy = ConnectProxy(leads_to)
    async with listening(proxy.serve) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy
