"""Starts and ends each measured service: its processes, its database, its bank.

Each round starts a new site: an empty database, a bank of its own, no other service beside it.
"""

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench import programs, rivals
from bench.postgres import Database, make_journal, start_postgres
from rig.processes import Server
from rig.programs import Program

PRODUCT = "chargeonce"
ECHO = "echo"
TUTORIAL = "tutorial"
DBOS_SQLITE, DBOS_POSTGRES = "dbos-sqlite", "dbos-postgres"
SOURCED_SQLITE, SOURCED_POSTGRES = "eventsourcing-sqlite", "eventsourcing-postgres"
RESTATE, RESTATE_LOCAL = "restate", "restate-local-log"
TEMPORAL, TEMPORAL_LOCAL = "temporal", "temporal-local"
# With this at its end, a name means the same service with aiohttp for calls to the bank, in place of httpx. Restate's and
# Temporal's have aiohttp in any case.
AIOHTTP = "-aiohttp"
# The variants of one peer: targets refer to the one that is the best under the load in question. On PostgreSQL each runs with
# the better client only.
FAMILIES: Mapping[str, Sequence[str]] = {
    TUTORIAL: (TUTORIAL, TUTORIAL + AIOHTTP),
    "dbos": (DBOS_SQLITE, DBOS_SQLITE + AIOHTTP, DBOS_POSTGRES + AIOHTTP),
    SOURCED_SQLITE: (SOURCED_SQLITE, SOURCED_SQLITE + AIOHTTP),
    RESTATE: (RESTATE, RESTATE_LOCAL),
}
ALL = (
    PRODUCT,
    ECHO,
    *FAMILIES[TUTORIAL],
    *FAMILIES["dbos"],
    *FAMILIES[SOURCED_SQLITE],
    SOURCED_POSTGRES + AIOHTTP,
    *FAMILIES[RESTATE],
    TEMPORAL_LOCAL,
    TEMPORAL,
)
# What a service needs beside Python's packages.
NEEDS: Mapping[str, Program] = {
    RESTATE: programs.RESTATE,
    RESTATE_LOCAL: programs.RESTATE,
    TEMPORAL_LOCAL: programs.TEMPORAL,
    TEMPORAL: programs.TEMPORAL,
}
# Measured in the first round only: so far behind that its place is known after one, and every charge takes long.
ONE_ROUND = (TEMPORAL_LOCAL, TEMPORAL)
# Left out of a small run: their servers take longer to start than everything else, or to install.
SLOW_TO_START = (DBOS_POSTGRES + AIOHTTP, SOURCED_POSTGRES + AIOHTTP, *NEEDS)


def missing(name: str) -> str | None:
    """The reason why a service cannot be measured on this machine, for people; None if it can be."""
    return NEEDS[name].missing() if name in NEEDS else None


@dataclass(frozen=True, slots=True)
class Site:
    """A service at work."""

    listen: str
    """Where charges are taken: host:port for gRPC, several of them with commas, or a URL for HTTP."""
    own: Mapping[str, int]
    """Ids of the service's own processes, the server of its database or of its engine included."""
    others: Mapping[str, int]
    """Ids of the processes beside it: the bank, and the product's query server."""
    servers: Mapping[str, Server]
    folder: Path


