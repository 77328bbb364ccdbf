"""How the loop looks whether the customer has taken the step: slowly by itself, and at once for a call. On virtual time."""

import asyncio
from itertools import pairwise
from typing import Any, cast

from command_service.bank import Bank
from command_service.charge import Command
from command_service.journal import Journal
from command_service.run import Run
from command_service.runner import CUSTOMER_SECONDS, LONGEST_CUSTOMER_SECONDS
from command_service.values import Answer, Effect, NeedsAction, RequestToken, Token
from prove.simulation.loop import VirtualLoop
from tests.core.stories import REQUEST, STEP_URL
from tests.service.test_runner import InMemory, Scripted, Timed


class Waiting(Scripted):
    """A bank that waits for the customer, and takes a second for each answer. It notes when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at: list[float] = []
        self.at_once = self.most_at_once = 0

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        assert not look_up_first
        if isinstance(effect, RequestToken):
            return Token("ours")
        self.asked_at.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(1.0)
        self.at_once -= 1
        return NeedsAction(STEP_URL)


class Shared(InMemory):
    """A journal that another server has, too, which drives the charge from some time on."""

    is_ours = True

    def drives(self, _charge_id: str) -> bool:
        return self.is_ours


async def _awaiting(loop: VirtualLoop, bank: Waiting, journal: InMemory | None = None) -> tuple[Run, Any]:
    """A charge whose customer is awaited, with its pause just begun."""
    assembled = Timed(loop).assemble(cast("Journal", journal or InMemory()), {"": cast("Bank", bank)})
    accepted = await assembled.reception.accept(Command(REQUEST))
    assert accepted.run is not None
    await accepted.run.told
    return accepted.run, assembled


def test_the_loop_looks_less_and_less_often_by_itself() -> None:
    """Every few seconds at first, and after hours every few minutes."""
    loop, bank = VirtualLoop(None), Waiting()

    async def main() -> None:
        _, assembled = await _awaiting(loop, bank)
        await asyncio.sleep(6 * 3600.0)
        await assembled.close()

    loop.run(main())
    pauses = [after - before - 1.0 for before, after in pairwise(bank.asked_at)][1:]
    assert CUSTOMER_SECONDS <= pauses[0] <= 1.25 * CUSTOMER_SECONDS
    assert LONGEST_CUSTOMER_SECONDS <= pauses[-1] <= 1.25 * LONGEST_CUSTOMER_SECONDS
    assert all(after > before / 1.3 for before, after in pairwise(pauses))
    assert len(pauses) < 300


def test_a_look_that_is_wanted_in_a_pause_begins_at_once() -> None:
    """And it is done when the bank has answered."""
    loop, bank = VirtualLoop(None), Waiting()

    async def main() -> None:
        run, assembled = await _awaiting(loop, bank)
        await asyncio.sleep(2.0)
        wanted_at, looks = loop.time(), len(bank.asked_at)
        await run.look()
        assert bank.asked_at[looks:] == [wanted_at]
        assert loop.time() == wanted_at + 1.0
        await assembled.close()

    loop.run(main())


def test_a_look_that_is_wanted_during_another_begins_right_after_it() -> None:
    """The bank's answer to the other one may be older than what the call's shop knows."""
    loop, bank = VirtualLoop(None), Waiting()

    async def main() -> None:
        run, assembled = await _awaiting(loop, bank)
        await asyncio.sleep(2.0)
        first = run.look()
        await asyncio.sleep(0.5)
        looks, wanted_at = len(bank.asked_at), loop.time()
        await run.look()
        assert first.done()
        assert bank.asked_at[looks:] == [wanted_at + 0.5]
        assert loop.time() == wanted_at + 1.5
        await assembled.close()

    loop.run(main())


def test_however_many_want_a_look_the_bank_is_asked_once_at_a_time() -> None:
    """A thousand clients, each of which asks again as soon as it is answered, have it asked as often as one."""
    loop, bank = VirtualLoop(None), Waiting()

    async def main() -> None:
        run, assembled = await _awaiting(loop, bank)
        looks = len(bank.asked_at)

        async def insist() -> None:
            for _ in range(5):
                await asyncio.shield(run.look())

        await asyncio.gather(*(insist() for _ in range(1_000)))
        assert len(bank.asked_at) - looks == 5
        assert bank.most_at_once == 1
        await assembled.close()

    loop.run(main())


def test_a_call_at_a_server_that_does_not_drive_the_charge_has_the_bank_asked_too() -> None:
    """Once, and by nothing else: the other server looks by itself."""
    loop, bank, journal = VirtualLoop(None), Waiting(), Shared()

    async def main() -> None:
        run, assembled = await _awaiting(loop, bank, journal)
        journal.is_ours = False
        looks = len(bank.asked_at)
        await asyncio.sleep(600.0)
        assert len(bank.asked_at) <= looks + 1, "the one that was due"
        looks, wanted_at = len(bank.asked_at), loop.time()
        await run.look()
        assert bank.asked_at[looks:] == [wanted_at]
        await asyncio.sleep(600.0)
        assert len(bank.asked_at) == looks + 1
        await assembled.close()

    loop.run(main())


def test_a_look_at_a_charge_that_has_ended_is_done() -> None:
    """Nobody would come to do it."""
    loop = VirtualLoop(None)

    async def main() -> None:
        assembled = Timed(loop).assemble(cast("Journal", InMemory()), {"": cast("Bank", Scripted())})
        accepted = await assembled.reception.accept(Command(REQUEST))
        assert accepted.run is not None
        during = accepted.run.look()
        await accepted.run.ended
        assert during.done()
        assert accepted.run.look().done()

    loop.run(main())
