"""The three servers as processes, with certificates of an authority of their own, all ports with TLS."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rig.certs import HERE, TRUST, Authority
from rig.processes import Town, free_address
from tests.tls.probes import Port, context

SERVERS = ("bank", "command", "query")


@dataclass(frozen=True)
class Safe:
    """A town all of whose ports speak TLS, its authority, and a client of the authority's."""

    town: Town
    authority: Authority
    client: Path
    ports: dict[str, Port]

    @property
    def certificates(self) -> Path:
        assert self.town.certificates is not None
        return self.town.certificates

    def issue(self, authority: Authority, trusting: bytes) -> None:
        """Replace the certificates of all servers, file by file."""
        for server in SERVERS:
            authority.issue(
                self.certificates / server, dns=["localhost"], ips=HERE, uris=[f"{TRUST}/{server}"], trusting=trusting
            )

    def all_answer(self, trust: bytes, shown: Path) -> bool:
        return all(port.answers(context(trust, shown)) for port in self.ports.values())

    def logged(self, event: str) -> list[dict[str, object]]:
        """The entries of all servers' logs."""
        servers = (self.town.bank, self.town.command, self.town.query)
        return [entry for server in servers for entry in server.entries() if entry["event"] == event]


@asynccontextmanager
async def safe_town(folder: Path) -> AsyncIterator[Safe]:
    authority, town = Authority(), Town(folder, folder / "certs")
    client = authority.issue(folder / "shop", uris=[f"{TRUST}/shop"], client_only=True)
    metrics = {name: free_address() for name in ("command metrics", "query metrics")}
    safe = Safe(town, authority, client, {})
    safe.issue(authority, authority.pem)
    try:
        await town.start_bank()
        await town.start_command(COMMAND_METRICS_LISTEN=metrics["command metrics"])
        await town.start_query(QUERY_METRICS_LISTEN=metrics["query metrics"])
        safe.ports["bank"] = Port.of(town.bank.listen, http2=False)
        safe.ports["command"] = Port.of(town.command.listen)
        safe.ports["feed"] = Port.of(str(town.command.serving["feed"]))
        safe.ports["query"] = Port.of(town.query.listen)
        safe.ports.update({name: Port.of(address, http2=False) for name, address in metrics.items()})
        yield safe
    finally:
        await town.__aexit__()


@pytest.fixture
async def safe(tmp_path: Path) -> AsyncIterator[Safe]:
    async with safe_town(tmp_path) as made:
        yield made
