"""A charge: where it stands and why, its timeline, what may be done."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import Response

from chargeonce_client import (
    CallFailed,
    Charge,
    DeclineReason,
    HistoryEntry,
    OperationKind,
    OperationStatus,
    ReviewReason,
    Unsettled,
)
from charging.v1.common_pb2 import AnswerKind, Attempts, Resolution
from charging.v1.query_pb2 import (
    ExplainChargeRequest,
    ExplainChargeResponse,
    GetChargeHistoryRequest,
    GetChargeRequest,
    ResolutionProposal,
    Situation,
    WatchChargeRequest,
)
from console import plots, words
from console.html import Child, tag
from console.pages import desk, parts
from console.visit import Page, Refuse, Visit
from contract.situations import SITUATIONS


async def show(visit: Visit) -> Page:
    """Show a charge."""
    return await _page(visit)


async def take(visit: Visit) -> Page | Response:
    """Take a step of the desk. If it is refused, the charge is shown with the reason, and with what was written."""
    name = visit.request.path_params["step"]
    if name not in desk.STEPS:
        raise Refuse(404, "There is no such page.")
    try:
        return await desk.take(visit, visit.request.path_params["charge"], name)
    except CallFailed as failure:
        return await _page(visit, (name, failure))


async def changes(visit: Visit) -> AsyncIterator[str]:
    """Tell each change of a charge."""
    messages = visit.asker.stream(lambda stub: stub.WatchCharge, WatchChargeRequest(**_named(visit)))
    async for message in messages:
        yield str(message.charge.version)


async def _page(visit: Visit, failed: tuple[str, CallFailed] | None = None) -> Page:
    named = _named(visit)
    explanation = visit.asker.look(lambda stub: stub.ExplainCharge, ExplainChargeRequest(**named))
    events = visit.asker.look(lambda stub: stub.GetChargeHistory, GetChargeHistoryRequest(**named))
    explained, history = await asyncio.gather(explanation, events)
    unexplained: CallFailed | None = None
    if isinstance(explained, CallFailed):
        unexplained = explained
        found = await visit.asker.look(lambda stub: stub.GetCharge, GetChargeRequest(**named))
        if isinstance(found, CallFailed):
            return _without(found)
        explained = ExplainChargeResponse(charge=found.charge, actions=desk.usual(found.charge))
    charge = explained.charge
    waits_for = parts.WAITS_FOR.get(charge.stage, "")
    proposal = charge.proposal if charge.HasField("proposal") else None
    content = [
        tag.h1("Charge ", tag.code(charge.idempotency_key)),
        tag.div(
            tag.span(words.money(charge.amount), class_="amount large"),
            [" ", parts.status(charge.status), " ", parts.stage(charge)],
            id="summary",
            data_part=True,
        ),
        failed and _not_done(charge, *failed),
        tag.div(
            tag.div(
                _explanation(explained, unexplained),
                _desk(visit, explained, proposal, failed),
                _details(charge),
            ),
            parts.part(
                "timeline",
                "Timeline",
                parts.trouble(history)
                if isinstance(history, CallFailed)
                else plots.timeline(history.entries, waits_for),
            ),
            class_="beside",
        ),
        _operations(charge),
        None if isinstance(history, CallFailed) else _history(history.entries),
    ]
    title = f"Charge {charge.idempotency_key}"
    if failed:
        return Page(title, content, status=409)
    return Page(title, content, events=parts.place(charge.charge_id, charge.journal_id, "events"))


def _not_done(charge: Charge, step: str, failure: CallFailed) -> Child:
    """Say whether a step that failed may be done all the same. A question to the bank changes nothing."""
    said: Child = "Not done: "
    if isinstance(failure, Unsettled) and step != "ask-bank":
        history = tag.a("look at the history", href=f"{parts.place_of(charge)}#history")
        said = ["It may be done: ", history, " before you repeat it. "]
    return tag.p(said, words.trouble(failure), class_="error", role="alert")


def _named(visit: Visit) -> dict[str, Any]:
    after = visit.asked("after")
    return {
        "charge_id": visit.request.path_params["charge"],
        "journal_id": visit.asked("journal") or visit.given("journal"),
        "min_position": int(after) if after.isdecimal() and len(after) < 19 else 0,
    }


def _without(failure: CallFailed) -> Page:
    status = 404 if failure.reason in ("CHARGE_NOT_FOUND", "INVALID_REQUEST") else 502
    return Page("Charge", [tag.h1("Charge"), parts.trouble(failure)], status=status)


def _details(charge: Charge) -> Child:
    card = " ".join(filter(None, [charge.card.brand, charge.card.last4 and f"…{charge.card.last4}"]))
    currency = charge.amount.currency_code

    def part_of(minor_units: int) -> str:
        return words.amount(minor_units, currency) if minor_units else ""

    return parts.part(
        "details",
        "What it is",
        words.fields(
            [
                ("User", tag.a(charge.user_id, href=parts.place_of_user(charge.user_id))),
                ("Requested", words.moment(charge.requested_at)),
                ("Last event", words.moment(charge.updated_at)),
                ("Card", card),
                ("Description", charge.description),
                ("Declined because", words.word(DeclineReason, charge.decline_reason)),
                ("In review because", words.word(ReviewReason, charge.review_reason)),
                ("Held now", part_of(charge.held_minor_units)),
                ("Hold lapses", words.moment(charge.hold_expires_at)),
                ("Captured", part_of(charge.captured_minor_units)),
                ("Refunded", part_of(charge.refunded_minor_units)),
                ("Not after", words.moment(charge.not_after)),
                ("The customer's step", tag.code(charge.action.url) if charge.action.url else None),
                ("Bank", charge.bank),
                ("Transaction at the bank", tag.code(charge.transaction_id) if charge.transaction_id else None),
                ("Charge id", tag.code(charge.charge_id)),
                ("Journal", tag.code(charge.journal_id)),
                *((f"Metadata: {name}", value) for name, value in sorted(charge.metadata.items())),
            ]
        ),
    )


def _explanation(explained: ExplainChargeResponse, unexplained: CallFailed | None) -> Child:
    if unexplained is not None:
        return parts.part("explanation", "Where it stands", parts.trouble(unexplained))
    row = SITUATIONS.get(explained.situation)
    is_stuck = bool(row and row.alert)
    return parts.part(
        "explanation",
        "Where it stands",
        tag.p(parts.badge(parts.situation(explained.situation), "bad" if is_stuck else "good")),
        tag.p(explained.what),
        words.fields([("Next", explained.next), ("What is safe to do", explained.advice)], class_="advice"),
        _attempts(explained.attempts, explained.attempts_unknown_because)
        if explained.situation != Situation.SITUATION_BANK_MISSING  # nobody calls that bank, so it answers nothing
        and (explained.HasField("attempts") or explained.attempts_unknown_because)
        else None,
    )


def _attempts(attempts: Attempts, unknown_because: str) -> Child:
    if unknown_because:
        return tag.p("The attempts are not known: ", unknown_because, class_="aside")
    due = "under way" if attempts.is_under_way else words.moment(attempts.next_at)
    return [
        tag.h3("Attempts"),
        words.fields(
            [
                ("Calls to the bank", str(attempts.bank_calls)),
                ("In vain, in a row", str(attempts.in_vain)),
                ("The bank last said", words.word(AnswerKind, attempts.last_answer)),
                ("At", words.moment(attempts.last_at)),
                ("Next attempt", due or "none is planned"),
                (
                    "The bank is spared",
                    "yes: it does not answer, or does not accept us" if attempts.bank_is_spared else "",
                ),
                ("Remembered since", words.moment(attempts.since)),
            ]
        ),
    ]


def _desk(
    visit: Visit,
    explained: ExplainChargeResponse,
    proposal: ResolutionProposal | None,
    failed: tuple[str, CallFailed] | None,
) -> Child:
    charge = explained.charge
    shown = desk.forms(visit, charge.charge_id, charge.journal_id, explained.actions, proposal, failed)
    return parts.part(
        "desk",
        "What may be done",
        _proposed(proposal) if proposal is not None else None,
        shown,
        note=None if explained.situation != Situation.SITUATION_DECIDED else "It is decided: nothing has to be done.",
    )


def _proposed(proposal: ResolutionProposal) -> Child:
    return tag.div(
        tag.h3(f"The open proposal, {proposal.proposal}"),
        words.fields(
            [
                ("Outcome", words.word(Resolution, proposal.resolution)),
                ("Transaction", proposal.transaction_id),
                ("Refund", proposal.refund_transaction_id),
                ("Evidence", proposal.evidence),
                ("Reason", proposal.reason),
                ("By", proposal.actor),
                ("At", words.moment(proposal.proposed_at)),
            ]
        ),
        class_="proposal",
    )


def _operations(charge: Charge) -> Child:
    rows = [
        [
            words.word(OperationKind, operation.kind),
            tag.span(words.money(operation.amount), class_="amount"),
            words.word(OperationStatus, operation.status),
            words.word(DeclineReason, operation.decline_reason) or words.word(ReviewReason, operation.review_reason),
            tag.code(operation.transaction_id) if operation.transaction_id else None,
            operation.actor,
            operation.reason,
            tag.code(operation.idempotency_key),
        ]
        for operation in charge.operations
    ]
    columns = ["Operation", "Amount", "Status", "Because", "Transaction", "By", "Reason", "Key"]
    return parts.part(
        "operations", "Operations", parts.table("Operations, in the order of their requests", columns, rows)
    )


def _history(entries: Sequence[HistoryEntry]) -> Child:
    rows = [
        [
            str(entry.position),
            words.moment(entry.recorded_at, exact=True),
            [plots.event_words(entry.event), " ", tag.span(entry.event, class_="aside")],
            words.word(OperationKind, entry.operation),
            parts.status(entry.status),
            entry.actor,
            [entry.reason, _said_by(entry)],
        ]
        for entry in entries
    ]
    columns = ["Position", "Recorded", "Event", "Operation", "Status after it", "By", "Reason"]
    return parts.part("history", "History", parts.table("Events, oldest first", columns, rows))


def _said_by(entry: HistoryEntry) -> Child:
    if entry.bank_said or entry.contradicts_bank:
        answer = f"the bank said: {words.word(AnswerKind, entry.bank_said)}"
        return (
            tag.strong(f" (although {answer})") if entry.contradicts_bank else tag.span(f" ({answer})", class_="aside")
        )
    if not entry.HasField("proposal"):
        return None
    proposal = entry.proposal
    said = [words.word(Resolution, proposal.resolution), proposal.transaction_id, proposal.refund_transaction_id]
    return tag.span(f" ({', '.join(filter(None, said))}; evidence: {proposal.evidence})", class_="aside")
