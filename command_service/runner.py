"""The loop: it asks the core what to do next, does it at the bank, and tells the core what came back.

A new charge and one found after a crash run through the same loop, so there is no recovery code. No transaction and no
lock is held across a call to the bank. Two loops on one charge would waste work and do no harm: the journal takes only the
first answer to a step, and the bank does each step once.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import structlog

from chassis.telemetry import log_unexpected
from command_service.bank import Bank
from command_service.charge import (
    Absent,
    Answer,
    Answered,
    AtRest,
    Charge,
    Effect,
    Event,
    GiveUp,
    ImpossibleEvent,
    InProgress,
    Message,
    NoAnswer,
    ReviewRequired,
    State,
    decide,
    evolve,
    next_step,
)
from command_service.codec import decode, encode
from command_service.journal import Journal, NotStored, Record, VersionConflict
from command_service.pace import Breaker, backoff_seconds

log = structlog.get_logger()
T = TypeVar("T")
ABSENT = Absent()
# Streams read at once when the server starts: enough to keep the reading thread busy.
LOADED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once, and for how long. Each has its reason beside it in the settings."""

    bank_calls: int
    unfinished: int
    abandon_after_seconds: float
    attention_after_seconds: float


class OverloadReason(Enum):
    """Why no new charge is taken now."""

    BANK_UNREACHABLE = "bank_unreachable"
    TOO_MANY_UNFINISHED = "too_many_unfinished"
    JOURNAL_FULL = "journal_full"
    JOURNAL_BUSY = "journal_busy"


class Overloaded(Exception):
    """No new charge is taken now, and nothing was stored; known ones are answered as ever."""

    def __init__(self, reason: OverloadReason, retry_after_seconds: float) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Source(Enum):
    """How a caller came to know a charge's outcome; see OutcomeSource in the contract."""

    FRESH = "fresh"
    JOINED = "joined"
    REPLAYED = "replayed"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Stream:
    """A charge as its stream tells it.

    `position` is the deciding event's once the charge is decided, and the newest event's until then. `requested_at` is in
    microseconds since 1970.
    """

    state: State = ABSENT
    version: int = 0
    position: int = 0
    requested_at: int = 0

    def then(self, state: State, record: Record) -> "Stream":
        """The stream with one more record, which brought it to that state."""
        return Stream(
            state,
            self.version + 1,
            self.position if isinstance(self.state, AtRest) else record.position,
            self.requested_at if self.version else record.recorded_at,
        )


NEW = Stream()


@dataclass(slots=True, eq=False)
class Running:
    """A charge on its way to rest, for whoever waits for it."""

    charge_id: str
    stream: Stream
    was_found: bool
    bank_calls: int
    ended: "asyncio.Future[None]"
    """Done when the loop has ended. Wait for it by a callback: who awaits it itself hands a cancel on to the others."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A charge that the journal holds: as it was found if at rest, else with the loop that it runs in."""

    source: Source
    found: Stream
    running: Running | None = None

    @property
    def stream(self) -> Stream:
        """The charge as it stands now."""
        return self.running.stream if self.running else self.found


