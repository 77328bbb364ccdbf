"""`bank statement`: what has moved at the mock bank."""

import click
import httpx

from chargeonce.commands import words
from chargeonce.commands.asking import Unreachable, as_json, run
from chargeonce.commands.exits import HELP, Exit
from chargeonce.commands.printing import Printer

_ANSWER_SECONDS = 15.0


@click.command(epilog=HELP)
@click.option(
    "--bank",
    metavar="URL",
    envvar="CHARGEONCE_BANK",
    default="http://127.0.0.1:8080",
    show_envvar=True,
    help="Where the mock bank is.",
)
@click.option("--reference", help="Only what moved for this charge's id, or an operation's.")
@as_json
def statement(bank: str, reference: str | None, *, as_json: bool) -> None:
    """Show the movements of money at the mock bank, in their order."""
    printer = Printer(as_json=as_json)
    run(_statement(bank, reference, printer), printer)


async def _statement(bank: str, reference: str | None, printer: Printer) -> Exit:
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_ANSWER_SECONDS) as client:
            answer = await client.get(f"{bank.rstrip('/')}/statement")
        movements = [
            movement
            for movement in answer.raise_for_status().json()["movements"]
            if reference in (None, movement["reference"])
        ]
    except (httpx.UnsupportedProtocol, httpx.HTTPStatusError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise click.UsageError(f"{bank} is no mock bank: {error}") from None
    except httpx.HTTPError as error:
        raise Unreachable(f"the mock bank does not answer at {bank}: {error}") from None
    printer.table(
        ("EXECUTED", "KIND", "AMOUNT", "TRANSACTION", "REFERENCE"),
        [
            (
                movement["executed_at"],
                movement["kind"],
                words.amount(movement["minor_units"], movement["currency_code"]),
                movement["transaction_id"],
                movement["reference"],
            )
            for movement in movements
        ],
        [{"movements": movements}],
    )
    return Exit.DONE
