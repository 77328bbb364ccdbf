"""A bank's customer with people: three banks, the servers with a policy, and an identity for each who calls them.

They are processes, on loopback. `rig.stuck` has charges get stuck there.
"""

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc.aio

from chargeonce_client.settings import Settings
from charging.v1 import command_pb2_grpc, operator_pb2_grpc, query_pb2_grpc
from judge.checker import check
from judge.files import read_anchor, read_journal
from judge.history import Movement, Observed, Violation
from rig.processes import Server, Town
from rig.referee import Referee

TENANT = "shop"
PEOPLE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "shop": (TENANT, ("charge", "refund", "read")),
    "ann": (TENANT, ("operate", "read")),
    "ben": (TENANT, ("operate", "read")),
    "night": ("", ("operate",)),
    "query-server": ("", ("feed",)),
}
"""The tenant and the roles of each identity."""

BANKS: Mapping[str, str] = {"north": "visa", "south": "elo", "west": "diners"}
"""The banks, and the brand of the cards that each is for. `south` is the one that goes missing, `west` refuses us."""
PORTS = (*BANKS, "command", "feed", "query", "command metrics", "query metrics")
"""What listens somewhere: the banks, the servers, and their gauges for Prometheus."""
# A hold of the mock's lasts so long. It ends soon, whatever an operator takes for soon, and later than any test.
HOLD_SECONDS = 3_600
SETTINGS: Mapping[str, str] = {
    "COMMAND_ATTENTION_AFTER_SECONDS": "1",
    "COMMAND_ABANDON_AFTER_SECONDS": "86400",
    "COMMAND_DRAIN_SECONDS": "0",
}


