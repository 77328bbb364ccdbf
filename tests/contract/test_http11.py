"""The contract of our HTTP/1.1 transport: no request is sent twice, no answer goes to another call, nothing grows.

The server is a socket under a test's control, one connection at a time. The tests run on both loops.
"""

import asyncio
import random
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from command_service.bank.http11 import Http11Transport
from tests.contract.bank_rigs import NO_TLS

MAX_ANSWER_BYTES = 4096
CROWD = 40


class Peer:
    """One of the server's connections."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.asked: list[str] = []
        self.was_left = asyncio.Event()  # The client left while we waited for a request or wrote.

    async def hear(self) -> str:
        """Receive the next whole request and return its path."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("Content-Length:")), 0)
        await self.reader.readexactly(length)
        self.asked.append(head.split()[1])
        return self.asked[-1]

    async def say(self, said: bytes) -> None:
        self.writer.write(said)
        await self.writer.drain()

    def leave(self, *, reset: bool = False) -> None:
        """Close in order, or with a reset, as after a crash."""
        if reset:
            line = self.writer.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def has_left(self) -> bool:
        """Wait for the client's end of the connection."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


class Server:
    def __init__(self, serve: Callable[[Peer], Awaitable[None]]) -> None:
        self._serve = serve
        self.url = ""
        self.peers: list[Peer] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(peer := Peer(reader, writer))
        try:
            await self._serve(peer)
        except (OSError, asyncio.IncompleteReadError):
            peer.was_left.set()
        finally:
            writer.transport.abort()

    @property
    def asked(self) -> list[str]:
        return [path for peer in self.peers for path in peer.asked]


@asynccontextmanager
async def serving(
    serve: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    server = Server(serve)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    server.url = f"http{'s' if tls else ''}://{host}:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield server


@asynccontextmanager
async def transport(
    max_connections: int = 4, idle_seconds: float = 60.0, tls: ssl.SSLContext = NO_TLS
) -> AsyncIterator[Http11Transport]:
    opened = Http11Transport(
        tls=tls, max_connections=max_connections, idle_seconds=idle_seconds, max_answer_bytes=MAX_ANSWER_BYTES
    )
    try:
        yield opened
    finally:
        await opened.aclose()


async def ask(through: httpx.AsyncBaseTransport, url: str, path: str = "/") -> str:
    """Return the body of the answer, in which our servers repeat the path."""
    return (await through.handle_async_request(httpx.Request("POST", url + path, content=b"an order"))).read().decode()


def answer(body: str, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", body]).encode()


async def echo(peer: Peer) -> None:
    while True:
        await peer.say(answer(await peer.hear()))


# ---------------------------------------------------------------- never twice
async def before_it_reads(peer: Peer) -> None:
    await peer.reader.readexactly(1)


async def after_half_of_it(peer: Peer) -> None:
    await peer.reader.readuntil(b"\r\n\r\n")


async def after_all_of_it(peer: Peer) -> None:
    await peer.hear()


async def in_the_middle_of_the_answer(peer: Peer) -> None:
    await peer.hear()
    await peer.say(answer("an answer")[:-1])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("ends", [before_it_reads, after_half_of_it, after_all_of_it, in_the_middle_of_the_answer])
async def test_a_request_whose_connection_ends_is_not_sent_again(
    ends: Callable[[Peer], Awaitable[None]], used_before: bool, reset: bool
) -> None:
    """The server closes a new or an idle connection during our write or later: the call raises, without a second connection."""

    async def serve(peer: Peer) -> None:
        if used_before:
            await peer.say(answer(await peer.hear()))
        await ends(peer)
        peer.leave(reset=reset)

    async with serving(serve) as server, transport() as through:
        if used_before:
            assert await ask(through, server.url, "/first") == "/first"
        with pytest.raises((OSError, httpx.TransportError)):
            await ask(through, server.url, "/once")
        assert len(server.peers) == 1
        assert server.asked.count("/once") <= 1


async def test_a_connection_that_the_server_has_just_closed_is_not_used() -> None:
    """Not even before the event loop reports the end."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with transport() as through:
            for path in ("/1", "/2", "/3"):
                call = asyncio.create_task(ask(through, url, path))
                line, _ = await loop.sock_accept(listening)  # A new connection each time.
                with line:
                    await loop.sock_recv(line, 4096)
                    await loop.sock_sendall(line, answer(path))
                    assert await call == path


