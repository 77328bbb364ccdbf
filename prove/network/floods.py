"""Scenarios of strangers at the gRPC ports: crowds, nonsense and floods. A good client is served all the same."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Callable

from prove.network.world import World, must

# RFC 9113: the preface, frame types and flags that a hostile client needs.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 1, 3, 4, 6, 9
END_HEADERS = 4
CROWD = 1_000
# Of one hostile connection; by then a server has long shown whether it grows or drops it.
FLOOD_FRAMES = 20_000


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def header(name: bytes, value: bytes) -> bytes:
    """A header field as HPACK's literal without indexing; both parts shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


CHARGE_HEADERS = b"".join(
    header(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/charging.v1.CommandService/Charge"),
        (b":authority", b"stranger"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
OPENING = PREFACE + frame(SETTINGS, 0, 0, b"")


async def a_thousand_connections(world: World) -> None:
    """A thousand strangers connect and stay: half say hello, a quarter half of it, a quarter nothing."""
    async with contextlib.AsyncExitStack() as stack:
        hellos = (OPENING, OPENING, PREFACE[:10], b"")
        for port in (world.servers.command, world.servers.feed):
            for number in range(CROWD // 2):
                stranger = await _stranger(stack, port)
                stranger.write(hellos[number % len(hellos)])
                world.faults["stranger: connected and stayed"] += 1
        await _good_clients_are_served(world)


async def nonsense(world: World) -> None:
    """Random bytes, HTTP/1.1, TLS and half frames reach the gRPC ports: connections end, nothing else does."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            port = world.chance.choice((world.servers.command, world.servers.feed))
            stranger = await _stranger(stack, port)
            said = world.chance.choice(
                (
                    world.chance.randbytes(world.chance.randrange(1, 5_000)),
                    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"POST /charging.v1.CommandService/Charge HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
                    _tls_hello(),
                    PREFACE + world.chance.randbytes(200),
                    OPENING + frame(HEADERS, END_HEADERS, 1, world.chance.randbytes(100)),
                    OPENING
                    + frame(HEADERS, END_HEADERS, 1, CHARGE_HEADERS)
                    + frame(0, 1, 1, world.chance.randbytes(50)),
                    OPENING + frame(HEADERS, END_HEADERS, 2, CHARGE_HEADERS),
                    OPENING + struct.pack(">I", 1 << 24)[1:] + b"\x00" * 6,
                )
            )
            stranger.write(said)
            world.faults["stranger: nonsense"] += 1
        await _good_clients_are_served(world)


async def floods(world: World) -> None:
    """Streams opened and reset at once, endless headers, pings and settings: from three strangers each."""

    def rapid_reset(number: int) -> bytes:
        stream = 2 * number + 1
        opened = frame(HEADERS, END_HEADERS, stream, CHARGE_HEADERS)
        return opened + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))

    def pings(number: int) -> bytes:
        return frame(PING, 0, 0, struct.pack(">Q", number))

    def settings(number: int) -> bytes:
        return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535 + number % 1_000))

    def continuations(number: int) -> bytes:
        if not number:
            return frame(HEADERS, 0, 1, CHARGE_HEADERS)
        return frame(CONTINUATION, 0, 1, header(b"x-%d" % number, b"y" * 100))

    floods: tuple[Callable[[int], bytes], ...] = (rapid_reset, pings, settings, continuations)
    async with contextlib.AsyncExitStack() as stack:
        pouring = []
        for flood in floods:
            for _ in range(3):
                port = world.chance.choice((world.servers.command, world.servers.feed))
                pouring.append(asyncio.create_task(_pour(await _stranger(stack, port), flood)))
                world.faults[f"stranger: {flood.__name__}"] += 1
        await _good_clients_are_served(world)
        await asyncio.gather(*pouring)
    await _good_clients_are_served(world)


async def _pour(stranger: asyncio.StreamWriter, flood: Callable[[int], bytes]) -> None:
    """Send until all is sent or the server has had enough: it closes, or it no longer reads."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(5):
            stranger.write(OPENING)
            for number in range(FLOOD_FRAMES):
                if stranger.is_closing():
                    break
                stranger.write(flood(number))
                if number % 50 == 0:
                    await stranger.drain()
                    await asyncio.sleep(0)


async def _stranger(stack: contextlib.AsyncExitStack, address: str) -> asyncio.StreamWriter:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def listen() -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass

    listening = asyncio.create_task(listen())

    async def leave() -> None:
        writer.transport.abort()
        listening.cancel()
        await asyncio.wait((listening,))

    stack.push_async_callback(leave)
    return writer


async def _good_clients_are_served(world: World) -> None:
    async with world.another_client(("grpc.use_local_subchannel_pool", 1)) as newcomer:
        for stub in (world.commands, newcomer):
            for request in world.requests(5):
                # A server that is flooded with calls sheds some, good ones too: grpc's own queue answers CANCELLED (seen).
                for _ in range(20):
                    asked = await world.ask(request, 10.0, stub=stub)
                    if asked.answer is not None:
                        break
                    world.faults["stranger: a good call was shed"] += 1
                    await asyncio.sleep(0.2)
                must(
                    asked.answer is not None,
                    f"a good client is served amid strangers, not {asked.code.name} {asked.text}",
                )


def _tls_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="stranger").do_handshake()
    return outgoing.read()
