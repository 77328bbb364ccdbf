"""A rig: one adapter with a bank behind it that follows orders. Every rig in RIGS runs the suites of the bank's contract.

These are test_bank.py, test_bank_answers.py, test_bank_calling_off.py and test_conformance.py.

Banks differ in what they can do. A test, or one of its cases, that is about such an ability says so (`needs`), and is not
there for a bank without it.

A rig names troubles in the words of gateway_mock ("on execute: lose_answer"), whose docstring defines them. The rig of another
bank translates them into the faults of that bank's double. A rig's bank is a process of its own; the tests of a module share
it, each under references of its own.
"""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Set
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from _pytest.mark import ParameterSet

from command_service.bank import Bank
from command_service.bank.conformance.checks import OPENINGS
from command_service.bank.conformance.subject import Between, Provoke, Subject
from command_service.bank.gateway import gateway_bank
from command_service.bank.one_step import one_step_bank
from command_service.bank.transport import open_transport
from command_service.values import DeclineReason, Kind, Operation

PATIENT_SECONDS = 20.0  # Longer than any honest call takes on a busy machine.
IMPATIENT_SECONDS = 0.2  # For a bank that does not answer: a test waits this long.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Making the usual one takes longer than a test.


class Ability(Enum):
    """What a bank may be able to do, and another not."""

    OPENS = "opens a transaction in the token step, which binds its fields, and knows it before it is executed"
    EXPIRES = "closes an open transaction as expired"
    ALIKE = (
        "does every kind in one way: by one call for a question, in parts of a hold, under an id of its own, called off"
    )


def needs(ability: Ability) -> pytest.MarkDecorator:
    """Mark a test, or a case of it, that is about this ability."""
    return pytest.mark.needs(ability)


OPENS, EXPIRES, ALIKE = needs(Ability.OPENS), needs(Ability.EXPIRES), needs(Ability.ALIKE)


def case(on: str, *more: Any) -> ParameterSet:
    """A case about the calls of one step, which a bank may not have."""
    return pytest.param(on, *more, marks=OPENS if on == "token" else ())


@dataclass(frozen=True, slots=True)
class Movement:
    """Money that moved, or was held or let go, by the bank's statement. `on` is empty for what opened a charge."""

    reference: str
    kind: Kind
    transaction_id: str
    minor_units: int
    currency_code: str
    on: str = ""


def movement(operation: Operation, transaction_id: str) -> Movement:
    """What the bank's statement says of an operation that it has executed."""
    amount = operation.amount
    return Movement(
        operation.reference, operation.kind, transaction_id, amount.minor_units, amount.currency_code, operation.on
    )