# ---------------------------------------------------------------- never another's answer
@pytest.mark.parametrize("steps", range(12))
async def test_a_cancelled_call_leaves_no_bytes_to_the_next_one(steps: int) -> None:
    """Cancelled at any point: before it is sent, under way, or as its answer arrives. It is not sent later either."""

    async def serve(peer: Peer) -> None:
        while True:
            path = await peer.hear()
            await asyncio.sleep(0)  # So that a cancellation fits between the request and its answer.
            await peer.say(answer(path))

    async with serving(serve) as server, transport(max_connections=1) as through:
        assert await ask(through, server.url, "/first") == "/first"
        cancelled = asyncio.create_task(ask(through, server.url, "/cancelled"))
        for _ in range(steps):
            await asyncio.sleep(0)
        cancelled.cancel()
        assert await ask(through, server.url, "/next") == "/next"
        assert server.asked.count("/cancelled") <= 1


async def test_the_connection_of_a_cancelled_call_is_closed() -> None:
    """Its answer may still come, and must reach no other call."""
    heard = asyncio.Event()
    left: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def serve(peer: Peer) -> None:
        if await peer.hear() == "/cancelled":
            heard.set()
            left.set_result(await peer.has_left())
        await peer.say(answer(peer.asked[-1]))

    async with serving(serve) as server, transport(max_connections=1) as through:
        call = asyncio.create_task(ask(through, server.url, "/cancelled"))
        await heard.wait()
        call.cancel()
        assert await left
        assert await ask(through, server.url, "/next") == "/next"


