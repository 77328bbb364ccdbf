"""`get`, `history`, `list`, `summary` and `view status`."""

from collections.abc import Mapping
from datetime import datetime

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, Named, asking, known, named
from chargeonce.commands.exits import HELP, Exit, of_charge, of_operation
from chargeonce.commands.printing import Cell, json_of, status
from chargeonce_client import (
    Charge,
    ChargeStatus,
    DeclineReason,
    Operation,
    OperationKind,
    OperationStatus,
    ReviewReason,
    ViewState,
)

_STATUSES = [name.removeprefix("CHARGE_STATUS_") for name, number in ChargeStatus.items() if number]


def _money_of(charge: Charge, minor_units: int) -> str:
    """Write an amount in a charge's currency; nothing is empty."""
    return words.amount(minor_units, charge.amount.currency_code) if minor_units else ""


def status_of(charge: Charge) -> Cell:
    """Write a charge's status."""
    return status(words.word(ChargeStatus, charge.status), of_charge(charge.status))


def _fields(charge: Charge) -> Mapping[str, Cell]:
    return {
        "status": status_of(charge),
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
    asked.printer.fields(_fields(answer.charge), json_of(answer))
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
    asked.printer.table(
        ("POSITION", "RECORDED", "EVENT", "STATUS", "OPERATION", "KEY"),
        [
            (
                str(entry.position),
                words.time(entry.recorded_at),
                entry.event,
                status(words.word(ChargeStatus, entry.status), of_charge(entry.status)),
                words.word(OperationKind, entry.operation).lower(),
                entry.idempotency_key,
            )
            for entry in answer.entries
        ],
        [json_of(answer)],
    )
    return Exit.DONE


@click.command("list", epilog=HELP)
@click.option("--user", default="", show_default=False, help="Only this user's charges.")
@click.option("--status", "in_status", type=click.Choice(_STATUSES, case_sensitive=False), help="Only charges in it.")
@click.option("--from", "since", type=words.Time(), metavar="TIME", help="Only charges requested then or later.")
@click.option("--before", type=words.Time(), metavar="TIME", help="Only charges requested earlier.")
@click.option("--limit", type=click.IntRange(min=1), default=50, help="The largest number of charges.")
@asking("query")
async def list_charges(
    asked: Asking,
    user: str,
    in_status: str | None,
    since: datetime | None,
    before: datetime | None,
    limit: int,
) -> Exit:
    """List charges, newest first."""
    charges = []
    async for charge in asked.client.list(
        user_id=user,
        status=ChargeStatus.Value(f"CHARGE_STATUS_{in_status or 'UNSPECIFIED'}"),
        requested_from=since,
        requested_before=before,
        page_size=min(limit, 1000),
    ):
        charges.append(charge)
        if len(charges) == limit:
            break
    asked.printer.table(
        ("REQUESTED", "STATUS", "AMOUNT", "CAPTURED", "REFUNDED", "USER", "KEY", "CHARGE"),
        [
            (
                words.time(charge.requested_at),
                status_of(charge),
                words.money(charge.amount),
                _money_of(charge, charge.captured_minor_units),
                _money_of(charge, charge.refunded_minor_units),
                charge.user_id,
                charge.idempotency_key,
                charge.charge_id,
            )
            for charge in charges
        ],
        [json_of(charge) for charge in charges],
    )
    return Exit.DONE


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
