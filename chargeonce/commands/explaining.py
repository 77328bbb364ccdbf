"""`explain` and `stuck`: where a charge's money is, and which charges somebody should look at."""

from datetime import timedelta

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, Named, asking, known, named
from chargeonce.commands.exits import HELP, Exit
from chargeonce.commands.looking import events_of, fields_of, listed, status_of
from chargeonce.commands.printing import json_of, part, rows_of, status
from chargeonce_client import (
    AnswerKind,
    Attempts,
    Charge,
    ChargeStage,
    ExplainChargeResponse,
    Lag,
    Situation,
)

_DAY = timedelta(days=1)
# The feed of a working command server has a sign of life every five seconds.
_SILENT_MILLISECONDS = 20_000
_FINE = (Situation.SITUATION_DECIDED, Situation.SITUATION_UNDER_WAY)


@click.command(epilog=HELP)
@named
@asking("query")
async def explain(asked: Asking, name: Named) -> Exit:
    """Tell what happened to a charge, what the service does next, and what may be done by whom.

    NAME is its id or its key. Its events follow, oldest first.
    """
    shown = (await known(asked.client, name)).charge
    # By its id, and in the journal that it was found in: what follows is of one charge, as of one moment or later.
    answer = await asked.client.explain(charge_id=shown.charge_id, after=shown)
    history = await asked.client.history(charge_id=shown.charge_id, after=answer.charge)
    asked.printer.page(
        [
            rows_of(
                {
                    "situation": status(
                        words.word(Situation, answer.situation),
                        Exit.DONE if answer.situation in _FINE else Exit.IN_REVIEW,
                    ),
                    "what": answer.what,
                    "next": answer.next,
                    "advice": answer.advice,
                }
            ),
            rows_of({**fields_of(answer.charge), "attempts": _attempts(answer), "view": _behind(answer.lag)}),
            part(
                ("WHAT MAY BE DONE", "BY", "COMMAND"),
                [
                    (
                        action.text,
                        f"{action.role}, not {action.not_by}" if action.not_by else action.role,
                        action.command,
                    )
                    for action in answer.actions
                ],
            ),
            events_of(history.entries),
        ],
        {**json_of(answer), "entries": json_of(history)["entries"]},
    )
    return Exit.DONE


def _attempts(answer: ExplainChargeResponse) -> str:
    if not answer.HasField("attempts"):
        return f"not known: {answer.attempts_unknown_because}" if answer.attempts_unknown_because else ""
    tried: Attempts = answer.attempts
    last = words.word(AnswerKind, tried.last_answer)
    return ", ".join(
        filter(
            None,
            [
                f"{tried.bank_calls} calls to the bank since {words.time(tried.since)}",
                f"{tried.in_vain} in vain" if tried.in_vain else "",
                f"the last answer {last} at {words.time(tried.last_at)}" if last else "",
                "one is under way" if tried.is_under_way else "",
                f"the next one at {words.time(tried.next_at)}" if tried.HasField("next_at") else "",
                "the bank is spared" if tried.bank_is_spared else "",
                "" if tried.bank_is_configured else "no setting names its bank",
                "" if tried.is_driven_here else "another server drives it",
            ],
        )
    )


def _behind(lag: Lag) -> str:
    """Write how far the view is behind; empty if it is live."""
    if not lag.records and 0 <= lag.silence_milliseconds < _SILENT_MILLISECONDS:
        return ""
    silence = (
        "no sign of life of the command server since the query server's start"
        if lag.silence_milliseconds < 0
        else f"{lag.silence_milliseconds / 1000:.0f} s since the command server's last sign of life"
    )
    return f"{lag.records} records behind, {silence}"


@click.command(epilog=HELP)
@click.option(
    "--older",
    type=words.Duration(),
    metavar="SPAN",
    default="10m",
    help="How long a charge may be under way: 90s, 10m, 2h, 1d.",
)
@click.option(
    "--hold-ends-within", type=words.Duration(), metavar="SPAN", default="1d", help="Holds that lapse by then, too."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, help="The largest number of charges of each kind.")
@asking("query")
async def stuck(asked: Asking, older: timedelta, hold_ends_within: timedelta, limit: int) -> Exit:
    """List the charges that somebody should look at, those that wait longest first.

    They are under way for too long, held back by an operator, in review, abandoned in the last day, or hold money for a short
    time only. `chargeonce explain NAME` tells of each what is safe to do.
    """
    found = [
        await listed(
            asked,
            limit,
            stage=ChargeStage.CHARGE_STAGE_UNFINISHED,
            stage_since_before=words.since_now(-older),
        ),
        await listed(asked, limit, stage=ChargeStage.CHARGE_STAGE_HELD_BACK),
        await listed(asked, limit, stage=ChargeStage.CHARGE_STAGE_IN_REVIEW),
        await listed(asked, limit, stage=ChargeStage.CHARGE_STAGE_ABANDONED, requested_from=words.since_now(-_DAY)),
        await listed(
            asked,
            limit,
            stage=ChargeStage.CHARGE_STAGE_HOLDING,
            hold_expires_before=words.since_now(hold_ends_within),
        ),
    ]
    charges = {charge.charge_id: charge for kind in found for charge in kind}
    longest_first = sorted(charges.values(), key=lambda charge: charge.stage_since.ToNanoseconds())
    asked.printer.table(
        ("SINCE", "WHY", "STATUS", "AMOUNT", "USER", "KEY", "CHARGE"),
        [
            (
                words.time(charge.stage_since),
                _why(charge),
                status_of(charge),
                words.money(charge.amount),
                charge.user_id,
                charge.idempotency_key,
                charge.charge_id,
            )
            for charge in longest_first
        ],
        [json_of(charge) for charge in longest_first],
    )
    if any(len(kind) == limit for kind in found):
        there_is_more = f"there may be more: --limit {limit} is the largest number of each kind"
        asked.printer.note(there_is_more, {"note": there_is_more})
    return Exit.DONE


def _why(charge: Charge) -> str:
    if charge.held_back:
        return "HELD_BACK"
    if charge.HasField("proposal"):
        return "AWAITING_APPROVAL"
    if charge.held_minor_units and charge.stage == ChargeStage.CHARGE_STAGE_AT_REST:
        return f"HOLD_ENDING at {words.time(charge.hold_expires_at)}"
    if charge.stage == ChargeStage.CHARGE_STAGE_AT_REST:
        return "ABANDONED"
    return words.word(ChargeStage, charge.stage)
