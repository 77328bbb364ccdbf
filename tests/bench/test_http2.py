"""The load generator's own HTTP/2 client, against real servers of gRPC."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from bench.http2 import CallFailed, Connection

METHOD = "/a.Service/Method"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
Handler = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def connected(
    handler: Handler, *, call_seconds: float = 60.0, options: tuple[tuple[str, int], ...] = ()
) -> AsyncIterator[Connection]:
    """A connection to a server whose one method is the handler."""
    server = grpc.aio.server(options=options)
    methods: dict[str, Any] = {"Method": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_registered_method_handlers("a.Service", methods)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = await Connection.open(f"127.0.0.1:{port}", METHOD, call_seconds)
    try:
        yield connection
    finally:
        connection.close()
        await server.stop(0)


class Frames:
    """The server's side of a connection, frame by frame: kind, stream and payload."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, kind: int, stream: int, payload: bytes, flags: int = 0) -> None:
        self._writer.write(struct.pack(">BHBBL", 0, len(payload), kind, flags, stream) + payload)
        await self._writer.drain()

    async def read(self) -> tuple[int, int, bytes]:
        _, size, kind, _, stream = struct.unpack(">BHBBL", await self._reader.readexactly(9))
        return kind, stream, await self._reader.readexactly(size)

    async def __aiter__(self) -> AsyncIterator[tuple[int, int, bytes]]:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                yield await self.read()


@asynccontextmanager
async def hearing(
    server: Callable[[Frames], Awaitable[None]], *, call_seconds: float = 60.0
) -> AsyncIterator[Connection]:
    """A connection to a server that writes its own frames."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await server(Frames(reader, writer))
        writer.close()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        host, port = listening.sockets[0].getsockname()
        connection = await Connection.open(f"{host}:{port}", METHOD, call_seconds)
        try:
            yield connection
        finally:
            connection.close()
            await ended.wait()


async def failure_of(call: Awaitable[bytes]) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call
    return failed.value


async def test_each_call_gets_its_own_answer() -> None:
    """Of any size, an empty one too, and in whatever order the server answers."""

    async def echo(request: bytes, _: Any) -> bytes:
        await asyncio.sleep(0.02 if len(request) < 100 else 0)
        return request * 30

    requests = [b"x" * size for size in (0, 1, 99, 100, 4_000, 16_000)] * 20
    async with connected(echo) as connection:
        assert await asyncio.gather(*map(connection.call, requests)) == [request * 30 for request in requests]


async def test_calls_beyond_the_servers_limit_of_streams_wait_in_the_client() -> None:
    """No more are under way than the server allows, and all end."""
    under_way: list[int] = []
    most, connection_ends = 0, asyncio.Event()

    async def count(frames: Frames) -> None:
        nonlocal under_way, most
        await frames.send(SETTINGS, 0, struct.pack(">HL", 3, 2))  # MAX_CONCURRENT_STREAMS
        while not connection_ends.is_set():
            try:
                async with asyncio.timeout(0.05):
                    kind, stream, _ = await frames.read()
            except TimeoutError:  # no more are coming
                while under_way:
                    await frames.send(HEADERS, under_way.pop(), b"\x88\0\x0bgrpc-status\x0213", flags=0b101)
            else:
                under_way = [*under_way, stream] if kind == HEADERS else under_way
                most = max(most, len(under_way))

    async with hearing(count) as connection:
        await failure_of(connection.call(b""))  # from here the limit is known
        failed = await asyncio.gather(*(failure_of(connection.call(b"x")) for _ in range(7)))
        connection_ends.set()
    assert {each.code for each in failed} == {StatusCode.INTERNAL}
    assert most == 2


async def test_an_error_has_the_servers_code_text_and_details() -> None:
    """Trailing metadata in binary too: they hold google.rpc.Status."""
    details = bytes(range(256))

    async def refuse(_: bytes, context: Any) -> bytes:
        metadata = (("grpc-status-details-bin", details), ("other", "x" * 300))
        await context.abort(StatusCode.RESOURCE_EXHAUSTED, "50 % zu viel für uns", metadata)
        raise AssertionError("abort always raises")

    async with connected(refuse) as connection:
        for _ in range(3):
            failed = await failure_of(connection.call(b""))
            assert (failed.code, failed.text) == (StatusCode.RESOURCE_EXHAUSTED, "50 % zu viel für uns")
            assert failed.details == details


async def test_a_call_that_is_not_answered_ends_with_its_deadline_and_the_server_is_told() -> None:
    """By a reset of its stream, as grpc's own client does."""
    resets: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def hang(frames: Frames) -> None:
        async for kind, stream, payload in frames:
            if kind == RST_STREAM:
                resets.put_nowait((stream, payload))

    async with hearing(hang, call_seconds=0.2) as connection:
        assert (await failure_of(connection.call(b""))).code == StatusCode.DEADLINE_EXCEEDED
        assert await asyncio.wait_for(resets.get(), 20) == (1, struct.pack(">L", 8))


async def test_a_stream_that_the_server_resets_is_a_failed_call() -> None:
    """It is not sent again, so that each refusal is counted. When the connection ends, its calls fail."""

    async def reset(frames: Frames) -> None:
        async for kind, stream, _ in frames:
            if kind == HEADERS and stream > 1:
                return  # the connection ends
            if kind == HEADERS:
                await frames.send(RST_STREAM, stream, struct.pack(">L", 7))

    async with hearing(reset) as connection:
        failed = [await failure_of(connection.call(b"")) for _ in range(3)]
    assert [(each.code, each.text) for each in failed] == [
        (StatusCode.UNAVAILABLE, "RST_STREAM REFUSED_STREAM"),
        (StatusCode.UNAVAILABLE, "connection lost"),
        (StatusCode.UNAVAILABLE, "no connection"),
    ]
