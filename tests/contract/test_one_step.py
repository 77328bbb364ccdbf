"""The one-step bank's own contract: keys that were used, forgotten, closed or never ours, with and without look-ups.

What holds for every bank is in test_bank.py and its neighbours.
"""

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chassis.settings import SettingsError
from command_service.bank import Bank
from command_service.bank.breaker import UNANSWERED_TO_OPEN, Breaker
from command_service.bank.conformance.checks import Kept, NotTried
from command_service.bank.conformance.subject import Between, Subject
from command_service.bank.conformance.suite import CHECKS, findings
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.line import Line, Performed
from command_service.bank.one_step import one_step_bank
from command_service.bank.transport import open_transport
from command_service.events import ReviewRequired
from command_service.values import (
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    Executed,
    Kind,
    Money,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)
from tests.contract.bank_rigs import IMPATIENT_SECONDS, NO_TLS, PATIENT_SECONDS, OneStepRig, movement
from tests.contract.operations import (
    KINDS as ALL_KINDS,
)
from tests.contract.operations import (
    MOVED,
    OWN_FIELDS,
    an_operation,
    answer_after_looking,
    answer_of,
    at_once,
    executed,
    following,
    opened,
    outcome,
    requested,
    run_to_rest,
    with_other,
)
from tests.contract.test_bank_answers import HARMLESS, SHORT
from tests.contract.test_gateway import http, wire, without

DAY = 24 * 3600.0


class ForgetfulRig(OneStepRig):
    """A bank of one step that can be made to forget its keys."""

    def __init__(self, ledger: Path, *, looks_up: bool = True) -> None:
        self._looks_up = looks_up
        super().__init__(ledger)

    def forget_keys(self) -> None:
        """Let a day pass at the bank. Earlier adapters have its old address."""
        self._kill()
        with closing(sqlite3.connect(self._ledger)) as ledger, ledger:
            ledger.execute("UPDATE payments SET closed_at = closed_at - ?", (DAY * 1000,))
        self._start()

    def subject(self) -> Subject:
        return replace(super().subject(), looks_up=self._looks_up)

    def _open(self, between: Between, call_timeout_seconds: float = PATIENT_SECONDS) -> Bank:
        inner = between(open_transport(max_connections=32, verify=NO_TLS))
        return one_step_bank(self._url + "/one-step", inner, call_timeout_seconds, looks_up=self._looks_up)


def _running(folder: Path, looks_up: bool) -> Iterator[ForgetfulRig]:
    rig = ForgetfulRig(folder / "bank.db", looks_up=looks_up)
    try:
        yield rig
    finally:
        rig.stop()


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgetfulRig]:
    yield from _running(tmp_path_factory.mktemp("looking"), looks_up=True)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgetfulRig]:
    yield from _running(tmp_path_factory.mktemp("unseen"), looks_up=False)


@pytest.fixture
def bank_rig(looking: ForgetfulRig) -> Iterator[ForgetfulRig]:
    yield looking
    looking.forget_trouble()


@pytest.fixture
def unseen_rig(unseen: ForgetfulRig) -> Iterator[ForgetfulRig]:
    """Its bank offers no look-up."""
    yield unseen
    unseen.forget_trouble()


async def to_be_executed(bank: Bank, kind: Kind, card: str = "tok_visa") -> Execute:
    return await opened(bank, await requested(bank, kind, card))


def off(effect: Execute) -> list[CallOff]:
    """Calling it off with its token, and without."""
    return [CallOff(effect.operation, effect.token), CallOff(effect.operation, None)]


def either_way(effect: Execute) -> list[Effect]:
    """Executing it, and calling it off."""
    return [effect, *off(effect)]


