"""Tokens and private keys stay where they belong: no file, log, error, gauge or process tells one, whatever goes wrong."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from charging.v1 import command_pb2_grpc
from charging.v1.query_pb2 import GetUserSummaryRequest
from rig.errors import refused, told
from rig.processes import Server, Town
from rig.world import CHARGED, a_request, until
from tests.security.tokens import EC_KEY, forged, signed
from tests.security.two_tenants import FEED_TOKEN, STATIC_TOKEN, TwoTenants, two_tenants

TAIL = 24  # the end of a token, its signature, is as secret as the whole


def _forms(secret: bytes) -> set[bytes]:
    """A secret as it is, and as programs tend to show bytes."""
    return {secret, base64.b64encode(secret).rstrip(b"="), secret.hex().encode(), secret.hex(":").encode()}


def _of_key(pem: bytes) -> set[bytes]:
    """A private key's secret number, and the lines of its file."""
    key: Any = load_pem_private_key(pem, None)
    number = key.private_numbers().private_value
    lines = {line for line in pem.splitlines() if not line.startswith(b"-----")}
    return lines | _forms(number.to_bytes(32, "big")) | {str(number).encode()}


@dataclass
class Search:
    """What must not be found, and where it may stand."""

    secrets: set[bytes] = field(default_factory=set)
    owners: set[Path] = field(default_factory=set)

    def token(self, token: str) -> str:
        """Look for a token from now on."""
        self.secrets |= _forms(token.encode()) | {token.encode()[-TAIL:]}
        return token

    def found(self, texts: Iterable[bytes]) -> list[bytes]:
        """The secrets that these texts tell."""
        pattern = re.compile(b"|".join(map(re.escape, sorted(self.secrets, key=len, reverse=True))))
        return [match[0] for text in texts for match in pattern.finditer(text)]

    def found_in(self, folder: Path) -> dict[Path, list[bytes]]:
        """The same by file, for all files that are no secret's own."""
        files = [path for path in folder.rglob("*") if path.is_file() and path not in self.owners]
        return {path: found for path in files if (found := self.found([path.read_bytes()]))}


@dataclass(frozen=True)
class Tried:
    """The servers after all that went well and badly, and the errors that clients were told."""

    servers: TwoTenants
    search: Search
    errors: list[bytes]
    folder: Path


def _bearer(token: str) -> dict[str, Any]:
    return {"metadata": [("authorization", f"Bearer {token}")], "timeout": 20}


async def _call_with_tokens(servers: TwoTenants, search: Search, errors: list[bytes]) -> None:
    client = await servers.client("nobody")
    for token in (STATIC_TOKEN, search.token(signed())):
        assert (await client.commands.Charge(a_request(), **_bearer(token))).status == CHARGED
        await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="alice"), **_bearer(token))
    errors.append(
        (await refused(client.commands.Charge(a_request(user_id="no name"), **_bearer(STATIC_TOKEN)))).everything
    )
    for token in [*forged().values(), STATIC_TOKEN[:-1], f"{STATIC_TOKEN} "]:
        if token[-1:] >= "a" and 30 < len(token) < 4_000:
            search.token(token)
        try:
            await client.commands.Charge(a_request(), **_bearer(token))
        except grpc.aio.AioRpcError as error:
            errors.append(told(error).everything)
    for token in (STATIC_TOKEN, signed()):  # as other headers, and over a port of HTTP
        async with servers.http() as http:
            for address in servers.metrics:
                headers = {"authorization": f"Basic {search.token(token)}"}
                errors.append((await http.get(f"https://{address}/metrics", headers=headers)).content)


BROKEN_POLICIES = (
    f'[[identities]]\nname = "till"\ntenant = "a"\nroles = ["charge"]\ntoken_sha256 = "{STATIC_TOKEN}"\n',
    f'[[identities]]\nname = "till"\ntenant = "a"\nroles = ["{STATIC_TOKEN}"]\n',
    f'[[identities]]\nname = "till"\ntenant = "a"\nroles = ["charge"]\n{STATIC_TOKEN} = "token"\n',
    f'[[identities]]\nname = "{STATIC_TOKEN}"\n[[identities]]\nname = "{STATIC_TOKEN}"\n',
    f"[tenants.{STATIC_TOKEN}]\nweight = 1\n[tenants.{STATIC_TOKEN}]\nweight = 1\n",
    f"{STATIC_TOKEN} = 1\n{STATIC_TOKEN} = 2\n",
    f"{STATIC_TOKEN} = {'9' * 5_000}\n",
    f'token = "{STATIC_TOKEN}\n',
)


