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
        movements = answer.raise_for_status().json()["movements"]
    except httpx.TransportError as error:
        raise Unreachable(f"{bank}, where the mock bank should be: {error}") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise click.UsageError(f"{bank} is no mock bank: {error}") from None
    printer.table(
        ("EXECUTED", "KIND", "AMOUNT", "TRANSACTION", "REFERENCE"),
        [
            (
                (
                    str(movement["executed_at"]),
                    str(movement["kind"]),
                    words.amount(movement["minor_units"], movement["currency_code"]),
                    str(movement["transaction_id"]),
                    str(movement["reference"]),
                ),
                movement,
            )
            for movement in movements
            if reference in (None, movement["reference"])
        ],
    )
    return Exit.DONE
