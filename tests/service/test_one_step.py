"""A bank of one step that forgets keys, behind a command server that is killed: what was done is not done again.

Processes, so that the server can be killed, and the bank started again with a memory of three seconds for its keys.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, RefundRequest, VoidRequest
from rig.processes import Town, free_address
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import (
    AUTHORIZED,
    BRIEF_SECONDS,
    CHARGED,
    IN_REVIEW,
    OPERATION_EXECUTED,
    OPERATION_IN_REVIEW,
    a_hold,
    a_request,
    assert_books_agree,
    id_of,
    money,
    new_key,
    until,
)

KEY_SECONDS, DAY_SECONDS = 3.0, 24 * 3600.0
CALL_SECONDS = 0.25  # The shortest that such a short memory allows.
PART = money(400)
OPENED = Counter(charge=1, authorize=2)
"""What the bank has moved before the test begins."""
ONCE = OPENED + Counter(charge=1, authorize=1, capture=1, void=1, refund=1)

Wish = ChargeRequest | CaptureRequest | VoidRequest | RefundRequest


class Street(Town):
    """A bank of one step and a command server that believes what a test says of it."""

    def banks(self, **options: object) -> str:
        """Write the file of banks; return its path."""
        said = "".join(f"{name} = {str(value).lower()}\n" for name, value in options.items())
        file = self.folder / "banks.toml"
        file.write_text(
            f'[banks.one]\nkind = "one_step"\nurl = "{self.bank_url}/one-step"\ntimeout_seconds = {CALL_SECONDS}\n{said}'
            "[[routes]]\nbanks = { one = 1 }\n"
        )
        return str(file)

    async def answers(self, wishes: Sequence[Wish], seconds: float) -> list[Any]:
        """Ask for all of them at once. What is not heard in time is None."""
        async with grpc.aio.insecure_channel(self.command.listen) as channel:
            stub = command_pb2_grpc.CommandServiceStub(channel)

            async def answer(wish: Wish) -> Any:
                method = type(wish).__name__.removesuffix("Request")
                try:
                    return await getattr(stub, method)(wish, timeout=seconds)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
                    return None

            return await asyncio.gather(*map(answer, wishes))


@asynccontextmanager
async def a_street(folder: Path) -> AsyncIterator[tuple[Street, Referee]]:
    street = Street(folder)
    try:
        await street.bank.start(GATEWAY_MOCK_LISTEN=free_address(), GATEWAY_MOCK_KEY_SECONDS=str(DAY_SECONDS))
        async with Referee(street.bank_url) as referee:
            yield street, referee
    finally:
        await street.__aexit__()


async def kinds(referee: Referee) -> Counter[str]:
    return Counter(movement.kind for movement in await referee.movements())


async def after_the_keys_were_forgotten(street: Street, referee: Referee, **options: object) -> list[Any]:
    """The answers about one operation of each kind, whose answer was lost after the work, if the server was killed then.

    What the options say of the bank's memory, the server believes from its second start on, as the bank has changed then.
    """
    await street.start_command(COMMAND_BANKS=street.banks(**{**options, "key_seconds": DAY_SECONDS}))
    openings = [a_request(), a_hold(), a_hold()]
    await street.answers(openings, PATIENT_SECONDS)
    assert await kinds(referee) == OPENED
    charge, hold, other_hold = map(id_of, openings)
    wishes: list[Wish] = [
        a_request(),
        a_hold(),
        CaptureRequest(idempotency_key=new_key(), charge_id=hold, amount=PART),
        VoidRequest(idempotency_key=new_key(), charge_id=other_hold),
        RefundRequest(idempotency_key=new_key(), charge_id=charge, amount=PART),
    ]
    await referee.trouble("execute", "hang_after", times=1_000_000)
    await referee.trouble("look_up", "hang_after", times=1_000_000)

    async def is_done() -> bool:
        await street.answers(wishes, BRIEF_SECONDS)
        return await kinds(referee) == ONCE

    await until(is_done)
    forgotten_at = time.time() + KEY_SECONDS + 0.1
    await street.command.kill()
    await assert_books_agree(street.journal, referee)
    await street.bank.kill()
    await street.bank.start(GATEWAY_MOCK_LISTEN=street.bank.listen, GATEWAY_MOCK_KEY_SECONDS=str(KEY_SECONDS))
    await asyncio.sleep(forgotten_at - time.time())
    await street.start_command(COMMAND_BANKS=street.banks(**options))
    return await street.answers(wishes, PATIENT_SECONDS)


def statuses(answers: list[Any]) -> list[int]:
    return [answer.status if hasattr(answer, "status") else answer.outcome.status for answer in answers]


async def test_what_was_done_before_the_keys_were_forgotten_is_looked_up(tmp_path: Path) -> None:
    """Each kind is executed once, and told so."""
    async with a_street(tmp_path) as (street, referee):
        answers = await after_the_keys_were_forgotten(street, referee, key_seconds=KEY_SECONDS)
        assert statuses(answers) == [CHARGED, AUTHORIZED] + [OPERATION_EXECUTED] * 3
        assert await kinds(referee) == ONCE
        await assert_books_agree(street.journal, referee)


async def test_a_server_that_believes_a_key_for_longer_than_the_bank_charges_twice(tmp_path: Path) -> None:
    """The control: it is the look-up, and nothing else, that keeps the money in place."""
    async with a_street(tmp_path) as (street, referee):
        await after_the_keys_were_forgotten(street, referee, key_seconds=DAY_SECONDS, looks_up=False)
        twice = Counter(charge=1, authorize=1, capture=1, refund=1)  # A second void finds nothing to let go.
        assert await kinds(referee) == ONCE + twice


async def test_a_server_looks_up_what_another_process_may_have_sent(tmp_path: Path) -> None:
    """However young that is by its clock, which may have stood still while the machine was off."""
    async with a_street(tmp_path) as (street, referee):
        answers = await after_the_keys_were_forgotten(street, referee, key_seconds=DAY_SECONDS)
        assert statuses(answers) == [CHARGED, AUTHORIZED] + [OPERATION_EXECUTED] * 3
        assert await kinds(referee) == ONCE
        await assert_books_agree(street.journal, referee)


async def test_without_a_look_up_it_is_left_to_people(tmp_path: Path) -> None:
    """Nothing is sent when the key may be forgotten."""
    async with a_street(tmp_path) as (street, referee):
        answers = await after_the_keys_were_forgotten(street, referee, key_seconds=KEY_SECONDS, looks_up=False)
        assert statuses(answers) == [IN_REVIEW, IN_REVIEW] + [OPERATION_IN_REVIEW] * 3
        assert await kinds(referee) == ONCE
        await assert_books_agree(street.journal, referee)


@pytest.mark.parametrize("looks_up", [True, False])
async def test_a_lost_answer_costs_a_repeat_while_the_key_is_known(tmp_path: Path, looks_up: bool) -> None:
    async with a_street(tmp_path) as (street, referee):
        await street.start_command(COMMAND_BANKS=street.banks(looks_up=looks_up))
        await referee.trouble("execute", "lose_answer", times=2)
        request = a_request()
        (answer,) = await street.answers([request], PATIENT_SECONDS)
        assert answer.status == CHARGED
        assert await referee.asked(id_of(request)) == ["execute"] * 3
        assert await kinds(referee) == Counter(charge=1)
        await assert_books_agree(street.journal, referee)
