"""The door for commands: one call at a time for each key, and new charges only while there is room for them.

Within the limit of calls (`api.py`), a charge that the journal holds is answered at any load. Only a new one may be refused.
"""

import asyncio
from enum import Enum
from typing import NamedTuple

from chassis.tasks import Tasks
from command_service.bank.line import Line
from command_service.charge import Command, State, is_at_rest
from command_service.failures import BankUnreachable, JournalBusy, JournalFull, NotNow, NotStored, TooManyUnfinished
from command_service.journal import Journal
from command_service.run import Run
from command_service.runner import Runner
from command_service.streams import Handled, Snapshot, Streams


class Source(Enum):
    """The relation of a call to its charge's outcome: OutcomeSource in the contract."""

    FRESH = "fresh"  # the call began the charge
    JOINED = "joined"  # another call had begun it, and it was under way
    REPLAYED = "replayed"  # it was at rest
    RECOVERED = "recovered"  # it was under way again after a crash or a stop


class Accepted(NamedTuple):
    """A charge that the journal holds, with its run if it was not at rest."""

    source: Source
    snapshot: Snapshot
    run: Run | None = None

    @property
    def state(self) -> State:
        """The charge's present state: its run may have moved it on."""
        return self.run.snapshot.state if self.run else self.snapshot.state


class Reception:
    """Accepts commands and hands their charges to the runner."""

    def __init__(self, journal: Journal, runner: Runner, line: Line, *, max_unfinished: int) -> None:
        self._journal = journal
        self._streams = Streams(journal)
        self._runner = runner
        self._line = line
        self._max_unfinished = max_unfinished
        # One call for each key is being handled, the leader. Calls that come meanwhile wait for its result: the charge if it
        # is at rest, or None, and then one of them leads.
        self._leaders: dict[str, asyncio.Future[Snapshot | None]] = {}
        self._tasks = Tasks()

    def accept(self, command: Command) -> "asyncio.Future[Accepted]":
        """Take a client's command, in a task that goes on if the client leaves. A charge that it begins runs to rest in it.

        The future's result is the charge, durable in the journal. It raises CallFailed, or KeepsMoving.
        """
        accepted: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._tasks.start(self._see_to(command, accepted))
        return accepted

    async def _see_to(self, command: Command, accepted: "asyncio.Future[Accepted]") -> None:
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

    async def _accept(self, command: Command) -> Accepted:
        charge_id = command.request.charge_id
        while (leader := self._leaders.get(charge_id)) is not None:
            if (rested := await asyncio.shield(leader)) is not None:
                return self._accepted(await self._streams.handle(rested, command))
        self._leaders[charge_id] = leader = asyncio.get_running_loop().create_future()
        accepted = None
        try:
            refusal = self._refusal()
            snapshot = await self._known(command, refusal)
            try:
                handled = await self._streams.handle(snapshot, command, refuse_with=refusal)
            except NotStored as error:  # its key was taken for a new one; if it is known, the caller gets an answer
                snapshot = await self._streams.load(charge_id)
                handled = await self._streams.handle(snapshot, command, refuse_with=error)
            accepted = self._accepted(handled)
            return accepted
        finally:
            del self._leaders[charge_id]
            leader.set_result(accepted.snapshot if accepted and accepted.run is None else None)

    def _accepted(self, handled: Handled) -> Accepted:
        snapshot, has_stored = handled
        if is_at_rest(snapshot.state):
            return Accepted(Source.REPLAYED, snapshot)
        run = self._runner.run(snapshot, was_in_journal=not has_stored)
        if has_stored:
            return Accepted(Source.FRESH, snapshot, run)
        return Accepted(Source.RECOVERED if run.was_in_journal else Source.JOINED, snapshot, run)

    async def _known(self, command: Command, refusal: NotNow | None) -> Snapshot:
        """The charge's snapshot from which the command is decided: from its run, assumed absent, or read."""
        charge_id = command.request.charge_id
        if (run := self._runner.find(charge_id)) is not None:
            return run.snapshot
        if refusal is None and not command.faults:
            # Most keys are new, so the journal is not read first. If it holds the charge, the append conflicts (ADR 10).
            return Snapshot(charge_id)
        return await self._streams.load(charge_id)

    def _refusal(self) -> NotNow | None:
        """The reason to refuse the command if its charge turns out to be new, or None."""
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

    async def close(self) -> None:
        """End the calls that are being accepted. A client that asks again learns whether its charge was stored."""
        await self._tasks.close()
