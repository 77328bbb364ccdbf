"""A command server that knows two more kinds of banks, as tests/banks/bank.toml may name them: python -m tests.banks.command

A bank of one's own becomes a kind by a line in `command_service/bank/kinds.py`. Nothing else of the server is another.
"""

from typing import Any, cast

import httpx

from chassis.watched import Watched
from command_service.bank import Bank
from command_service.bank.kinds import KINDS, BankSettings, Maker
from command_service.bank.two_step import TwoStepBank
from command_service.cli import main
from tests.banks.charges_adapter import charges_bank


def forgetful(chosen: BankSettings, transport: httpx.AsyncBaseTransport, watched: list[Watched[Any]]) -> Bank:
    """Make Stripe's adapter for a fake that knows no keys: each step looks up first, as the steps of old charges do."""
    bank = KINDS["stripe"](chosen, transport, watched)
    assert isinstance(bank, TwoStepBank)
    bank.remembers_seconds = 0.0
    return bank


cast("dict[str, Maker]", KINDS).update({"charges": charges_bank, "forgetful stripe": forgetful})

if __name__ == "__main__":
    main(program="python -m tests.banks.command")
