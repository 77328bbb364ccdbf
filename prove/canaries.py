"""Planted bugs: each is one that people really make, put into the product for as long as a context lasts.

A harness that finds no planted bug proves nothing. `seeds_that_find` says for each by which seed it was found.
"""

import asyncio
import dataclasses
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import command_service.api
import command_service.errors
import command_service.journal.sqlite as journal_sqlite
import command_service.runner
import query_service.view
from command_service import screening
from command_service.charge import (
    Answered,
    AtRest,
    AwaitingExecution,
    Charge,
    ChargeAbandoned,
    ChargeDeclined,
    DeclineReason,
    Event,
    Execute,
    GiveUp,
    InProgress,
    KeyReused,
    Message,
    NoAnswer,
    RequestToken,
    State,
    Token,
    TokenExpired,
    decide,
    evolve,
)
from command_service.codec import charge_id_of
from command_service.journal import JournalBusy, JournalFull, NotStored, Place, Record
from command_service.journal.sqlite import SqliteJournal
from command_service.journal.table import SELECT_VERSION, key_of, read_head
from command_service.parts import Parts
from command_service.runner import Runner
from prove.bank_bugs import Hasty, Unchecked
from prove.simulation.loop import patched
from query_service.lookup import find_checkpoint

_decide, _evolve = decide, evolve
_tell, _accept, _ask = Runner._tell, Runner._accept, Runner._ask
_dialect = Parts.dialect
_append, _commit, _apply = SqliteJournal.append, journal_sqlite._commit, query_service.view._apply
_Planted = list[tuple[Any, str, Any]]


def _deciding(decide: Callable[[State, Message], list[Event]]) -> _Planted:
    return [(command_service.runner, "decide", decide)]


def _execute_before_the_token_is_durable() -> _Planted:
    async def tell(self: Runner, running: Any, message: Message) -> bool:
        match message:
            case Answered(RequestToken(charge_id, card, amount), Token(token)):
                await self._bank.perform(Execute(charge_id, card, amount, token), look_up_first=False)
        return await _tell(self, running, message)

    return [(Runner, "_tell", tell)]


def _new_token_after_a_timeout() -> _Planted:
    def decide(state: State, message: Message) -> list[Event]:
        match state, message:
            case AwaitingExecution(_, _, token), Answered(Execute(), NoAnswer()):
                return [TokenExpired(token)]
        return _decide(state, message)

    return _deciding(decide)


def _append_is_retried_after_a_commit_error() -> _Planted:
    def commit(batch: Any, head: Place, recorded_at: int, connection: sqlite3.Connection) -> Any:
        try:
            return _commit(batch, head, recorded_at, connection)
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return _commit(batch, read_head(connection), recorded_at, connection)

    return [(journal_sqlite, "_commit", commit)]


def _commit_error_is_taken_for_no() -> _Planted:
    async def why_not_stored(self: SqliteJournal, _error: Exception) -> NotStored:
        await self._writer.run(journal_sqlite._roll_back)
        return JournalFull()

    return [(SqliteJournal, "_why_not_stored", why_not_stored)]


def _reply_before_the_commit() -> _Planted:
    async def append(
        self: SqliteJournal, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
    ) -> Sequence[Record]:
        storing = asyncio.ensure_future(_append(self, charge_id, expected_version, events, finished=finished))
        storing.add_done_callback(lambda done: done.cancelled() or done.exception())
        first = self._head.position + 1
        return [
            Record(first + n, charge_id, expected_version + 1 + n, self._now(), bytes(32), event)
            for n, event in enumerate(events)
        ]

    return [(SqliteJournal, "append", append)]


def _an_outcome_is_told_before_it_is_stored() -> _Planted:
    async def append(self: SqliteJournal, charge_id: str, version: int, events: Any, *, finished: bool) -> Any:
        if not finished or not version:
            return await _append(self, charge_id, version, events, finished=finished)

        async def later() -> None:
            await asyncio.sleep(0.05)
            await _append(self, charge_id, version, events, finished=finished)

        asyncio.ensure_future(later()).add_done_callback(lambda done: done.cancelled() or done.exception())
        return [
            Record(self._head.position + 1, charge_id, version + 1, self._now(), bytes(32), event) for event in events
        ]

    return [(SqliteJournal, "append", append)]


