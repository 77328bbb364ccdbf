"""The servers of one tour, and the roads by which a client gets to them: quiet or troubled, in plaintext or with TLS."""

import asyncio
import contextlib
import hashlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chassis.tls import ClientTls
from prove.network.faultproxy import Fault, Kind, Proxy, Way
from rig import certs
from rig.ports import town_with_kept_ports
from rig.processes import Server, Town
from rig.referee import Referee

# Some seconds less than a client waits before it tries anew, so that a tour meets several faults and still goes on.
PAUSE_SECONDS = (0.5, 2.5)
# For a machine on which a start takes as long as a step.
MOST_ROUNDS = 8
# The whole tour is some ten thousand bytes each way.
CUTS_AT_BYTES, MOST_BYTES = 8, 1_500
CUTS_AT_TIMES = 3
POLICY = """\
[[identities]]
name = "tour"
token_sha256 = "{client}"
tenant = "shop"
roles = ["charge", "refund", "read"]

[[identities]]
name = "query-server"
token_sha256 = "{feed}"
roles = ["feed"]
"""


@dataclass
class Road:
    """What a client is given, and what it met."""

    town: Town
    referee: Referee
    troubles: AsyncExitStack
    """Closed after the tour: then no more faults come, and all servers serve."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tenant: str = "default"
    met: Counter[str] = field(default_factory=Counter)
    """The faults, by their kinds, that came up between the tour's first charge and its end."""

    async def has_begun(self) -> None:
        """Return once the bank was asked for something."""
        while not await self.referee.calls():  # noqa: ASYNC110  # the bank tells nobody of its own accord
            await asyncio.sleep(0.05)


Make = Callable[[Path, Random], AbstractAsyncContextManager[Road]]


# ---------------------------------------------------------------- in plaintext
@asynccontextmanager
async def quiet(folder: Path, chance: Random) -> AsyncIterator[Road]:
    """Nothing happens."""
    with town_with_kept_ports(folder) as town:
        async with town, Referee(town.bank_url) as referee, AsyncExitStack() as troubles:
            await town.start_query()
            yield Road(town, referee, troubles, _addresses(town.command.listen, town.query.listen))


@asynccontextmanager
async def killed(folder: Path, chance: Random) -> AsyncIterator[Road]:
    """Command server and query server are killed (kill -9) and started again, again and again."""
    async with quiet(folder, chance) as road:
        await road.troubles.enter_async_context(_again_and_again(road, chance, "killed", Server.kill))
        yield road


@asynccontextmanager
async def drained(folder: Path, chance: Random) -> AsyncIterator[Road]:
    """Both are asked to stop, let calls under way end, and are started again, again and again."""
    async with quiet(folder, chance) as road:
        await road.troubles.enter_async_context(_again_and_again(road, chance, "drained", _drain))
        yield road


@asynccontextmanager
async def cut(folder: Path, chance: Random) -> AsyncIterator[Road]:
    """Connections are closed or reset, after some bytes or some time. Those made after the last of these faults last."""
    async with quiet(folder, chance) as road:
        commands, queries = await road.troubles.enter_async_context(_cuts(road, chance))
        road.environment = _addresses(commands.address, queries.address)
        yield road


async def _drain(server: Server) -> None:
    assert await server.stop() == 0, server.text()[-4000:]


@asynccontextmanager
async def _again_and_again(
    road: Road, chance: Random, how: str, end: Callable[[Server], Awaitable[None]]
) -> AsyncIterator[None]:
    """End both servers, then one of them or both, again and again until the context ends. Then both serve."""
    town, is_over = road.town, asyncio.Event()
    commands, queries = (town.command, town.start_command), (town.query, town.start_query)

    async def trouble() -> None:
        await road.has_begun()
        for _ in range(MOST_ROUNDS):
            ended = chance.choice([[commands], [queries], [commands, queries]]) if road.met else [commands, queries]
            await asyncio.gather(*(end(server) for server, _ in ended))
            road.met.update(f"{server.module} {how}" for server, _ in ended)
            await asyncio.gather(*(start() for _, start in ended))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), chance.uniform(*PAUSE_SECONDS))
                return

    troubling = asyncio.create_task(trouble())
    try:
        yield
        is_over.set()
        if road.met:
            await troubling
    finally:
        troubling.cancel()
        await asyncio.gather(troubling, return_exceptions=True)