class Staffed:
    """Three banks, a command server and a query server on loopback, with a policy that names `PEOPLE`."""

    def __init__(self, folder: Path, addresses: Mapping[str, str], banks: Mapping[str, Referee]) -> None:
        self.folder = folder
        self.town = Town(folder)
        self.addresses = addresses
        """By the names of `PORTS`, as host:port."""
        self.banks = banks
        """By name."""
        self.town.command.serving = {"listen": self.addresses["command"], "feed": self.addresses["feed"]}
        self.town.query.serving = {"listen": self.addresses["query"]}
        self._bank_servers = {
            name: Server(
                "gateway_mock",
                {
                    "GATEWAY_MOCK_LISTEN": addresses[name],
                    "GATEWAY_MOCK_LEDGER": str(folder / f"{name}.db"),
                    "GATEWAY_MOCK_HOLD_SECONDS": str(HOLD_SECONDS),
                },
                folder / f"{name}.log",
            )
            for name in BANKS
        }
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    # ------------------------------------------------------------ the servers
    @property
    def policy(self) -> Path:
        """The policy's file."""
        return self.folder / "policy.toml"

    @property
    def _banks_file(self) -> Path:
        return self.folder / "banks.toml"

    def token_file(self, person: str) -> Path:
        """The file with the token of somebody of `PEOPLE`."""
        return self.folder / f"{person}.token"

    def settings(self, person: str) -> Settings:
        """How a client calls the servers as somebody of `PEOPLE`."""
        return Settings(
            self.addresses["command"], self.addresses["query"], self.addresses["feed"], None, self.token_file(person)
        )

    def environment(self, person: str) -> dict[str, str]:
        """The same for a program: this process's environment, and the variables that name the servers and the person."""
        return {
            **os.environ,
            "CHARGEONCE_COMMAND": self.addresses["command"],
            "CHARGEONCE_QUERY": self.addresses["query"],
            "CHARGEONCE_FEED": self.addresses["feed"],
            "CHARGEONCE_BANK": f"http://{self.addresses['north']}",
            "CHARGEONCE_TOKEN_FILE": str(self.token_file(person)),
        }

    async def up(self) -> None:
        """Start everything, over an empty folder."""
        identities = []
        for name, (tenant, roles) in PEOPLE.items():
            token = f"token-of-{name}"
            self.token_file(name).write_text(token)
            of_tenant = f'tenant = "{tenant}"\n' if tenant else ""
            digest = hashlib.sha256(token.encode()).hexdigest()
            identities.append(
                f'[[identities]]\nname = "{name}"\n{of_tenant}token_sha256 = "{digest}"\nroles = {list(roles)}\n'
            )
        self.policy.write_text("\n".join(identities))
        self.write_banks(tuple(BANKS))
        await asyncio.gather(*(server.start() for server in self._bank_servers.values()))
        await self.start_command()
        await self.town.start_query(
            QUERY_POLICY=str(self.policy),
            QUERY_FEED_TOKEN_FILE=str(self.token_file("query-server")),
            QUERY_METRICS_LISTEN=self.addresses["query metrics"],
        )

    async def down(self) -> None:
        """End everything."""
        for channel in self._channels.values():
            await channel.close()
        for server in (self.town.query, self.town.command, *self._bank_servers.values()):
            if server.is_running:
                await server.kill()

    async def start_command(self, **more: str) -> None:
        """Start the command server; it goes on with every unfinished charge. `more` are further settings."""
        await self.town.start_command(
            COMMAND_BANKS=str(self._banks_file),
            COMMAND_POLICY=str(self.policy),
            COMMAND_METRICS_LISTEN=self.addresses["command metrics"],
            **{**SETTINGS, **more},
        )

    async def stop_command(self) -> None:
        """Stop the command server, if it runs."""
        if self.town.command.is_running:
            await self.town.command.stop()

    async def restart_command(self, **more: str) -> None:
        """Stop it and start it."""
        await self.stop_command()
        await self.start_command(**more)

    def write_banks(self, names: Sequence[str]) -> None:
        """Write the banks' file. The first bank is for all cards that no other is for."""
        tables = [f'[banks.{it}]\nkind = "two_step"\nurl = "http://{self.addresses[it]}"\n' for it in names]
        first, *others = names
        routes = [f'[[routes]]\nbrands = ["{BANKS[it]}"]\nbanks = {{ {it} = 1 }}\n' for it in others]
        self._banks_file.write_text("\n".join([*tables, *routes, f"[[routes]]\nbanks = {{ {first} = 1 }}\n"]))

    # ------------------------------------------------------------ the services
    def commands(self, person: str = "shop") -> "command_pb2_grpc.CommandServiceAsyncStub":
        """The command server's service, as somebody calls it."""
        return command_pb2_grpc.CommandServiceStub(self._channel(person, "command"))

    def desk(self, person: str = "ann") -> "operator_pb2_grpc.OperatorServiceAsyncStub":
        """The operators' service, as somebody calls it."""
        return operator_pb2_grpc.OperatorServiceStub(self._channel(person, "command"))

    def queries(self, person: str = "shop") -> "query_pb2_grpc.QueryServiceAsyncStub":
        """The query server's service, as somebody calls it."""
        return query_pb2_grpc.QueryServiceStub(self._channel(person, "query"))

    def _channel(self, person: str, server: str) -> grpc.aio.Channel:
        at = person, server
        if at not in self._channels:
            self._channels[at] = self.settings(person).channel(self.addresses[server])
        return self._channels[at]

    # ------------------------------------------------------------ the books
    async def movements(self) -> list[Movement]:
        """The money that moved at all banks."""
        return [moved for bank in self.banks.values() for moved in await bank.movements()]

    async def violations(self) -> list[Violation]:
        """What the history checker finds in the journal, the banks' statements and the calls that they got."""
        calls = [call for bank in self.banks.values() for call in await bank.bank_calls()]
        journal = self.town.journal
        return check(
            Observed(
                read_journal(journal), movements=await self.movements(), bank_calls=calls, anchor=read_anchor(journal)
            )
        )
