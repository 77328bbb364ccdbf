"""The loop alone, on virtual time, with a journal in memory and a bank with scripted answers."""

import asyncio
import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from charging.v1.journal_pb2 import Event
from chassis import settings
from command_service.bank import Bank
from command_service.charge import Absent, Command, Follow, evolve
from command_service.codec import encode
from command_service.events import ChargeRequested, Recorded, TokenIssued
from command_service.failures import ChargeUnknown
from command_service.journal import Appended, Journal, Record, VersionConflict
from command_service.parts import Parts
from command_service.reception import BEAT_SECONDS, Source
from command_service.settings import Settings
from command_service.streams import DECISIONS, KeepsMoving, Snapshot
from command_service.values import (
    Answer,
    CallOff,
    Card,
    Effect,
    Execute,
    Executed,
    Kind,
    Money,
    NoAnswer,
    Operation,
    Request,
    RequestToken,
    Token,
    Wish,
)
from prove.simulation.loop import VirtualLoop
from rig.around import Around
from tests.core.stories import REQUEST

SETTINGS = dataclasses.replace(settings.read(Settings, {}), abandon_after_seconds=1.0)


class Timed(Parts):
    """The product's own parts, on virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(SETTINGS)
        self._loop = loop

    def clock(self) -> float:
        return self._loop.time()

    def now(self) -> int:
        return int(self._loop.time() * 1_000_000) + 1

    def chance(self) -> random.Random:
        return random.Random(1)

    async def wait_until(self, at: float) -> None:
        await asyncio.sleep(at - self._loop.time())


class InMemory:
    """A journal of one charge. Another server stores `ahead`, if given, right before our second event."""

    accepting, not_accepting, restored = True, "", False

    def __init__(self, ahead: bytes = b"") -> None:
        self.stored: list[Record] = []
        self._ahead = ahead

    def kinds(self) -> list[str | None]:
        return [Event.FromString(record.event).WhichOneof("kind") for record in self.stored]

    def drives(self, _charge_id: str) -> bool:
        return True

    async def read(self, _charge_id: str) -> list[Record]:
        return list(self.stored)

    async def append(
        self,
        charge_id: str,
        expected_version: int,
        events: Sequence[bytes],
        *,
        finished: bool,  # noqa: ARG002  # the port's
    ) -> Appended:
        if self._ahead and expected_version == 1:
            ahead, self._ahead = self._ahead, b""
            self._store(charge_id, ahead)
        if expected_version != len(self.stored):
            return VersionConflict()
        return [self._store(charge_id, event) for event in events]

    def _store(self, charge_id: str, event: bytes) -> Record:
        version = len(self.stored) + 1
        self.stored.append(Record(version, charge_id, version, 1, b"", event))
        return self.stored[-1]


class Scripted:
    """A bank that gives these answers in turn, and then does each step."""

    remembers_seconds = math.inf
    can_look_up = True

    def __init__(self, *answers: Answer) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self.asked: list[Effect] = []

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        assert not look_up_first
        self.asked.append(effect)
        assert len(self.asked) < 100, "it goes round in circles"
        done = Token("ours") if isinstance(effect, RequestToken) else Executed("txn_1")
        return next(self._answers, done)


def charged(journal: InMemory, bank: Scripted) -> None:
    """Run one charge to rest."""
    loop = VirtualLoop(None)

    async def main() -> None:
        assembled = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", bank)})
        accepted = await assembled.reception.accept(Command(REQUEST))
        assert accepted.run is not None
        await accepted.run.ended

    loop.run(main())


def test_refusals_of_our_setup_never_abandon_a_charge() -> None:
    """Older than the configured age and refused more than five times, it waits until people have mended the set-up."""
    journal, bank = InMemory(), Scripted(*[NoAnswer(0.5, our_setup=True)] * 12)
    charged(journal, bank)
    assert journal.kinds() == ["charge_requested", "token_issued", "charged"]
    assert len(bank.asked) == 14


def test_refusals_of_our_setup_do_not_count_as_attempts_when_the_bank_then_does_not_answer() -> None:
    """Four vain attempts are too few to abandon, after any number of refusals of the set-up."""
    refused, unanswered = NoAnswer(0.5, our_setup=True), NoAnswer(0.5)
    journal, bank = InMemory(), Scripted(*[refused] * 6, *[unanswered] * 4)
    charged(journal, bank)
    assert journal.kinds() == ["charge_requested", "token_issued", "charged"]


def test_vain_attempts_abandon_an_old_charge() -> None:
    """Meta: the two tests above could fail."""
    journal, bank = InMemory(), Scripted(*[NoAnswer(0.5)] * 6)
    charged(journal, bank)
    assert journal.kinds() == ["charge_requested", "charge_abandoned"]


def test_after_a_conflict_the_charge_is_read_again_and_not_assumed_stored() -> None:
    """The journal's token is executed, and never the token that this loop got."""
    journal, bank = InMemory(ahead=encode(TokenIssued("theirs"))), Scripted()
    charged(journal, bank)
    assert journal.kinds() == ["charge_requested", "token_issued", "charged"]
    assert [effect.token for effect in bank.asked if isinstance(effect, Execute)] == ["theirs"]


