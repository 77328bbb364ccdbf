"""The end of a story: the files of its servers and everything observed go to the history checker."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from charging.v1.common_pb2 import DeclineReason, ReviewReason
from charging.v1.journal_pb2 import ChargeRequested, Event
from command_service.journal.records import id_of
from judge.checker import check
from judge.files import read_anchor, read_journal, read_view, records_in, view_in
from judge.history import Call, Movement, Observed, Record, Session, View, Violation
from judge.streams import Stream
from prove.simulation.bank import Bank
from prove.simulation.callers import Callers
from prove.simulation.disk import Disk
from prove.simulation.faults import ENDS
from prove.simulation.host import Process
from prove.simulation.lines import SILENT_SECONDS
from prove.simulation.people import People
from prove.simulation.servers import Servers, newest
from prove.simulation.stage import Stage

# The tasks that a server has for as long as it lives: the query server's own, and the one that reads the feed; the command
# server's own, and two that look after the journal's store and follow its head. Beside these, the command server has one for
# each reader of the feed. With a database there are two more, for others' records and for leases, and two that wait for news.
STANDING_OF_QUERIES, STANDING_OF_COMMANDS, STANDING_OF_DATABASE = 2, 3, 4
FOUND_NOT_EXECUTED = DeclineReason.DECLINE_REASON_FOUND_NOT_EXECUTED
NOT_AUTHENTICATED = DeclineReason.DECLINE_REASON_AUTHENTICATION_REQUIRED


class Judging:
    """Reads the files of a story's servers, and judges the story."""

    def __init__(
        self,
        stage: Stage,
        banks: Mapping[str, Bank],
        disk: Disk,
        servers: Servers,
        callers: Callers,
        people: People | None,
    ) -> None:
        self._stage = stage
        self._banks = banks
        self._disk = disk
        self._servers = servers
        self._callers = callers
        self._people = people
        self._records: list[Record] = []
        self._views: list[View] = []

    # ------------------------------------------------------------ at rest
    def read_files(self) -> None:
        """Read what the files hold in the end, through the servers' own connections: that spares half of the judging."""
        self._records = self._kept_records()
        if self._servers.unfinished():
            self._stage.broke("I16", "the journal", "at rest, it lists charges as unfinished")
        self._views = [view_in(newest(process)) for process in self._servers.queries]

    def allows(self, call: Call) -> bool:
        """Whether a charge at rest allows what a call asked for, by the book of the journal as it is now."""
        charge = Stream(call.charge_id)
        for record in self._kept_records():
            if record.charge_id == call.charge_id:
                event = Event.FromString(record.event)
                list(charge.take(record, event.WhichOneof("kind") or "", event))
        if charge.newest is None or charge.newest.ending is None or charge.is_in_review:
            return False
        left = charge.book.left(call.operation)
        return not charge.book.forbids(call.operation, left if call.amount is None else call.amount)

    async def count_tasks(self) -> None:
        """I16: at rest, no task is left but those that a server has for as long as it lives."""
        processes = self._servers.processes.values()
        if any(map(self._is_busy, processes)):
            # A task that ends in this very moment, a slow reader's perhaps, is gone then.
            await asyncio.sleep(1.0 if self._servers.database is None else SILENT_SECONDS)
        for process in filter(self._is_busy, processes):
            left = dict(self._tasks(process))
            self._stage.broke("I16", process.name, f"at rest, tasks are left: {left}")

    def _is_busy(self, process: Process) -> bool:
        standing = self._standing(process)
        return self._tasks(process).total() > standing + len(process.links)

    def _standing(self, process: Process) -> int:
        if not process.serves_commands:
            return STANDING_OF_QUERIES
        return STANDING_OF_COMMANDS + (STANDING_OF_DATABASE if self._servers.database is not None else 0)

    def _tasks(self, process: Process) -> Counter[str]:
        return Counter(name for life, name in self._stage.loop.unfinished_tasks() if life is process)

    # ------------------------------------------------------------ in the end
    def violations(self, logs: Sequence[Mapping[str, Any]]) -> list[Violation]:
        """Return the invariants that broke. `logs` are the entries that the servers logged."""
        servers = self._servers
        if not servers.is_ending or servers.reads_files:
            self._records = self._left_records()
            folders = [process.left or process.folder for process in servers.queries if process.waiting]
            self._views = [read_view(folder / "view.db") for folder in folders if servers.is_ending]
        planted = [op.planted for ops in self._stage.plan.clients for op in ops if op.planted]
        blobs = {}
        if planted:
            file = self._file.read_bytes() if servers.database is None else b""
            blobs = {"the log": repr(logs).encode(), "the journal's file": file}
        observed = Observed(
            self._records,
            calls=self._callers.history,
            movements=[moved for bank in self._banks.values() for moved in bank.movements if not self._is_lost(moved)],
            bank_calls=[call for bank in self._banks.values() for call in bank.calls],
            view=self._views[0] if self._views else None,
            sessions=[*servers.feeds.sessions, Session(0, self._disk.durable.records)],
            anchor=read_anchor(self._file) if servers.database is None else None,
            planted=planted,
            blobs=blobs,
            is_at_rest=servers.is_ending,
        )
        # The token by which a lost charge was executed may never be heard of: the look-up may tell its end at once.
        found = [it for it in check(observed) if it.invariant not in ("I2", "I3") or not self._is_of_lost(it)]
        for view in self._views[1:]:
            found += check(Observed(self._records, view=view, is_at_rest=servers.is_ending))
        found += [*self._unfair_ends(), *self._customers()]
        if self._people is not None:
            found += self._people.violations(self._records)
        found += [
            Violation("I9", f"position {later.position}", "recorded before the record before it")
            for earlier, later in itertools.pairwise(self._records)
            if later.recorded_at < earlier.recorded_at
        ]
        return found

    def _is_of_lost(self, violation: Violation) -> bool:
        return any(lost.reference in violation.where for lost in self._stage.plan.lost)

    def _is_lost(self, moved: Movement) -> bool:
        """Whether a restored journal has lost it, and nobody has asked for it again."""
        was_lost = any(lost.reference == moved.reference for lost in self._stage.plan.lost)
        return was_lost and all(record.charge_id != moved.reference for record in self._records)

    @property
    def _file(self) -> Path:
        """The journal's, as the last command server left it."""
        command = self._servers.a_command()
        return (command.left or command.surviving or command.folder) / "journal.db"

    def _kept_records(self) -> list[Record]:
        """What the journal holds: in the database, or in the file, which is open."""
        if (database := self._servers.database) is not None:
            rows: Any = sorted(database.primary.tables.rows.values())
            return [Record(at, id_of(key), *rest) for at, key, *rest in rows]
        return records_in(newest(self._servers.a_command()))

    def _left_records(self) -> list[Record]:
        if self._servers.database is not None:
            return self._kept_records()
        return read_journal(self._file) if self._servers.a_command().journal is not None else []

    @property
    def charges(self) -> int:
        """The number of charges in the journal."""
        return sum(record.version == 1 for record in self._records)

    def _customers(self) -> Iterator[Violation]:
        """I15: a customer is sent only to an address that the charge's bank has named for this charge.

        And nobody is said to have failed at a step, unless it was refused, or came to no end in time, or nobody was there.
        """
        banks, requested = self._banks, dict[str, ChargeRequested]()
        for record in self._records:
            event = Event.FromString(record.event)
            where = f"charge {record.charge_id}, position {record.position}"
            match event.WhichOneof("kind"):
                case "charge_requested":
                    requested[record.charge_id] = event.charge_requested
                case "action_required":
                    bank = banks[requested[record.charge_id].bank]
                    if bank.addresses.get(event.action_required.action.url) != record.charge_id:
                        yield Violation(
                            "I15", where, "the customer is sent where the bank sends nobody for this charge"
                        )
                case "charge_declined":
                    asked, is_for_that = requested[record.charge_id], event.charge_declined.reason == NOT_AUTHENTICATED
                    took_step = record.charge_id in banks[asked.bank].confirmed
                    if is_for_that and took_step and record.charge_id not in banks[asked.bank].lied_about:
                        yield Violation("I15", where, "declined for a step of the customer, who has taken it")

    def _unfair_ends(self) -> list[Violation]:
        """A charge goes into review only if the bank lied about it, or its tokens kept expiring.

        Nor is it refused for good unless the bank lied about it, or knows no such card. And we ask for nothing that the bank's
        own book does not allow, but that its hold may have lapsed, or that people have judged against its word.
        """
        found, requested, is_taken = [], dict[str, ChargeRequested](), dict[str, bool]()
        excused = set[str]().union(*(bank.lied_about for bank in self._banks.values()))
        if self._people is not None:
            excused |= self._people.misjudged
        for record in self._records:
            event = Event.FromString(record.event)
            kind = event.WhichOneof("kind")
            if kind == "charge_requested":
                requested[record.charge_id] = event.charge_requested
            if kind == "charge_requested" and any(it.reference == record.charge_id for it in self._stage.plan.lost):
                self._stage.dice.met("charge_lost")
            charge = requested[record.charge_id]
            bank = self._banks[charge.bank]
            if kind in ("capture_requested", "void_requested", "refund_requested"):
                order = getattr(event, kind)
                is_final, is_whole = event.capture_requested.final, order.amount == charge.amount
                is_taken[record.charge_id] = bank.takes(kind, is_whole=is_whole, is_final=is_final)
            if kind in ENDS:
                self._stage.dice.met(str(kind))
            if record.charge_id in excused:
                continue
            where = f"charge {record.charge_id}, position {record.position}"
            is_refused = event.charge_declined.reason == DeclineReason.DECLINE_REASON_BANK_REFUSED
            if is_refused and charge.card.token in bank.cards:
                found.append(Violation("L1", where, "refused for good, though the bank never refused it"))
            is_declined = kind == "operation_declined" and is_taken[record.charge_id]
            reason = event.operation_declined.reason
            if is_declined and reason not in (*bank.declines, FOUND_NOT_EXECUTED):
                found.append(Violation("I17", where, "the bank refused it, and not because of the card"))
            kept_expiring = event.review_required.reason == ReviewReason.REVIEW_REASON_TOKENS_KEEP_EXPIRING
            if kind == "review_required" and not kept_expiring:
                found.append(Violation("L1", where, "in review, though the bank never lied about it"))
        return found
