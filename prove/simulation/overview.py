"""The operators' overview of a story: its charges, as the durable records tell of them, and what is done about those held back.

Operators of a real service see the same in a view, a little later.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from charging.v1.journal_pb2 import Event
from charging.v1.operator_pb2 import HoldBackResponse
from command_service.bank import Bank
from command_service.values import Answer, Effect, Executed, Operation
from judge.desk import STEPS
from judge.history import Record
from judge.streams import Stream
from prove.simulation.host import Process
from prove.simulation.pressure import for_people
from prove.simulation.stage import Stage
from rig.around import Around

# How long the one server with a file may take from a step's commit to its loops; commits are told much sooner.
HEARS_WITHIN_SECONDS = 3.0
# The kinds of fault after which an answer of the bank may not have been stored.
NOT_STORED = ("disk_full_once", "disk_full", "journal_busy", "eio_kept", "eio_lost")


class Hold(NamedTuple):
    """A charge is held back."""

    position: int
    at: float


@dataclass(slots=True)
class Overview:
    """All charges of a story."""

    stage: Stage
    charges: dict[str, Stream] = field(default_factory=dict)
    """In the order of their requests."""
    closed: dict[str, list[int]] = field(default_factory=dict)
    """The proposals that were rejected or approved, by charge."""
    holds: dict[str, Hold] = field(default_factory=dict)
    _told: dict[str, set[Process]] = field(default_factory=dict)
    """The servers that have said that a charge is held back."""

    def hear(self, position: int, charge_id: str, kind: str, event: Event) -> None:
        """Take a record that has become durable."""
        stream = self.charges.setdefault(charge_id, Stream(charge_id))
        record = Record(position, charge_id, len(stream.entries) + 1, 0, b"", b"")
        list(stream.take(record, kind, event))
        if kind in STEPS:
            self.stage.dice.met(kind)
        if kind in ("try_requested", "let_go"):
            self.stage.tried_at[charge_id] = self.stage.loop.time()
        if kind in ("resolution_rejected", "resolution_approved"):
            self.closed.setdefault(charge_id, []).append(getattr(event, kind).proposal)
        if kind == "resolution_approved":
            is_against = event.resolution_approved.contradicts_bank
            self.stage.dice.met("approved_against_bank" if is_against else "approved_with_bank")
            if any(operation.verdict and operation.verdict.is_refunded for operation in stream.operations[-1:]):
                self.stage.dice.met("found_refunded")
        if not stream.desk.is_held_back:
            self.holds.pop(charge_id, None)
            self._told.pop(charge_id, None)
        elif charge_id not in self.holds:
            self.holds[charge_id] = Hold(position, self.stage.loop.time())

    @property
    def in_review(self) -> list[Stream]:
        """The charges that wait for people."""
        return [charge for charge in self.charges.values() if charge.in_review is not None]

    @property
    def under_way(self) -> list[Stream]:
        """The charges that are not at rest."""
        return [it for it in self.charges.values() if it.newest is not None and it.newest.ending is None]

    def note_answer(self, process: Process, answer: Any) -> None:
        """Note an answer that leaves a server: one that says that a charge is held back binds the server from now on."""
        if not isinstance(answer, HoldBackResponse):
            return
        outcome = answer.outcome
        hold = self.holds.get(outcome.charge_id)
        if hold is not None and outcome.position >= hold.position:
            self._told.setdefault(outcome.charge_id, set()).add(process)

    def must_wait(self, charge_id: str, process: Process, began_at: float) -> bool:
        """Whether a server must know that a charge is held back: it has said so, or it has begun on such a journal.

        Where servers share a journal, another one may hear of it much later: its database may be away.
        """
        if (hold := self.holds.get(charge_id)) is None:
            return False
        now, is_alone = self.stage.loop.time(), not self.stage.plan.servers
        is_late = is_alone and now - hold.at > HEARS_WITHIN_SECONDS
        return is_late or hold.at < began_at or process in self._told.get(charge_id, ())

    def watch(self, bank: Bank, process: Process) -> Bank:
        """Watch the steps of a server at a bank."""
        return _Watched(bank, self, process).as_one()


class _Watched(Around[Bank]):
    """I19 at a bank: no step is begun for a charge that is held back, and none of its answers is dropped."""

    def __init__(self, bank: Bank, overview: Overview, process: Process) -> None:
        super().__init__(bank)
        self._overview = overview
        self._stage = overview.stage
        self._process = process
        self._began_at = self._stage.loop.time()
        self._executed: dict[str, int] = {}
        """The operations that were executed while their charges were held back, each with the number of faults until then."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do a step."""
        overview, operation = self._overview, effect.operation
        charge_id = operation.request.charge_id
        if overview.must_wait(charge_id, self._process, self._began_at):
            self._stage.broke("I19", f"charge {charge_id}", f"{type(effect).__name__} began, and it is held back")
        if self._executed.pop(operation.reference, None) == self._faults():
            self._stage.broke("I19", f"charge {charge_id}", "what the bank said while it was held back was dropped")
        answer = await self.inner.perform(effect, look_up_first=look_up_first)
        if isinstance(answer, Executed) and charge_id in overview.holds and not self._stage.plan.servers:
            self._executed[operation.reference] = self._faults()
        return answer

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        """Ask for people."""
        with _asked_by_people():
            return await self.inner.look_up(operation, token)

    def _faults(self) -> int:
        return sum(self._stage.dice.fired[kind] for kind in NOT_STORED)


@contextmanager
def _asked_by_people() -> Iterator[None]:
    mark = for_people.set(True)
    try:
        yield
    finally:
        for_people.reset(mark)