class Contested(InMemory):
    """A journal in which another writer is faster each time."""

    appends = 0

    async def append(self, *_: object, **__: object) -> Appended:
        self.appends += 1
        return VersionConflict()


def test_a_call_with_a_conflict_at_each_attempt_ends_after_a_few_attempts() -> None:
    """Each conflict means that another writer has stored something, which ends soon: an endless retry would hide a fault."""
    journal, loop = Contested(), VirtualLoop(None)

    async def main() -> None:
        assembled = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", Scripted())})
        await assembled.reception.accept(Command(REQUEST))

    with pytest.raises(KeepsMoving):
        loop.run(main())
    assert journal.appends == DECISIONS


def test_calls_for_a_key_at_rest_share_one_look_up() -> None:
    """However many come at once: one conflict tells that the charge is there, one read what it came to."""
    journal, bank = InMemory(), Scripted()
    charged(journal, bank)
    counted, loop = Counted(journal), VirtualLoop(None)

    async def main() -> None:
        reception = Timed(loop).assemble(counted.as_one(), {"": cast("Bank", bank)}).reception
        answers = await asyncio.gather(*(reception.accept(Command(REQUEST)).accepted for _ in range(200)))
        told = {(answer.source, answer.run) for answer in answers}
        assert told == {(Source.REPLAYED, None)}

    loop.run(main())
    assert (counted.appends, counted.reads) == (1, 1)


class Counted(Around[Journal]):
    """A journal whose calls are counted."""

    reads = appends = 0

    def __init__(self, journal: InMemory) -> None:
        super().__init__(cast("Journal", journal))

    async def read(self, charge_id: str) -> Sequence[Record]:
        self.reads += 1
        await asyncio.sleep(0.01)
        return await self.inner.read(charge_id)

    async def append(self, *arguments: Any, finished: bool) -> Appended:
        self.appends += 1
        await asyncio.sleep(0.01)
        return await self.inner.append(*arguments, finished=finished)


