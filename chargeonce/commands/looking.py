"""`get`, `history`, `list`, `summary` and `view status`."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Unpack

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, Named, asking, known, named
from chargeonce.commands.exits import HELP, Exit, of_charge, of_operation
from chargeonce.commands.printing import Block, Cell, json_of, status, under
from chargeonce_client import (
    AnswerKind,
    Charge,
    ChargeStage,
    ChargeStatus,
    Conditions,
    DeclineReason,
    HistoryEntry,
    Operation,
    OperationKind,
    OperationStatus,
    Resolution,
    ResolutionProposal,
    ReviewReason,
    ViewState,
)

_STATUSES = [name.removeprefix("CHARGE_STATUS_") for name, number in ChargeStatus.items() if number]


_STAGES = {name.removeprefix("CHARGE_STAGE_").lower().replace("_", "-"): number for name, number in ChargeStage.items()}
del _STAGES["unspecified"]


def _money_of(charge: Charge, minor_units: int) -> str:
    """Write an amount in a charge's currency; nothing is empty."""
    return words.amount(minor_units, charge.amount.currency_code) if minor_units else ""


def status_of(charge: Charge) -> Cell:
    """Write a charge's status."""
    return status(words.word(ChargeStatus, charge.status), of_charge(charge.status))


def stage_of(charge: Charge) -> str:
    """Write a charge's stage, and since when; empty at rest."""
    if charge.stage in (ChargeStage.CHARGE_STAGE_UNSPECIFIED, ChargeStage.CHARGE_STAGE_AT_REST):
        return ""
    return f"{words.word(ChargeStage, charge.stage)} since {words.time(charge.stage_since)}"


def proposal_fields(told: ResolutionProposal) -> Mapping[str, Cell]:
    """Return the fields of a proposal, in words."""
    return {
        "proposal": str(told.proposal or ""),
        "says": words.word(Resolution, told.resolution),
        "transaction_id": told.transaction_id,
        "refund_transaction_id": told.refund_transaction_id,
        "evidence": told.evidence,
        "reason": told.reason,
        "by": told.actor,
        "proposed_at": words.time(told.proposed_at),
    }


def _in_line(proposal: ResolutionProposal) -> str:
    return ", ".join(f"{name} {value}" for name, value in proposal_fields(proposal).items() if value)


def fields_of(charge: Charge) -> Mapping[str, Cell]:
    """Return the fields of a charge, in words."""
    return {
        "status": status_of(charge),
        "stage": stage_of(charge),
        "held_back": "by an operator" if charge.held_back else "",
        "proposal": _in_line(charge.proposal).removeprefix("proposal "),
        "decline_reason": words.word(DeclineReason, charge.decline_reason),
        "review_reason": words.word(ReviewReason, charge.review_reason),
        "customer_url": charge.action.url,
        "amount": words.money(charge.amount),
        "captured": _money_of(charge, charge.captured_minor_units),
        "refunded": _money_of(charge, charge.refunded_minor_units),
        "held": _money_of(charge, charge.held_minor_units),
        "hold_expires_at": words.time(charge.hold_expires_at),
        "user": charge.user_id,
        "card": " ".join(filter(None, [charge.card.token, charge.card.brand, charge.card.last4])),
        "key": charge.idempotency_key,
        "charge_id": charge.charge_id,
        "transaction_id": charge.transaction_id,
        "bank": charge.bank,
        "description": charge.description,
        "metadata": " ".join(f"{name}={value}" for name, value in sorted(charge.metadata.items())),
        "requested_at": words.time(charge.requested_at),
        "not_after": words.time(charge.not_after),
        "updated_at": words.time(charge.updated_at),
        **{f"{number}. {_kind(each)}": _operation(each) for number, each in enumerate(charge.operations, 1)},
    }


def _kind(operation: Operation) -> str:
    return words.word(OperationKind, operation.kind).lower()


def _operation(operation: Operation) -> Cell:
    status_told = words.word(OperationStatus, operation.status)
    why = words.word(DeclineReason, operation.decline_reason) or words.word(ReviewReason, operation.review_reason)
    line = " ".join(filter(None, [words.money(operation.amount), status_told, why, f"key {operation.idempotency_key}"]))
    return status(line, of_operation(operation.status))


@click.command(epilog=HELP)
@named
@asking("query")
async def get(asked: Asking, name: Named) -> Exit:
    """Show a charge as the query server's view has it.

    NAME is its id or its key.
    """
    answer = await known(asked.client, name)
    asked.printer.fields(fields_of(answer.charge), json_of(answer))
    return Exit.DONE


@click.command(epilog=HELP)
@named
@asking("query")
async def history(asked: Asking, name: Named) -> Exit:
    """Show a charge's events, oldest first.

    NAME is its id or its key.
    """
    await known(asked.client, name)
    answer = await asked.client.history(**name)
    asked.printer.page([events_of(answer.entries)], json_of(answer))
    return Exit.DONE


def events_of(entries: Sequence[HistoryEntry]) -> Block:
    """Return a charge's events under their columns."""
    return under(
        ("POSITION", "RECORDED", "EVENT", "STATUS", "OPERATION", "KEY", "BY", "WHY"),
        [
            (
                str(entry.position),
                words.time(entry.recorded_at),
                entry.event,
                status(words.word(ChargeStatus, entry.status), of_charge(entry.status)),
                words.word(OperationKind, entry.operation).lower(),
                entry.idempotency_key,
                entry.actor,
                _why(entry),
            )
            for entry in entries
        ],
    )


