"""The servers as real processes that stories and tests start, kill and start again."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig import certs

# Far more than a start takes (well under a second), for a machine that is busy with other things.
START_SECONDS = 120.0
STOP_SECONDS = 120.0
# Below the range that systems use for outgoing connections: a dead server's port stays free for its next start.
PORTS = range(20_000, 32_000)


def free_address() -> str:
    """A free address that stays free from one start of a server to the next."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return f"127.0.0.1:{port}"
    raise OSError(f"every port from {PORTS.start} to {PORTS.stop} is taken")


class DidNotStart(Exception):
    """A server ended, or did not log that it serves; the text holds the end of its log."""


@dataclass
class Server:
    """One server process. Its log goes to a file, and its first `serving` entry says where it listens."""

    module: str
    environment: Mapping[str, str]
    log: Path
    prefix: tuple[str, ...] = ()
    """A command to run the interpreter under, such as strace."""
    serving: dict[str, Any] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    began_at: int = 0
    """Where in the log its present life begins, in bytes."""

    async def start(self, **more: str) -> "Server":
        """Start it and return when it serves. Raises DidNotStart."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            begin = log.tell()
            await self.begin(log.fileno(), **more)
        assert self.process is not None
        for _ in range(int(START_SECONDS / 0.01)):
            for entry in self.entries(begin):
                if entry.get("event") == "serving":
                    self.serving = entry
                    return self
            if self.process.returncode is not None:
                break
            await asyncio.sleep(0.01)
        said = self.log.read_bytes()[begin:].decode(errors="replace")
        raise DidNotStart(f"{self.module} does not serve:\n{said[-4000:]}")

    async def begin(self, log: int, **more: str) -> None:
        """Start it with a descriptor for its log, without waiting until it serves."""
        self.began_at = self.log.stat().st_size if self.log.exists() else 0
        self.process = await asyncio.create_subprocess_exec(
            *self.prefix,
            sys.executable,
            "-m",
            self.module,
            env={**os.environ, **self.environment, **more},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in a terminal reaches a whole process group: the story ends its servers itself, in order.
            start_new_session=True,
        )

    @property
    def listen(self) -> str:
        """Where it listens, as host:port."""
        return str(self.serving["listen"])

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def text(self) -> str:
        """All of its log."""
        return self.log.read_text(errors="replace")

    def entries(self, begin: int = 0) -> list[dict[str, Any]]:
        """Its log's entries, from a byte on."""
        entries = []
        for line in self.log.read_bytes()[begin:].decode(errors="replace").splitlines():
            if line.startswith("{") and line.endswith("}"):
                entries.append(json.loads(line))
        return entries

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait for an entry of its present life. Raises DidNotStart if the process ends without it."""
        for _ in range(int(START_SECONDS / 0.01)):
            has_ended = not self.is_running
            for entry in self.entries(self.began_at):
                if entry.get("event") == event:
                    return entry
            if has_ended:
                break
            await asyncio.sleep(0.01)
        raise DidNotStart(f"{self.module} does not say {event!r}:\n{self.text()[-4000:]}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    async def kill(self) -> None:
        """End it as a power cut would: kill -9."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to stop (SIGTERM), let it drain, and return its exit status."""
        return await self._end(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait until it ends by itself and return its exit status."""
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)

    async def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.is_running:
            # The whole group: the command it runs under, too.
            os.killpg(self.process.pid, number) if self.prefix else self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)


@dataclass
class Town:
    """A bank, a command server, a query server and a console on free ports, with all their files in one folder.

    `certificates` is a folder of `rig.certs`: with it every port speaks TLS, and every client shows a certificate.
    """

    folder: Path
    certificates: Path | None = None
    bank: Server = field(init=False)
    command: Server = field(init=False)
    query: Server = field(init=False)
    console: Server = field(init=False)

    def __post_init__(self) -> None:
        tls = {} if self.certificates is None else certs.environment(self.certificates)
        self.bank = Server(
            "gateway_mock",
            {"GATEWAY_MOCK_LEDGER": str(self.folder / "bank.db"), **tls},
            self.folder / "bank.log",
        )
        self.command = Server("command_service", tls, self.folder / "command.log")
        self.query = Server("query_service", tls, self.folder / "query.log")
        asking = {} if self.certificates is None else {"CONSOLE_SERVERS_TLS": str(certs.shop(self.certificates))}
        self.console = Server("console", asking, self.folder / "console.log")

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.folder / "journal.db"

    @property
    def bank_url(self) -> str:
        """The bank's address."""
        return f"{'http' if self.certificates is None else 'https'}://{self.bank.listen}"

    async def start_bank(self) -> None:
        """Start the bank; again on its own port, if it was started before."""
        listen = self.bank.serving.get("listen", free_address())
        await self.bank.start(GATEWAY_MOCK_LISTEN=listen)

    async def start_command(self, **more: str) -> None:
        """Start the command server; again on its own ports, if it was started before."""
        await self.command.start(**{**self._of_command("COMMAND_BANKS" in more), **more})

    async def start_command_unheard(self, log: int, **more: str) -> None:
        """Start the command server again with another descriptor for its log, without waiting until it serves."""
        await self.command.begin(log, **{**self._of_command(), **more})

    def _of_command(self, names_banks: bool = False) -> dict[str, str]:
        return {
            "COMMAND_LISTEN": self.command.serving.get("listen", free_address()),
            "COMMAND_FEED_LISTEN": self.command.serving.get("feed", free_address()),
            "COMMAND_JOURNAL": f"sqlite:///{self.journal}",
            **({} if names_banks else {"COMMAND_BANK_URL": self.bank_url}),
        }

    async def start_query(self, **more: str) -> None:
        """Start the query server; again on its own port, if it was started before."""
        await self.query.start(
            **{
                "QUERY_LISTEN": self.query.serving.get("listen", free_address()),
                "QUERY_FEED": str(self.command.serving["feed"]),
                "QUERY_VIEW": str(self.folder / "view.db"),
                **more,
            }
        )

    async def start_console(self, **more: str) -> None:
        """Start the console; again on its own port, if it was started before. Browsers reach it by plain HTTP."""
        await self.console.start(
            **{
                "CONSOLE_LISTEN": self.console.serving.get("listen", free_address()),
                "CONSOLE_COMMAND": self.command.listen,
                "CONSOLE_QUERY": self.query.listen,
                **more,
            }
        )

    async def operate(self, *arguments: str) -> int:
        """Run one of the operator's commands on the journal and return its exit status. Its output goes to the server's log."""
        with self.command.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "command_service",
                *arguments,
                env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{self.journal}"},
                stdout=log,
                stderr=log,
            )
        return await asyncio.wait_for(process.wait(), STOP_SECONDS)

    async def __aenter__(self) -> "Town":
        """Start the bank and the command server, or leave none running. Callers that need a query server start it."""
        try:
            await self.start_bank()
            await self.start_command()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all servers that still run."""
        for server in (self.console, self.query, self.command, self.bank):
            if server.is_running:
                await server.kill()