class Overtaken(InMemory):
    """A journal whose first read answers late, with what it found when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.reads = 0

    async def news(self) -> list[str]:
        return [REQUEST.charge_id]

    def drives(self, _charge_id: str) -> bool:
        return True

    async def read(self, _charge_id: str) -> list[Record]:
        found = list(self.stored)
        self.reads += 1
        if self.reads == 1:
            await self.may_answer.wait()
        return found


def test_a_read_that_a_runs_end_has_overtaken_begins_no_run() -> None:
    """At a start, a client brings a charge to rest while it is being read: its key is told the same, and no bank is asked."""
    journal, bank, loop = Overtaken(), Scripted(), VirtualLoop(None)

    async def main() -> None:
        await InMemory.append(journal, REQUEST.charge_id, 0, [encode(ChargeRequested(REQUEST))], finished=False)
        assembled = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", bank)})
        recovering = asyncio.ensure_future(assembled.runner.recover())
        await asyncio.sleep(0.1)
        accepted = await assembled.reception.accept(Command(REQUEST))
        assert accepted.run is not None
        await accepted.run.ended
        asked = len(bank.asked)
        journal.may_answer.set()
        assert await recovering == 1
        assert assembled.runner.unfinished == 0
        again = await assembled.reception.accept(Command(REQUEST))
        assert (again.source, len(bank.asked)) == (Source.REPLAYED, asked)

    loop.run(main())


def test_attempts_count_for_the_operation_that_they_were_made_for() -> None:
    """A hold that could not be called off for long is made, and the void that goes on then is a new operation: one vain attempt
    does not give it up."""
    held = dataclasses.replace(REQUEST, is_held=True)
    wish = Wish(Kind.VOID, held.charge_id, held.tenant, "void-1", "an-operation", "shop")
    unanswered = NoAnswer(0.5)
    bank = Scripted(Token("ours"), *[unanswered] * 8, Executed("txn_1"), unanswered)
    journal, loop = InMemory(), VirtualLoop(None)

    async def main() -> None:
        reception = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", bank)}).reception
        charging = await reception.accept(Command(held))
        await asyncio.sleep(0.2)
        await reception.accept(Follow(wish))
        assert charging.run is not None
        await charging.run.ended

    loop.run(main())
    assert journal.kinds() == [
        *("charge_requested", "token_issued", "void_requested", "authorized", "token_issued", "voided"),
    ]
    assert sum(isinstance(effect, CallOff) for effect in bank.asked) > 5


def a_wish(tenant: str, key: str) -> Follow:
    return Follow(Wish(Kind.REFUND, REQUEST.charge_id, tenant, key, f"operation {key}", "clerk", Money(10, "EUR")))


def test_an_owners_operation_does_not_wait_for_a_strangers_look_up() -> None:
    """The stranger's is stuck in the journal; it is answered on the first beat after it came to an end."""
    journal, bank, loop = InMemory(), Scripted(), VirtualLoop(None)
    charged(journal, bank)
    stuck = Overtaken()
    stuck.stored = journal.stored

    async def main() -> None:
        reception = Timed(loop).assemble(cast("Journal", stuck), {"": cast("Bank", bank)}).reception
        strangers = reception.accept(a_wish("stranger", "refund-1"))
        await asyncio.sleep(2.5 * BEAT_SECONDS)
        assert (await reception.accept(a_wish(REQUEST.tenant, "refund-2"))).source is Source.FRESH
        assert not strangers.accepted.done()
        stuck.may_answer.set()
        with pytest.raises(ChargeUnknown):
            await strangers
        assert loop.time() == pytest.approx(3 * BEAT_SECONDS)

    loop.run(main())


class Forgetful(Scripted):
    """A bank that forgets keys after a while. It answers an execute step after so many of them."""

    remembers_seconds = 10.0

    def __init__(self, *answers: Answer) -> None:
        super().__init__(*answers)
        self.looked_first: list[bool] = []

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if effect.operation.reference != REQUEST.charge_id:
            await asyncio.sleep(60.0)  # another charge, which has the only slot
        else:
            self.looked_first.append(look_up_first)
        return await super().perform(effect, look_up_first=False)


class OneSlot(Timed):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__(loop)
        self.settings = dataclasses.replace(SETTINGS, bank_calls=1)


