"""Three server processes with mutual TLS and a policy of two tenants, and clients with certificates or tokens.

`a` and `b` belong to tenants of these names and may charge, refund and read. `reader` may only read, for tenant `a`, and `desk`
only operate; `operator` operates for all tenants.
"""

import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx

from charging.v1 import command_pb2_grpc, journal_pb2_grpc, operator_pb2_grpc, query_pb2_grpc
from judge.files import movements_of
from judge.history import Movement
from rig.certs import HERE, TRUST, Authority, write_secret
from rig.processes import Town, free_address
from tests.security.tokens import AUDIENCE, ISSUER, key_set

# Of a till and of a query server that exist in tests only.
STATIC_TOKEN = "static-J6pZ1w0mTqUu8yXc4hRk"
FEED_TOKEN = "feed-Qm3x9ZtV5bLw7kGs2nHd"
_TENANTS_CLIENT = """
[[identities]]
name = "{name}"
certificate_uri = "{trust}/{name}"
tenant = "{name}"
roles = ["charge", "refund", "read"]
"""
_POLICY = f"""
[jwt]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
keys = "jwks.json"
{_TENANTS_CLIENT.format(name="a", trust=TRUST)}{_TENANTS_CLIENT.format(name="b", trust=TRUST)}
[[identities]]
name = "reader"
certificate_uri = "{TRUST}/reader"
tenant = "a"
roles = ["read"]

[[identities]]
name = "till"
token_sha256 = "{hashlib.sha256(STATIC_TOKEN.encode()).hexdigest()}"
tenant = "a"
roles = ["charge", "read"]

[[identities]]
name = "shop-jwt"
jwt_subject = "shop-jwt"
tenant = "a"
roles = ["charge", "read"]

[[identities]]
name = "desk"
certificate_uri = "{TRUST}/desk"
tenant = "a"
roles = ["operate"]

[[identities]]
name = "operator"
certificate_uri = "{TRUST}/operator"
roles = ["operate"]

[[identities]]
name = "query-server"
token_sha256 = "{hashlib.sha256(FEED_TOKEN.encode()).hexdigest()}"
roles = ["feed"]
"""


@dataclass(frozen=True)
class Client:
    """A client of all ports."""

    commands: Any
    queries: Any
    feed: Any
    desk: Any
    channels: Sequence[grpc.aio.Channel]
    """To the command server, the query server and the feed."""


@dataclass(frozen=True)
class TwoTenants:
    """The servers, their authority, and the folder of the clients' certificates."""

    town: Town
    authority: Authority
    clients: Path
    metrics: Sequence[str] = field(default_factory=lambda: [free_address(), free_address()])
    """Where the command server and the query server offer their gauges."""
    _open: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def policy(self) -> Path:
        """The policy's file."""
        assert self.town.certificates is not None
        return self.town.certificates / "policy.toml"

    def shown(self, name: str, *, uris: Sequence[str] | None = None, dns: Sequence[str] = ()) -> Path:
        """The folder of a client's certificate, which is issued if there is none yet."""
        folder = self.clients / name
        if not folder.exists():
            uris = [f"{TRUST}/{name}"] if uris is None else uris
            self.authority.issue(folder, uris=uris, dns=dns, client_only=True)
        return folder

    async def client(self, name: str, **options: Any) -> Client:
        """Connect, with the certificate of this name."""
        folder = self.shown(name)
        files = [(folder / file).read_bytes() for file in ("ca.crt", "tls.key", "tls.crt")]
        credentials = grpc.ssl_channel_credentials(*files)
        ports = (self.town.command.listen, self.town.query.listen, str(self.town.command.serving["feed"]))
        channels = [grpc.aio.secure_channel(port, credentials, **options) for port in ports]
        for channel in channels:
            await self._open.enter_async_context(channel)
        return Client(
            command_pb2_grpc.CommandServiceStub(channels[0]),
            query_pb2_grpc.QueryServiceStub(channels[1]),
            journal_pb2_grpc.JournalServiceStub(channels[2]),
            operator_pb2_grpc.OperatorServiceStub(channels[0]),
            channels,
        )

    def http(self, name: str = "reader") -> httpx.AsyncClient:
        """A client of HTTP, with the certificate of this name."""
        folder = self.shown(name)
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        return httpx.AsyncClient(verify=context, trust_env=False, timeout=30)

    async def movements(self) -> list[Movement]:
        """All money that the bank moved."""
        async with self.http() as http:
            return movements_of((await http.get(f"{self.town.bank_url}/statement")).raise_for_status().json())

    async def gauges(self) -> list[str]:
        """What both servers tell of themselves."""
        async with self.http() as http:
            pages = [await http.get(f"https://{address}/metrics") for address in self.metrics]
        return [page.raise_for_status().text for page in pages]


@contextlib.asynccontextmanager
async def two_tenants(folder: Path, **settings: str) -> AsyncIterator[TwoTenants]:
    """Start all servers, with their files below a folder. `settings` are the command server's.

    The query server shows the feed a token.
    """
    authority, certificates = Authority(), folder / "certificates"
    for server in ("bank", "command", "query"):
        authority.issue(certificates / server, dns=["localhost"], ips=HERE, uris=[f"{TRUST}/{server}"])
    (certificates / "policy.toml").write_text(_POLICY)
    (certificates / "jwks.json").write_bytes(key_set())
    feed_token = certificates / "feed.token"
    write_secret(feed_token, FEED_TOKEN.encode())
    made = TwoTenants(Town(folder / "town", certificates), authority, folder / "clients")
    try:
        await made.town.start_bank()
        await made.town.start_command(COMMAND_METRICS_LISTEN=made.metrics[0], **settings)
        await made.town.start_query(QUERY_METRICS_LISTEN=made.metrics[1], QUERY_FEED_TOKEN_FILE=str(feed_token))
        async with made._open:
            yield made
    finally:
        await made.town.__aexit__()