def _checkpoint_outside_the_transaction() -> _Planted:
    def apply(connection: sqlite3.Connection, records: Any) -> None:
        move = query_service.view.MOVE_CHECKPOINT
        with patched(
            [
                (
                    query_service.view,
                    "MOVE_CHECKPOINT",
                    "UPDATE checkpoint SET one = 1 WHERE ? + ? + ? + ? + ? + ? NOT NULL",
                )
            ]
        ):
            totals = find_checkpoint(connection).totals
            _apply(connection, records)
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute("SELECT count(*), max(requested_at) FROM charge").fetchone()
        last, first = records[-1], records[0]
        sums = (rows[0], max(totals.latest_requested_at, rows[1]), totals.backstep)
        connection.execute(move, (last.position, last.chain, *sums, first.position - 1))

    return [(query_service.view, "_apply", apply)]


def _charged_on_a_mismatching_answer() -> _Planted:
    return [(Parts, "dialect", lambda self: Unchecked(_dialect(self)))]


def _key_scope_is_forgotten() -> _Planted:
    return [(command_service.api, "charge_id_of", lambda tenant, key: charge_id_of(tenant, key[:-1]))]


def _a_join_returns_anothers_answer() -> _Planted:
    async def accept(self: Runner, command: Charge) -> Any:
        accepted = await _accept(self, command)
        if accepted.running is not None and self._running:
            other = next(iter(self._running.values()))
            return dataclasses.replace(accepted, found=other.stream, running=other)
        return accepted

    return [(Runner, "_accept", accept)]


def _a_wake_up_of_the_feed_is_lost() -> _Planted:
    async def beyond(self: SqliteJournal, position: int) -> None:
        while self._head.position <= position:
            await asyncio.sleep(0)  # the head may move here, and nobody looks again
            await self._moved.wait()

    return [(SqliteJournal, "beyond", beyond)]


def _abandoned_in_the_execute_step() -> _Planted:
    def decide(state: State, message: Message) -> list[Event]:
        match state, message:
            case AwaitingExecution(), GiveUp(_, attempts):
                return [ChargeAbandoned(attempts)]
        return _decide(state, message)

    def evolve(state: State, event: Event) -> State:
        match state, event:
            case AwaitingExecution(request), ChargeAbandoned():
                return AtRest(request, event)
        return _evolve(state, event)

    return [*_deciding(decide), (command_service.runner, "evolve", evolve)]


def _two_begin_one_charge() -> _Planted:
    async def accept(self: Runner, command: Charge) -> Any:
        if running := self._running.get(command.request.charge_id):
            return command_service.runner.Accepted(command_service.runner.Source.JOINED, running.stream, running)
        return await self._begin(command)  # nobody looks whether another call begins it just now

    def commit(batch: Any, head: Place, recorded_at: int, connection: sqlite3.Connection) -> Any:
        outcomes: list[Any] = []
        for append in batch:  # nor at the version, which would tell
            key = key_of(append.charge_id)
            (version,) = connection.execute(SELECT_VERSION, (key,)).fetchone()
            stored, head = _commit(
                [dataclasses.replace(append, expected_version=version or 0)], head, recorded_at, connection
            )
            outcomes += stored
        return outcomes, head

    return [(Runner, "_accept", accept), (journal_sqlite, "_commit", commit)]


def _what_was_found_is_forgotten() -> _Planted:
    async def recover(_self: Runner) -> int:
        return 0

    return [(Runner, "recover", recover)]


def _finished_too_early() -> _Planted:
    async def append(
        self: SqliteJournal, charge_id: str, expected_version: int, events: Sequence[bytes], *, finished: bool
    ) -> Sequence[Record]:
        return await _append(self, charge_id, expected_version, events, finished=finished or expected_version > 0)

    return [(SqliteJournal, "append", append)]


def _in_progress_is_taken_for_declined() -> _Planted:
    def decide(state: State, message: Message) -> list[Event]:
        match state, message:
            case AwaitingExecution(), Answered(Execute(), InProgress()):
                return [ChargeDeclined(DeclineReason.OTHER)]
        return _decide(state, message)

    return _deciding(decide)


