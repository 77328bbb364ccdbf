"""A rig: one adapter with a bank behind it that follows orders. Every rig in RIGS runs tests/contract/test_bank.py.

A rig names troubles in the words of gateway_mock ("on execute: lose_answer"), whose docstring defines them. The rig of another
bank translates them into the faults of that bank's double. A rig's bank is a process of its own; the tests of a module share
it, each under references of its own.
"""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from command_service.bank import Bank
from command_service.bank.gateway import gateway_bank
from command_service.bank.transport import open_transport
from command_service.values import DeclineReason

PATIENT_SECONDS = 20.0  # Longer than any honest call takes on a busy machine.
IMPATIENT_SECONDS = 0.2  # For a bank that does not answer: a test waits this long.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Making the usual one takes longer than a test.


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved, by the bank's statement."""

    transaction_id: str
    minor_units: int
    currency_code: str


class Rig(Protocol):
    """An adapter and its bank, for the contract's tests."""

    approved_card: str
    unknown_card: str
    declined_cards: Mapping[str, DeclineReason]

    def adapter(self, *, call_timeout_seconds: float = PATIENT_SECONDS) -> AbstractAsyncContextManager[Bank]:
        """Open an adapter with connections of its own, like one more process of ours."""
        ...

    def trouble(self, on: str, fault: str, **details: Any) -> None:
        """Order that the next calls of this step, or the next look-ups, go wrong in this way."""
        ...

    def unfired(self) -> list[str]:
        """List the troubles that have not come up as often as ordered."""
        ...

    def forget_trouble(self) -> None:
        """Cancel all troubles."""
        ...

    def expire(self, charge_id: str) -> None:
        """Have the bank close the charge's open transaction as expired, now."""
        ...

    def movements(self, charge_id: str) -> list[Movement]:
        """List all money that moved under this reference."""
        ...

    def asked(self, charge_id: str) -> list[str]:
        """List the bank's calls under this reference, in order: token, execute, look_up."""
        ...

    def quiet(self) -> None:
        """Wait until the bank has no work left, late requests included."""
        ...

    def restart(self) -> None:
        """Kill the bank's process as by `kill -9`, unless it is dead, and start another on its ledger.

        Earlier adapters have the old address: another process of ours continues.
        """
        ...


class GatewayRig:
    """The two-step gateway, and gateway_mock."""

    approved_card = "tok_visa"
    unknown_card = "tok_nobody"
    declined_cards: Mapping[str, DeclineReason] = {
        "tok_declined": DeclineReason.CARD_DECLINED,
        "tok_insufficient_funds": DeclineReason.INSUFFICIENT_FUNDS,
        "tok_expired_card": DeclineReason.EXPIRED_CARD,
    }

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._referee = httpx.Client(timeout=PATIENT_SECONDS, trust_env=False)
        self._start()

    @asynccontextmanager
    async def adapter(self, *, call_timeout_seconds: float = PATIENT_SECONDS) -> AsyncIterator[Bank]:
        bank = gateway_bank(self._url, open_transport(max_connections=32, verify=NO_TLS), call_timeout_seconds)
        try:
            yield bank
        finally:
            await bank.close()

    def trouble(self, on: str, fault: str, **details: Any) -> None:
        self._ask("POST", "/faults", json={"on": on, "fault": fault, **details})

    def unfired(self) -> list[str]:
        return [fault["fault"] for fault in self._ask("GET", "/faults") if fault["fired"] < fault["times"]]

    def forget_trouble(self) -> None:
        self._ask("DELETE", "/faults")

    def expire(self, charge_id: str) -> None:
        self.trouble("look_up", "expire_token", reference=charge_id)
        self._ask("GET", "/transactions", params={"reference": charge_id})

    def movements(self, charge_id: str) -> list[Movement]:
        return [
            Movement(movement["transaction_id"], movement["minor_units"], movement["currency_code"])
            for movement in self._ask("GET", "/statement")["movements"]
            if movement["reference"] == charge_id
        ]

    def asked(self, charge_id: str) -> list[str]:
        return [_step(call) for call in self._ask("GET", "/calls") if call["reference"] == charge_id]

    def quiet(self) -> None:
        while any(call["fault"] == "delay" and call["status"] is None for call in self._ask("GET", "/calls")):
            time.sleep(0.01)

    def restart(self) -> None:
        self._kill()
        self._start()

    def stop(self) -> None:
        self._referee.close()
        self._kill()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway_mock"],
            env={**os.environ, "GATEWAY_MOCK_LISTEN": "127.0.0.1:0", "GATEWAY_MOCK_LEDGER": str(self._ledger)},
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        serving = next(said for said in map(json.loads, self._process.stderr) if said["event"] == "serving")
        self._url = f"http://{serving['listen']}"

    def _kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def _ask(self, method: str, path: str, **details: Any) -> Any:
        return self._referee.request(method, self._url + path, **details).raise_for_status().json()


def _step(call: dict[str, Any]) -> str:
    if call["method"] == "GET":
        return "look_up"
    return "execute" if call["path"].endswith("/execute") else "token"


@contextmanager
def gateway_rig(folder: Path) -> Iterator[Rig]:
    rig = GatewayRig(folder / "gateway.db")
    try:
        yield rig
    finally:
        rig.stop()


RIGS: Mapping[str, Callable[[Path], AbstractContextManager[Rig]]] = {"gateway": gateway_rig}
