"""A command server that knows more kinds of banks: python -m tests.banks.command

A bank of one's own becomes a kind by a line in `command_service/bank/kinds.py`. Nothing else of the server is another.
"""

import uuid
from dataclasses import replace
from typing import Any, cast

import httpx

from chassis.secret import secret_in
from chassis.watched import Watched
from command_service.bank import Bank
from command_service.bank.dialect import Reply
from command_service.bank.kinds import KINDS, BankSettings, Maker
from command_service.bank.two_step import TwoStepBank
from command_service.cli import main
from command_service.values import Execute
from tests.banks.charges_adapter import Charges, charges_bank


def forgetful(chosen: BankSettings, transport: httpx.AsyncBaseTransport, watched: list[Watched[Any]]) -> Bank:
    """Make Stripe's adapter for a fake that knows no keys: each step looks up first, as the steps of old charges do."""
    bank = KINDS["stripe"](chosen, transport, watched)
    assert isinstance(bank, TwoStepBank)
    bank.remembers_seconds = 0.0
    return bank


class Keyless(Charges):
    """A planted bug: each request bears a key of its own."""

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Send the order."""
        return await super().execute(replace(effect, token=str(uuid.uuid4())), fresh=fresh)


def keyless(chosen: BankSettings, transport: httpx.AsyncBaseTransport, watched: list[Watched[Any]]) -> Bank:
    """Make the example adapter with the bug."""
    assert chosen.key_file is not None
    watched.append(key := secret_in(chosen.key_file))
    return TwoStepBank(Keyless(chosen.url, transport, key), chosen.timeout_seconds)


cast("dict[str, Maker]", KINDS).update(
    {"charges": charges_bank, "keyless charges": keyless, "forgetful stripe": forgetful}
)

if __name__ == "__main__":
    main(program="python -m tests.banks.command")
