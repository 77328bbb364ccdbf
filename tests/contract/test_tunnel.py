"""The way to a bank through a proxy: whatever the proxy does, the bank's answer comes over TLS with the bank, or none comes.

The proxy is a real one, or a socket under a test's control. The tests run on both loops.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from command_service.bank.transport import MAX_BODY_BYTES, Endpoint, Exchange, open_transport
from command_service.bank.tunnel import MAX_ANSWER_BYTES
from command_service.values import NoAnswer
from rig.certs import HERE, Authority
from rig.proxy import Serve, a_proxy, listening

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
PATIENT_SECONDS = 20.0


class Bank:
    """A bank over TLS that answers each request with its path, and counts its connections."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        shown = authority.issue(folder, dns=["localhost"], ips=HERE)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(shown / "tls.crt", shown / "tls.key")
        self.trust = ssl.create_default_context(cadata=authority.pem.decode())
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))


@asynccontextmanager
async def endpoint(url: str, proxy: str, trust: ssl.SSLContext) -> AsyncIterator[Endpoint]:
    opened = Endpoint(open_transport(max_connections=2, verify=trust, proxy=proxy), url)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return Bank(tmp_path_factory.mktemp("bank"))


# ---------------------------------------------------------------- a proxy that does its work
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_a_bank_is_asked_through_the_proxy_over_connections_that_are_kept(bank: Bank, host: str) -> None:
    """One tunnel serves one call after another. A fresh connection is a new tunnel."""
    bank.connections = 0
    # The proxy leads to the bank by IPv4, whatever it is asked: not every machine has IPv6.
    async with listening(bank.serve, bank.tls) as port, a_proxy(leads_to=f"127.0.0.1:{port}") as proxy:
        async with endpoint(f"https://{host}:{port}/v1", proxy.url, bank.trust) as through:
            for path, fresh in (("/1", False), ("/2", False), ("/3", True)):
                exchange = await through.ask("GET", path, fresh=fresh)
                assert isinstance(exchange, Exchange)
                assert exchange.body == b"/v1" + path.encode()
        assert proxy.asked == [f"{host}:{port}"] * 2
        assert bank.connections == 2


