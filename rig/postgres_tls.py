"""TLS for a PostgreSQL server that was built without: a door before it that speaks it, on the test's own loop.

A client asks for TLS in eight bytes, is answered with one, and from the handshake on speaks as it would without
(postgresql.org/docs/current/protocol-flow.html, 54.2.10). So all that the server behind cannot do is tie a password to the
connection's certificate.
"""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

ASKS_FOR_TLS = struct.pack(">II", 8, 80877103)
REFUSAL = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for this host, no encryption\0\0"


@asynccontextmanager
async def behind_tls(dsn: str, folder: Path) -> AsyncIterator[str]:
    """Open a door to the server of a DSN, and return the DSN of the door: it is for clients that speak TLS, and refuses others.

    The folder holds tls.crt, tls.key and ca.crt as `rig.certs` issues them, for 127.0.0.1.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    parts = urlsplit(dsn)
    calls: set[asyncio.Task[None]] = set()

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        calls.add(task)
        task.add_done_callback(calls.discard)
        # Cancelled at the end, too: asyncio's streams report a call that ends so.
        ends = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*ends), contextlib.closing(writer):
            if await reader.readexactly(len(ASKS_FOR_TLS)) != ASKS_FOR_TLS:
                writer.write(b"E" + struct.pack(">I", 4 + len(REFUSAL)) + REFUSAL)
                return
            writer.write(b"S")
            await writer.start_tls(context)
            server_reader, server_writer = await asyncio.open_connection(parts.hostname, parts.port)
            with contextlib.closing(server_writer):
                ways = [asyncio.create_task(_carry(*way)) for way in ((reader, server_writer), (server_reader, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    door = await asyncio.start_server(admit, "127.0.0.1", 0)
    port = door.sockets[0].getsockname()[1]
    options = urlencode({"sslmode": "verify-full", "sslrootcert": str(folder / "ca.crt")})
    try:
        yield parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}", query=options).geturl()
    finally:
        door.close()
        open_calls = list(calls)
        for call in open_calls:
            call.cancel()
        await asyncio.gather(*open_calls, return_exceptions=True)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Pass on what comes from one until it ends."""
    while content := await source.read(1 << 16):
        sink.write(content)
        await sink.drain()