def test_a_step_is_looked_up_first_once_the_bank_may_have_forgotten_it() -> None:
    """By the age of the operation: until then it is repeated as it is."""
    journal, bank, loop = InMemory(), Forgetful(Token("ours"), *[NoAnswer(4.0)] * 6), VirtualLoop(None)

    async def main() -> None:
        reception = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", bank)}).reception
        charging = await reception.accept(Command(REQUEST))
        assert charging.run is not None
        await charging.run.ended

    loop.run(main())
    young = bank.looked_first.count(False)
    assert 1 < young < len(bank.looked_first)
    assert bank.looked_first == [False] * young + [True] * (len(bank.looked_first) - young)


def test_a_step_that_becomes_old_while_it_waits_for_a_slot_is_looked_up_first() -> None:
    """It was young when it began to wait: the age counts at which it is sent."""
    journal, bank, loop = InMemory(), Forgetful(), VirtualLoop(None)
    another = Request("another", "other", "key", "us", "user", Card("tok"), Money(1, "EUR"))

    async def main() -> None:
        assembled = OneSlot(loop).assemble(cast("Journal", journal), {"": cast("Bank", bank)})
        step = RequestToken(Operation(Kind.CHARGE, "key", "another", another.amount, another), 0)
        busy = asyncio.ensure_future(assembled.lines.at("").perform(step, look_up_first=False))
        await asyncio.sleep(0.1)
        charging = await assembled.reception.accept(Command(REQUEST))
        assert charging.run is not None
        await charging.run.ended
        await busy

    loop.run(main())
    assert bank.looked_first == [True, True]
    assert journal.kinds() == ["charge_requested", "token_issued", "charged"]


class NeverDone(Scripted):
    """A bank that comes to no end."""

    async def perform(self, *_: object, **__: object) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("what", ["unknown", "at rest", "under way", "waiting for its turn"])
def test_a_stranger_is_answered_on_a_beat_whatever_the_charge_is_doing(what: str) -> None:
    journal, loop = InMemory(), VirtualLoop(None)
    if what != "unknown":
        charged(journal, Scripted())

    async def main() -> None:
        reception = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", NeverDone())}).reception
        if what in ("under way", "waiting for its turn"):
            await reception.accept(a_wish(REQUEST.tenant, "refund-1"))
        if what == "waiting for its turn":
            reception.accept(a_wish(REQUEST.tenant, "refund-2"))
        await asyncio.sleep(0.123)
        came_at = loop.time()
        with pytest.raises(ChargeUnknown):
            await reception.accept(a_wish("stranger", "refund-3"))
        assert loop.time() - came_at == pytest.approx(BEAT_SECONDS)

    loop.run(main())


class Slow(InMemory):
    """A journal whose reads answer one at a time, as they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self._may_answer = asyncio.Semaphore(0)

    def let(self, number: int) -> None:
        for _ in range(number):
            self._may_answer.release()

    def drives(self, _charge_id: str) -> bool:
        return True

    async def read(self, _charge_id: str) -> list[Record]:
        found = list(self.stored)
        self.reads += 1
        await self._may_answer.acquire()
        return found


def test_two_overtaken_reads_are_each_read_once_more() -> None:
    """They do not keep each other overtaken for ever."""
    journal, bank, loop = Slow(), Scripted(), VirtualLoop(None)

    async def main() -> None:
        runner = Timed(loop).assemble(cast("Journal", journal), {"": cast("Bank", bank)}).runner
        reading = [asyncio.ensure_future(runner.load(REQUEST.charge_id)) for _ in range(2)]
        await asyncio.sleep(0.1)
        state = evolve(Absent(), Recorded(ChargeRequested(REQUEST), 1, 1))
        await InMemory.append(journal, REQUEST.charge_id, 0, [encode(ChargeRequested(REQUEST))], finished=False)
        await runner.drive(runner.run(Snapshot(REQUEST.charge_id, state, 1), was_in_journal=False))
        journal.let(1)
        await asyncio.sleep(0.1)
        journal.let(9)
        assert {(await one).version for one in reading} == {3}

    loop.run(main())
    assert journal.reads == 4