async def test_the_environment_names_no_proxy(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sees its variables, and one of them would lead every call elsewhere; or past the proxy that is set."""
    async with listening(bank.serve, bank.tls) as port, a_proxy() as proxy, a_proxy() as other:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        monkeypatch.setenv("NO_PROXY", "*")
        for chosen in ("", proxy.url):
            async with endpoint(f"https://127.0.0.1:{port}", chosen, bank.trust) as through:
                assert isinstance(await through.ask("GET", "/"), Exchange)
        assert (len(proxy.asked), other.asked) == (1, [])


async def test_a_proxy_that_shows_a_certificate_of_its_own_is_not_the_bank(bank: Bank, tmp_path: Path) -> None:
    """It ends the TLS itself, to read along: nothing is sent."""
    nosy = Bank(tmp_path)
    async with (
        listening(nosy.serve, nosy.tls) as there,
        listening(bank.serve, bank.tls) as port,
        a_proxy(leads_to=f"127.0.0.1:{there}") as proxy,
        endpoint(f"https://127.0.0.1:{port}", proxy.url, bank.trust) as through,
    ):
        with capture_logs() as logged:
            assert await through.ask("GET", "/") == NoAnswer(our_setup=True)
        assert logged[0]["why"] == "its certificate is of no authority that we trust"


async def test_nothing_goes_through_a_proxy_without_tls(bank: Bank) -> None:
    """It could read and change the calls. Settings refuse it, and so does the transport."""
    bank.connections = 0
    async with (
        listening(bank.serve) as port,
        a_proxy() as proxy,
        endpoint(f"http://127.0.0.1:{port}", proxy.url, bank.trust) as through,
    ):
        assert await through.ask("GET", "/") == NoAnswer(our_setup=True)
    assert (bank.connections, proxy.asked) == (0, [])


# ---------------------------------------------------------------- one that does not
def saying(said: bytes, *, then_close: bool = True) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        if not then_close:
            await reader.read()

    return serve


@pytest.mark.parametrize(
    ("said", "why", "our_setup"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\nsecret", "the proxy answered 502", False),
        (b"HTTP/1.0 407 Who are you?\r\nProxy-Authenticate: Basic\r\n\r\n", "the proxy answered 407", True),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "the proxy answered 403", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the proxy answered 204", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + ESTABLISHED, "the proxy answered 100", False),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "the proxy's answer is not readable", False),
        (b"\r\n\r\n", "the proxy's answer is not readable", False),
        (b"HTTP/1.1 200\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "somebody spoke through the proxy before being asked", False),
        (b"HTTP/1.1 200 " + b"x" * 2 * MAX_ANSWER_BYTES, "the proxy's answer is not readable", False),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_BODY_BYTES * 20, "the proxy's answer is not readable", False),
    ],
)
@pytest.mark.parametrize("then_close", [True, False])
async def test_a_proxy_that_opens_no_way_is_no_answer_for_a_reason_of_our_own_words(
    bank: Bank, said: bytes, why: str, our_setup: bool, then_close: bool
) -> None:
    """What it says is not quoted; that it does not let us through is told as a fault of our set-up."""
    async with (
        listening(saying(said, then_close=then_close)) as proxy,
        endpoint("https://127.0.0.1:1", f"http://127.0.0.1:{proxy}", bank.trust) as through,
    ):
        with capture_logs() as logged:
            assert await through.ask("GET", "/") == NoAnswer(our_setup=our_setup)
    assert [(entry["why"], entry["log_level"]) for entry in logged] == [(why, "error" if our_setup else "warning")]


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n"])
async def test_a_proxy_that_closes_is_no_answer(bank: Bank, said: bytes) -> None:
    async with (
        listening(saying(said)) as proxy,
        endpoint("https://127.0.0.1:1", f"http://127.0.0.1:{proxy}", bank.trust) as through,
    ):
        with capture_logs() as logged:
            assert await through.ask("GET", "/") == NoAnswer()
    assert logged[0]["why"] == "the proxy closed the connection"


async def test_a_proxy_that_is_not_there_is_no_answer(bank: Bank) -> None:
    async with endpoint("https://127.0.0.1:1", "http://127.0.0.1:1", bank.trust) as through:
        with capture_logs() as logged:
            assert await through.ask("GET", "/") == NoAnswer()
    assert logged[0]["why"] == "the proxy cannot be reached"


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\n", ESTABLISHED], ids=["silent", "slow", "behind it nothing"]
)
async def test_a_call_that_is_given_up_leaves_no_connection_at_the_proxy(bank: Bank, said: bytes) -> None:
    """Its deadline is the caller's. The next call gets a connection of its own, though one at most is allowed."""
    has_come, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        has_come.set()
        try:
            while await reader.read(65536):
                pass
        finally:
            left.set()

    async with listening(serve) as proxy:
        opened = Endpoint(
            open_transport(max_connections=1, verify=bank.trust, proxy=f"http://127.0.0.1:{proxy}"),
            "https://127.0.0.1:1",
        )
        for _ in range(2):
            has_come.clear()
            left.clear()
            asking = asyncio.create_task(opened.ask("GET", "/"))
            async with asyncio.timeout(PATIENT_SECONDS):
                await has_come.wait()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asking, 0.2)
                await left.wait()
        await opened.close()


@pytest.mark.parametrize("reset", [True, False])
async def test_a_tunnel_that_ends_in_the_handshake_is_no_answer(bank: Bank, reset: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ESTABLISHED)
        if reset:
            await reader.readexactly(1)
        else:
            writer.write(b"\x15\x03")

    async with (
        listening(serve) as proxy,
        endpoint("https://127.0.0.1:1", f"http://127.0.0.1:{proxy}", bank.trust) as through,
    ):
        async with asyncio.timeout(PATIENT_SECONDS):
            assert await through.ask("GET", "/") == NoAnswer()
