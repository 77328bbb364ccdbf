"""Bearer tokens at the ports: which are taken, that each forged one hears the same text, and where a token may come over."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from rig.errors import told
from rig.processes import Server, free_address
from tests.security import tokens
from tests.security.guarded import (
    CHARGE,
    METHODS,
    NOTHING,
    OF_JWT,
    ONE_OF_EACH,
    READER,
    REFUND,
    SERVICES,
    SHOP,
    Guarded,
    Shown,
    a_policy,
    an_identity,
    as_identity,
    bearing,
    guarded,
    refusals_logged,
    token_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Above some 8 KB of headers grpc itself refuses calls, at random up to 16 KB, before anybody reads them.
REFUSED_BY_GRPC = ("9 KB long", "1 MB long")
TILL = an_identity("till-jwt", "charge", jwt_subject="till-jwt")
NO_BEARER = {
    "Basic": ("Basic c2hvcDpzaG9w",),
    "empty": ("",),
    "a scheme only": ("Bearer",),
    "a scheme and a space": ("Bearer ",),
    "a token only": (token_of("shop"),),
    "two spaces": (f"Bearer  {token_of('shop')}",),
    "a token and more": (f"Bearer {token_of('shop')} more",),
    "a comma": (f"Bearer {token_of('shop')},",),
    "two tokens in one header": (f"Bearer {token_of('shop')}, Bearer {token_of('shop')}",),
    "two headers": (f"Bearer {token_of('shop')}", f"Bearer {token_of('shop')}"),
    "two headers, of which one is forged": (f"Bearer {token_of('shop')}", "Bearer wrong"),
    "two headers, of which one is no bearer's": ("Basic c2hvcDpzaG9w", f"Bearer {token_of('shop')}"),
    "part of a token": (f"Bearer {token_of('shop')[:-1]}",),
    "a name": ("Bearer shop",),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """A town that asks for no certificates: whoever has no token is nobody."""
    policy = a_policy(SHOP, READER, OF_JWT, TILL)
    async with guarded(tmp_path_factory.mktemp("town"), policy, client_certificates=False) as made:
        yield made


async def _hears_what_a_stranger_hears(town: Guarded, method: str, shown: Shown) -> None:
    stranger, error = await town.error(method), await town.error(method, shown)
    assert stranger and error
    assert (error.code.name, error.reason, error.advice) == ("UNAUTHENTICATED", "UNAUTHENTICATED", "DO_NOT_RETRY")
    assert error.everything == stranger.everything


@pytest.mark.parametrize("name", [name for name in tokens.forged() if name not in REFUSED_BY_GRPC])
async def test_a_forged_token_is_refused_by_every_method_in_the_words_for_no_token(town: Guarded, name: str) -> None:
    """Text, details and trailers, to the byte. Only the log tells what was wrong."""
    shown = bearing(tokens.forged()[name])
    for method in METHODS:
        await _hears_what_a_stranger_hears(town, method, shown)


@pytest.mark.parametrize("name", NO_BEARER)
async def test_a_header_that_holds_no_one_token_is_refused_in_the_words_for_no_token(town: Guarded, name: str) -> None:
    for method in ONE_OF_EACH:
        await _hears_what_a_stranger_hears(town, method, Shown(authorization=NO_BEARER[name]))


@pytest.mark.parametrize("name", REFUSED_BY_GRPC)
async def test_a_token_of_any_length_is_refused_and_the_server_goes_on(town: Guarded, name: str) -> None:
    """By grpc or by us; the connection may end with it."""
    for method in ONE_OF_EACH:
        credentials = grpc.ssl_channel_credentials(town.authority.pem)
        async with grpc.aio.secure_channel(town.addresses[method.split("/")[1]], credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await town.ask(method, bearing(tokens.forged()[name]), channel=channel)
            assert caught.value.code() is not grpc.StatusCode.OK
        assert await town.is_permitted(method, bearing(tokens.signed()))


async def test_a_good_token_is_its_identity_in_whatever_case_its_scheme_is(town: Guarded) -> None:
    signed = (tokens.signed(), tokens.signed(key=tokens.RSA_KEY, kid="rsa-1"))
    for token in (*signed, token_of("shop-jwt")):
        for scheme in ("Bearer", "bearer", "BEARER"):
            shown = Shown(authorization=(f"{scheme} {token}",))
            assert [await town.is_permitted(method, shown) for method in ONE_OF_EACH] == [True] * 3
    till = bearing(tokens.signed(tokens.claims(sub="till-jwt")))
    assert [await town.is_permitted(method, till) for method in (CHARGE, REFUND)] == [True, False]


async def test_every_service_tells_a_stranger_the_same(town: Guarded) -> None:
    """All methods of a service: else a stranger would learn which of them there are."""
    for service in SERVICES:
        heard = {error.everything for each in METHODS if service in each and (error := await town.error(each))}
        assert len(heard) == 1


async def test_the_log_tells_why_and_holds_no_token(town: Guarded) -> None:
    forged = {name: token for name, token in tokens.forged().items() if len(token) > len("letmein")}
    for shown in (*map(bearing, forged.values()), bearing(token_of("shop") + "x")):
        await town.error(REFUND, shown)
    for server in (town.town.command, town.town.query):
        assert {entry["identity"] for entry in refusals_logged(server)} <= {None, "till-jwt"}
        said = server.text()
        assert not any(token in said for token in forged.values())
        assert token_of("shop")[:-1] not in said


# ---------------------------------------------------------------- plaintext
def _own_address() -> str:
    """An address of this machine by which others reach it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])
    # The law `by_static_token` proves the refusal on any machine; this test proves it through a port.
    pytest.skip("this machine has no address but loopback")


