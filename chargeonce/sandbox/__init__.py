"""The sandbox: the mock bank, the command server and the query server in one process, for the tests of clients in any language.

One process and one event loop: a `kill -9` leaves no server behind. Everything that must outlive it lies in one folder, the
addresses too, so that a sandbox which is started again over its folder is the old one to its clients.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gateway_mock
from chassis import settings
from chassis.settings import Address, address
from command_service import serving as command_serving
from command_service.settings import Settings as CommandSettings
from gateway_mock.cli import Settings as BankSettings
from query_service import serving as query_serving
from query_service.settings import Settings as QuerySettings
from query_service.subscriber import State

DEFAULT_PORTS = {"bank": 8080, "command": 50051, "feed": 50053, "query": 50052}
ANY_PORTS = dict.fromkeys(DEFAULT_PORTS, 0)
LOOK_SECONDS = 0.01
# Far more than a start takes.
START_SECONDS = 30.0
# In the folder, beside journal.db, view.db, bank.db and sandbox.log: the line that was printed last.
ADDRESSES = "sandbox.json"
# Good for tests: a client never waits for the sandbox's end, and any disk will do, for nothing here outlives a power cut.
_DEFAULTS = {
    "COMMAND_DRAIN_SECONDS": "1",
    "QUERY_DRAIN_SECONDS": "1",
    "COMMAND_JOURNAL_ANY_FILE_SYSTEM": "yes",
}


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox that serves: its addresses as clients of this machine use them, and its end."""

    command: str
    query: str
    feed: str
    bank: str
    """A URL; the others are host:port."""
    broken: asyncio.Task[Exception]
    """Comes when the query server cannot go on: the sandbox must be ended then."""

    def addresses(self) -> Mapping[str, str]:
        """Return the addresses by their names in the line that is printed."""
        return {"command": self.command, "query": self.query, "feed": self.feed, "bank": self.bank}


def ports_before(folder: Path) -> Mapping[str, int]:
    """Return the ports of the sandbox that served from this folder before, or free ones. Raises SettingsError."""
    path = folder / ADDRESSES
    if not path.exists():
        return ANY_PORTS
    try:
        told = json.loads(path.read_text())
        return {name: address(told[name].removeprefix("http://")).port for name in DEFAULT_PORTS}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise settings.SettingsError(f"{path} is not as a sandbox wrote it: remove it to get other ports") from None


@asynccontextmanager
async def serve(
    folder: Path, host: str, ports: Mapping[str, int], environment: Mapping[str, str]
) -> AsyncIterator[Sandbox]:
    """Run the three servers over a folder; leaving the context drains them. They take their settings from the environment.

    Addresses and files are no settings here. Raises what the servers raise when they cannot start.
    """
    given = {
        **_DEFAULTS,
        **environment,
        "GATEWAY_MOCK_LISTEN": str(Address(host, ports["bank"])),
        "GATEWAY_MOCK_TLS": "",
        "COMMAND_LISTEN": str(Address(host, ports["command"])),
        "COMMAND_FEED_LISTEN": str(Address(host, ports["feed"])),
        "COMMAND_BANKS": "",
        "COMMAND_BANK_TLS": "",
        "COMMAND_JOURNAL": f"sqlite:///{folder / 'journal.db'}",
        "QUERY_LISTEN": str(Address(host, ports["query"])),
        "QUERY_VIEW": str(folder / "view.db"),
    }
    async with contextlib.AsyncExitStack() as stack:
        bank = await stack.enter_async_context(_bank(settings.read(BankSettings, given), folder / "bank.db"))
        given["COMMAND_BANK_URL"] = bank
        command = await stack.enter_async_context(command_serving.serve(settings.read(CommandSettings, given)))
        given["QUERY_FEED"] = feed = str(command.feed_listen.from_here)
        query = await stack.enter_async_context(query_serving.serve(settings.read(QuerySettings, given)))
        broken = asyncio.create_task(_broken(query))
        stack.callback(broken.cancel)
        await _caught_up(query, broken)
        yield Sandbox(str(command.listen.from_here), str(query.listen.from_here), feed, bank, broken)


@asynccontextmanager
async def _bank(chosen: BankSettings, ledger: Path) -> AsyncIterator[str]:
    """Run the bank, and yield its URL. Raises OSError, whose text names the address."""
    times = {name: getattr(chosen, name) for name in ("token_seconds", "hold_seconds", "key_seconds")}
    async with contextlib.AsyncExitStack() as stack:
        try:
            listen = await stack.enter_async_context(gateway_mock.serve(str(chosen.listen), ledger, **times))
        except OSError as error:
            why = str(error.strerror).rpartition(": ")[2]
            raise OSError(f"the bank cannot listen on {chosen.listen}: {why}") from None
        yield f"http://{address(listen).from_here}"


async def _caught_up(query: query_serving.Serving, broken: asyncio.Task[Exception]) -> None:
    """Wait until the query server shows the whole journal. Raises what breaks it, and OSError after some time."""
    for _ in range(round(START_SECONDS / LOOK_SECONDS)):
        if broken.done():
            raise broken.result()
        if all(mirror.subscriber.state is State.LIVE for mirror in query.mirrors):
            return
        await asyncio.sleep(LOOK_SECONDS)
    raise OSError("the query server does not reach the command server's feed: do their settings of TLS fit each other?")


async def _broken(query: query_serving.Serving) -> Exception:
    """Wait until the query server cannot go on, and return why. A stopped projection breaks nothing: its view is served."""
    damages = [mirror.view.damage for mirror in query.mirrors]
    ends: list[asyncio.Future[Any]] = [*damages, query.following]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if query.following.done() and (error := query.following.exception()) is not None:
        return error if isinstance(error, Exception) else RuntimeError(repr(error))
    await asyncio.wait(damages, return_when=asyncio.FIRST_COMPLETED)
    return next(damage.result() for damage in damages if damage.done())


def told(sandbox: Sandbox, folder: Path, log: Path) -> str:
    """Return the line that says where it serves, and keep it in the folder for the next start."""
    line = json.dumps({**sandbox.addresses(), "folder": str(folder), "log": str(log), "pid": os.getpid()})
    part = folder / f"{ADDRESSES}.part"
    part.write_text(line + "\n")
    part.replace(folder / ADDRESSES)
    return line
