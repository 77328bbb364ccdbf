"""The three servers, in this process or as processes of their own, with their files in one folder."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import gateway_mock
from chassis import settings
from command_service import serving
from command_service.parts import Parts
from command_service.settings import Settings as CommandSettings
from query_service import serving as query_serving
from query_service.settings import Settings as QuerySettings
from rig.ports import kept, town_with_kept_ports
from rig.processes import Town

ANY_PORTS = ("127.0.0.1:0",) * 4


class Servers(Protocol):
    """What a world stands on. Addresses are host:port."""

    bank: str
    command: str
    feed: str
    query: str

    async def bank_up(self) -> None:
        """Open the bank, over its ledger."""
        ...

    async def bank_down(self) -> None:
        """Close the bank: connections are refused."""
        ...

    async def command_up(self, chosen: Mapping[str, str]) -> None:
        """Start the command server with these settings, over its journal."""
        ...

    async def command_down(self, *, kill: bool = False) -> None:
        """Stop the command server in order, or as a power cut would."""
        ...

    async def query_up(self, chosen: Mapping[str, str]) -> None:
        """Start the query server with these settings, over its view."""
        ...

    async def query_down(self, *, kill: bool = False) -> None:
        """Stop the query server in order, or as a power cut would."""
        ...


class InProcess:
    """All three in this event loop: quick to start, and open to be looked into. They cannot be killed.

    `listen` has the addresses of the bank, the command server, its feed and the query server. The command server is put
    together of `make_parts` each time that it starts.
    """

    running: serving.Serving
    """The command server, once it has been started."""

    def __init__(
        self, folder: Path, listen: Sequence[str] = ANY_PORTS, make_parts: Callable[[CommandSettings], Parts] = Parts
    ) -> None:
        self.bank, self.command, self.feed, self.query = listen
        self.make_parts = make_parts
        self._listen = listen
        self._folder = folder
        self._bank, self._command, self._query = (contextlib.AsyncExitStack() for _ in range(3))

    async def bank_up(self) -> None:
        """See Servers."""
        self.bank = await self._bank.enter_async_context(gateway_mock.serve(self.bank, self._folder / "bank.db"))

    async def bank_down(self) -> None:
        """See Servers."""
        await self._bank.aclose()

    async def command_up(self, chosen: Mapping[str, str]) -> None:
        """See Servers."""
        environment = {
            "COMMAND_LISTEN": self._listen[1],
            "COMMAND_FEED_LISTEN": self._listen[2],
            "COMMAND_JOURNAL": f"sqlite:///{self._folder / 'journal.db'}",
            "COMMAND_DRAIN_SECONDS": "1",
            **chosen,
        }
        command = serving.serve(settings.read(CommandSettings, environment), self.make_parts)
        self.running = await self._command.enter_async_context(command)
        self.command, self.feed = str(self.running.listen), str(self.running.feed_listen)

    async def command_down(self, *, kill: bool = False) -> None:
        """See Servers."""
        assert not kill
        await self._command.aclose()

    async def query_up(self, chosen: Mapping[str, str]) -> None:
        """See Servers."""
        environment = {
            "QUERY_LISTEN": self._listen[3],
            "QUERY_VIEW": str(self._folder / "view.db"),
            "QUERY_DRAIN_SECONDS": "1",
            **chosen,
        }
        running = await self._query.enter_async_context(query_serving.serve(settings.read(QuerySettings, environment)))
        self.query = str(running.listen)

    async def query_down(self, *, kill: bool = False) -> None:
        """See Servers."""
        assert not kill
        await self._query.aclose()


class Processes:
    """Each a process of its own: slower to start, and can be killed."""

    def __init__(self, town: Town) -> None:
        self.bank = town.bank.listen
        self.command, self.feed = town.command.listen, str(town.command.serving["feed"])
        self.query = town.query.listen
        self.town = town

    async def bank_up(self) -> None:
        """See Servers."""
        await self.town.start_bank()
        self.bank = self.town.bank.listen

    async def bank_down(self) -> None:
        """See Servers."""
        await self.town.bank.kill()

    async def command_up(self, chosen: Mapping[str, str]) -> None:
        """See Servers."""
        await self.town.start_command(**chosen)
        self.command, self.feed = self.town.command.listen, str(self.town.command.serving["feed"])

    async def command_down(self, *, kill: bool = False) -> None:
        """See Servers."""
        await (self.town.command.kill() if kill else self.town.command.stop())

    async def query_up(self, chosen: Mapping[str, str]) -> None:
        """See Servers."""
        await self.town.start_query(**chosen)
        self.query = self.town.query.listen

    async def query_down(self, *, kill: bool = False) -> None:
        """See Servers."""
        if self.town.query.process is not None:
            await (self.town.query.kill() if kill else self.town.query.stop())


@contextlib.contextmanager
def servers_in(folder: Path, *, is_killing: bool) -> Iterator[Servers]:
    """Servers with their files in a folder, not started yet, on ports that are theirs for as long as the context lasts."""
    if is_killing:
        with town_with_kept_ports(folder) as town:
            yield Processes(town)
    else:
        with kept(4) as ports:
            yield InProcess(folder, ports)
