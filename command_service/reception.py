"""The door for commands: one call at a time for each key, and what is new only while there is room for it.

Within the limit of calls (`api.py`), what the journal holds is answered at any load. Only a new charge or operation may be
refused.
"""

import asyncio
from enum import Enum
from typing import NamedTuple

from chassis.tasks import Tasks
from command_service.bank.line import Line
from command_service.charge import Charge, Command, Follow, is_at_rest, outcome_of
from command_service.duplicates import Recent, recall
from command_service.failures import (
    BankUnreachable,
    CallFailed,
    JournalBusy,
    JournalFull,
    NotStored,
    OperationUnderWay,
    PossibleDuplicate,
    TooManyUnfinished,
)
from command_service.journal import Journal
from command_service.run import Run
from command_service.runner import Runner
from command_service.streams import Handled, Snapshot, Streams
from command_service.turns import Turn, Turns


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


class Blocked(NamedTuple):
    """A command that is not stored, since another operation is under way in its charge: send it again at its turn."""

    charge_id: str
    turn: Turn


class Reception:
    """Accepts commands and hands their charges to the runner."""

    def __init__(self, journal: Journal, runner: Runner, line: Line, recent: Recent, *, max_unfinished: int) -> None:
        self._journal = journal
        self._streams = Streams(journal, runner.load)
        self._runner = runner
        self._line = line
        self._recent = recent
        self._max_unfinished = max_unfinished
        # One call for each charge is being handled, the leader. Calls that come meanwhile wait for its result: the charge if
        # its own outcome is decided, or None, and then one of them leads.
        self._leaders: dict[str, asyncio.Future[Snapshot | None]] = {}
        self._turns = Turns()
        self._tasks = Tasks()
        runner.at_end = self._note_end

    async def recall(self) -> None:
        """Learn from the journal which charges were requested in the last while. Call it before clients come."""
        await recall(self._recent, self._journal)

    def accept(self, command: Command | Follow) -> "asyncio.Future[Accepted | Blocked]":
        """Take a client's command, in a task that goes on if the client leaves. What it begins runs to rest in that task.

        The future's result is the charge, durable in the journal, or the turn to wait for. It raises CallFailed, or
        KeepsMoving.
        """
        accepted: asyncio.Future[Accepted | Blocked] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._see_to(command, accepted))
        return accepted

    def pass_on(self, blocked: Blocked) -> None:
        """Give up the turn of a call that no longer waits for it."""
        if not blocked.turn.done():
            blocked.turn.cancel()
        else:
            self._turns.next(blocked.charge_id)

    async def _see_to(self, command: Command | Follow, accepted: "asyncio.Future[Accepted | Blocked]") -> None:
        run = None
        try:
            result = await self._handle(command)
            run = result.run if isinstance(result, Accepted) else None
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

    def _note_end(self, snapshot: Snapshot) -> None:
        """Note that a charge's loop has ended: if the charge is at rest, the next operation may begin."""
        self._recent.note_rest(snapshot.state)
        if is_at_rest(snapshot.state):
            self._turns.next(snapshot.charge_id)

    async def _handle(self, command: Command | Follow) -> Accepted | Blocked:
        charge_id = charge_of(command)
        while (leader := self._leaders.get(charge_id)) is not None:
            decided = await asyncio.shield(leader)
            if decided is not None and isinstance(command, Command):
                return self._accepted(command, await self._streams.handle(decided, command))
        self._leaders[charge_id] = leader = asyncio.get_running_loop().create_future()
        result: Accepted | Blocked | None = None
        try:
            result = await (self._open(command) if isinstance(command, Command) else self._follow(command))
            return result
        finally:
            del self._leaders[charge_id]
            leader.set_result(result.snapshot if isinstance(result, Accepted) and result.run is None else None)

    async def _open(self, command: Command) -> Accepted:
        refusal = self._refusal() or await self._duplicate(command)
        # From here to the append nothing alike is accepted: of two alike charges the second one is refused.
        is_noted = self._recent.note(command.request)
        accepted = None
        try:
            accepted = await self._decide(command, await self._known(command, refusal), refusal)
            return accepted
        finally:
            if is_noted and (accepted is None or accepted.source is not Source.FRESH):
                self._recent.forget(command.request)

    async def _follow(self, command: Follow) -> Accepted | Blocked:
        charge_id = command.wish.charge_id
        # Nothing may keep a void from calling off a charge under way, which is counted already.
        refusal = None if self._runner.find(charge_id) is not None else self._refusal()
        try:
            accepted = await self._decide(command, await self._runner.load(charge_id), refusal)
        except OperationUnderWay:
            if (
                self._runner.find(charge_id) is None
            ):  # its loop has stopped, or ended just now: this call goes on with it
                run = self._runner.run(await self._runner.load(charge_id), was_in_journal=True)
                self._tasks.start(self._runner.drive(run))
            return Blocked(charge_id, self._turns.wait(charge_id))
        except Exception:
            self._leave(charge_id)
            raise
        self._leave(charge_id)
        return accepted

    def _leave(self, charge_id: str) -> None:
        """Give the turn to the next call, unless an operation is under way: its end does that."""
        if self._runner.find(charge_id) is None:
            self._turns.next(charge_id)

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
        return Accepted(Source.RECOVERED if run.was_in_journal else Source.JOINED, snapshot, run)

    async def _known(self, command: Command, refusal: CallFailed | None) -> Snapshot:
        """The charge's snapshot from which the command is decided: assumed absent, or the newest one."""
        charge_id = command.request.charge_id
        if refusal is None and not command.faults and self._runner.find(charge_id) is None:
            # Most keys are new, so the journal is not read first. If it holds the charge, the append conflicts (ADR 10).
            return Snapshot(charge_id)
        return await self._runner.load(charge_id)

    def _refusal(self) -> CallFailed | None:
        """The reason to refuse a command if it turns out to be new, or None."""
        is_alone = len(self._leaders) <= 1  # this command is among them
        # While the bank is spared, one new charge at a time may be the probe: the bank may never answer those under way.
        if self._line.is_spared and not (self._line.may_probe and is_alone):
            return BankUnreachable(retry_after_seconds=self._line.retry_after_seconds)
        if self._runner.unfinished + len(self._leaders) > self._max_unfinished:
            return TooManyUnfinished(retry_after_seconds=1.0)
        match self._journal.not_accepting:
            case "full":
                return JournalFull()
            case "busy":
                return JournalBusy()
            case "":
                return None

    async def _duplicate(self, command: Command) -> PossibleDuplicate | None:
        """The reason to refuse a charge that looks like another one, if it turns out to be new."""
        if command.allow_duplicate:
            return None
        while (earlier := self._recent.earlier(command.request)) is not None:
            if (leader := self._leaders.get(earlier)) is None:
                return PossibleDuplicate(earlier)
            await asyncio.shield(leader)  # it may be the retry of a charge that was requested long ago
        return None

    async def close(self) -> None:
        """End the calls that are being accepted. A client that asks again learns whether its charge was stored."""
        await self._tasks.close()


def charge_of(command: Command | Follow) -> str:
    """Return the id of the charge that a command is about."""
    return command.request.charge_id if isinstance(command, Command) else command.wish.charge_id
