"""The line to a bank, with the mock bank behind it: a step whose turn comes too late is not done."""

import asyncio
from random import Random

from command_service.bank import Bank
from command_service.bank.breaker import SETUP_REFUSED_TO_OPEN, Breaker
from command_service.bank.line import Line, Performed
from command_service.values import Executed, Kind, NoAnswer, RequestToken, Token
from tests.contract.bank_rigs import Rig
from tests.contract.operations import an_operation, opened


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def a_line(bank: Bank, clock: Clock) -> Line:
    return Line(bank, Breaker(clock, Random(1)), calls_at_once=1)


def new_step(rig: Rig) -> RequestToken:
    return RequestToken(an_operation(Kind.CHARGE, rig.approved_card), 0)


async def test_a_step_that_is_unwanted_when_its_turn_comes_is_not_sent(rig: Rig) -> None:
    """It was wanted when it began to wait for the slot. The next one is served."""
    async with rig.adapter() as bank:
        line = a_line(bank, Clock())
        first, late = await opened(bank, new_step(rig)), await opened(bank, new_step(rig))
        wanted = True
        under_way = asyncio.create_task(line.perform(first, look_up_first=False))
        waiting = asyncio.create_task(line.perform(late, look_up_first=False, is_wanted=lambda: wanted))
        await asyncio.sleep(0)  # now one has the slot, and the other waits for it
        wanted = False
        assert isinstance(await under_way, Performed)
        assert await waiting is None
        assert rig.asked(late.operation.reference) == rig.calls("token")
        wanted = True
        performed = await line.perform(late, look_up_first=False, is_wanted=lambda: wanted)
        assert performed is not None
        assert isinstance(performed.answer, Executed)
        assert performed.calls == 1


async def test_an_unwanted_step_is_no_probe(rig: Rig) -> None:
    """While the bank is spared, the next wanted one finds out whether it answers again."""
    clock = Clock()
    async with rig.adapter() as bank:
        line = a_line(bank, clock)
        steps = [await opened(bank, new_step(rig)) for _ in range(SETUP_REFUSED_TO_OPEN + 2)]
        *refused, unwanted, wanted = steps
        rig.trouble("execute", "refuse", status=401, times=SETUP_REFUSED_TO_OPEN)
        for step in refused:
            assert await line.perform(step, look_up_first=False) == Performed(NoAnswer(our_setup=True), 1)
        assert line.is_spared
        clock.now += 60.0
        assert line.may_probe
        assert await line.perform(unwanted, look_up_first=False, is_wanted=lambda: False) is None
        assert "execute" not in rig.asked(unwanted.operation.reference)
        assert line.may_probe
        assert await line.perform(wanted, look_up_first=False, is_wanted=lambda: True) is not None
        assert not line.is_spared


async def test_a_spared_bank_is_looked_up_by_a_probe_only(rig: Rig) -> None:
    """People do not wait for it. One that is heard ends the sparing."""
    clock = Clock()
    async with rig.adapter() as bank:
        line = a_line(bank, clock)
        steps = [await opened(bank, new_step(rig)) for _ in range(SETUP_REFUSED_TO_OPEN + 1)]
        *refused, known = steps
        rig.trouble("execute", "refuse", status=401, times=SETUP_REFUSED_TO_OPEN)
        for step in refused:
            await line.perform(step, look_up_first=False)
        before = rig.asked(known.operation.reference)
        assert isinstance(await line.look_up(known.operation, known.token), NoAnswer)
        assert rig.asked(known.operation.reference) == before
        clock.now += 60.0
        assert isinstance(await line.look_up(known.operation, known.token), Token)
        assert not line.is_spared
