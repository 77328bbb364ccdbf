"""The loop: it asks the core for the next step, has the bank do it, and gives the core the answer.

A new charge and a charge found after a crash run through the same loop, so there is no recovery code. No transaction and no
lock is held across a call to the bank.

While an operator holds a charge back, its loop waits, and calls join it as ever.

Where servers share a journal, a loop goes round with the bank only while this server drives the charge, or for a call that
wants to know whether the customer has come back, and else waits for the other server's progress. That saves calls. If two loops
ever drive one charge, they waste work and do no harm: the journal takes only the first answer to a step, and the bank does each
step once (its promises 1 and 2 in `command_service.bank`).
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from chassis.shares import Shares
from chassis.tasks import Tasks
from chassis.telemetry import log_unexpected
from command_service.bank.breaker import PAUSES
from command_service.bank.line import Line
from command_service.bank.lines import Lines
from command_service.charge import (
    Absent,
    Charge,
    Due,
    Message,
    is_at_rest,
    is_overdue,
    is_to_be_tried,
    next_step,
    seconds_to_its_end,
)
from command_service.failures import ImpossibleEvent, NotStored
from command_service.journal import Journal
from command_service.observed import UNOBSERVED, Observed
from command_service.operation import Answered, Attempts, counts_for_giving_up
from command_service.run import Run, Tries
from command_service.streams import KeepsMoving, Snapshot, Streams
from command_service.values import Effect, InProgress, NeedsAction, NoAnswer, RequestToken

# The number of concurrent reads of streams when the server starts: enough to keep the reading thread busy.
LOADED_AT_ONCE = 256
# The pause between two looks whether the customer has taken the step that the bank waits for: a thirtieth of the charge's age,
# within these. Most customers take it within minutes; those who never do would cost most of the calls.
CUSTOMER_SECONDS, LONGEST_CUSTOMER_SECONDS, CUSTOMER_SHARE = 4.0, 300.0, 1 / 30
# A charge that another server drives, or an operator holds back, is looked at again when the journal has news of it. This is
# for news that never comes.
LOOK_AGAIN_SECONDS = 10.0


class Runner:
    """Runs charges to rest."""

    def __init__(
        self,
        journal: Journal,
        lines: Lines,
        *,
        abandon_after_seconds: float,
        now: Callable[[], int],
        chance: random.Random,
        unfinished: Shares,
        observed: Observed = UNOBSERVED,
    ) -> None:
        """`now` gives microseconds since 1970. In `unfinished` each charge on its way takes a place of its tenant."""
        self._journal = journal
        self._streams = Streams(journal)
        self._lines = lines
        self._abandon_after_seconds = abandon_after_seconds
        self._now = now
        self._chance = chance
        self.places = unfinished
        self._observed = observed
        self._runs: dict[str, Run] = {}
        self._reads: dict[str, _Read] = {}
        self._stopped: set[str] = set()
        self._tasks = Tasks()
        self.at_end: Callable[[Snapshot], None] = lambda _: None
        """Told of each run's end, when it is no longer found."""

    async def recover(self) -> int:
        """Start a run for every charge that this server drives from its start; return their number. Call it once, then.

        Clients may come before: they find the runs of the charges that are read so far. Raises Unreadable.
        """
        unfinished = await self._journal.news()
        runs, errors = await self._look_at(unfinished)
        if errors:
            raise errors[0]
        self._start(runs)
        return len(unfinished)

    async def keep_up(self) -> NoReturn:
        """Look at the charges of which the journal has news, until cancelled. Call it after `recover`."""
        while True:
            runs, errors = await self._look_at(await self._journal.news())
            for error in errors:  # a stream that cannot be read: the next start or call tells
                log_unexpected("a charge of another server could not be taken up", error)
            self._start(runs)

    async def _look_at(self, charge_ids: Sequence[str]) -> tuple[Sequence[Run], Sequence[Exception]]:
        """Bring the runs of charges up to the journal; return those to start, and what is amiss with charges that are not read.

        All are read before the first one runs: thousands of running loops would make the reading take ten times as long.
        """
        ours = [it for it in charge_ids if it in self._runs or self._journal.drives(it)]
        found: list[Run | BaseException | None] = []
        for begin in range(0, len(ours), LOADED_AT_ONCE):
            some = ours[begin : begin + LOADED_AT_ONCE]
            found += await asyncio.gather(*map(self._take_up, some), return_exceptions=True)
        return [it for it in found if isinstance(it, Run)], [it for it in found if isinstance(it, Exception)]

    def _start(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self._tasks.start(self._go_on(run))

    async def _go_on(self, run: Run) -> None:
        """Drive a charge that a call of another process, or another server, had begun."""
        state = run.snapshot.state
        assert isinstance(state, Charge), "a charge on its way has events"
        with self._observed.taking_up.after(state.newest.operation.traceparent):
            await self.drive(run)

    async def _take_up(self, charge_id: str) -> Run | None:
        if (run := self._runs.get(charge_id)) is not None:
            run.move_on(await self._streams.load(charge_id))
            run.wake()
            return None
        snapshot = await self.load(charge_id)
        if isinstance(snapshot.state, Absent):
            raise ImpossibleEvent(f"{charge_id} is unfinished, and has no events")
        # None: a client has brought it to rest meanwhile.
        return None if is_at_rest(snapshot.state) else self.run(snapshot, was_in_journal=True)

    async def load(self, charge_id: str, *, for_tenant: str | None = None) -> Snapshot:
        """Return a charge as it is now: as its run has it, or as the journal has it. Raises Unreadable.

        Use it at once. After an await only an append may rest on it, which conflicts if it is old. For a tenant another
        tenant's charge is absent.
        """
        while True:
            if (run := self._runs.get(charge_id)) is not None:
                is_foreign = for_tenant is not None and run.tenant != for_tenant
                return Snapshot(charge_id) if is_foreign else run.snapshot
            # A run may begin during the read, and even end. Then what was read may be older than what was told.
            read = self._reads.setdefault(charge_id, _Read())
            read.readers += 1
            try:
                snapshot = await self._streams.load(charge_id, for_tenant=for_tenant)
            finally:
                read.readers -= 1
                if not read.readers and self._reads.get(charge_id) is read:
                    del self._reads[charge_id]
            if not read.is_overtaken and charge_id not in self._runs:
                return snapshot

    async def reload(self, charge_id: str) -> Snapshot:
        """Return a charge after an append to it has conflicted: its run may not know yet of what another server has stored.

        Raises Unreadable.
        """
        if (run := self._runs.get(charge_id)) is not None:
            run.move_on(await self._streams.load(charge_id))
        return await self.load(charge_id)

    @property
    def unfinished(self) -> int:
        """The number of charges on their way."""
        return len(self._runs)

    @property
    def stopped(self) -> int:
        """The number of charges that a fault of ours has stopped, and that no call has taken up again."""
        return len(self._stopped)

    def has_stopped(self, charge_id: str) -> bool:
        """Whether a fault of ours has stopped a charge, and no call has taken it up again."""
        return charge_id in self._stopped

    def find(self, charge_id: str) -> Run | None:
        """Return the charge's run, if it is on its way."""
        return self._runs.get(charge_id)

    def runs(self) -> list[Run]:
        """Return the charges on their way, copied in one step: another thread may call this while charges come and go."""
        return list(self._runs.values())

    def run(self, snapshot: Snapshot, *, was_in_journal: bool) -> Run:
        """Return the run of a charge that is on its way; else begin one, which the caller drives.

        The snapshot must be the newest: an older one would begin a run that tells less than was told already.
        """
        if (run := self._runs.get(snapshot.charge_id)) is None:
            tries = Tries(self._now() if was_in_journal else 0)
            run = Run(snapshot, was_in_journal, asyncio.get_running_loop().create_future(), tries=tries)
            self._runs[snapshot.charge_id] = run
            self._stopped.discard(snapshot.charge_id)
            self.places.force(run.tenant)
        return run

    async def drive(self, run: Run) -> None:
        """Bring a charge to rest, unless it is driven already."""
        if run.is_driven:
            return
        run.is_driven = True
        unanswered = 0  # attempts at the operation under way, in this run
        pauses = 0  # since the charge last moved
        try:
            while not is_at_rest(run.snapshot.state):
                effect = next_step(run.snapshot.state)
                # A call that wants to know how things stand does not wait for another server to look.
                is_ours = self._journal.drives(run.snapshot.charge_id) or run.is_look_wanted
                if effect is None or not is_ours:  # None: an operator holds it back
                    await self._let_others_move(run)
                    unanswered, pauses = 0, 0
                    if not is_ours:
                        run.tries = Tries(self._now())
                    continue
                before = run.snapshot
                with run.turn() as is_look:
                    message = await self._perform(run, effect, unanswered, is_look=is_look)
                    with contextlib.suppress(NotStored, KeepsMoving):
                        # Nothing was stored, certainly: if a commit's fate is unknown, the process ends. The step is repeated.
                        run.move_on((await self._streams.handle(run.snapshot, message)).snapshot)
                after = next_step(run.snapshot.state)
                if isinstance(message, Answered):
                    unanswered = message.attempts.unanswered
                if after is None or after.operation.reference != effect.operation.reference:
                    unanswered = 0
                run.tries.note_end(is_in_vain=after in (None, effect), is_answered=isinstance(message, Answered))
                is_tried = run.snapshot is not before and is_to_be_tried(run.snapshot.state)  # an operator did not wait
                if after != effect or is_tried:
                    pauses = 0
                    continue
                pauses += 1
                pause_seconds = self._pause_seconds(run, message, pauses)
                if isinstance(message, Answered):  # else its end has come, and the journal does not take that
                    pause_seconds = min(pause_seconds, seconds_to_its_end(run.snapshot.state, self._now()))
                before = run.snapshot
                await run.pause(pause_seconds, now=self._now())
                # A call that only wants a look ends the pause, and callers may come as often as they like.
                pauses = 0 if run.snapshot is not before else pauses
            run.log_rest()
        except Exception as error:  # a fault of ours, or a stream that cannot be read: the next start or call goes on
            self._note_fault(run.snapshot.charge_id, error)
        finally:
            del self._runs[run.snapshot.charge_id]
            self.places.give_back(run.tenant)
            if (read := self._reads.pop(run.snapshot.charge_id, None)) is not None:
                read.is_overtaken = True
            if not run.ended.done():
                run.ended.set_result(None)
            self.at_end(run.snapshot)

    def _note_fault(self, charge_id: str, error: Exception) -> None:
        self._observed.charge_faults.add()
        self._stopped.add(charge_id)
        log_unexpected("a charge stopped on its way", error, charge_id=charge_id)

    async def _let_others_move(self, run: Run) -> None:
        """Wait for progress of the server that drives a charge, or for the operator that lets it go; or until it is our turn.

        A call that wants to know how things stand gets what the journal holds.
        """
        charge_id, before = run.snapshot.charge_id, run.snapshot
        with run.turn():
            run.move_on(await self._streams.load(charge_id))  # there may have been news of it before this run
        is_ours = self._journal.drives(charge_id) and next_step(before.state) is not None
        if run.snapshot is before and not is_ours:
            await run.pause(LOOK_AGAIN_SECONDS)

    async def _perform(self, run: Run, effect: Effect, unanswered: int, *, is_look: bool) -> Message:
        """Have the bank do a step, unless it is no longer wanted when its turn comes: then only time has passed.

        `is_look`: a call waits for it, so that it is wanted whichever server drives the charge.
        """
        snapshot, line = run.snapshot, self._lines.at(effect.operation.request.bank)

        def looks_up_first() -> bool:
            # A restored journal may have lost steps, and a bank forgets keys: then it is asked what it knows, before anything.
            return self._journal.restored or self._may_be_forgotten(run, effect, line)

        look_up_first = looks_up_first()

        def is_wanted() -> bool:
            # During the wait a client may have called the charge off, its time may have passed, another server may drive it, or
            # it may have become too old to be sent without a look-up.
            drives = is_look or self._journal.drives(snapshot.charge_id)
            is_the_same = run.snapshot is snapshot and looks_up_first() is look_up_first
            return drives and is_the_same and not is_overdue(snapshot.state, self._now())

        with run.tries_at(effect.operation).under_way() as tries:
            performed = await line.perform(effect, look_up_first=look_up_first, is_wanted=is_wanted)
        if performed is None:
            return Due(self._now())
        now = self._now()
        run.bank_calls += performed.calls
        tries.note(performed.answer, now, performed.calls)
        if counts_for_giving_up(performed.answer):
            unanswered += 1
        attempts = Attempts(unanswered, now, self._abandon_after_seconds, self._journal.restored)
        return Answered(effect, performed.answer, attempts)

    def _pause_seconds(self, run: Run, message: Message, pauses: int) -> float:
        """The pause after a step that has not moved the charge on: as the bank asks for, or as people need."""
        match message:
            case Answered(answer=NeedsAction()):
                seconds = min(max(CUSTOMER_SECONDS, self._age_seconds(run) * CUSTOMER_SHARE), LONGEST_CUSTOMER_SECONDS)
                return seconds * self._chance.uniform(1.0, 1.25)
            case Answered(answer=NoAnswer(seconds) | InProgress(seconds)):
                return PAUSES.seconds(pauses, self._chance, seconds)
            case _:
                return PAUSES.seconds(pauses, self._chance)

    def _may_be_forgotten(self, run: Run, effect: Effect, line: Line) -> bool:
        """Whether the bank may not know any more that it was sent this step before."""
        if line.remembers_seconds == math.inf:
            return False
        if run.was_in_journal and line.can_look_up and not isinstance(effect, RequestToken):
            return True  # Another process may have sent it, and the clock may have been set back since. A token moves no money.
        state = run.snapshot.state
        assert isinstance(state, Charge), "a charge on its way has events"
        # A clock from long before the request tells no age.
        is_clock_wrong = (self._now() - state.newest.requested_at) / 1_000_000 < -line.remembers_seconds / 5
        return is_clock_wrong or self._age_seconds(run) >= line.remembers_seconds

    def _age_seconds(self, run: Run) -> float:
        """The age of a charge's operation under way, at least that of its run: a clock that goes back makes nothing young."""
        state = run.snapshot.state
        assert isinstance(state, Charge), "a charge on its way has events"
        return max((self._now() - state.newest.requested_at) / 1_000_000, run.age_seconds)

    async def close(self) -> None:
        """Stop each charge at its present step. It is as safe as a crash, and the next start goes on from there."""
        await self._tasks.close()


@dataclass(slots=True)
class _Read:
    """The reads of one stream that are under way, and whether a run of its charge has ended since they began."""

    readers: int = 0
    is_overtaken: bool = False