# ---------------------------------------------------------------- a key that was used
@pytest.mark.parametrize(("kind", "name"), OWN_FIELDS)
async def test_another_field_under_a_key_that_was_used_is_refused(
    bank_rig: ForgetfulRig, kind: Kind, name: str
) -> None:
    """By a step, a look-up or calling off; the payment stays as it is."""
    async with bank_rig.adapter() as bank:
        effect = await to_be_executed(bank, kind)
        done = await answer_of(bank, effect)
        other = replace(effect, operation=with_other(effect.operation, name))
        assert isinstance(await answer_of(bank, other), Refused)
        for differs in (
            await answer_after_looking(bank, other),
            await answer_of(bank, CallOff(other.operation, None)),
        ):
            assert isinstance(differs, Contradiction)
            assert (differs.reason, differs.evidence.fields) == (ReviewReason.FIELDS_DIFFER, (name,))
        assert await answer_of(bank, effect) == done
    assert len(bank_rig.movements(effect.operation.reference)) == 1


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID, Kind.REFUND])
async def test_an_order_that_the_bank_refuses_is_for_people(bank_rig: ForgetfulRig, kind: Kind) -> None:
    """It acts on what the bank does not know: the key stays open, so that nobody may say that it is declined."""
    async with bank_rig.adapter() as bank:
        opening = an_operation(Kind.CHARGE)
        on = await executed(bank, opening)
        for wrong in (following(kind, opening, "txn_of_nobody"), following(kind, opening, on, Money(1, "USD"))):
            end = outcome(await run_to_rest(bank, wrong))
            assert isinstance(end, ReviewRequired)
            assert end.reason is ReviewReason.EXECUTE_REFUSED
            assert bank_rig.movements(wrong.reference) == []


@pytest.mark.parametrize(
    ("card", "reason"),
    [("tok_nobody", DeclineReason.BANK_REFUSED), ("tok_3ds", DeclineReason.AUTHENTICATION_REQUIRED)],
)
async def test_a_card_that_the_bank_cannot_charge_is_declined(
    bank_rig: ForgetfulRig, card: str, reason: DeclineReason
) -> None:
    """For ever, since the decline is the key's payment."""
    async with bank_rig.adapter() as bank:
        for kind in (Kind.CHARGE, Kind.AUTHORIZE):
            effect = await to_be_executed(bank, kind, card)
            assert await answer_of(bank, effect) == await answer_after_looking(bank, effect) == Declined(reason)


# ---------------------------------------------------------------- a key that was never used
@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_a_key_that_was_never_used_is_closed_for_ever(bank_rig: ForgetfulRig, kind: Kind) -> None:
    """Whether our journal holds the token or not. The bank never forgets that."""
    async with bank_rig.adapter() as bank:
        closed = []
        for number in range(2):
            effect = await to_be_executed(bank, kind)
            assert await answer_of(bank, off(effect)[number]) == CalledOff()
            looked = ["look_up"] * 2 * number  # without a token, and nothing is heard twice
            assert bank_rig.asked(effect.operation.reference) == [*looked, "cancel", "look_up"]
            closed.append(effect)
    bank_rig.forget_keys()
    async with bank_rig.adapter() as bank:
        for effect in closed:
            assert set(await at_once(bank, effect, 3)) == {CalledOff()}
            assert await answer_after_looking(bank, effect) == CalledOff()
            assert bank_rig.movements(effect.operation.reference) == []


async def test_a_token_that_is_no_key_of_ours_is_sent_to_nobody(bank_rig: ForgetfulRig) -> None:
    """A bank of another kind may have had this bank's name, and have executed it."""
    async with bank_rig.adapter() as bank:
        effect = Execute(an_operation(), "ttok_1")
        assert isinstance(await answer_of(bank, effect), Refused)
        assert isinstance(await answer_after_looking(bank, effect), Contradiction)
        assert isinstance(await answer_of(bank, CallOff(effect.operation, "ttok_1")), Refused)
    assert set(bank_rig.asked(effect.operation.reference)) == {"look_up"}


