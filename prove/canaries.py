"""Planted bugs: each is one that people really make, put into the product for as long as a context lasts.

A harness that finds no planted bug proves nothing. `seeds_that_find` says for each by which seed it was found.
"""

import asyncio
import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import command_service.api
import command_service.errors
import command_service.runner
import query_service.view
from command_service import screening
from command_service.bank import gateway
from command_service.charge import GiveUp, Message, State, decide, evolve
from command_service.codec import charge_id_of
from command_service.failures import KeyReused
from command_service.operation import Answered, AtRest, AwaitingExecution
from command_service.parts import Parts
from command_service.runner import Runner
from command_service.values import (
    ChargeAbandoned,
    ChargeDeclined,
    DeclineReason,
    Event,
    Execute,
    InProgress,
    NoAnswer,
    RequestToken,
    Token,
    TokenExpired,
)
from prove import journal_bugs
from prove.simulation.loop import patched
from query_service.lookup import find_checkpoint

_decide, _evolve = decide, evolve
_tell, _accept, _ask = Runner._tell, Runner._accept, Runner._ask
_apply = query_service.view._apply
_Planted = list[tuple[Any, str, Any]]


def _deciding(decide: Callable[[State, Message], list[Event]]) -> _Planted:
    return [(command_service.runner, "decide", decide)]


def on_parts(bug: journal_bugs.Bug) -> _Planted:
    """Plant a bug of the journal where a server's parts give what it wraps."""
    real_journal, real_store = Parts.journal, Parts.store

    async def journal(self: Parts) -> Any:
        given = await real_journal(self)
        return bug.journal(given, self.now) if bug.journal else given

    async def store(self: Parts) -> Any:
        given = await real_store(self)
        return bug.store(given, self.now) if bug.store else given

    return [(Parts, "journal", journal), (Parts, "store", store)]


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
    return on_parts(journal_bugs.named("append is retried after a commit error"))


def _commit_error_is_taken_for_no() -> _Planted:
    return on_parts(journal_bugs.named("commit error is taken for no"))


def _reply_before_the_commit() -> _Planted:
    return on_parts(journal_bugs.named("reply before the commit"))


def _an_outcome_is_told_before_it_is_stored() -> _Planted:
    return on_parts(journal_bugs.named("an outcome is told before it is stored"))


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
    return [(gateway._Transaction, "differences", lambda _self, _effect: ())]


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
    return on_parts(journal_bugs.named("a wake up of the feed is lost"))


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

    # Nor at the version, which would tell.
    return [(Runner, "_accept", accept), *on_parts(journal_bugs.Bug(store=journal_bugs.ForgetsTheVersion))]


def _what_was_found_is_forgotten() -> _Planted:
    async def recover(_self: Runner) -> int:
        return 0

    return [(Runner, "recover", recover)]


def _finished_too_early() -> _Planted:
    return on_parts(journal_bugs.named("finished too early"))


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
    return on_parts(journal_bugs.named("a batchs answers are mixed up"))


def _card_numbers_are_let_in() -> _Planted:
    return [(screening, "card_number_in", lambda _text, **_where: False)]


def _a_new_key_is_advised_while_money_may_move() -> _Planted:
    return [(command_service.errors, "is_over_without_money", lambda _state: True)]


def _a_full_disk_is_taken_for_stored() -> _Planted:
    return on_parts(journal_bugs.named("a full disk is taken for stored"))


def _a_busy_file_is_taken_for_stored() -> _Planted:
    return on_parts(journal_bugs.named("a busy file is taken for stored"))


def _recorded_times_follow_the_clock() -> _Planted:
    return on_parts(journal_bugs.named("recorded times follow the clock"))


def _bank_calls_have_no_limit() -> _Planted:
    async def ask(self: Runner, *arguments: Any) -> Any:
        self._slots = asyncio.Semaphore(1_000_000)
        return await _ask(self, *arguments)

    return [(Runner, "_ask", ask)]


def _no_pause_after_a_vain_call() -> _Planted:
    return [(command_service.runner, "backoff_seconds", lambda *_: 0.0)]


def _a_refusal_is_believed_at_once() -> _Planted:
    return [(gateway, "_is_doubtful", lambda *_: False)]


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
