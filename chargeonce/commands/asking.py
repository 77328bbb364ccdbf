"""How a command asks the servers: its options, its client, and its end."""

import asyncio
import contextlib
import functools
import secrets
import shlex
import string
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

import chargeonce_client
from chargeonce.commands.exits import HELP, Exit
from chargeonce.commands.printing import Printer
from chargeonce.commands.words import is_id
from chargeonce_client import CallFailed, Client, FeedBroken, Refused, Settings, Unsettled

P = ParamSpec("P")
Named = Mapping[str, str]
"""A charge's name, as the client takes it: its `charge_id` or its `key`."""

CONNECT_SECONDS = 5.0
_SERVERS = {
    "command": ("CHARGEONCE_COMMAND", "the command server"),
    "query": ("CHARGEONCE_QUERY", "the query server"),
    "feed": ("CHARGEONCE_FEED", "the command server's feed"),
}
_ADVICE = {
    "RETRY_SAME_KEY": "the same request with the same key is safe, now or later",
    "USE_NEW_KEY": "no money moved under this key, and none will: another try needs another key",
    "ASK_STATUS": "ask for the status before anything else: chargeonce get NAME",
    "DO_NOT_RETRY": "as it is it can never succeed: correct it before you send it again",
}


class _Unreachable(Exception):
    """No server answers at an address."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What a command works with."""

    client: Client
    printer: Printer


def asking(
    *servers: str, interrupted: str = ""
) -> Callable[[Callable[Concatenate[Asking, P], Awaitable[Exit]]], Callable[..., None]]:
    """Make what click calls of a coroutine that asks these servers: with options to reach them, and its exit status.

    `interrupted` is said after Ctrl-C.
    """

    def made(ask: Callable[Concatenate[Asking, P], Awaitable[Exit]]) -> Callable[..., None]:
        @functools.wraps(ask)
        def command(*, as_json: bool, tls: Path | None, token_file: Path | None, patience: float, **given: Any) -> None:
            addresses = {server: given.pop(server) for server in servers}
            settings = Settings(**addresses, tls=tls, token_file=token_file, patience=patience)
            printer = Printer(as_json=as_json)
            sys.exit(_ended(_answered(ask, settings, list(addresses.values()), printer, given), printer, interrupted))

        for option in reversed(_options(servers)):
            command = option(command)
        return command

    return made


def ended(answer: Callable[[Printer], Awaitable[Exit]], *, as_json: bool) -> None:
    """Run a command that asks no server of ours, and exit with its status."""
    printer = Printer(as_json=as_json)

    async def answered() -> Exit:
        return await answer(printer)

    sys.exit(_ended(answered(), printer, ""))
