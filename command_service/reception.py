"""The door for commands: one call at a time for each charge, and what is new only while there is room for it.

Within the limit of calls (`api.py`), what the journal holds is answered at any load. Only a new charge or operation may be
refused.

For a tenant the charges of others do not exist: whatever one is doing, a command about it is answered as one about an id that
was never given out, and at the same time.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple, assert_never

from chassis.shares import Excess
from chassis.tasks import Tasks
from command_service.bank.lines import Lines
from command_service.charge import Absent, Charge, Command, Follow, bank_of, is_at_rest, opening_of, outcome_of
from command_service.duplicates import Recent, recall
from command_service.failures import (
    BankUnreachable,
    CallFailed,
    ChargeUnknown,
    JournalAway,
    JournalBusy,
    JournalFull,
    NotStored,
    OperationUnderWay,
    PossibleDuplicate,
    TenantLimit,
    TooManyUnfinished,
)
from command_service.journal import Journal
from command_service.run import Run
from command_service.runner import Runner
from command_service.streams import Handled, Snapshot, Streams
from command_service.turns import Turn, Turns
from command_service.values import Request, Wish

# The time after which a charge's loop that has stopped by a fault is started again, if a call waits for its turn.
STOPPED_LOOP_SECONDS = 1.0
# A command about an unknown charge is answered this long after it came, or a multiple of this. To find another tenant's charge
# takes a little longer than to find none, and less if it is under way: the time would tell that the charge exists.
BEAT_SECONDS = 0.02


class Source(Enum):
    """The relation of a call to the outcome that it is told: OutcomeSource in the contract."""

    FRESH = "fresh"  # the call began the charge, or the operation
    JOINED = "joined"  # another call had begun it, and it was under way
    REPLAYED = "replayed"  # it was at rest
    RECOVERED = "recovered"  # it was under way again after a crash or a stop


class Accepted(NamedTuple):
    """A charge that the journal holds, with its run if the outcome that was asked for is not decided."""

    source: Source
    snapshot: Snapshot
    run: Run | None = None

    @property
    def charge(self) -> Charge:
        """The charge's present state: its run may have moved it on."""
        state = self.run.snapshot.state if self.run else self.snapshot.state
        assert isinstance(state, Charge), "an accepted charge has events"
        return state


@dataclass(slots=True, eq=False)
class Entry:
    """A command at the door. `accepted` becomes the charge, durable in the journal; it raises CallFailed, or KeepsMoving."""

    command: Command | Follow
    accepted: "asyncio.Future[Accepted]"
    turn: Turn | None = None
    """While another operation is under way in its charge, and nothing of the command is stored."""

    def __await__(self) -> Generator[Any, None, Accepted]:
        return self.accepted.__await__()

    def withdraw(self) -> bool:
        """Take the command back if it waits for its turn; return whether it did, so that nothing was and will be stored."""
        if self.turn is None or self.turn.done():
            return False
        self.turn.set_result(False)
        return True


