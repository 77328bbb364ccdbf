"""Whatever strangers call themselves, each line of a log stays one entry that the server wrote, and no name is another's."""

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from charging.v1.command_pb2 import RefundRequest
from charging.v1.query_pb2 import GetChargeRequest, ListChargesRequest
from rig.certs import TRUST
from rig.errors import refused
from rig.processes import Server
from rig.world import CHARGED, a_request, until
from tests.security.tokens import claims, signed
from tests.security.two_tenants import TwoTenants, two_tenants

FORGED = '{"event": "forged", "level": "info"}'
STRANGE = {
    "a line of its own": f"\n{FORGED}\n",
    "other line ends": f"\r{FORGED}\r\n\x0b\x0c{FORGED}",
    "an end of the text": f'", "event": "forged"}}\n{FORGED}',
    "a terminal's commands": "\x1b[2J\x1b]0;forged\x07\x1b[31m",
    "quotes and escapes": "\"'\\\\u000a\\n${jndi:ldap://x}%n%s{0}",
    "long": "x" * 4_000,  # with 10,000 gRPC itself ends the handshake
}


def entries(server: Server) -> Sequence[dict[str, Any]]:
    """Each line of a log, all of which must be entries."""
    lines = server.log.read_bytes().split(b"\n")
    assert lines[-1] == b"", "the last line has an end"
    read = [json.loads(line) for line in lines[:-1]]
    for line, entry in zip(lines, read, strict=False):
        assert isinstance(entry, dict) and {"event", "level", "timestamp"} <= set(entry)
        assert all(byte >= 0x20 for byte in line), "no character that a terminal obeys, and none that ends a line"
        assert len(line) < 5_000
    return read


async def refused_for(servers: TwoTenants, why: str) -> Sequence[dict[str, Any]]:
    """The entries of refused calls with this reason, of both servers, once there is one."""

    def found() -> Sequence[dict[str, Any]]:
        both = [*entries(servers.town.command), *entries(servers.town.query)]
        return [entry for entry in both if entry.get("why") == why]

    await until(found)
    return found()


async def test_strange_names_stay_inside_their_entries(tmp_path: Path) -> None:
    """Of certificates that our authority issued, of subjects of signed tokens, of users, keys, programs and page tokens."""
    async with two_tenants(tmp_path) as servers:
        known = await servers.client("a")
        for n, text in enumerate(STRANGE.values()):
            name = f"stranger-{n}"
            servers.shown(name, uris=[f"{TRUST}/a{text}"])
            stranger = await servers.client(name)
            for call in (stranger.commands.Charge(a_request()), stranger.queries.GetCharge(GetChargeRequest())):
                error = await refused(call)
                assert error.reason == "UNAUTHENTICATED", text
            token = signed(claims(sub=text[:2_000]))
            bearer = {"metadata": [("authorization", f"Bearer {token}")]}
            assert (await refused(known.commands.Charge(a_request(), **bearer))).reason == "UNAUTHENTICATED"
            await _requests_with(known, text)
            await until(lambda: entries(servers.town.command))
        await _raw_lines(servers)
        shown = [
            *await refused_for(servers, "the policy knows no name of its certificate"),
            *await refused_for(servers, "the policy does not know the subject of its token"),
        ]
        assert (await known.commands.Charge(a_request())).status == CHARGED
        told = json.dumps([entry["shown"] for entry in shown])
        assert json.dumps(f"{TRUST}/a{STRANGE['a line of its own']}")[1:-1] in told, "the operator sees the name"
        for server in (servers.town.command, servers.town.query, servers.town.bank):
            assert await server.stop() == 0
            assert not [entry for entry in entries(server) if "forged" in entry["event"]]


async def _requests_with(known: Any, text: str) -> None:
    calls = [
        known.commands.Charge(a_request(user_id=text)),
        known.commands.Charge(a_request(text)),
        known.commands.Charge(a_request(metadata={text: text})),
        known.commands.Refund(RefundRequest(idempotency_key=text, charge_id=text, reason=text)),
        known.queries.ListCharges(ListChargesRequest(page_token=text)),
        known.queries.GetCharge(GetChargeRequest(idempotency_key=f"{text}?"[:255])),
    ]
    for call in calls:  # a few texts may be keys and users
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call


async def _raw_lines(servers: TwoTenants) -> None:
    """Requests of HTTP/1.1 to the gauges and the bank, with a forged entry in every part; and no TLS at all."""
    request = f"GET /%0a{FORGED} HTTP/1.1\r\nHost: x\r\nUser-Agent: \x1b[31m\r\n {FORGED}\r\n{FORGED}\r\n\r\n"
    async with servers.http() as http:
        for address in (*servers.metrics, servers.town.bank.listen):
            await http.get(f"https://{address}/%0A{FORGED}", headers={"user-agent": FORGED, "x-forged": FORGED})
    for address in (*servers.metrics, servers.town.bank.listen, servers.town.command.listen, servers.town.query.listen):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(f"{FORGED}\n{request}".encode())


NEARLY_A = {
    "NUL": f"{TRUST}/a\0.evil.example",
    "newline": f"{TRUST}/a\n",
    "two in one": f"{TRUST}/a, URI:{TRUST}/a",
    "capitals": f"{TRUST}/a".upper(),
    "escaped": f"{TRUST}/%61",
    "longer path": f"{TRUST}/a/",
}


async def test_a_name_that_looks_like_anothers_is_not_his(tmp_path: Path) -> None:
    """A certificate of our authority with a name that a careless comparison takes for A's, or with A's as another kind."""
    async with two_tenants(tmp_path) as servers:
        for name, uri in NEARLY_A.items():
            servers.shown(name, uris=[uri])
        servers.shown("a host name", uris=[], dns=[f"{TRUST}/a", "a"])
        for name in (*NEARLY_A, "a host name"):
            stranger = await servers.client(name)
            for call in (stranger.commands.Charge(a_request()), stranger.queries.GetCharge(GetChargeRequest())):
                assert (await refused(call)).reason == "UNAUTHENTICATED", name
