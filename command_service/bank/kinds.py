"""The kinds of banks that can be configured, and how an adapter of each is made."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from chassis.documents import Reading
from chassis.exposure import is_loopback
from chassis.secret import secret_in
from chassis.settings import SettingsError
from chassis.watched import Watched
from command_service.address import is_address
from command_service.bank import Bank
from command_service.bank.gateway import gateway_bank
from command_service.bank.one_step import KEY_SECONDS, one_step_bank
from command_service.bank.stripe import CUSTOMER_SECONDS, stripe_bank


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


def check_members(chosen: BankSettings, options: Collection[str] = (), *, has_key: bool) -> None:
    """Refuse what a bank's kind does not know: other options than these, and a key file if it has none, or no key file.

    Raises SettingsError, whose text quotes nothing that may be a secret.
    """
    reading, where = Reading(), _where(chosen)
    reading.only(where, chosen.options, options)
    if has_key is not (chosen.key_file is not None):
        what = "needs a key_file" if has_key else "takes no key_file"
        reading.problems.append(f"{where}: a bank of the kind {chosen.kind} {what}")
    _end(reading)


def _where(chosen: BankSettings) -> str:
    return f"[banks.{chosen.name}]"


def _end(reading: Reading) -> None:
    if reading.problems:
        raise SettingsError("\n  ".join(("banks cannot be used:", *reading.problems)))


def _two_step(chosen: BankSettings, transport: httpx.AsyncBaseTransport, _: list[Watched[Any]]) -> Bank:
    check_members(chosen, has_key=False)
    return gateway_bank(chosen.url, transport, chosen.timeout_seconds)


def _one_step(chosen: BankSettings, transport: httpx.AsyncBaseTransport, _: list[Watched[Any]]) -> Bank:
    check_members(chosen, ("key_seconds", "looks_up"), has_key=False)
    reading, where = Reading(), _where(chosen)
    # A call that is given up at its deadline must have arrived long before its key is forgotten.
    least = 12 * chosen.timeout_seconds
    key_seconds = reading.number(where, chosen.options, "key_seconds", least, 366 * KEY_SECONDS)
    looks_up = chosen.options.get("looks_up", True)
    if not isinstance(looks_up, bool):
        reading.problems.append(f"{where}: looks_up must be true or false")
    _end(reading)
    return one_step_bank(
        chosen.url,
        transport,
        chosen.timeout_seconds,
        key_seconds=KEY_SECONDS if key_seconds is None else key_seconds,
        looks_up=looks_up is True,
    )


def _stripe(chosen: BankSettings, transport: httpx.AsyncBaseTransport, watched: list[Watched[Any]]) -> Bank:
    check_members(chosen, ("return_url", "customer_seconds"), has_key=True)
    reading, where = Reading(), f"[banks.{chosen.name}]"
    return_url = chosen.options.get("return_url")
    if not isinstance(return_url, str) or not is_address(return_url):
        reading.problems.append(
            f"{where}: return_url must be an http or https address: customers come back to it from 3-D Secure"
        )
    customer_seconds = reading.number(where, chosen.options, "customer_seconds", 60.0, 30 * 86_400.0)
    address = httpx.URL(chosen.url)
    if address.scheme != "https" and not is_loopback(address.host):
        reading.problems.append(f"{where}: url must be https: the secret key is shown to it")
    if reading.problems or chosen.key_file is None:
        raise SettingsError("\n  ".join(("banks cannot be used:", *reading.problems)))
    key = secret_in(chosen.key_file)
    watched.append(key)
    return stripe_bank(
        chosen.url,
        transport,
        chosen.timeout_seconds,
        key=lambda: key.value,
        return_url=str(return_url),
        customer_seconds=CUSTOMER_SECONDS if customer_seconds is None else customer_seconds,
    )


KINDS: Mapping[str, Maker] = {"two_step": _two_step, "one_step": _one_step, "stripe": _stripe}
"""How a bank of each kind is made, by the word for it in the file."""