@asynccontextmanager
async def _cuts(road: Road, chance: Random) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """Proxies before the two servers, each with its faults."""
    town = road.town
    async with Proxy(lambda: _place(town.command)) as commands, Proxy(lambda: _place(town.query)) as queries:
        for proxy in (commands, queries):
            proxy.order(*(_cut_at_bytes(chance) for _ in range(CUTS_AT_BYTES)))
        cutting = asyncio.create_task(_cut_at_times(road, (commands, queries), chance))
        try:
            yield commands, queries
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)
            road.met.update(commands.fired + queries.fired)


def _cut_at_bytes(chance: Random) -> Fault:
    kind, way = chance.choice([Kind.CUT, Kind.RESET]), chance.choice(list(Way))
    return Fault(kind, way, after_bytes=chance.randrange(MOST_BYTES))


async def _cut_at_times(road: Road, proxies: tuple[Proxy, ...], chance: Random) -> None:
    await road.has_begun()
    for _ in range(CUTS_AT_TIMES):
        await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))
        for proxy in proxies:
            proxy.end_all(reset=chance.random() < 0.5)


def _place(server: Server) -> tuple[str, int]:
    host, _, port = server.listen.rpartition(":")
    return host, int(port)


# ---------------------------------------------------------------- with TLS
@asynccontextmanager
async def certificate(folder: Path, chance: Random) -> AsyncIterator[Road]:
    """Mutual TLS: the client's certificate is its identity."""
    made = folder / "certs"
    certs.make_all(made)
    async with _with_tls(folder, made) as road:
        road.environment = {**road.environment, "CHARGEONCE_TLS": str(certs.shop(made))}
        yield road


@asynccontextmanager
async def token(folder: Path, chance: Random) -> AsyncIterator[Road]:
    """TLS without a certificate of the client: a token is its identity."""
    made, trust = folder / "certs", folder / "trust"
    certs.make_all(made)
    trust.mkdir()
    (trust / "ca.crt").write_bytes((certs.shop(made) / "ca.crt").read_bytes())
    hashes = {}
    for holder in ("client", "feed"):
        text = secrets.token_urlsafe(32)
        certs.write_secret(folder / f"{holder}.token", f"{text}\n".encode())
        hashes[holder] = hashlib.sha256(text.encode()).hexdigest()
    (made / "policy.toml").write_text(POLICY.format(**hashes))
    settings = {"COMMAND_CLIENT_CERTIFICATES": "no", "QUERY_CLIENT_CERTIFICATES": "no"}
    async with _with_tls(folder, made, QUERY_FEED_TOKEN_FILE=str(folder / "feed.token"), **settings) as road:
        road.environment = {
            **road.environment,
            "CHARGEONCE_TLS": str(trust),
            "CHARGEONCE_TOKEN_FILE": str(folder / "client.token"),
        }
        yield road


@asynccontextmanager
async def _with_tls(folder: Path, made: Path, **settings: str) -> AsyncIterator[Road]:
    town = Town(folder, made)
    try:
        await town.start_bank()
        await town.start_command(**settings)
        await town.start_query(**settings)
        async with Referee(town.bank_url, ClientTls(certs.shop(made)).context) as referee, AsyncExitStack() as troubles:
            yield Road(town, referee, troubles, _addresses(town.command.listen, town.query.listen), tenant="shop")
    finally:
        await town.__aexit__()


def _addresses(command: str, query: str) -> dict[str, str]:
    return {"CHARGEONCE_COMMAND": command, "CHARGEONCE_QUERY": query}


ROADS: Mapping[str, Make] = {
    "quiet": quiet,
    "killed": killed,
    "drained": drained,
    "cut": cut,
    "certificate": certificate,
    "token": token,
}
TROUBLED = frozenset({"killed", "drained", "cut"})