def directly(wire: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
    """Put nothing between an adapter and its connections to the bank."""
    return wire


class SlowWay(httpx.AsyncBaseTransport):
    """A way to the bank on which requests stay until they are let go. Each arrives, though nobody waits for its answer."""

    def __init__(self) -> None:
        self._may_arrive = asyncio.Event()
        self._under_way: list[asyncio.Task[None]] = []

    def to(self, wire: httpx.AsyncBaseTransport) -> "SlowWay":
        """Lead on over these connections."""
        self._wire = wire
        return self

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._under_way.append(asyncio.create_task(self._bring(request)))
        never: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()
        return await never

    async def all_arrive(self) -> int:
        """Let all requests go, and return how many the bank has answered."""
        self._may_arrive.set()
        return len(await asyncio.gather(*self._under_way))

    async def aclose(self) -> None:
        await self._wire.aclose()

    async def _bring(self, request: httpx.Request) -> None:
        await self._may_arrive.wait()
        await (await self._wire.handle_async_request(request)).aread()


class Rig(Protocol):
    """An adapter and its bank, for the contract's tests."""

    abilities: Set[Ability]
    approved_card: str
    unknown_card: str
    declined_cards: Mapping[Kind, Mapping[str, DeclineReason]]
    """For each kind the cards for which the bank declines it, and nothing that must be executed before it."""
    not_tried: Mapping[str, Collection[Kind]]
    """The kinds for which a check of the conformance suite is not possible to try, by its name."""

    def adapter(
        self, *, call_timeout_seconds: float = PATIENT_SECONDS, between: Between = directly
    ) -> AbstractAsyncContextManager[Bank]:
        """Open an adapter with connections of its own, like one more process of ours."""
        ...

    def subject(self) -> Subject:
        """Tell the conformance suite how to try the bank, and what can be provoked at it."""
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

    def expire(self, reference: str) -> None:
        """Have the bank close the open transaction of this reference as expired, now."""
        ...

    def expire_hold(self, reference: str) -> None:
        """Have the bank let the hold lapse, now, on which the transaction of this reference acts."""
        ...

    def movements(self, *references: str) -> list[Movement]:
        """List what was executed under these references."""
        ...

    def asked(self, reference: str) -> list[str]:
        """List the bank's calls under this reference, in order: token, execute, cancel, look_up."""
        ...

    def calls(self, *steps: str) -> list[str]:
        """List the calls that these steps make. `open` is a look-up of what is not executed and not closed."""
        ...

    def quiet(self) -> None:
        """Wait until the bank has no work left, late requests included."""
        ...

    def restart(self) -> None:
        """Kill the bank's process as by `kill -9`, unless it is dead, and start another on its ledger.

        Earlier adapters have the old address: another process of ours continues.
        """
        ...


async def impatient_adapters(rig: Rig) -> AsyncIterator[Bank]:
    """Open adapters with ever later deadlines, until the bank has met all ordered troubles before a deadline was over."""
    for seconds in (IMPATIENT_SECONDS, 1.0, 5.0):
        async with rig.adapter(call_timeout_seconds=seconds) as impatient:
            yield impatient
        if not rig.unfired():
            return
        rig.forget_trouble()
    raise AssertionError("the bank has not met the troubles")


def provoked(order: Callable[[str], None]) -> Provoke:
    """Give an order to the bank's double as the conformance suite gives it."""

    async def run(reference: str) -> None:
        await asyncio.to_thread(order, reference)

    return run


class GatewayRig:
    """The two-step gateway, and gateway_mock."""

    abilities: Set[Ability] = frozenset(Ability)
    approved_card = "tok_visa"
    unknown_card = "tok_nobody"
    _declined_openings: Mapping[str, DeclineReason] = {
        "tok_declined": DeclineReason.CARD_DECLINED,
        "tok_insufficient_funds": DeclineReason.INSUFFICIENT_FUNDS,
        "tok_expired_card": DeclineReason.EXPIRED_CARD,
    }
    declined_cards: Mapping[Kind, Mapping[str, DeclineReason]] = {
        Kind.CHARGE: _declined_openings,
        Kind.AUTHORIZE: _declined_openings,
        Kind.CAPTURE: {"tok_capture_declined": DeclineReason.CARD_DECLINED},
        Kind.VOID: {"tok_void_declined": DeclineReason.CARD_DECLINED},
        Kind.REFUND: {"tok_refund_declined": DeclineReason.CARD_DECLINED},
    }

    not_tried: Mapping[str, Collection[Kind]] = {}

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._referee = httpx.Client(timeout=PATIENT_SECONDS, trust_env=False)
        self._start()

    @asynccontextmanager
    async def adapter(
        self, *, call_timeout_seconds: float = PATIENT_SECONDS, between: Between = directly
    ) -> AsyncIterator[Bank]:
        bank = self._open(between, call_timeout_seconds)
        try:
            yield bank
        finally:
            await bank.close()

    def subject(self) -> Subject:
        return Subject(
            open_bank=self._open,
            approved_card=self.approved_card,
            other_card="tok_mastercard",
            declined_cards=self.declined_cards,
            expire=provoked(self.expire),
            lapse=provoked(self.expire_hold),
            customer_card="tok_3ds",
            confirm=provoked(partial(self._press, "confirm")),
            fail=provoked(partial(self._press, "refuse")),
        )

    def _press(self, button: str, page: str) -> None:
        assert self._referee.post(f"{page}/{button}").status_code == 303

    def _open(self, between: Between, call_timeout_seconds: float = PATIENT_SECONDS) -> Bank:
        wire = between(open_transport(max_connections=32, verify=NO_TLS))
        return gateway_bank(self._url, wire, call_timeout_seconds)

    def trouble(self, on: str, fault: str, **details: Any) -> None:
        self._ask("POST", "/faults", json={"on": on, "fault": fault, **details})

    def unfired(self) -> list[str]:
        return [fault["fault"] for fault in self._ask("GET", "/faults") if fault["fired"] < fault["times"]]

    def forget_trouble(self) -> None:
        self._ask("DELETE", "/faults")

    def expire(self, reference: str) -> None:
        self._look_up_with("expire_token", reference)

    def expire_hold(self, reference: str) -> None:
        self._look_up_with("expire_hold", reference)

    def movements(self, *references: str) -> list[Movement]:
        return [
            Movement(
                movement["reference"],
                Kind(movement["kind"]),
                movement["transaction_id"],
                movement["minor_units"],
                movement["currency_code"],
                movement.get("on", ""),
            )
            for movement in self._ask("GET", "/statement")["movements"]
            if movement["reference"] in references
        ]

    def asked(self, reference: str) -> list[str]:
        return [_step(call) for call in self._ask("GET", "/calls") if call["reference"] == reference]

    def calls(self, *steps: str) -> list[str]:
        return ["look_up" if step == "open" else step for step in steps]

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

    def _look_up_with(self, fault: str, reference: str) -> None:
        self.trouble("look_up", fault, reference=reference)
        self._ask("GET", "/transactions", params={"reference": reference})

    def _ask(self, method: str, path: str, **details: Any) -> Any:
        return self._referee.request(method, self._url + path, **details).raise_for_status().json()


def _step(call: dict[str, Any]) -> str:
    if call["method"] == "GET":
        return "look_up"
    last: str = call["path"].rpartition("/")[2]
    return {"execute": "execute", "payments": "execute", "cancel": "cancel"}.get(last, "token")


class OneStepRig(GatewayRig):
    """The bank of one step, and gateway_mock."""

    abilities: Set[Ability] = frozenset({Ability.ALIKE})
    not_tried: Mapping[str, Collection[Kind]] = {
        "the customer's step is awaited, at one address": OPENINGS,
        "when the customer has taken the step, it is executed once": OPENINGS,
        "when the customer has failed, it is closed": OPENINGS,
        "with nobody there for the step, it is closed": OPENINGS,
        "what has expired is never executed": tuple(Kind),
        "after an expiry one more token is given": tuple(Kind),
        "another amount or currency under a known token moves nothing": tuple(Kind),
    }

    def subject(self) -> Subject:
        return replace(super().subject(), expire=None, customer_card="")

    def _open(self, between: Between, call_timeout_seconds: float = PATIENT_SECONDS) -> Bank:
        wire = between(open_transport(max_connections=32, verify=NO_TLS))
        return one_step_bank(self._url + "/one-step", wire, call_timeout_seconds)

    def calls(self, *steps: str) -> list[str]:
        # The token is ours, and that a look-up finds nothing is heard twice.
        made = {"token": [], "open": ["look_up", "look_up"]}
        return [call for step in steps for call in made.get(step, [step])]

    def expire_hold(self, reference: str) -> None:
        # Before its order comes, the bank does not know what acts on the hold.
        self.trouble("execute", "expire_hold", reference=reference)


@contextmanager
def _running(make: type[GatewayRig], folder: Path) -> Iterator[Rig]:
    rig = make(folder / "gateway.db")
    try:
        yield rig
    finally:
        rig.stop()


gateway_rig, one_step_rig = partial(_running, GatewayRig), partial(_running, OneStepRig)

RIGS: Mapping[str, Callable[[Path], AbstractContextManager[Rig]]] = {"gateway": gateway_rig, "one_step": one_step_rig}
ABILITIES: Mapping[str, Set[Ability]] = {"gateway": GatewayRig.abilities, "one_step": OneStepRig.abilities}