# ---------------------------------------------------------------- a look-up that finds nothing
async def test_that_nothing_was_found_is_heard_twice(bank_rig: ForgetfulRig) -> None:
    """One untrue answer is not believed."""
    async with bank_rig.adapter() as bank:
        for kind in ALL_KINDS:
            effect = await to_be_executed(bank, kind)
            done = await answer_of(bank, effect)
            for asked in either_way(effect):
                bank_rig.trouble("look_up", "forget_token")
                assert await answer_after_looking(bank, asked) == done
            assert bank_rig.asked(effect.operation.reference) == ["execute", *["look_up"] * 6]
    assert bank_rig.unfired() == []


STRAY: Mapping[str, bytes] = {
    "a proxy's": http({"error": "not found"}, 404),
    "of a server at a wrong address": http({"error": "not_found"}, 404),
    "that names nobody": http({"error": "reference_unknown"}, 404),
    "about another": http({"error": "reference_unknown", "reference": "charge-2"}, 404),
    "with more": http({"error": "reference_unknown", "reference": "charge-1", "of": "another"}, 404),
    "to another question": http({"error": "refused"}, 404),
    "with another status": http({"error": "reference_unknown", "reference": "charge-1"}, 410),
    "that is no JSON": http(b"<h1>Not found</h1>", 404, "Content-Type: text/html"),
}
NOTHING = http({"error": "reference_unknown", "reference": "charge-1"}, 404)


@pytest.mark.parametrize("stray", STRAY.values(), ids=STRAY)
@pytest.mark.parametrize("script", ["first", "second"])
async def test_an_answer_that_does_not_name_our_reference_sends_nothing(stray: bytes, script: str) -> None:
    """Neither an order nor a calling off, whether it comes first or second."""
    for effect in (EXECUTE, CallOff(CHARGE, None), CallOff(CHARGE, "charge-1")):
        async with wire(*([stray] if script == "first" else [NOTHING, stray])) as double:
            assert await answer_to(effect, double.url, look_up_first=True) == NoAnswer()
        assert {request.split(b" ")[0] for request in double.requests} == {b"GET"}


# ---------------------------------------------------------------- a key that was forgotten
@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_past_the_keys_time_what_was_done_is_found(bank_rig: ForgetfulRig, kind: Kind) -> None:
    """And neither done again nor called off, though the bank would do either. The control: without looking it does."""
    card = "tok_visa" if kind in (Kind.CHARGE, Kind.AUTHORIZE) else f"tok_{kind.value}_declined"
    async with bank_rig.adapter() as bank:
        effect = await to_be_executed(bank, kind)
        done = await answer_of(bank, effect)
        declined = await to_be_executed(bank, kind, "tok_declined" if card == "tok_visa" else card)
        assert isinstance(await answer_of(bank, declined), Declined)
    bank_rig.forget_keys()
    async with bank_rig.adapter() as bank:
        for asked in either_way(effect):
            assert await answer_after_looking(bank, asked) == done
        for asked in either_way(declined):
            assert isinstance(await answer_after_looking(bank, asked), Declined)
        assert set(bank_rig.asked(effect.operation.reference)) == {"look_up"}
        assert len(bank_rig.movements(effect.operation.reference)) == 1
        again = await answer_of(bank, effect)
        assert again != done
        assert len(bank_rig.movements(effect.operation.reference)) == 1 + isinstance(again, Executed)


async def test_a_calling_off_that_looked_at_nothing_hides_no_payment(bank_rig: ForgetfulRig) -> None:
    """The bank has forgotten that the key was used, and closes it; the look-up that must confirm it finds the payment."""
    async with bank_rig.adapter() as bank:
        effect = await to_be_executed(bank, Kind.CHARGE)
        done = await answer_of(bank, effect)
    bank_rig.forget_keys()
    async with bank_rig.adapter() as bank:
        assert await answer_of(bank, off(effect)[0]) == done
    assert "cancel" in bank_rig.asked(effect.operation.reference)


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_an_order_that_is_still_on_its_way_is_no_second_payment(bank_rig: ForgetfulRig, kind: Kind) -> None:
    """A look-up found nothing, so that the order was sent again: under the same key."""
    async with bank_rig.adapter() as bank, bank_rig.adapter(call_timeout_seconds=IMPATIENT_SECONDS) as impatient:
        effect = await to_be_executed(bank, kind)
        bank_rig.trouble("execute", "delay", seconds=1)
        assert await answer_of(impatient, effect) == NoAnswer()
        done = await answer_after_looking(bank, effect)
        assert isinstance(done, Executed)
        bank_rig.quiet()
        assert await answer_after_looking(bank, effect) == done
    assert bank_rig.movements(effect.operation.reference) == [movement(effect.operation, done.transaction_id)]


