"""The command server and its bank over TLS: to a bank that it does not trust, or that does not trust it, no money moves."""

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import CHARGE_STATUS_CHARGED, Card, Money
from rig.certs import DAY, HERE, Authority
from rig.processes import DidNotStart, Town
from tests.tls.probes import NOW

REQUEST = ChargeRequest(
    idempotency_key="order-1",
    user_id="alice",
    card=Card(token="tok_visa"),
    amount=Money(minor_units=1250, currency_code="EUR"),
)


class Front:
    """TLS in front of a bank that speaks plaintext. It may show anything, and counts the bytes that came through.

    It has threads and OpenSSL's own sockets: asyncio closes a connection without the alert that says why.
    """

    def __init__(self, bank: str) -> None:
        host, _, port = bank.rpartition(":")
        self._bank = host, int(port)
        self.port = 0
        self.bytes_in = 0

    @contextmanager
    def open(self, tls: ssl.SSLContext) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.port = listening.getsockname()[1]
            threading.Thread(target=self._accept, args=(listening, tls), daemon=True).start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket, tls: ssl.SSLContext) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._pass, args=(listening.accept()[0], tls), daemon=True).start()

    def _pass(self, line: socket.socket, tls: ssl.SSLContext) -> None:
        with (
            suppress(OSError),
            tls.wrap_socket(line, server_side=True) as outer,
            socket.create_connection(self._bank) as inner,
        ):
            while True:
                for source in select.select([outer, inner], [], [])[0]:
                    if not (got := source.recv(65536)):
                        return
                    self.bytes_in += len(got) if source is outer else 0
                    (inner if source is outer else outer).sendall(got)


def server_context(shown: Path, clients_of: bytes | None = None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(shown / "tls.crt", shown / "tls.key")
    if clients_of is not None:
        made.load_verify_locations(cadata=clients_of.decode())
        made.verify_mode = ssl.CERT_REQUIRED
    return made


async def movements(town: Town) -> list[Any]:
    # The bank's own port, in plaintext.
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as client:
        return list((await client.get(f"http://{town.bank.listen}/statement")).json()["movements"])


def other_authority(folder: Path, _: Authority) -> ssl.SSLContext:
    return server_context(Authority().issue(folder, ips=HERE))


def expired(folder: Path, ours: Authority) -> ssl.SSLContext:
    return server_context(ours.issue(folder, ips=HERE, not_before=NOW - 3 * DAY, not_after=NOW - DAY))


def wrong_host(folder: Path, ours: Authority) -> ssl.SSLContext:
    return server_context(ours.issue(folder, dns=["localhost"], ips=["127.0.0.2"], common_name="127.0.0.1"))


def clients_of_another(folder: Path, ours: Authority) -> ssl.SSLContext:
    """The bank's own certificate is right, and it takes no client of ours."""
    return server_context(ours.issue(folder, ips=HERE), Authority("other").pem)


@pytest.mark.parametrize(
    ("show", "why"),
    [
        (other_authority, "its certificate is of no authority that we trust"),
        (expired, "its certificate has expired"),
        (wrong_host, "its certificate is for another address"),
        (clients_of_another, "it does not accept our certificate"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_nothing_is_sent_where_one_side_is_not_trusted_and_the_charge_goes_on_when_that_is_mended(
    show: Callable[[Path, Authority], ssl.SSLContext], why: str, tmp_path: Path
) -> None:
    ours, town = Authority(), Town(tmp_path)
    ours.issue(tmp_path / "command", client_only=True)
    right = server_context(ours.issue(tmp_path / "bank", ips=HERE), ours.pem)
    try:
        await town.start_bank()
        front = Front(town.bank.listen)
        with front.open(show(tmp_path / "shown", ours)):
            bank = {
                "COMMAND_BANK_URL": f"https://127.0.0.1:{front.port}",
                "COMMAND_BANK_TLS": str(tmp_path / "command"),
            }
            await town.start_command(**bank)
            async with grpc.aio.insecure_channel(town.command.listen) as channel:
                charging = asyncio.ensure_future(
                    command_pb2_grpc.CommandServiceStub(channel).Charge(REQUEST, timeout=2)
                )
                await town.command.logged("the bank gave no answer")
                with suppress(grpc.aio.AioRpcError):
                    await charging
        told = [each for each in town.command.entries() if str(each.get("why")).startswith(why)]
        assert {(each["level"], each["our_setup"]) for each in told} == {("error", True)}
        assert front.bytes_in == 0
        assert await movements(town) == []
        with front.open(right):
            async with grpc.aio.insecure_channel(town.command.listen) as channel:
                answer = await command_pb2_grpc.CommandServiceStub(channel).Charge(REQUEST, timeout=60)
        assert answer.status == CHARGE_STATUS_CHARGED
        assert len(await movements(town)) == 1
    finally:
        await town.__aexit__()


async def test_new_connections_to_the_bank_show_the_present_certificate(tmp_path: Path) -> None:
    """The bank takes clients of a new authority only: the files are replaced, and the charge goes on, without a restart."""
    former, ours, town = Authority("former"), Authority("present"), Town(tmp_path)
    former.issue(tmp_path / "command", client_only=True, trusting=ours.pem)
    try:
        await town.start_bank()
        front = Front(town.bank.listen)
        with front.open(server_context(ours.issue(tmp_path / "bank", ips=HERE), ours.pem)):
            bank = {
                "COMMAND_BANK_URL": f"https://127.0.0.1:{front.port}",
                "COMMAND_BANK_TLS": str(tmp_path / "command"),
            }
            await town.start_command(**bank)
            async with grpc.aio.insecure_channel(town.command.listen) as channel:
                stub = command_pb2_grpc.CommandServiceStub(channel)
                charging = asyncio.ensure_future(stub.Charge(REQUEST, timeout=60))
                await town.command.logged("the bank gave no answer")
                ours.issue(tmp_path / "command", client_only=True)
                assert (await charging).status == CHARGE_STATUS_CHARGED
        assert len(await movements(town)) == 1
    finally:
        await town.__aexit__()


async def test_certificates_for_a_bank_in_plaintext_are_a_mistake_and_plaintext_beyond_loopback_is_warned_of(
    tmp_path: Path,
) -> None:
    Authority().issue(tmp_path / "command", client_only=True)
    town = Town(tmp_path)
    mistake = {"COMMAND_BANK_URL": "http://127.0.0.1:1", "COMMAND_BANK_TLS": str(tmp_path / "command")}
    try:
        await town.start_bank()
        with pytest.raises(DidNotStart, match="is https meant"):
            await town.start_command(**mistake)
        await town.start_command(COMMAND_BANK_URL="http://bank.example")
        await town.command.logged("the bank is called in plaintext: others may read the calls, and answer them")
    finally:
        await town.__aexit__()
