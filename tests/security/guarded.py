"""Servers with a policy, as processes of their own, and clients that show them one credential or another."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from charging.v1 import command_pb2, journal_pb2, operator_pb2, query_pb2
from rig.certs import HERE, TRUST, Authority
from rig.errors import Told, told
from rig.processes import Server, Town, free_address
from tests.security import tokens

Used = TypeVar("Used")

CALL_SECONDS = 60.0
# A policy's file is looked at each second, and open streams each second; the rest is for a machine that is busy.
TAKES_EFFECT_SECONDS = 30.0

SERVICES = {
    service.full_name: service
    for module in (command_pb2, query_pb2, journal_pb2, operator_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}
METHODS = [f"/{name}/{method.name}" for name, service in SERVICES.items() for method in service.methods]
CHARGE, REFUND = "/charging.v1.CommandService/Charge", "/charging.v1.CommandService/Refund"
STATUS, WATCH = "/charging.v1.QueryService/GetViewStatus", "/charging.v1.QueryService/WatchCharge"
GET = "/charging.v1.QueryService/GetCharge"
SUBSCRIBE = "/charging.v1.JournalService/Subscribe"
ONE_OF_EACH = (CHARGE, STATUS, SUBSCRIBE)
# They tell of all tenants together.
OF_ALL = ("/charging.v1.OperatorService/Reconcile", "/charging.v1.OperatorService/ListReconciliations")
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


# ---------------------------------------------------------------- what a policy says
def token_of(name: str) -> str:
    """The static token by which every identity of these policies is known."""
    return f"secret-of-{name}"


def an_identity(name: str, *roles: str, tenant: str = "shop", **known_by: str) -> str:
    """An identity of a policy, known by its token, and by more if given."""
    digest = hashlib.sha256(token_of(name).encode()).hexdigest()
    said = {"name": name, **({"tenant": tenant} if tenant else {}), "token_sha256": digest, **known_by}
    lines = [*(f"{key} = {json.dumps(value)}" for key, value in said.items()), f"roles = {json.dumps(roles)}"]
    return "\n".join(["[[identities]]", *lines, ""])


JWT = f'[jwt]\nissuer = "{tokens.ISSUER}"\naudience = "{tokens.AUDIENCE}"\nkeys = "jwks.json"\n'
SHOP = an_identity("shop", "charge", "refund", "read", certificate_uri=f"{TRUST}/shop")
READER = an_identity("query-server", "feed", tenant="", certificate_uri=f"{TRUST}/query")
OF_JWT = an_identity("shop-jwt", "charge", "refund", "read", "feed", jwt_subject="shop-jwt")


def a_policy(*identities: str) -> str:
    return "\n".join([JWT, *identities])


# ---------------------------------------------------------------- what a client shows
@dataclass(frozen=True)
class Shown:
    """What a client shows: the certificate in a folder, and headers of authorization."""

    certificate: Path | None = None
    authorization: tuple[str | bytes, ...] = ()


NOTHING = Shown()


def bearing(token: str, certificate: Path | None = None) -> Shown:
    return Shown(certificate, (f"Bearer {token}",))


def as_identity(name: str) -> Shown:
    return bearing(token_of(name))


# ---------------------------------------------------------------- the servers
@dataclass
class Guarded:
    """A town with a policy. `addresses` are by service, and those of the gauges as `command metrics`, `query metrics`."""

    town: Town
    authority: Authority
    addresses: dict[str, str] = field(default_factory=dict)
    _channels: dict[tuple[str, Path | None], grpc.aio.Channel] = field(default_factory=dict)

    @property
    def certificates(self) -> Path:
        assert self.town.certificates is not None
        return self.town.certificates

    @property
    def policy(self) -> Path:
        return self.certificates / "policy.toml"

    def replace(self, file: Path, content: str | bytes) -> None:
        """Replace a file at once, as a mounted secret is."""
        new = file.with_suffix(".new")
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        new.replace(file)

    def client(self, name: str, **more: Any) -> Path:
        """Issue a client's certificate; without other names it has the URI of an identity."""
        return self.authority.issue(
            self.certificates / "clients" / name, client_only=True, **(more or {"uris": [f"{TRUST}/{name}"]})
        )

    def channel(self, service: str, certificate: Path | None = None) -> grpc.aio.Channel:
        """A channel to the port of a service, kept for further calls."""
        key = self.addresses[service], certificate
        if key not in self._channels:
            pair = [(certificate / name).read_bytes() for name in ("tls.key", "tls.crt")] if certificate else []
            credentials = grpc.ssl_channel_credentials(self.authority.pem, *pair)
            self._channels[key] = grpc.aio.secure_channel(key[0], credentials, [("grpc.use_local_subchannel_pool", 1)])
        return self._channels[key]

    def call(self, method: str, shown: Shown = NOTHING, request: Any = None, channel: Any = None) -> Any:
        """Call a method, whatever its kind: the answers are a stream of bytes."""
        made: Any = channel or self.channel(method.split("/")[1], shown.certificate)
        return made.unary_stream(method)(
            request.SerializeToString() if request is not None else b"",
            metadata=[("authorization", value) for value in shown.authorization],
            timeout=CALL_SECONDS,
        )

    async def ask(self, method: str, shown: Shown = NOTHING, request: Any = None, channel: Any = None) -> bytes:
        """Call a method and return its first answer. Raises AioRpcError."""
        call = self.call(method, shown, request, channel)
        try:
            return bytes(await anext(aiter(call)))
        finally:
            call.cancel()

    async def error(self, method: str, shown: Shown = NOTHING, request: Any = None, channel: Any = None) -> Told | None:
        """Call a method and return its error; None if it is answered."""
        try:
            await self.ask(method, shown, request, channel)
        except grpc.aio.AioRpcError as error:
            return told(error)
        return None

    async def is_permitted(self, method: str, shown: Shown) -> bool:
        """Whether the gate lets a call through, whatever the service says to it then."""
        error = await self.error(method, shown)
        if error is None:
            return True
        assert error.reason, error  # of a server, not of the network
        return error.code not in REFUSALS

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self.town.__aexit__()