@asynccontextmanager
async def open_site(
    name: str,
    *,
    delay_milliseconds: float = 0.0,
    settings: Mapping[str, str] | None = None,
    database: Database | None = None,
    servers: int = 1,
) -> AsyncIterator[Site]:
    """Start a service with its bank; end all of it when the context is left. `settings` are variables for the service.

    `database` is an empty one for a service that keeps its charges in PostgreSQL; a peer without one gets a server of its own.
    `servers` is the number of the product's command servers, which share one journal.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        bank = await start_bank(stack, folder, delay_milliseconds)
        if name == PRODUCT:
            yield await start_product(stack, folder, bank, settings or {}, database=database, servers=servers)
            return
        backing = await _backing(name.removesuffix(AIOHTTP), folder, stack, database)
        client = "aiohttp" if name.endswith(AIOHTTP) or name in NEEDS else "httpx"
        environment = {"BENCH_BANK_URL": f"http://{bank.listen}", "BENCH_BANK_CLIENT": client, **backing.environment}
        service = Server(f"bench.services.{backing.module}", environment, folder / "service.log")
        await start(stack, service, **(settings or {}))
        listen = await backing.open(service.listen)
        own = {"service": service.pid, **backing.servers}
        yield Site(listen, own, {"bank": bank.pid}, {"service": service, "bank": bank}, folder)


async def start_bank(stack: AsyncExitStack, folder: Path, delay_milliseconds: float = 0.0) -> Server:
    """Start a bank; the stack ends it."""
    bank = Server("bench.bank", {"BENCH_DELAY_MILLISECONDS": str(delay_milliseconds)}, folder / "bank.log")
    return await start(stack, bank)


async def start_product(
    stack: AsyncExitStack,
    folder: Path,
    bank: Server,
    settings: Mapping[str, str],
    *,
    journal: Path | None = None,
    database: Database | None = None,
    servers: int = 1,
    follow: bool = True,
    banks: Path | None = None,
) -> Site:
    """Start the product as in production: logs, metrics, chain, feed, and with `follow` a query server.

    The journal is that of a file, a new one in the folder by default, or a new one in an empty database. `banks` is a file of
    several banks, `bank` among them.
    """
    url = f"sqlite:///{journal or folder / 'journal.db'}"
    if database is not None:
        url = database.url
        await make_journal(url)
    names = ["service", *(f"service {number}" for number in range(2, servers + 1))]
    commands = {name: _command_server(folder, url, bank, name, banks) for name in names}
    for command in commands.values():
        await start(stack, command, **{name: value for name, value in settings.items() if name.startswith("COMMAND_")})
    beside = {"bank": bank}
    if follow:
        beside["query"] = query_server(folder, str(commands["service"].serving["feed"]))
        queries = {name: value for name, value in settings.items() if name.startswith("QUERY_")}
        await start(stack, beside["query"], **queries)
    return Site(
        ",".join(command.listen for command in commands.values()),
        {**{name: command.pid for name, command in commands.items()}, **(database.servers if database else {})},
        {name: server.pid for name, server in beside.items()},
        {**commands, **beside},
        folder,
    )


def _command_server(folder: Path, journal: str, bank: Server, name: str, banks: Path | None) -> Server:
    environment = {
        "COMMAND_LISTEN": "127.0.0.1:0",
        "COMMAND_FEED_LISTEN": "127.0.0.1:0",
        "COMMAND_JOURNAL": journal,
        **({"COMMAND_BANK_URL": f"http://{bank.listen}"} if banks is None else {"COMMAND_BANKS": str(banks)}),
        "COMMAND_METRICS_LISTEN": "127.0.0.1:0",
    }
    return Server("command_service", environment, folder / f"{name}.log")


def query_server(folder: Path, feed: str, name: str = "query") -> Server:
    """A query server for a feed, not yet started."""
    environment = {
        "QUERY_LISTEN": "127.0.0.1:0",
        "QUERY_FEED": feed,
        "QUERY_VIEW": str(folder / f"{name}.db"),
        "QUERY_METRICS_LISTEN": "127.0.0.1:0",
    }
    return Server("query_service", environment, folder / f"{name}.log")


async def start(stack: AsyncExitStack, server: Server, **settings: str) -> Server:
    """Start a server; the stack ends it, and the processes that it started, also if it does not start."""

    async def end() -> None:
        if server.is_running:
            os.killpg(server.pid, signal.SIGKILL)
            await server.ended()

    stack.push_async_callback(end)
    return await server.start(**settings)


async def _unchanged(listen: str) -> str:
    return listen


@dataclass(frozen=True, slots=True)
class _Backing:
    """What a peer's process runs on."""

    module: str
    """Its module, below bench.services."""
    environment: Mapping[str, str]
    servers: Mapping[str, int] = field(default_factory=dict)
    """Process ids of the servers that it needs, by their names in the results."""
    open: Callable[[str], Awaitable[str]] = _unchanged
    """Called with the address of the process when it serves; returns where charges are taken."""


async def _backing(name: str, folder: Path, stack: AsyncExitStack, database: Database | None) -> _Backing:
    """Start what a peer runs on, but for a database that there is."""
    file = str(folder / "charges.db")
    if database is None and name in (DBOS_POSTGRES, SOURCED_POSTGRES):
        postgres = await start_postgres(stack)
        database = await stack.enter_async_context(postgres.database())
    match name:
        case "echo":
            return _Backing("echo", {})
        case "tutorial":
            return _Backing("tutorial", {"BENCH_DATABASE": file})
        case "dbos-sqlite":
            return _Backing("durable", {"BENCH_DATABASE": f"sqlite:///{file}"})
        case "dbos-postgres":
            assert database is not None
            return _Backing("durable", {"BENCH_DATABASE": database.url}, database.servers)
        case "eventsourcing-sqlite":
            return _Backing("sourced", {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": file})
        case "eventsourcing-postgres":
            assert database is not None
            at = urlsplit(database.url)
            settings = {
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": at.path.strip("/"),
                "POSTGRES_HOST": str(at.hostname),
                "POSTGRES_PORT": str(at.port),
                "POSTGRES_USER": str(at.username),
                "POSTGRES_PASSWORD": "none",  # the server asks nobody for it, but the library requires one
            }
            return _Backing("sourced", settings, database.servers)
        case "restate" | "restate-local-log":
            log = "local" if name == RESTATE_LOCAL else "replicated"
            ingress, admin, pid = await rivals.start_restate(stack, folder, log)

            async def open_ingress(worker: str) -> str:
                await rivals.register(admin, worker, folder / "service.log")
                return f"http://{ingress}/Charges/charge"

            return _Backing("on_restate", {"BENCH_LISTEN": rivals.free_listen()}, {"server": pid}, open_ingress)
        case "temporal" | "temporal-local":
            frontend, pid = await rivals.start_temporal(stack, folder)
            kind = "local" if name == TEMPORAL_LOCAL else "regular"
            return _Backing("on_temporal", {"BENCH_TEMPORAL": frontend, "BENCH_ACTIVITIES": kind}, {"server": pid})
        case _:
            raise ValueError(f"no such service: {name}")