# ---------------------------------------------------------------- without look-ups
async def test_without_look_ups_the_promises_are_kept_while_the_key_is_known(unseen_rig: ForgetfulRig) -> None:
    """What needs a look-up, and what the bank cannot do, is not tried."""
    not_tried = unseen_rig.not_tried.keys()
    async for finding in findings(unseen_rig.subject(), CHECKS):
        match finding.end:
            case NotTried(reason):
                assert finding.check.name in not_tried or "look" in reason
            case end:
                assert isinstance(end, Kept), finding
    assert not any(call["method"] == "GET" for call in unseen_rig._ask("GET", "/calls"))


@pytest.mark.parametrize("fault", [*HARMLESS, "refuse", "contradict", "wrong_amount", "wrong_reference", "wrong_token"])
async def test_without_look_ups_a_repeat_tells_how_it_ended(unseen_rig: ForgetfulRig, fault: str) -> None:
    """After any trouble once, and after what is harmless, three times."""
    async with unseen_rig.adapter() as bank:
        for kind in ALL_KINDS:
            operation = (await requested(bank, kind, "tok_visa")).operation
            times = 3 if fault in HARMLESS else 1
            unseen_rig.trouble("execute", fault, times=times, reference=operation.reference, **SHORT.get(fault, {}))
            end = outcome(await run_to_rest(bank, operation))
            assert isinstance(end, MOVED[kind])
            assert unseen_rig.movements(operation.reference) == [movement(operation, end.transaction_id)]
    assert all(fault["fired"] for fault in unseen_rig._ask("GET", "/faults"))


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_without_look_ups_calling_off_is_repeated(unseen_rig: ForgetfulRig, kind: Kind) -> None:
    async with unseen_rig.adapter() as bank:
        for number in range(2):
            effect = await to_be_executed(bank, kind)
            unseen_rig.trouble("cancel", "lose_answer")
            assert await answer_of(bank, off(effect)[number]) == NoAnswer()
            assert await answer_of(bank, off(effect)[number]) == CalledOff()
            assert set(await at_once(bank, effect, 3)) == {CalledOff()}
            assert unseen_rig.movements(effect.operation.reference) == []


async def test_without_look_ups_people_cannot_ask_either(unseen_rig: ForgetfulRig) -> None:
    """The bank is not called, so that this says nothing of how the bank is."""
    async with unseen_rig.adapter() as bank:
        effect = await to_be_executed(bank, Kind.CHARGE)
        calls = len(unseen_rig._ask("GET", "/calls"))
        line = Line(bank, Breaker(lambda: 0.0, Random(1)), calls_at_once=1)
        for _ in range(UNANSWERED_TO_OPEN + 1):
            assert await line.look_up(effect.operation, effect.token) == NoAnswer()
        assert not line.is_spared
        assert len(unseen_rig._ask("GET", "/calls")) == calls


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_without_look_ups_nothing_is_sent_past_the_keys_time(unseen_rig: ForgetfulRig, kind: Kind) -> None:
    """It is for people, done or not. The token step is ours alone."""
    async with unseen_rig.adapter() as bank:
        effect = await to_be_executed(bank, kind)
        reference = effect.operation.reference
        for calls in (0, 1):
            for asked in either_way(effect):
                assert await answer_after_looking(bank, asked) == Contradiction(Evidence())
            assert await answer_after_looking(bank, RequestToken(effect.operation, 0)) == Token(reference)
            assert len(unseen_rig.asked(reference)) == calls
            await answer_of(bank, effect)