@asynccontextmanager
async def guarded(
    folder: Path, policy: str, *, client_certificates: bool, host: str = "127.0.0.1", **more: str
) -> AsyncIterator[Guarded]:
    """A bank, a command server and a query server that ask for identities over TLS, with all ports on this host's address.

    Without client certificates the query server shows the feed its token.
    """
    authority, certificates = Authority(), folder / "certs"
    for server in ("bank", "command", "query"):
        authority.issue(certificates / server, dns=["localhost"], ips=HERE, uris=[f"{TRUST}/{server}"])
    (certificates / "policy.toml").write_text(policy)
    (certificates / "jwks.json").write_bytes(tokens.key_set())
    made = Guarded(Town(folder, certificates), authority)
    (folder / "feed.token").write_text(token_of("query-server"))
    asked = "yes" if client_certificates else "no"
    here = [free_address() for _ in range(5)]
    there = [f"{host}:{each.rpartition(':')[2]}" for each in here]
    names = ("CommandService", "JournalService", "QueryService")
    made.addresses.update({f"charging.v1.{name}": address for name, address in zip(names, here, strict=False)})
    made.addresses["charging.v1.OperatorService"] = here[0]
    made.addresses.update({"command metrics": here[3], "query metrics": here[4]})
    # As the town's own description of itself: it knows the command server's ports from there.
    made.town.command.serving = {"listen": there[0], "feed": there[1]}
    try:
        await made.town.start_bank()
        await made.town.start_command(
            COMMAND_METRICS_LISTEN=there[3],
            COMMAND_CLIENT_CERTIFICATES=asked,
            COMMAND_BANK_URL=made.town.bank_url,
            **more,
        )
        await made.town.start_query(
            QUERY_LISTEN=there[2],
            QUERY_FEED=here[1],
            QUERY_METRICS_LISTEN=there[4],
            QUERY_CLIENT_CERTIFICATES=asked,
            **({} if client_certificates else {"QUERY_FEED_TOKEN_FILE": str(folder / "feed.token")}),
            **more,
        )
        await made.town.query.logged("the view has caught up")
        yield made
    finally:
        await made.close()


# ---------------------------------------------------------------- what a test waits for
async def becomes(seen: Callable[[], Any], seconds: float = TAKES_EFFECT_SECONDS) -> None:
    """Wait until something is seen, no longer than so many seconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        value = seen()
        if await value if asyncio.iscoroutine(value) else value:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not seen within {seconds} seconds")


async def in_time(use: Callable[[int], Awaitable[Used]]) -> Used:
    """Use a credential before it ends, at a time in seconds since 1970; a lasting one where the machine is too slow for it."""
    for seconds in (3, 10, 30):
        ends_at = int(time.time()) + seconds
        try:
            return await use(ends_at)
        except (grpc.aio.AioRpcError, AssertionError):
            if time.time() < ends_at:
                raise
    raise AssertionError("too slow for a credential that lasts 30 seconds")


async def a_new_second() -> None:
    """Wait until the log takes refused calls again: it takes a number of them each second."""
    await asyncio.sleep(1.05 - time.time() % 1)


async def end_of(call: Any) -> Told:
    """Read a stream to its end, which is an error."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return told(error)
    raise AssertionError("the stream ended in order")


def refusals_logged(server: Server) -> list[dict[str, Any]]:
    return [entry for entry in server.entries() if entry["event"] == "a call was refused"]
