"""The statements of the kinds of banks that can be asked themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from chassis.secret import secret_in
from chassis.settings import SettingsError
from chassis.watched import Watched
from command_service.bank.gateway_statement import GatewayStatement
from command_service.bank.kinds import BankSettings
from command_service.bank.statement import Statement
from command_service.bank.stripe.statement import StripeStatement

Maker = Callable[[BankSettings, httpx.AsyncBaseTransport, list[Watched[Any]]], Statement]
"""Makes a source over a transport, and adds to the list what it reads from files. Raises SettingsError."""


def _gateway(chosen: BankSettings, transport: httpx.AsyncBaseTransport, _: list[Watched[Any]]) -> Statement:
    return GatewayStatement(chosen.url, transport)


def _stripe(chosen: BankSettings, transport: httpx.AsyncBaseTransport, watched: list[Watched[Any]]) -> Statement:
    if chosen.key_file is None:
        raise SettingsError(f"[banks.{chosen.name}]: a bank of the kind stripe needs a key_file")
    key = secret_in(chosen.key_file)
    watched.append(key)
    return StripeStatement(chosen.url, transport, key=lambda: key.value)


STATEMENTS: Mapping[str, Maker] = {"two_step": _gateway, "one_step": _gateway, "stripe": _stripe}
"""How the statement of a bank of each kind is made, by the word for it in the file of banks."""