@pytest.mark.parametrize(
    "after", [answer("/planted"), b"HTTP/1.1 2", b"\0", b"H", b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("at_once", [False, True])
async def test_bytes_after_an_answer_are_not_the_next_answer(after: bytes, at_once: bool) -> None:
    """Whether they come with the answer or on the idle connection: the next call gets its own answer."""

    async def serve(peer: Peer) -> None:
        said = answer(await peer.hear())
        if at_once:
            await peer.say(said + after)
        else:
            await peer.say(said)
            await planted.wait()
            await peer.say(after)
        await peer.say(answer(await peer.hear()))

    planted = asyncio.Event()
    async with serving(serve) as server, transport() as through:
        assert await ask(through, server.url, "/1") == "/1"
        planted.set()
        if not at_once:
            await server.peers[0].was_left.wait()
        assert await ask(through, server.url, "/2") == "/2"
        assert len(server.peers) == 2


@pytest.mark.parametrize("after", [answer("/planted"), b"\r\n"])
async def test_bytes_that_have_just_arrived_are_not_the_next_answer(after: bytes) -> None:
    """Not even before the event loop reports them."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with transport() as through:
            for path in ("/1", "/2", "/3"):
                call = asyncio.create_task(ask(through, url, path))
                line, _ = await loop.sock_accept(listening)  # A new connection each time.
                await loop.sock_recv(line, 4096)
                await loop.sock_sendall(line, answer(path))
                assert await call == path
                line.send(after)
                line.detach()  # It stays open.


async def test_a_server_that_speaks_before_it_is_asked_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes answer no request."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    with socket.create_server(("127.0.0.1", 0)) as listening:

        async def greeted(*args: Any, **details: Any) -> Any:
            made = await connect(*args, **details)
            accepted.append(listening.accept()[0])
            accepted[-1].send(answer("/planted"))
            return made

        accepted: list[socket.socket] = []
        monkeypatch.setattr(loop, "create_connection", greeted)
        async with transport() as through:
            with pytest.raises(httpx.RemoteProtocolError):
                await ask(through, f"http://127.0.0.1:{listening.getsockname()[1]}", "/1")
        with accepted[0] as line:
            line.setblocking(False)
            with pytest.raises(ConnectionResetError):  # No request was sent before.
                while not await loop.sock_recv(line, 4096):
                    pass


async def ask_afresh(through: httpx.AsyncBaseTransport, url: str, path: str) -> httpx.Response:
    return await through.handle_async_request(
        httpx.Request("POST", url + path, content=b"an order", extensions={"fresh": True})
    )


async def test_a_fresh_connection_is_new_and_replaces_another() -> None:
    """Even if others are idle; afterwards it serves other calls."""
    async with serving(echo) as server, transport(max_connections=2) as through:
        await asyncio.gather(ask(through, server.url, "/1"), ask(through, server.url, "/2"))
        assert (await ask_afresh(through, server.url, "/3")).read() == b"/3"
        assert server.peers[2].asked == ["/3"]
        ending = [asyncio.create_task(peer.was_left.wait()) for peer in server.peers]
        ended, others = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        assert (len(ended), ending[2] in others) == (1, True)
        for other in others:
            other.cancel()
        await ask(through, server.url, "/4")
        assert server.peers[2].asked == ["/3", "/4"]


async def test_a_distrusted_connection_serves_no_further_call() -> None:
    """Not even a call that already waits for it."""
    async with serving(echo) as server, transport(max_connections=1) as through:

        async def ask_and_distrust(path: str) -> None:
            response = await through.handle_async_request(httpx.Request("POST", server.url + path, content=b""))
            response.extensions["end_connection"]()

        await asyncio.gather(*[ask_and_distrust(f"/{number}") for number in range(5)])
        assert [peer.asked for peer in server.peers] == [[f"/{number}"] for number in range(5)]


async def test_concurrent_calls_each_get_their_own_answer() -> None:
    """Over fewer connections than calls, with slow answers."""
    chance = random.Random(4)

    async def serve(peer: Peer) -> None:
        while True:
            path = await peer.hear()
            await asyncio.sleep(chance.random() / 500)
            await peer.say(answer(path))

    paths = [f"/{number}" for number in range(200)]
    async with serving(serve) as server, transport(max_connections=8) as through:
        assert await asyncio.gather(*[ask(through, server.url, path) for path in paths]) == paths
        assert sorted(server.asked) == sorted(paths)


# ---------------------------------------------------------------- the pool
async def test_a_connection_is_used_again() -> None:
    """Successive calls need one connection."""
    async with serving(echo) as server, transport() as through:
        for number in range(5):
            assert await ask(through, server.url, f"/{number}") == f"/{number}"
        assert len(server.peers) == 1


async def test_the_number_of_connections_is_limited_and_waiting_calls_are_served_in_order() -> None:
    """Cancelled waiters included."""
    async with serving(echo) as server, transport(max_connections=3) as through:
        assert len(set(await asyncio.gather(*[ask(through, server.url, f"/{n}") for n in range(CROWD)]))) == CROWD
        assert len(server.peers) == 3
    async with serving(echo) as server, transport(max_connections=1) as through:
        calls = [asyncio.create_task(ask(through, server.url, f"/{n}")) for n in range(CROWD)]
        await calls[0]
        calls.pop(20).cancel()
        await asyncio.gather(*calls)
        assert server.asked == [f"/{n}" for n in range(CROWD) if n != 20]
        assert len(server.peers) == 1


async def test_a_failed_call_frees_its_slot() -> None:
    """A refused call, one that is cut, and one that is cancelled while it waits."""

    async def cut(peer: Peer) -> None:
        await peer.hear()

    async with serving(echo) as server, serving(cut) as cutting, transport(max_connections=1) as through:
        for _ in range(3):
            with pytest.raises(httpx.RemoteProtocolError):
                await ask(through, cutting.url)
            with pytest.raises(OSError):
                await ask(through, "http://127.0.0.1:1")
        assert await ask(through, server.url, "/served") == "/served"


async def test_a_connection_goes_to_its_own_server_only() -> None:
    """An idle one makes room for a connection to another server."""
    async with serving(echo) as one, serving(echo) as other, transport(max_connections=1) as through:
        await ask(through, one.url, "/one")
        await ask(through, other.url, "/other")
        await one.peers[0].was_left.wait()
        assert (one.asked, other.asked) == (["/one"], ["/other"])


@pytest.mark.parametrize(
    "said",
    [
        answer("/1", "Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n/1",
        b"HTTP/1.1 200 OK\r\n\r\n/1",
    ],
)
async def test_an_answer_that_ends_its_connection_has_us_close_it(said: bytes) -> None:
    """By a header, by its version, or without a length."""

    async def serve(peer: Peer) -> None:
        if await peer.hear() == "/1":
            await peer.say(said)
            if b"Content-Length" not in said:
                peer.writer.write_eof()
            assert await peer.has_left()
        else:
            await peer.say(answer("/2"))

    async with serving(serve) as server, transport() as through:
        assert await ask(through, server.url, "/1") == "/1"
        assert await ask(through, server.url, "/2") == "/2"
        assert len(server.peers) == 2


async def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    """After an idle time by our clock; closing the transport closes them at once."""
    asked, held = asyncio.Event(), asyncio.Event()
    left: asyncio.Queue[str] = asyncio.Queue()

    async def serve(peer: Peer) -> None:
        if await peer.hear() == "/held":
            asked.set()
            await held.wait()
        await peer.say(answer(peer.asked[0]))
        assert await peer.has_left()
        left.put_nowait(peer.asked[0])

    async with serving(serve) as server, transport(idle_seconds=0.01) as through:
        busy = asyncio.create_task(ask(through, server.url, "/held"))
        await asked.wait()
        await ask(through, server.url, "/1")
        assert await left.get() == "/1"
        await ask(through, server.url, "/2")  # The timer is set again, and once more for the younger connection.
        held.set()
        assert await busy == "/held"
        assert [await left.get(), await left.get()] == ["/2", "/held"]
    async with serving(echo) as server:
        async with transport() as through:
            await ask(through, server.url)
        await server.peers[0].was_left.wait()
        with pytest.raises(httpx.ConnectError):
            await ask(through, server.url)


async def test_closing_lets_a_call_end_and_then_closes_its_connection() -> None:
    """It has its own deadline."""
    asked, held = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        path = await peer.hear()
        asked.set()
        await held.wait()
        await peer.say(answer(path))
        await peer.hear()

    async with serving(serve) as server:
        async with transport() as through:
            busy = asyncio.create_task(ask(through, server.url, "/held"))
            await asked.wait()
        held.set()
        assert await busy == "/held"
        await server.peers[0].was_left.wait()


# ---------------------------------------------------------------- reading
async def test_a_trailer_is_no_header() -> None:
    """Neither of its own answer nor of the next one; and no part of a skipped 1xx stays."""
    skipped = b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/html\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nX:  one \r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nRetry-After: 9\r\n\r\n"

    async def serve(peer: Peer) -> None:
        for said in (skipped + chunked, answer("2")):
            await peer.hear()
            await peer.say(said)
        await peer.hear()

    async with serving(serve) as server, transport() as through:
        one, two = [await through.handle_async_request(httpx.Request("GET", server.url)) for _ in range(2)]
        assert (one.headers.raw, one.read()) == ([(b"X", b"one"), (b"Transfer-Encoding", b"chunked")], b"1")
        assert (two.headers.raw, two.read()) == ([(b"Content-Length", b"1")], b"2")
        assert len(server.peers) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b""),
        (b"HTTP/1.1 103 ", b"\r\n\r\n" + answer("")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"\r\n\r\n"),
    ],
    ids=["head", "body", "1xx", "trailer"],
)
async def test_every_part_of_an_answer_is_limited(before: bytes, after: bytes) -> None:
    """To the byte: an answer of the limit is read, and one byte more is an error."""

    async def serve(peer: Peer) -> None:
        size = int((await peer.hear())[1:])
        await peer.say(before + b"x" * (size - len(before + after)) + after)
        peer.writer.write_eof()
        await peer.has_left()

    async with serving(serve) as server, transport() as through:
        await ask(through, server.url, f"/{MAX_ANSWER_BYTES}")
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(through, server.url, f"/{MAX_ANSWER_BYTES + 1}")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + answer("1"),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)
async def test_an_answer_with_a_doubtful_end_is_none(said: bytes) -> None:
    """Another protocol, two lengths, an unrequested encoding, no last chunk."""

    async def serve(peer: Peer) -> None:
        await peer.hear()
        await peer.say(said)
        peer.writer.write_eof()
        await peer.has_left()

    async with serving(serve) as server, transport() as through:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(through, server.url)


# ---------------------------------------------------------------- writing
@pytest.mark.parametrize(
    "request_",
    [
        httpx.Request("GET", "http://bank/", headers={"X": "y\r\nZ: 1"}),
        httpx.Request("GET", "http://bank/", headers={"X": "y\nZ: 1"}),
        httpx.Request("GET", "http://bank/", headers={"X": "y\rZ: 1"}),
        httpx.Request("GET", "http://bank/", headers={"X\r\nZ": "1"}),
        httpx.Request("GET / HTTP/1.1\r\nX:", "http://bank/"),
        httpx.Request("HEAD", "http://bank/"),
        httpx.Request("POST", "http://bank/", content=iter([b"a", b"stream"])),
    ],
    ids=["crlf", "lf", "cr", "name", "method", "head", "stream"],
)
async def test_a_request_that_would_be_read_as_another_is_refused(request_: httpx.Request) -> None:
    """It is refused before a connection is made: the host of these does not exist."""
    async with transport() as through:
        with pytest.raises(httpx.LocalProtocolError):
            await through.handle_async_request(request_)


# ---------------------------------------------------------------- TLS
@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key in one file."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "-"]
    names = ["-subj", "/CN=bank", "-addext", "subjectAltName=DNS:localhost"]
    made = subprocess.run(["openssl", "req", "-x509", *curve, *names], check=True, capture_output=True)
    file.write_bytes(made.stdout)
    return file


@pytest.mark.parametrize("at_once", [False, True])
async def test_bytes_after_an_answer_over_tls_are_not_the_next_answer(certificate: Path, at_once: bool) -> None:
    """The same rule as without TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    planted = asyncio.Event()

    async def serve(peer: Peer) -> None:
        said = answer(await peer.hear())
        await peer.say(said + answer("/planted") if at_once else said)
        await planted.wait()
        if not at_once:
            await peer.say(answer("/planted"))
        await peer.hear()

    trusting = ssl.create_default_context(cafile=str(certificate))
    async with serving(serve, tls, "localhost") as server, transport(tls=trusting) as through:
        assert await ask(through, server.url, "/1") == "/1"
        planted.set()
        await server.peers[0].was_left.wait()
        assert await ask(through, server.url, "/2") == "/2"
        assert len(server.peers) == 2


async def test_tls_names_the_server_and_the_connection_is_used_again(certificate: Path) -> None:
    """SNI, keep-alive, and a body that ends with the connection."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    wanted: list[str | None] = []
    tls.sni_callback = lambda _, name, __: wanted.append(name)

    async def serve(peer: Peer) -> None:
        for _ in range(2):
            await peer.say(answer(await peer.hear()))
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n" + (await peer.hear()).encode())
        peer.writer.close()
        await peer.writer.wait_closed()

    trusting = ssl.create_default_context(cafile=str(certificate))
    async with serving(serve, tls, "localhost") as server, transport(tls=trusting) as through:
        assert [await ask(through, server.url, path) for path in ("/1", "/2", "/3")] == ["/1", "/2", "/3"]
        assert wanted == ["localhost"]
        assert len(server.peers) == 1