class Reception:
    """Accepts commands and hands their charges to the runner."""

    def __init__(
        self,
        journal: Journal,
        runner: Runner,
        lines: Lines,
        recent: Recent,
        wait_until: Callable[[float], Awaitable[None]],
    ) -> None:
        """`wait_until` waits until a time of the loop's clock, to well under a millisecond."""
        self._journal = journal
        self._streams = Streams(journal, runner.reload)
        self._runner = runner
        self._lines = lines
        self._recent = recent
        self._wait_until = wait_until
        # One call for each charge is being handled, the leader. Calls that come meanwhile wait for its end. If it finds an
        # outcome that is decided, a retry of the charge is answered from what it found; else one of them leads.
        self._leaders: dict[str, asyncio.Future[Snapshot | None]] = {}
        self._hesitating: set[str] = set()  # charges whose leader waits for that of another charge, which looks alike
        self._turns = Turns()
        self._tasks = Tasks()
        runner.at_end = self._note_end

    @property
    def journal_id(self) -> str:
        """The journal that holds the charges, and that their positions are of."""
        return self._journal.journal_id

    async def recall(self) -> None:
        """Learn from the journal which charges were requested in the last while. Call it before clients come."""
        await recall(self._recent, self._journal)

    def accept(self, command: Command | Follow) -> Entry:
        """Take a client's command, in a task that goes on if the client leaves. What it begins runs to rest in that task."""
        entry = Entry(command, asyncio.get_running_loop().create_future())
        self._tasks.start(self._see_to(entry))
        return entry

    async def _see_to(self, entry: Entry) -> None:
        run, accepted = None, entry.accepted
        try:
            result = await (self._in_turn(entry) if isinstance(entry.command, Follow) else self._handle(entry.command))
            run = result.run
            if not accepted.done():
                accepted.set_result(result)
        except Exception as error:
            if not accepted.done():
                accepted.set_exception(error)
                accepted.exception()  # nobody may be there any more to retrieve it, and asyncio would report that
        finally:
            accepted.cancel()
        if run is not None:
            await self._runner.drive(run)

    async def _in_turn(self, entry: Entry) -> Accepted:
        """Handle a command as soon as no other operation is under way in its charge. Raises OperationUnderWay if withdrawn."""
        assert isinstance(entry.command, Follow)
        wish, has_turn, came_at = entry.command.wish, False, asyncio.get_running_loop().time()
        while True:
            try:
                return await self._handle(entry.command)
            except ChargeUnknown:
                passed_seconds = asyncio.get_running_loop().time() - came_at
                await self._wait_until(came_at + max(1, math.ceil(passed_seconds / BEAT_SECONDS)) * BEAT_SECONDS)
                raise
            except OperationUnderWay:
                entry.turn = self._turns.wait(wish.charge_id, wish.operation_id, first=has_turn)
            finally:
                # If this call has begun nothing, there is no end that would give the turn to the next one.
                if has_turn and self._runner.find(wish.charge_id) is None:
                    self._turns.next(wish.charge_id)
            has_turn, turn = await entry.turn, entry.turn
            if not has_turn:
                self._turns.leave(wish.charge_id, turn)
                raise OperationUnderWay
            entry.turn = None

    def _note_end(self, snapshot: Snapshot) -> None:
        """Note that a charge's loop has ended, so that its next operation may begin."""
        self._recent.note_rest(snapshot.state)
        if is_at_rest(snapshot.state):
            self._turns.next(snapshot.charge_id)
        else:  # by a fault of ours: the call that gets the turn starts the loop again, but not at once, and round and round
            asyncio.get_running_loop().call_later(STOPPED_LOOP_SECONDS, self._turns.next, snapshot.charge_id)

    async def _handle(self, command: Command | Follow) -> Accepted:
        charge_id = charge_of(command)
        # Before all else: of another tenant's charge nothing is waited for, and nobody else waits.
        snapshot = await self._own(command.wish) if isinstance(command, Follow) else None
        while (leader := self._leaders.get(charge_id)) is not None:
            decided = await asyncio.shield(leader)
            if decided is not None and isinstance(command, Command):
                return self._accepted(command, await self._streams.handle(decided, command))
            snapshot = None  # the leader may have moved the charge on
        self._leaders[charge_id] = leader = asyncio.get_running_loop().create_future()
        result, tenant, places = None, tenant_of(command), self._runner.places
        excess = places.take(tenant)  # for this call only: if it begins a run, that takes a place of its own
        try:
            if isinstance(command, Command):
                result = await self._open(command, excess)
            else:
                result = await self._follow(command, snapshot or await self._own(command.wish), excess)
            return result
        finally:
            if excess is None:
                places.give_back(tenant)
            del self._leaders[charge_id]
            leader.set_result(result.snapshot if result is not None and result.run is None else None)

    async def _own(self, wish: Wish) -> Snapshot:
        """The charge that a tenant wishes something for. Raises ChargeUnknown if there is none of this tenant's."""
        snapshot = await self._runner.load(wish.charge_id, for_tenant=wish.tenant)
        if isinstance(snapshot.state, Absent):
            raise ChargeUnknown
        return snapshot

    async def _open(self, command: Command, excess: Excess | None) -> Accepted:
        request, refusal = command.request, self._refusal(excess)
        may_be_new = refusal is None and not command.faults
        is_new = may_be_new and self._lines.want_new_charge(request) and await self._is_new(request)
        bank, may_begin = self._lines.choose(request, is_new=is_new)
        refusal = (None if may_begin else self._unreachable(bank)) or refusal
        if may_be_new and refusal is None and self._journal.restored:
            bank = await self._found(request, bank)
        # Stored with the charge, if it turns out to be new, and never changed.
        command = replace(command, request=replace(command.request, bank=bank))
        refusal = refusal or await self._duplicate(command)
        # Its place is kept before the append, and given back unless this call makes the charge: of two alike charges that come
        # together the second one is refused.
        is_noted = self._recent.note(command.request)
        accepted = None
        try:
            accepted = await self._decide(command, await self._known(command, refusal), refusal)
            return accepted
        finally:
            if is_noted and (accepted is None or accepted.source is not Source.FRESH):
                self._recent.forget(command.request)

    async def _is_new(self, request: Request) -> bool:
        return isinstance((await self._runner.load(request.charge_id)).state, Absent)

    async def _found(self, request: Request, chosen: str) -> str:
        """The bank of a charge that the journal may have forgotten. Raises BankUnreachable if that cannot be known."""
        others = self._lines.others(request, chosen)
        if not others or not await self._is_new(request):
            return chosen
        bank, may_begin = await self._lines.find(opening_of(request), chosen, others)
        if not may_begin:
            raise BankUnreachable(retry_after_seconds=self._lines.at(bank).retry_after_seconds)
        return bank

    async def _follow(self, command: Follow, snapshot: Snapshot, excess: Excess | None) -> Accepted:
        charge_id = command.wish.charge_id
        # Nothing keeps a void from calling off a charge under way: that is counted already, and the bank may be away.
        refusal = None
        if is_at_rest(snapshot.state):
            refusal = self._unreachable(bank_of(snapshot.state)) or self._refusal(excess)
        try:
            accepted = await self._decide(command, snapshot, refusal)
        except OperationUnderWay:
            # If its loop has stopped by a fault of ours, this call starts it again.
            if self._runner.find(charge_id) is None:
                run = self._runner.run(await self._runner.load(charge_id), was_in_journal=True)
                self._tasks.start(self._runner.drive(run))
            raise
        if accepted.source is Source.FRESH:
            self._turns.begun(charge_id, command.wish.operation_id)
        return accepted

    async def _decide(self, command: Command | Follow, snapshot: Snapshot, refusal: CallFailed | None) -> Accepted:
        try:
            return self._accepted(command, await self._streams.handle(snapshot, command, refuse_with=refusal))
        except NotStored as error:  # its key was taken for a new one; if it is known, the caller gets an answer
            snapshot = await self._runner.load(snapshot.charge_id)
            return self._accepted(command, await self._streams.handle(snapshot, command, refuse_with=error))

    def _accepted(self, command: Command | Follow, handled: Handled) -> Accepted:
        snapshot, has_stored = handled
        operation_key = command.wish.idempotency_key if isinstance(command, Follow) else None
        if outcome_of(snapshot.state, operation_key) is not None:  # another operation may be under way since
            return Accepted(Source.REPLAYED, snapshot)
        run = self._runner.run(snapshot, was_in_journal=not has_stored)
        if has_stored:
            run.move_on(snapshot)
            return Accepted(Source.FRESH, snapshot, run)
        is_ours = self._journal.drives(snapshot.charge_id)
        return Accepted(Source.RECOVERED if run.was_in_journal and is_ours else Source.JOINED, snapshot, run)

    async def _known(self, command: Command, refusal: CallFailed | None) -> Snapshot:
        """The charge's snapshot from which the command is decided: assumed absent, or the newest one."""
        charge_id = command.request.charge_id
        if refusal is None and not command.faults and self._runner.find(charge_id) is None:
            # Most keys are new, so the journal is not read first. If it holds the charge, the append conflicts (ADR 10).
            return Snapshot(charge_id)
        return await self._runner.load(charge_id)

    def _unreachable(self, bank: str) -> BankUnreachable | None:
        """The reason to refuse what is new at a bank that is spared, or that no setting names."""
        is_alone = len(self._leaders) <= 1  # this command is among them
        # While the bank is spared, one new charge at a time may be the probe: the bank may never answer those under way.
        line = self._lines.at(bank)
        if self._lines.lead_to(bank) and (not line.is_spared or (line.may_probe and is_alone)):
            return None
        return BankUnreachable(retry_after_seconds=line.retry_after_seconds)

    def _refusal(self, excess: Excess | None) -> CallFailed | None:
        """The reason to refuse a command if it turns out to be new, or None. `excess`: the unfinished charges leave no room."""
        match excess:
            case Excess.SERVER:
                return TooManyUnfinished(retry_after_seconds=1.0)
            case Excess.TENANT:
                return TenantLimit(retry_after_seconds=1.0)
            case None:
                pass
            case _:
                assert_never(excess)
        match self._journal.not_accepting:
            case "full":
                return JournalFull()
            case "busy":
                return JournalBusy()
            case "away":
                return JournalAway()
            case "":
                return None

    async def _duplicate(self, command: Command) -> PossibleDuplicate | None:
        """The reason to refuse a charge that looks like another one, if it turns out to be new."""
        if command.allow_duplicate:
            return None
        while (earlier := self._recent.earlier(command.request)) is not None:
            leader = self._leaders.get(earlier)
            if leader is None or earlier in self._hesitating:  # two that waited for each other would wait for ever
                return PossibleDuplicate(earlier)
            self._hesitating.add(charge_of(command))
            await asyncio.shield(leader)  # it may be the retry of a charge that was requested long ago
            self._hesitating.discard(charge_of(command))
        return None

    async def close(self) -> None:
        """End the calls that are being accepted. A client that asks again learns whether its charge was stored."""
        await self._tasks.close()


def charge_of(command: Command | Follow) -> str:
    """Return the id of the charge that a command is about."""
    return command.request.charge_id if isinstance(command, Command) else command.wish.charge_id


def tenant_of(command: Command | Follow) -> str:
    """Return the tenant whose command it is."""
    return command.request.tenant if isinstance(command, Command) else command.wish.tenant
