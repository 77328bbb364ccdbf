"""`charge`, `capture`, `void` and `refund`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, Command, Named, asking, id_of, line_with, named, new_key, spoken
from chargeonce.commands.exits import HELP, Exit, of_charge, of_operation
from chargeonce.commands.printing import Cell, Unwritten, json_of, status
from chargeonce_client import (
    Card,
    ChargeStatus,
    DeclineReason,
    Money,
    OperationOutcome,
    OperationStatus,
    OutcomeSource,
)

_GOES_ON = "what was sent goes on at the server; the same command with the same key tells how it ended"
_ADVICE = {
    Exit.NOT_KNOWN: "it goes on by itself: repeat the command with the same key, or chargeonce watch {name}",
    Exit.CUSTOMER: "send the customer to customer_url; chargeonce watch {name} tells how it ends",
    Exit.IN_REVIEW: "people look into it: take no new key for the same intent",
}


def _keyed(command: Command) -> Command:
    return click.option(
        "--key",
        callback=words.filled,
        help="The idempotency key: one for each intent. Without it one is made and shown.",
        show_default=False,
    )(command)


def _reasoned(command: Command) -> Command:
    return click.option("--reason", default="", show_default=False, help="For people.")(command)


def _metadata(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> Mapping[str, str]:
    entries = dict(entry.partition("=")[::2] for entry in given)
    if not all("=" in entry for entry in given) or len(entries) < len(given):
        raise click.BadParameter("each is NAME=VALUE, with a name of its own")
    return entries


def _money(_: click.Context, __: click.Parameter, given: tuple[str, str] | None) -> Money | None:
    return words.amount_of(*given) if given else None


@click.command(epilog=HELP)
@click.argument("amount", nargs=2, metavar="AMOUNT CURRENCY", callback=_money)
@click.option("--user", required=True, help="The user to whom the charge belongs.")
@click.option("--card", required=True, metavar="TOKEN", help="The bank's token of the card.")
@_keyed
@click.option("--hold", is_flag=True, help="Only hold the money; `chargeonce capture` moves it.")
@click.option("--description", default="", show_default=False, help="For people.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=VALUE", callback=_metadata, help="For your own use; may be repeated."
)
@click.option("--brand", default="", show_default=False, help="The card's scheme, for people.")
@click.option("--last4", default="", show_default=False, help="The card's last four digits, for people.")
@click.option("--fingerprint", default="", show_default=False, help="The vault's name of the card itself.")
@click.option(
    "--not-after", type=words.Time(), metavar="TIME", help="Call the charge off rather than execute it later."
)
@click.option("--off-session", is_flag=True, help="The customer is not there to take a step, such as 3-D Secure.")
@click.option("--return-url", default="", show_default=False, metavar="URL", help="Where the customer comes back to.")
@click.option("--allow-duplicate", is_flag=True, help="Charge even if it looks like a second charge of one intent.")
@asking("command", interrupted=_GOES_ON)
async def charge(
    asked: Asking,
    amount: Money,
    user: str,
    card: str,
    key: str | None,
    hold: bool,
    description: str,
    metadata: Mapping[str, str],
    brand: str,
    last4: str,
    fingerprint: str,
    not_after: datetime | None,
    off_session: bool,
    return_url: str,
    allow_duplicate: bool,
) -> Exit:
    """Charge a card once, however often the command is repeated with its key.

    AMOUNT is written with all decimals of its currency: 12.50 EUR, 1250 JPY, 1.250 KWD.
    """
    key = _announced(asked, f"{'hold' if hold else 'charge'} {_exactly(amount)} of {card} for the user {user}", key)
    answer = await asked.client.charge(
        key,
        user_id=user,
        card=Card(token=card, brand=brand, last4=last4, fingerprint=fingerprint),
        amount=amount,
        description=description,
        metadata=metadata,
        manual=hold,
        not_after=not_after,
        allow_duplicate=allow_duplicate,
        off_session=off_session,
        return_url=return_url,
    )
    ends = of_charge(answer.status)
    return _answered(
        asked,
        ends,
        key,
        {
            "status": status(words.word(ChargeStatus, answer.status), ends),
            "decline_reason": words.word(DeclineReason, answer.decline_reason),
            "customer_url": answer.action.url,
            "key": key,
            "charge_id": answer.charge_id,
            "transaction_id": answer.transaction_id,
            "outcome_source": words.word(OutcomeSource, answer.outcome_source),
            "requested_at": words.time(answer.requested_at),
            "decided_at": words.time(answer.decided_at),
            "expires_at": words.time(answer.expires_at),
        },
        {"idempotency_key": key, **json_of(answer)},
    )


@click.command(epilog=HELP)
@named
@click.argument("amount", nargs=2, metavar="[AMOUNT CURRENCY]", required=False, callback=_money)
@_keyed
@click.option("--final", is_flag=True, help="It is the last capture: let go of what is left.")
@asking("command", later=("query",), interrupted=_GOES_ON)
async def capture(asked: Asking, name: Named, amount: Money | None, key: str | None, final: bool) -> Exit:
    """Move money that a charge holds: AMOUNT CURRENCY, or all that is left.

    NAME is the charge's id or its key.
    """
    key = _announced(asked, f"capture {_all_or(amount)} of {spoken(name)}", key)
    return _told(asked, key, await asked.client.capture(key, await id_of(asked, name), amount=amount, final=final))


@click.command(epilog=HELP)
@named
@_keyed
@_reasoned
@asking("command", later=("query",), interrupted=_GOES_ON)
async def void(asked: Asking, name: Named, key: str | None, reason: str) -> Exit:
    """Let go of all that a charge still holds, or call a charge off that is under way.

    NAME is the charge's id or its key.
    """
    key = _announced(asked, f"void {spoken(name)}", key)
    return _told(asked, key, await asked.client.void(key, await id_of(asked, name), reason=reason))


@click.command(epilog=HELP)
@named
@click.argument("amount", nargs=2, metavar="[AMOUNT CURRENCY]", required=False, callback=_money)
@_keyed
@_reasoned
@asking("command", later=("query",), interrupted=_GOES_ON)
async def refund(asked: Asking, name: Named, amount: Money | None, key: str | None, reason: str) -> Exit:
    """Give money of a charge back: AMOUNT CURRENCY, or all that is left.

    NAME is the charge's id or its key.
    """
    key = _announced(asked, f"refund {_all_or(amount)} of {spoken(name)}", key)
    return _told(asked, key, await asked.client.refund(key, await id_of(asked, name), amount=amount, reason=reason))


def _announced(asked: Asking, what: str, key: str | None) -> str:
    """Say what is about to be sent, and under which key; without a key make one, and say how to repeat it safely."""
    used = new_key() if key is None else key
    asked.printer.common["idempotency_key"] = used
    lines, document = [f"{what}, key {used}"], {"sending": what}
    if key is None:
        lines.append(f"to repeat it safely: {line_with(used)}")
        document["repeat"] = line_with(used)
    asked.printer.note("\n".join(lines), document)
    return used


def _exactly(money: Money) -> str:
    return f"{words.money(money)} ({money.minor_units} minor units)"


def _all_or(money: Money | None) -> str:
    return _exactly(money) if money else "all that is left"


def _told(asked: Asking, key: str, outcome: OperationOutcome) -> Exit:
    """Print the outcome of an operation; return its exit status."""
    ends = of_operation(outcome.status)
    return _answered(
        asked,
        ends,
        outcome.charge_id,
        {
            "status": status(words.word(OperationStatus, outcome.status), ends),
            "decline_reason": words.word(DeclineReason, outcome.decline_reason),
            "amount": words.money(outcome.amount),
            "key": key,
            "charge_id": outcome.charge_id,
            "transaction_id": outcome.transaction_id,
            "outcome_source": words.word(OutcomeSource, outcome.outcome_source),
            "requested_at": words.time(outcome.requested_at),
            "decided_at": words.time(outcome.decided_at),
        },
        {"idempotency_key": key, **json_of(outcome)},
    )


def _answered(asked: Asking, ends: Exit, name: str, fields: Mapping[str, Cell], document: Mapping[str, Any]) -> Exit:
    """Print an outcome, and what can be done if nothing is decided.

    Returns the exit status, which tells the outcome even if it cannot be written.
    """
    try:
        asked.printer.fields(fields, document)
        if ends in _ADVICE:
            advice = _ADVICE[ends].format(name=name)
            asked.printer.note(advice, {"advice": advice})
    except Unwritten as error:
        asked.printer.error([f"the answer cannot be written: {error}"])
    return ends
