"""The two-step gateway's words for the customer's step: what is sent with an order, and every way to read the answers."""

import json
from dataclasses import replace
from typing import Any

import pytest

from command_service.values import (
    CalledOff,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Executed,
    Expired,
    Kind,
    NeedsAction,
    NoAnswer,
    RequestToken,
    Token,
)
from tests.contract.operations import an_operation
from tests.contract.test_gateway import (
    ASK,
    CALL_OFF,
    CANCELLED,
    CREATED,
    EXECUTE,
    EXECUTED,
    OURS,
    TIMES,
    answer_from,
    answer_to,
    follows,
    http,
    wire,
)

URL = "https://bank.example/customer/ttok_1"
ASKED = OURS | {"action_url": URL, "action_expires_at": "2026-11-30T10:28:01Z"}
STEP = ASKED | {"result": "requires_action"}
LOOKED_UP = ASKED | {"state": "requires_action"}
ENDS_AT = TIMES["2026-11-30T10:28:01Z"]


# ---------------------------------------------------------------- what is sent
@pytest.mark.parametrize("kind", [Kind.CHARGE, Kind.AUTHORIZE])
async def test_an_order_says_that_the_customer_is_not_there_and_where_to_send_one_who_is(kind: Kind) -> None:
    """Only if the request says so: a bank that knows neither gets the orders that it knows."""
    plain = an_operation(kind, reference="charge-1")
    request = replace(plain.request, is_off_session=True, return_url="https://shop.example/back")
    said = http(CREATED | {"kind": kind.value})
    async with wire(said, said, said) as double:
        for operation in (plain, replace(plain, request=request), plain):
            assert await answer_to(RequestToken(operation, 0), double.url) == Token("ttok_1")
    before, with_more, after = (json.loads(sent.partition(b"\r\n\r\n")[2]) for sent in double.requests)
    assert before == after
    assert with_more == before | {"off_session": True, "return_url": "https://shop.example/back"}


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID, Kind.REFUND])
async def test_the_order_of_an_operation_that_follows_says_neither(kind: Kind) -> None:
    """Its customer has taken every step."""
    plain = follows(kind)
    request = replace(plain.request, is_off_session=True, return_url="https://shop.example/back")
    async with wire() as double:
        for operation in (plain, replace(plain, request=request)):
            await answer_to(RequestToken(operation, 0), double.url)
    plain_order, other = (sent.partition(b"\r\n\r\n")[2] for sent in double.requests)
    assert plain_order == other


# ---------------------------------------------------------------- what is read
@pytest.mark.parametrize("kind", [Kind.CHARGE, Kind.AUTHORIZE])
async def test_the_execute_step_tells_where_to_send_the_customer(kind: Kind) -> None:
    effect = Execute(an_operation(kind, reference="charge-1"), "ttok_1")
    said = {"kind": kind.value}
    assert await answer_from(effect, http(STEP | said, 202)) == NeedsAction(URL, ENDS_AT)
    assert await answer_from(effect, http(LOOKED_UP | said)) == NoAnswer(), "a look-up's words, from the execute step"
    async with wire(http(LOOKED_UP | said)) as double:
        assert await answer_to(effect, double.url, look_up_first=True) == NeedsAction(URL, ENDS_AT)


async def test_a_token_step_takes_the_token_of_a_transaction_that_awaits_the_customer() -> None:
    """The execute step will hear of it."""
    assert await answer_from(ASK, http(LOOKED_UP)) == Token("ttok_1")


@pytest.mark.parametrize("said", [None, *TIMES])
async def test_a_bank_need_not_tell_how_long_it_waits(said: str | None) -> None:
    """And tells it in any form of RFC 3339."""
    answer = http(STEP | {"action_expires_at": said}, 202)
    assert await answer_from(EXECUTE, answer) == NeedsAction(URL, 0 if said is None else TIMES[said])
    missing = {name: value for name, value in STEP.items() if name != "action_expires_at"}
    assert await answer_from(EXECUTE, http(missing, 202)) == NeedsAction(URL)


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"action_url": url}
            for url in (None, 1, "", "bank.example", "https://a@b/", "https://bank.example/4111111111111111")
        ),
        *({"action_expires_at": at} for at in (1, "", "tomorrow", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z")),
        *(
            {"transaction_id": "txn_1"},
            {"reason": "card_declined"},
            {"result": "executed"},
            {"token": None},
            {"amount": "1"},
        ),
    ],
    ids=str,
)
async def test_an_answer_that_is_not_whole_is_no_answer(changed: dict[str, Any]) -> None:
    """Nobody is sent anywhere, and the bank is asked again."""
    assert await answer_from(EXECUTE, http(STEP | changed, 202)) == NoAnswer()
    looked_up = {name: value for name, value in changed.items() if name != "result"}
    if looked_up:
        async with wire(http(LOOKED_UP | looked_up)) as double:
            assert await answer_to(EXECUTE, double.url, look_up_first=True) == NoAnswer()


@pytest.mark.parametrize("status", [200, 201, 400, 410])
async def test_its_word_counts_with_its_status_only(status: int) -> None:
    assert await answer_from(EXECUTE, http(STEP, status)) == NoAnswer()


async def test_an_address_of_another_transaction_is_not_told() -> None:
    """The reply may have been the answer to another question: a look-up says how ours stands."""
    anothers = http(STEP | {"reference": "charge-2"}, 202)
    assert await answer_from(EXECUTE, anothers, http(EXECUTED | {"state": "executed"})) == Executed("txn_1")
    assert await answer_from(EXECUTE, anothers, http(LOOKED_UP)) == NeedsAction(URL, ENDS_AT)


async def test_a_transaction_that_awaits_the_customer_after_calling_off_is_no_answer() -> None:
    """It is open, and the bank is asked again."""
    assert await answer_from(CALL_OFF, http(LOOKED_UP), http(CANCELLED)) == NoAnswer()


@pytest.mark.parametrize(
    ("effect", "script", "end"),
    [
        (EXECUTE, [http(EXECUTED | {"result": "already_executed"})], Executed("txn_1")),
        (
            EXECUTE,
            [http(OURS | {"result": "declined", "state": "declined", "reason": "authentication_required"})] * 2,
            Declined(DeclineReason.AUTHENTICATION_REQUIRED),
        ),
        (EXECUTE, [http(OURS | {"error": "token_expired"}, 410), http(OURS | {"state": "expired"})], Expired()),
        (CALL_OFF, [http(CANCELLED)] * 2, CalledOff()),
    ],
)
async def test_its_end_is_read_as_any_other(effect: Effect, script: list[bytes], end: object) -> None:
    assert await answer_from(effect, *script) == end