async def _refused_files(server: Server, count: int) -> None:
    """Wait until a server has refused so many states of its files."""
    event = "files cannot be used: the former ones stay in use"
    await until(lambda: sum(entry["event"] == event for entry in server.entries()) >= count)


async def _break_files(servers: TwoTenants) -> None:
    """Break the policy in many ways, then the keys, then restore them."""
    certificates, server_of = servers.policy.parent, {"command": servers.town.command, "query": servers.town.query}
    good = servers.policy.read_bytes()
    for n, broken in enumerate(BROKEN_POLICIES, 1):
        servers.policy.write_text(broken)
        for server in server_of.values():
            await _refused_files(server, n)
    servers.policy.write_bytes(good)
    for name in server_of:
        key = certificates / name / "tls.key"
        key.write_bytes(key.read_bytes()[:-60])
    for server in server_of.values():
        await _refused_files(server, len(BROKEN_POLICIES) + 1)


@pytest.fixture
async def tried(tmp_path: Path) -> AsyncIterator[Tried]:
    search, errors = Search(), list[bytes]()
    async with two_tenants(tmp_path) as servers:
        for name in ("a", "b", "nobody", "reader"):
            servers.shown(name)
        for path in tmp_path.rglob("tls.key"):
            search.owners.add(path)
            search.secrets |= _of_key(path.read_bytes())
        search.owners.add(servers.policy.parent / "feed.token")
        for token in (STATIC_TOKEN, FEED_TOKEN):
            search.token(token)
        await _call_with_tokens(servers, search, errors)
        await _break_files(servers)
        yield Tried(servers, search, errors, tmp_path)


async def test_no_secret_is_told_after_good_calls_bad_calls_and_broken_files(tried: Tried) -> None:
    """In no file but its own, error, gauge, printed journal, or what /proc tells of a process; and no crash dumps memory."""
    search, servers = tried.search, tried.servers
    assert await servers.town.operate("print-journal") == 0
    assert await servers.town.operate("check-policy", str(servers.policy)) == 0
    assert search.found_in(tried.folder) == {}
    assert len(tried.errors) > 20
    assert search.found(tried.errors) == []
    assert search.found(page.encode() for page in await servers.gauges()) == []
    for server in (servers.town.bank, servers.town.command, servers.town.query):
        process = Path(f"/proc/{server.pid}")
        assert search.found((process / name).read_bytes() for name in ("cmdline", "environ")) == []
        limits = (process / "limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits), limits


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    """A token in whole or its end, and a key as its file has it and as a number."""
    pem = EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    search = Search(_of_key(pem))
    token = search.token(signed())
    number = EC_KEY.private_numbers().private_value
    for planted in (token, token[-30:], pem.decode(), str(number), f"{number:064x}"):
        (tmp_path / "log").write_text(f"text {planted} text")
        assert search.found_in(tmp_path), planted


async def test_an_unforeseen_error_tells_nothing_of_the_calls_metadata(tmp_path: Path) -> None:
    """Neither to the client, nor to the log, nor through what asyncio and grpc report of errors that nobody takes."""
    token_sha256 = hashlib.sha256(STATIC_TOKEN.encode()).hexdigest()
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'[[identities]]\nname = "till"\ntenant = "a"\nroles = ["charge"]\ntoken_sha256 = "{token_sha256}"\n'
    )
    search, town = Search(), Town(tmp_path)
    search.token(STATIC_TOKEN)
    town.command = Server("tests.security.failing", {"COMMAND_POLICY": str(policy)}, tmp_path / "command.log")
    async with town:
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            stub: Any = command_pb2_grpc.CommandServiceStub(channel)
            error = await refused(stub.Charge(a_request(), **_bearer(STATIC_TOKEN)))
        assert await town.command.stop() == 0
    events = [entry["event"] for entry in town.command.entries()]
    assert (error.reason, "a call failed unexpectedly" in events) == ("UNEXPECTED", True)
    assert "library warning" in events, "asyncio has reported the other error"
    assert search.found([error.everything]) == []
    assert search.found_in(tmp_path) == {}