def _no_answer_is_taken_for_declined() -> _Planted:
    def decide(state: State, message: Message) -> list[Event]:
        match state, message:
            case AwaitingExecution(), Answered(Execute(), NoAnswer()):
                return [ChargeDeclined(DeclineReason.OTHER)]
        return _decide(state, message)

    return _deciding(decide)


def _another_body_is_not_noticed() -> _Planted:
    def decide(state: State, message: Message) -> list[Event]:
        try:
            return _decide(state, message)
        except KeyReused:
            return []

    return _deciding(decide)


def _a_batchs_answers_are_mixed_up() -> _Planted:
    def commit(batch: Any, head: Place, recorded_at: int, connection: sqlite3.Connection) -> Any:
        outcomes, head = _commit(batch, head, recorded_at, connection)
        return outcomes[::-1], head

    return [(journal_sqlite, "_commit", commit)]


def _card_numbers_are_let_in() -> _Planted:
    return [(screening, "card_number_in", lambda _text, **_where: False)]


def _a_new_key_is_advised_while_money_may_move() -> _Planted:
    return [(command_service.errors, "is_over_without_money", lambda _state: True)]


def _taken_for_stored(kind: type[NotStored]) -> _Planted:
    async def append(self: SqliteJournal, charge_id: str, version: int, events: Any, *, finished: bool) -> Any:
        try:
            return await _append(self, charge_id, version, events, finished=finished)
        except kind:
            first = self._head.position + 1
            return [
                Record(first + n, charge_id, version + 1 + n, self._now(), bytes(32), e) for n, e in enumerate(events)
            ]

    return [(SqliteJournal, "append", append)]


def _a_full_disk_is_taken_for_stored() -> _Planted:
    return _taken_for_stored(JournalFull)


def _a_busy_file_is_taken_for_stored() -> _Planted:
    return _taken_for_stored(JournalBusy)


def _recorded_times_follow_the_clock() -> _Planted:
    return [(SqliteJournal, "_time", lambda self: max(0, self._now()))]


def _bank_calls_have_no_limit() -> _Planted:
    async def ask(self: Runner, *arguments: Any) -> Any:
        self._slots = asyncio.Semaphore(1_000_000)
        return await _ask(self, *arguments)

    return [(Runner, "_ask", ask)]


def _no_pause_after_a_vain_call() -> _Planted:
    return [(command_service.runner, "backoff_seconds", lambda *_: 0.0)]


def _a_refusal_is_believed_at_once() -> _Planted:
    return [(Parts, "dialect", lambda self: Hasty(_dialect(self)))]


_ALL: dict[str, Callable[[], _Planted]] = {
    plant.__name__.strip("_").replace("_", " "): plant
    for plant in (
        _execute_before_the_token_is_durable,
        _new_token_after_a_timeout,
        _append_is_retried_after_a_commit_error,
        _commit_error_is_taken_for_no,
        _reply_before_the_commit,
        _an_outcome_is_told_before_it_is_stored,
        _checkpoint_outside_the_transaction,
        _charged_on_a_mismatching_answer,
        _key_scope_is_forgotten,
        _a_join_returns_anothers_answer,
        _a_wake_up_of_the_feed_is_lost,
        _abandoned_in_the_execute_step,
        _two_begin_one_charge,
        _what_was_found_is_forgotten,
        _finished_too_early,
        _in_progress_is_taken_for_declined,
        _no_answer_is_taken_for_declined,
        _another_body_is_not_noticed,
        _a_batchs_answers_are_mixed_up,
        _card_numbers_are_let_in,
        _a_new_key_is_advised_while_money_may_move,
        _a_full_disk_is_taken_for_stored,
        _a_busy_file_is_taken_for_stored,
        _recorded_times_follow_the_clock,
        _bank_calls_have_no_limit,
        _no_pause_after_a_vain_call,
        _a_refusal_is_believed_at_once,
    )
}
NAMES = tuple(_ALL)


def planted(name: str) -> AbstractContextManager[None]:
    """Put a bug into the product for as long as the context lasts."""
    return patched(_ALL[name]())
