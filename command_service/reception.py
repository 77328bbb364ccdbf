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


class Source(Enum):
    """The relation of a call to the outcome that it is told: OutcomeSource in the contract."""

    FRESH = "fresh"  # the call began the charge, or the operation
    JOINED = "joined"  # another call had begun it, and it was under way
    REPLAYED = "replayed"  # it was at rest
    RECOVERED = "recovered"  # it was under way again after a crash or a stop


class Accepted(NamedTuple):
    """A charge that the journal holds, with its run if the outcome that was asked for is not decided.

    `is_blocked`: the command is not stored, since another operation is under way. When its run has ended, ask again.
    """

    source: Source
    snapshot: Snapshot
    run: Run | None = None
    is_blocked: bool = False

    @property
    def charge(self) -> Charge:
        """The charge's present state: its run may have moved it on."""
        state = self.run.snapshot.state if self.run else self.snapshot.state
        assert isinstance(state, Charge), "an accepted charge has events"
        return state


class Reception:
    """Accepts commands and hands their charges to the runner."""

    def __init__(self, journal: Journal, runner: Runner, line: Line, recent: Recent, *, max_unfinished: int) -> None:
        self._journal = journal
        self._streams = Streams(journal)
        self._runner = runner
        self._line = line
        self._recent = recent
        self._max_unfinished = max_unfinished
        # One call for each key is being handled, the leader. Calls that come meanwhile wait for its result: the charge if the
        # key's outcome is decided, or None, and then one of them leads.
        self._leaders: dict[str, asyncio.Future[Snapshot | None]] = {}
        self._tasks = Tasks()

    async def recall(self) -> None:
        """Learn from the journal which charges were requested in the last while. Call it once, after the runner's start."""
        await recall(self._recent, self._journal, self._streams)
        for run in self._runner.runs():
            run.ended.add_done_callback(lambda _, run=run: self._recent.note_rest(run.snapshot.state))  # type: ignore[misc]

    def accept(self, command: Command | Follow) -> "asyncio.Future[Accepted]":
        """Take a client's command, in a task that goes on if the client leaves. A charge that it begins runs to rest in it.

        The future's result is the charge, durable in the journal. It raises CallFailed, or KeepsMoving.
        """
        accepted: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._see_to(command, accepted))
        return accepted

    async def _see_to(self, command: Command | Follow, accepted: "asyncio.Future[Accepted]") -> None:
        run = None
        try:
            result = await self._accept(command)
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
            self._recent.note_rest(run.snapshot.state)

    async def _accept(self, command: Command | Follow) -> Accepted:
        key = command.request.charge_id if isinstance(command, Command) else command.wish.operation_id
        while (leader := self._leaders.get(key)) is not None:
            if (decided := await asyncio.shield(leader)) is not None:
                return self._accepted(command, await self._streams.handle(decided, command))
        self._leaders[key] = leader = asyncio.get_running_loop().create_future()
        accepted = None
        # Before anything is awaited, so that of two alike charges the second is refused however close they come.
        is_noted = isinstance(command, Command) and self._recent.note(command.request)
        try:
            accepted = await self._lead(command)
            return accepted
        finally:
            if is_noted and isinstance(command, Command) and (accepted is None or accepted.source is not Source.FRESH):
                self._recent.forget(command.request)
            del self._leaders[key]
            leader.set_result(accepted.snapshot if accepted and accepted.run is None else None)

    async def _lead(self, command: Command | Follow) -> Accepted:
        while True:
            refusal = self._refusal(command)
            snapshot = await self._known(command, refusal)
            try:
                return self._accepted(command, await self._streams.handle(snapshot, command, refuse_with=refusal))
            except OperationUnderWay:
                snapshot = await self._streams.load(snapshot.charge_id)
                if not is_at_rest(snapshot.state):
                    run = self._runner.run(snapshot, was_in_journal=True)
                    return Accepted(Source.JOINED, snapshot, run, is_blocked=True)
                # It came to rest meanwhile: now the command may have its turn.
            except NotStored as error:  # its key was taken for a new one; if it is known, the caller gets an answer
                snapshot = await self._streams.load(snapshot.charge_id)
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

    async def _known(self, command: Command | Follow, refusal: CallFailed | None) -> Snapshot:
        """The charge's snapshot from which the command is decided: from its run, assumed absent, or read."""
        charge_id = charge_of(command)
        if (run := self._runner.find(charge_id)) is not None:
            return run.snapshot
        if refusal is None and isinstance(command, Command) and not command.faults:
            # Most keys are new, so the journal is not read first. If it holds the charge, the append conflicts (ADR 10).
            return Snapshot(charge_id)
        return await self._streams.load(charge_id)

    def _refusal(self, command: Command | Follow) -> CallFailed | None:
        """The reason to refuse the command if it turns out to be new, or None."""
        if isinstance(command, Follow) and self._runner.find(command.wish.charge_id) is not None:
            return None  # It may call off a charge that is counted already, and nothing may keep it from that.
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
                return self._duplicate(command)

    def _duplicate(self, command: Command | Follow) -> PossibleDuplicate | None:
        if isinstance(command, Follow) or command.allow_duplicate:
            return None
        earlier = self._recent.earlier(command.request)
        return None if earlier is None else PossibleDuplicate(earlier)

    async def close(self) -> None:
        """End the calls that are being accepted. A client that asks again learns whether its charge was stored."""
        await self._tasks.close()


def charge_of(command: Command | Follow) -> str:
    """Return the id of the charge that a command is about."""
    return command.request.charge_id if isinstance(command, Command) else command.wish.charge_id
