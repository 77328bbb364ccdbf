"""Several command servers on one journal in PostgreSQL, a bank and a query server: real processes."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import grpc.aio
from asyncpg.connect_utils import SessionAttribute

from charging.v1 import command_pb2_grpc
from judge.checker import check
from judge.files import read_view
from judge.history import Observed, Record
from rig.ports import kept
from rig.processes import STOP_SECONDS, DidNotStart, Server
from rig.referee import Referee

SELECT_RECORDS = (
    "SELECT position, charge_id, version, recorded_at, chain, event FROM chargeonce.record ORDER BY position"
)


async def migrate(url: str) -> None:
    """Make the journal's tables as an operator does. Raises DidNotStart."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "command_service", "migrate"),
        env={**os.environ, "COMMAND_JOURNAL": url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), STOP_SECONDS)
    if process.returncode != 0:
        raise DidNotStart(f"migrate failed:\n{said.decode(errors='replace')}")


async def read_records(url: str) -> list[Record]:
    """Read all records of a journal, from its primary."""
    connection = await asyncpg.connect(url, target_session_attrs=SessionAttribute.read_write)
    try:
        return [
            Record(position, str(uuid.UUID(bytes=key)), version, recorded_at, chain, event)
            for position, key, version, recorded_at, chain, event in await connection.fetch(SELECT_RECORDS)
        ]
    finally:
        await connection.close()


class Fleet:
    """The servers. Each command server keeps its ports from one start to the next."""

    referee: Referee

    def __init__(self, folder: Path, url: str, size: int = 2) -> None:
        """`url` names an empty database."""
        self.url = url
        self.view = folder / "view.db"
        self._kept = kept(2 * size + 2)
        bank, query, *addresses = self._kept.__enter__()
        self.bank = Server(
            "gateway_mock",
            {"GATEWAY_MOCK_LEDGER": str(folder / "bank.db"), "GATEWAY_MOCK_LISTEN": bank},
            folder / "bank.log",
        )
        self.commands = [
            Server(
                "command_service",
                {
                    "COMMAND_LISTEN": listen,
                    "COMMAND_FEED_LISTEN": feed,
                    "COMMAND_JOURNAL": url,
                    "COMMAND_BANK_URL": f"http://{bank}",
                },
                folder / f"command-{number}.log",
            )
            for number, (listen, feed) in enumerate(zip(addresses[::2], addresses[1::2], strict=True), 1)
        ]
        self.query = Server(
            "query_service",
            {"QUERY_LISTEN": query, "QUERY_FEED": ",".join(addresses[1::2]), "QUERY_VIEW": str(self.view)},
            folder / "query.log",
        )
        self._channels: list[grpc.aio.Channel] = []
        self.stubs: Sequence[command_pb2_grpc.CommandServiceAsyncStub] = ()
        """One to each command server. After a death it connects again."""

    async def __aenter__(self) -> "Fleet":
        """Start the bank and all command servers. Who needs the query server starts it."""
        try:
            await migrate(self.url)
            await self.bank.start()
            self.referee = await Referee(f"http://{self.bank.listen}").__aenter__()
            await asyncio.gather(*(command.start() for command in self.commands))
        except BaseException:
            await self.__aexit__()
            raise
        # Else a channel waits up to two minutes before it tries a dead server's port again.
        options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)]
        self._channels = [grpc.aio.insecure_channel(command.listen, options=options) for command in self.commands]
        self.stubs = [command_pb2_grpc.CommandServiceStub(channel) for channel in self._channels]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all servers that still run, paused ones too."""
        for channel in self._channels:
            await channel.close()
        for server in (self.query, *self.commands, self.bank):
            if server.is_running:
                server.send(signal.SIGCONT)
                await server.kill()
        if hasattr(self, "referee"):
            await self.referee.__aexit__()
        self._kept.__exit__(None, None, None)

    def another(self) -> Server:
        """One more command server, not started yet, which whoever asks for it ends."""
        first = self.commands[0]
        anywhere = {"COMMAND_LISTEN": "127.0.0.1:0", "COMMAND_FEED_LISTEN": "127.0.0.1:0"}
        return Server(first.module, {**first.environment, **anywhere}, first.log.with_name("command-another.log"))

    async def assert_books_agree(self, *, with_view: bool = False) -> None:
        """The journal, the bank's statement and its calls pass the history checker; with `with_view` the view does too."""
        observed = Observed(
            await read_records(self.url),
            movements=await self.referee.movements(),
            bank_calls=await self.referee.bank_calls(),
            view=read_view(self.view) if with_view else None,
        )
        violations = check(observed)
        assert violations == [], "\n".join(map(str, violations))
