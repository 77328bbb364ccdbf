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
# In the folder, beside journal.db, view.db, bank.db and sandbox.log: the line that was printed last.
ADDRESSES = "sandbox.json"
# A client that listens on every address is reached on this one from here.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
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
    given = {**_DEFAULTS, **environment}
    listen = {name: Address(host, port) for name, port in ports.items()}
    async with contextlib.AsyncExitStack() as stack:
        bank = settings.read(
            BankSettings, {**given, "GATEWAY_MOCK_LISTEN": str(listen["bank"]), "GATEWAY_MOCK_TLS": ""}
        )
        bank_listen = await stack.enter_async_context(
            gateway_mock.serve(
                str(bank.listen),
                folder / "bank.db",
                token_seconds=bank.token_seconds,
                hold_seconds=bank.hold_seconds,
                key_seconds=bank.key_seconds,
            )
        )
        bank_url = f"http://{_near(address(bank_listen))}"
        of_command = {
            **given,
            "COMMAND_LISTEN": str(listen["command"]),
            "COMMAND_FEED_LISTEN": str(listen["feed"]),
            "COMMAND_JOURNAL": f"sqlite:///{folder / 'journal.db'}",
        }
        if not given.get("COMMAND_BANKS"):  # a file of banks names their addresses itself
            of_command["COMMAND_BANK_URL"] = bank_url
        command = await stack.enter_async_context(command_serving.serve(settings.read(CommandSettings, of_command)))
        feed = str(_near(command.feed_listen))
        of_query = {
            **given,
            "QUERY_LISTEN": str(listen["query"]),
            "QUERY_FEED": feed,
            "QUERY_VIEW": str(folder / "view.db"),
        }
        query = await stack.enter_async_context(query_serving.serve(settings.read(QuerySettings, of_query)))
        broken = asyncio.create_task(_broken(query))
        stack.callback(broken.cancel)
        while any(mirror.subscriber.state is not State.LIVE for mirror in query.mirrors):
            if broken.done():
                raise broken.result()
            await asyncio.sleep(0.01)
        yield Sandbox(str(_near(command.listen)), str(_near(query.listen)), feed, bank_url, broken)


def _near(listen: Address) -> Address:
    """Return the address at which a program of this machine reaches a listener."""
    return Address(_WILDCARDS.get(listen.host, listen.host), listen.port)


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