# ---------------------------------------------------------------- a bank that is away
async def test_a_bank_that_does_not_answer_is_spared_though_tokens_are_given(bank_rig: ForgetfulRig) -> None:
    """They are ours, and between any two orders."""
    async with bank_rig.adapter() as bank:
        line = Line(bank, Breaker(lambda: 1_000.0, Random(1)), calls_at_once=1)
        bank_rig.trouble("execute", "error_before", times=UNANSWERED_TO_OPEN)
        for _ in range(UNANSWERED_TO_OPEN):
            assert not line.is_spared
            operation = an_operation()
            token = await line.perform(RequestToken(operation, 0), look_up_first=False)
            assert token == Performed(Token(operation.reference), 0)
            order = Execute(operation, operation.reference)
            assert await line.perform(order, look_up_first=False) == Performed(NoAnswer(), 1)
        assert line.is_spared


# ---------------------------------------------------------------- on the wire
CHARGE = an_operation(reference="charge-1")
EXECUTE = Execute(CHARGE, "charge-1")
PAYMENT: dict[str, Any] = {
    "key": "charge-1",
    "state": "executed",
    "replayed": False,
    "reference": "charge-1",
    "kind": "charge",
    "card": "tok_visa",
    "amount": 1250,
    "currency": "EUR",
    "transaction_id": "txn_1",
    "reason": None,
}


async def answer_to(effect: Effect, url: str, *, look_up_first: bool = False) -> Any:
    bank = one_step_bank(url, open_transport(max_connections=4, verify=NO_TLS), PATIENT_SECONDS)
    try:
        return await bank.perform(effect, look_up_first=look_up_first)
    finally:
        await bank.close()


def a_following(kind: Kind, *, is_final: bool = False) -> Operation:
    return replace(an_operation(kind, amount=Money(7, "EUR"), reference="follows-1", on="txn_0"), is_final=is_final)


ORDERS: Mapping[str, tuple[Operation, dict[str, Any]]] = {
    "charge": (CHARGE, {"kind": "charge", "card": "tok_visa", "amount": 1250}),
    "authorize": (
        an_operation(Kind.AUTHORIZE, reference="charge-1"),
        {"kind": "authorize", "card": "tok_visa", "amount": 1250},
    ),
    "capture": (a_following(Kind.CAPTURE), {"kind": "capture", "on": "txn_0", "amount": 7, "final": False}),
    "final capture": (
        a_following(Kind.CAPTURE, is_final=True),
        {"kind": "capture", "on": "txn_0", "amount": 7, "final": True},
    ),
    "void": (a_following(Kind.VOID), {"kind": "void", "on": "txn_0", "amount": 7}),
    "refund": (a_following(Kind.REFUND), {"kind": "refund", "on": "txn_0", "amount": 7}),
}


@pytest.mark.parametrize(("operation", "order"), ORDERS.values(), ids=ORDERS)
async def test_the_whole_order_goes_with_our_reference_as_its_key(operation: Operation, order: dict[str, Any]) -> None:
    """Also when it is called off, so that the bank can say of what kind of payment the key was."""
    reference = operation.reference
    said = PAYMENT | order | {"key": reference, "reference": reference}
    called_off = said | {"state": "cancelled", "transaction_id": None}
    async with wire(http(said), http(called_off), http(called_off)) as double:
        assert await answer_to(Execute(operation, reference), double.url + "/v1/") == Executed("txn_1")
        assert await answer_to(CallOff(operation, reference), double.url) == CalledOff()
    paid, cancelled, looked_up = [request.partition(b"\r\n\r\n") for request in double.requests]
    assert paid[0].startswith(b"POST /v1/payments HTTP/1.1\r\n")
    assert cancelled[0].startswith(f"POST /payments/{reference}/cancel HTTP/1.1\r\n".encode())
    assert looked_up[0].startswith(f"GET /payments?reference={reference} HTTP/1.1\r\n".encode())
    assert b"idempotency-key" not in looked_up[0].lower()
    for head, _, body in (paid, cancelled):
        assert f"\r\nIdempotency-Key: {reference}\r\n".encode() in head + b"\r\n"
        assert json.loads(body) == order | {"reference": reference, "currency": "EUR"}


