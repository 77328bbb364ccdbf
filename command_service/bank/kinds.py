"""The kinds of banks that can be configured, and how an adapter of each is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from chassis.watched import Watched
from command_service.bank import Bank
from command_service.bank.gateway import gateway_bank


@dataclass(frozen=True, slots=True)
class BankSettings:
    """One bank, as a file of COMMAND_BANKS describes it. `options` are those of its kind alone."""

    name: str
    kind: str
    url: str
    key_file: Path | None = None
    """Holds the secret that the bank knows us by. It may be replaced while the server runs."""
    tls: Path | None = None
    """A folder as that of COMMAND_BANK_TLS."""
    proxy: str = ""
    """The URL of an HTTP proxy that is asked to CONNECT to the bank; empty for none."""
    calls: int = 128
    timeout_seconds: float = 10.0
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


Maker = Callable[[BankSettings, httpx.AsyncBaseTransport, list[Watched[Any]]], Bank]
"""Makes an adapter over a transport, and adds to the list what it reads from files. Raises SettingsError naming the option."""


def _two_step(chosen: BankSettings, transport: httpx.AsyncBaseTransport, _: list[Watched[Any]]) -> Bank:
    return gateway_bank(chosen.url, transport, chosen.timeout_seconds)


KINDS: Mapping[str, Maker] = {"two_step": _two_step}
"""How a bank of each kind is made, by the word for it in the file."""