@contextlib.asynccontextmanager
async def _plaintext(folder: Path, host: str, **more: str) -> AsyncIterator[int]:
    """A command server with a policy and without TLS."""
    (folder / "policy.toml").write_text(a_policy(SHOP, OF_JWT))
    (folder / "jwks.json").write_bytes(tokens.key_set())
    port = int(free_address().rpartition(":")[2])
    chosen = {
        "COMMAND_LISTEN": f"{host}:{port}",
        "COMMAND_FEED_LISTEN": "127.0.0.1:0",
        "COMMAND_JOURNAL": f"sqlite:///{folder / 'journal.db'}",
        "COMMAND_POLICY": str(folder / "policy.toml"),
    }
    server = Server("command_service", {**chosen, **more}, folder / "command.log")
    try:
        await server.start()
        yield port
    finally:
        await server.kill()


async def _reason(address: str, shown: Shown) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        metadata = [("authorization", value) for value in shown.authorization]
        charge: Any = channel.unary_unary(CHARGE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await charge(b"", metadata=metadata, timeout=20)
        return told(caught.value).reason


async def test_a_token_is_taken_over_plaintext_from_this_machine(tmp_path: Path) -> None:
    async with _plaintext(tmp_path, "127.0.0.1") as port:
        for good in (as_identity("shop"), bearing(tokens.signed())):
            assert await _reason(f"127.0.0.1:{port}", good) == "INVALID_REQUEST"
        for bad in (NOTHING, bearing(tokens.forged()["expired"])):
            assert await _reason(f"127.0.0.1:{port}", bad) == "UNAUTHENTICATED"


async def test_a_token_that_came_over_plaintext_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """Whoever reads along has it, too. The log advises to replace it."""
    own = _own_address()
    async with _plaintext(tmp_path, "0.0.0.0", COMMAND_OPEN="yes") as port:
        for good in (as_identity("shop"), bearing(tokens.signed())):
            assert await _reason(f"127.0.0.1:{port}", good) == "INVALID_REQUEST"
            assert await _reason(f"{own}:{port}", good) == "UNAUTHENTICATED"
    assert "its token came over a plaintext connection" in (tmp_path / "command.log").read_text()