class Runner:
    """Takes charges and runs each to rest."""

    def __init__(
        self,
        journal: Journal,
        bank: Bank,
        limits: Limits,
        *,
        clock: Callable[[], float],
        now: Callable[[], int],
        chance: random.Random,
    ) -> None:
        """`clock` gives seconds from anywhere and never goes back; `now` gives microseconds since 1970."""
        self._journal = journal
        self._bank = bank
        self._limits = limits
        self._now = now
        self._chance = chance
        self._breaker = Breaker(clock, chance)
        self._slots = asyncio.Semaphore(limits.bank_calls)
        self._running: dict[str, Running] = {}
        # Looked up, or appended to for the first time, right now. The result, for who asks meanwhile: the stream if at rest.
        self._beginning: dict[str, asyncio.Future[Stream | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def recover(self) -> int:
        """Go on with every unfinished charge; return how many there are. Call it once, at the start; calls may come before.

        Raises JournalCorrupt, UnknownEvent or ImpossibleEvent, and then none has been gone on with.
        """
        unfinished = await self._journal.unfinished()
        found: list[Stream] = []
        for begin in range(0, len(unfinished), LOADED_AT_ONCE):
            found += await asyncio.gather(*map(self._load, unfinished[begin : begin + LOADED_AT_ONCE]))
        # All are read before the first runs: thousands of loops at work would make the reading take ten times as long.
        for charge_id, stream in zip(unfinished, found, strict=True):
            if isinstance(stream.state, Absent):
                raise ImpossibleEvent(f"{charge_id} is unfinished, and has no events")
            self._run(charge_id, stream, was_found=True)
        return len(unfinished)

    def accept(self, command: Charge) -> "asyncio.Task[Accepted]":
        """Take a client's command, in a task that goes on whether or not the client does.

        Its result is the charge, durable in the journal. It raises what `decide` raises for a command, Overloaded,
        NotStored, JournalCorrupt, UnknownEvent or ImpossibleEvent.
        """
        return self._spawn(self._accept(command))

    async def _accept(self, command: Charge) -> Accepted:
        charge_id = command.request.charge_id
        while True:  # once more only when another call or another server got ahead, and then the charge is there
            if running := self._running.get(charge_id):
                decide(running.stream.state, command)
                return Accepted(Source.RECOVERED if running.was_found else Source.JOINED, running.stream, running)
            if beginning := self._beginning.get(charge_id):
                if (stream := await asyncio.shield(beginning)) is None:
                    continue
                decide(stream.state, command)
                return Accepted(Source.REPLAYED, stream)
            self._beginning[charge_id] = beginning = asyncio.get_running_loop().create_future()
            at_rest = None
            try:
                accepted = await self._begin(command)
                at_rest = accepted.found if accepted.running is None else None
                return accepted
            except VersionConflict:
                continue
            finally:
                del self._beginning[charge_id]
                beginning.set_result(at_rest)

    async def _begin(self, command: Charge) -> Accepted:
        """Most keys are new, so the journal is not read first: it says by itself if a charge is there already."""
        if not command.faults and self._overload() is None:
            with contextlib.suppress(VersionConflict, NotStored):
                return await self._begin_from(NEW, command)
        return await self._begin_from(await self._load(command.request.charge_id), command)

    async def _begin_from(self, stream: Stream, command: Charge) -> Accepted:
        charge_id = command.request.charge_id
        events = decide(stream.state, command)
        if events:
            if (overload := self._overload()) is not None:
                raise overload
            stream = await self._append(charge_id, stream, events)
            return Accepted(Source.FRESH, stream, self._run(charge_id, stream, was_found=False))
        if next_step(stream.state) is None:
            return Accepted(Source.REPLAYED, stream)
        return Accepted(Source.RECOVERED, stream, self._run(charge_id, stream, was_found=True))

    def _overload(self) -> Overloaded | None:
        """Why no new charge is taken, if none is."""
        if self._breaker.is_open and not self._may_probe():
            return Overloaded(OverloadReason.BANK_UNREACHABLE, self._breaker.retry_after_seconds)
        if len(self._running) + len(self._beginning) > self._limits.unfinished:  # this one included
            return Overloaded(OverloadReason.TOO_MANY_UNFINISHED, 1.0)
        if not self._journal.accepting:
            return Overloaded(OverloadReason(f"journal_{self._journal.not_accepting}"), 5.0)
        return None

    def _may_probe(self) -> bool:
        """Whether a new charge may find out if the bank is back: those under way may be the ones that it never answers."""
        return self._breaker.wants_probe and not self._slots.locked() and len(self._beginning) <= 1

    # ------------------------------------------------------------ the loop
    def _run(self, charge_id: str, stream: Stream, *, was_found: bool) -> Running:
        if running := self._running.get(charge_id):  # a call may come for a charge that `recover` is about to find
            return running
        self._running[charge_id] = running = Running(
            charge_id, stream, was_found, 0, asyncio.get_running_loop().create_future()
        )
        self._spawn(self._run_to_rest(running))
        return running

    async def _run_to_rest(self, running: Running) -> None:
        pauses, unanswered = 0, 0
        try:
            while (effect := next_step(running.stream.state)) is not None:
                answer = await self._ask(running, effect)
                if await self._tell(running, Answered(effect, answer)):
                    pauses = 0
                    continue
                if isinstance(answer, NoAnswer) and not answer.our_setup:
                    unanswered += 1
                    if self._is_old(running.stream) and await self._tell(running, GiveUp(effect, unanswered)):
                        continue
                pauses += 1
                wish = answer.retry_after_seconds if isinstance(answer, NoAnswer | InProgress) else None
                await asyncio.sleep(backoff_seconds(pauses, wish, self._chance))
            self._log_rest(running)
        except Exception as error:  # a fault of ours: who waits is told PENDING, and the next start or call goes on
            log_unexpected("a charge stopped on its way", error, charge_id=running.charge_id)
        finally:
            del self._running[running.charge_id]
            if not running.ended.done():
                running.ended.set_result(None)

    async def _ask(self, running: Running, effect: Effect) -> Answer:
        """Have the bank do a step, as soon as there is a slot and the breaker lets it through.

        While the breaker is open, a probe's vain answer is everybody's.
        """
        while True:
            async with self._slots:  # held during the call only, never through a pause
                if (given := self._breaker.admit()) is not None:
                    answer: Answer = NoAnswer()
                    running.bank_calls += 1
                    try:
                        answer = await self._bank.perform(effect, look_up_first=self._journal.restored)
                    finally:  # even if it raised, which it must not: a probe that never ends would let nobody through again
                        self._breaker.note(given, running.charge_id, answer)
                    return answer
            if (vain := await self._breaker.pause()) is not None:
                return vain

    async def _tell(self, running: Running, message: Message) -> bool:
        """Let the core decide about an answer, and store what it decides. False if the charge did not move."""
        while True:  # once more only when somebody else moved the charge
            events = decide(running.stream.state, message)
            if not events:
                return False
            try:
                running.stream = await self._append(running.charge_id, running.stream, events)
            except VersionConflict:
                running.stream = await self._load(running.charge_id)
            except NotStored:
                return False  # the same step again later: the bank will say the same
            else:
                return True

    def _is_old(self, stream: Stream) -> bool:
        """Whether to propose giving up. In a restored journal nothing is: the bank may have done what was forgotten."""
        return self._age_seconds(stream) >= self._limits.abandon_after_seconds and not self._journal.restored

    def _age_seconds(self, stream: Stream) -> float:
        """The age of a charge; 0 of one that is younger than the clock, which has gone back since."""
        return max(0.0, (self._now() - stream.requested_at) / 1_000_000)

    # ------------------------------------------------------------ the journal
    async def _load(self, charge_id: str) -> Stream:
        stream = NEW
        for record in await self._journal.read(charge_id):
            stream = stream.then(evolve(stream.state, decode(record.event)), record)
        return stream

    async def _append(self, charge_id: str, stream: Stream, events: list[Event]) -> Stream:
        states: list[State] = []
        for event in events:
            states.append(evolve(states[-1] if states else stream.state, event))
        records = await self._journal.append(
            charge_id, stream.version, [encode(event) for event in events], finished=next_step(states[-1]) is None
        )
        for state, record in zip(states, records, strict=True):
            stream = stream.then(state, record)
        return stream

    # ------------------------------------------------------------ how it is doing
    @property
    def unfinished(self) -> int:
        """How many charges are on their way."""
        return len(self._running)

    @property
    def oldest_unfinished_seconds(self) -> float:
        """The age of the oldest unfinished charge; 0 if there is none."""
        return max((self._age_seconds(running.stream) for running in self._all_running()), default=0.0)

    @property
    def needing_attention(self) -> int:
        """How many charges are unfinished for so long that a person should look."""
        limit = self._limits.attention_after_seconds
        return sum(self._age_seconds(running.stream) > limit for running in self._all_running())

    def _all_running(self) -> list[Running]:
        """Copied at one go: gauges are read in another thread, while charges come and go."""
        return list(self._running.values())

    @property
    def breaker_is_open(self) -> bool:
        """Whether the bank is being spared because it does not answer, or does not accept us."""
        return self._breaker.is_open

    def _log_rest(self, running: Running) -> None:
        match running.stream.state:
            case AtRest(_, ReviewRequired(reason, evidence)):
                log.error(
                    "a charge needs review",
                    charge_id=running.charge_id,
                    reason=reason.value,
                    fields=evidence.fields,
                    status=evidence.status,
                )
            case AtRest(_, outcome):
                log.info(
                    "charge at rest",
                    charge_id=running.charge_id,
                    outcome=type(outcome).__name__,
                    position=running.stream.position,
                    bank_calls=running.bank_calls,
                    recovered=running.was_found,
                )

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task that is ours: no client's deadline or cancel reaches it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits; here it only counts as seen

    async def close(self) -> None:
        """Stop where each charge stands. It is as safe as a crash, and the next start goes on from there."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