async def test_the_token_step_asks_nobody() -> None:
    assert await answer_to(RequestToken(CHARGE, 0), "http://127.0.0.1:1") == Token("charge-1")


UNREADABLE: Mapping[str, bytes] = {
    "no JSON": http(b"<html>"),
    **{f"no {name}": http(without(PAYMENT, name)) for name in PAYMENT if name != "replayed"},
    **{
        f"{name} an object": http(PAYMENT | {name: {}})
        for name in PAYMENT
        if name not in ("replayed", "transaction_id")
    },
    **{f"{name} null": http(PAYMENT | {name: None}) for name in PAYMENT if name not in ("replayed", "reason")},
    "amount true": http(PAYMENT | {"amount": True}),
    "a state of two steps": http(PAYMENT | {"state": "created", "transaction_id": None}),
    "cancelled with an id": http(PAYMENT | {"state": "cancelled"}),
    "declined without a reason": http(PAYMENT | {"state": "declined", "transaction_id": None}),
    "executed with a reason": http(PAYMENT | {"reason": "card_declined"}),
    "on null": http(PAYMENT | {"on": None}),
    "final a number": http(PAYMENT | {"final": 0}),
    "a key that may not be stored": http(PAYMENT | {"key": "4111111111111111"}),
    "an error that is none": http(PAYMENT | {"error": "key_cancelled"}),
    "a 410 in other words": http(PAYMENT | {"error": "token_cancelled"}, 410),
    "in progress without a word": http({}, 202),
    "refused without a word": http({}, 422),
    "refused by a proxy": http({"error": "Unprocessable"}, 422),
    "a status without a meaning": http(PAYMENT, 201),
}


@pytest.mark.parametrize("reply", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_incomplete_or_malformed_reply_is_no_answer(reply: bytes) -> None:
    """To an order, a calling off and a look-up alike; no further question is put."""
    async with wire(reply, reply) as double:
        assert await answer_to(EXECUTE, double.url) == NoAnswer()
        assert await answer_to(CallOff(CHARGE, "charge-1"), double.url) == NoAnswer()
        assert len(double.requests) == 2
    async with wire(reply) as double:
        assert await answer_to(EXECUTE, double.url, look_up_first=True) == NoAnswer()
        assert len(double.requests) == 1


# ---------------------------------------------------------------- the options
def configured(**options: object) -> Bank:
    chosen = BankSettings("acme", "one_step", "http://127.0.0.1:1/one-step", options=options, timeout_seconds=10.0)
    return KINDS["one_step"](chosen, open_transport(max_connections=1, verify=NO_TLS), [])


@pytest.mark.parametrize(("options", "hours"), [({}, 20.0), ({"key_seconds": 7 * DAY}, 140.0)])
def test_a_bank_is_trusted_for_five_sixths_of_what_it_promises(options: dict[str, object], hours: float) -> None:
    for looks_up in (True, False):
        bank = configured(**options, looks_up=looks_up)
        assert bank.remembers_seconds == hours * 3600
        asyncio.run(bank.close())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"key_seconds": 119}, "key_seconds must be a number from 120 to"),
        ({"key_seconds": "a day"}, "key_seconds must be a number from 120 to"),
        ({"looks_up": "no"}, "looks_up must be true or false"),
        ({"key_hours": 24}, "nothing is meant by the key 'key_hours'"),
    ],
)
def test_an_option_that_is_wrong_is_told_by_its_name(options: dict[str, object], problem: str) -> None:
    """A key must be remembered for much longer than a call may take."""
    with pytest.raises(SettingsError, match=problem):
        configured(**options)