def _why(entry: HistoryEntry) -> str:
    """Write why an operator took a step, and what was proposed by it, or what the bank said before it was approved."""
    proposed = entry.proposal
    told = [
        words.word(Resolution, proposed.resolution),
        proposed.transaction_id,
        f"refund {proposed.refund_transaction_id}" if proposed.refund_transaction_id else "",
        f"evidence: {proposed.evidence}" if proposed.evidence else "",
    ]
    said = words.word(AnswerKind, entry.bank_said)
    bank = f"{'although ' * entry.contradicts_bank}the bank said: {said}" if said or entry.contradicts_bank else ""
    return "; ".join(filter(None, [" ".join(filter(None, told[:3])), entry.reason, told[3], bank]))


@click.command("list", epilog=HELP)
@click.option("--user", default="", show_default=False, help="Only this user's charges.")
@click.option("--status", "in_status", type=click.Choice(_STATUSES, case_sensitive=False), help="Only charges in it.")
@click.option("--from", "since", type=words.Time(), metavar="TIME", help="Only charges requested then or later.")
@click.option("--before", type=words.Time(), metavar="TIME", help="Only charges requested earlier.")
@click.option("--stage", type=click.Choice(list(_STAGES)), help="Only charges at it, and their stages shown.")
@click.option(
    "--older",
    type=words.Duration(),
    metavar="SPAN",
    help="Only charges at their stage for longer, such as 10m or 2h. Without --stage: of those that are unfinished.",
)
@click.option(
    "--hold-ends-within", type=words.Duration(), metavar="SPAN", help="Only charges with a hold that lapses by then."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, help="The largest number of charges.")
@asking("query")
async def list_charges(
    asked: Asking,
    user: str,
    in_status: str | None,
    since: datetime | None,
    before: datetime | None,
    stage: str | None,
    older: timedelta | None,
    hold_ends_within: timedelta | None,
    limit: int,
) -> Exit:
    """List charges, newest first."""
    if older is not None and stage is None:
        stage = "unfinished"
    charges = await listed(
        asked,
        limit,
        user_id=user,
        status=ChargeStatus.Value(f"CHARGE_STATUS_{in_status or 'UNSPECIFIED'}"),
        requested_from=since,
        requested_before=before,
        stage=_STAGES[stage] if stage else ChargeStage.CHARGE_STAGE_UNSPECIFIED,
        stage_since_before=None if older is None else words.since_now(-older),
        hold_expires_before=None if hold_ends_within is None else words.since_now(hold_ends_within),
    )
    columns = {
        "REQUESTED": [words.time(charge.requested_at) for charge in charges],
        "STATUS": [status_of(charge) for charge in charges],
        **({"STAGE": [stage_of(charge) for charge in charges]} if stage else {}),
        **({"HOLD ENDS": [words.time(charge.hold_expires_at) for charge in charges]} if hold_ends_within else {}),
        "AMOUNT": [words.money(charge.amount) for charge in charges],
        "CAPTURED": [_money_of(charge, charge.captured_minor_units) for charge in charges],
        "REFUNDED": [_money_of(charge, charge.refunded_minor_units) for charge in charges],
        "USER": [charge.user_id for charge in charges],
        "KEY": [charge.idempotency_key for charge in charges],
        "CHARGE": [charge.charge_id for charge in charges],
    }
    rows = list(zip(*columns.values(), strict=True))
    asked.printer.table(list(columns), rows, [json_of(charge) for charge in charges])
    return Exit.DONE


async def listed(asked: Asking, limit: int, **conditions: Unpack[Conditions]) -> list[Charge]:
    """Return the newest charges that fit all conditions. Raises CallFailed."""
    charges = []
    async with contextlib.aclosing(asked.client.list(page_size=min(limit, 1000), **conditions)) as found:
        async for charge in found:
            charges.append(charge)
            if len(charges) == limit:
                break
    return charges


@click.command(epilog=HELP)
@click.argument("user")
@asking("query")
async def summary(asked: Asking, user: str) -> Exit:
    """Show the sums of a user's charges, per currency."""
    answer = await asked.client.summary(user)
    asked.printer.table(
        ("CHARGED", "REFUNDED", "NET", "HELD", "PENDING", "DECLINED"),
        [
            [
                words.amount(minor_units, sums.currency_code)
                for minor_units in (
                    sums.charged_minor_units,
                    sums.refunded_minor_units,
                    sums.net_minor_units,
                    sums.held_minor_units,
                    sums.pending_minor_units,
                    sums.declined_minor_units,
                )
            ]
            for sums in answer.currencies
        ],
        [json_of(answer)],
    )
    return Exit.DONE


@click.command(epilog=HELP)
@asking("query")
async def view_status(asked: Asking) -> Exit:
    """Tell how far the query server's view is behind the journal."""
    answer = await asked.client.view_status()
    is_live = answer.state == ViewState.VIEW_STATE_LIVE
    asked.printer.fields(
        {
            "state": status(words.word(ViewState, answer.state), Exit.DONE if is_live else Exit.NOT_KNOWN),
            "position": str(answer.as_of_position),
            "head": str(answer.head_position),
            "behind": f"{answer.lag.records} records, {answer.lag.silence_milliseconds} ms since the last sign of life",
            "charges": str(answer.charge_count),
            "journal_id": answer.journal_id,
        },
        json_of(answer),
    )
    return Exit.DONE
