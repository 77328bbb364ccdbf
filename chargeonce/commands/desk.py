"""`desk ...`: what operators do about a charge, each step recorded with who did it and why."""

import signal
import sys
from collections.abc import Awaitable, Callable

import click

from chargeonce.commands import words
from chargeonce.commands.asking import Asking, Command, Named, asking, id_of, known, named
from chargeonce.commands.exits import HELP, Exit, of_charge
from chargeonce.commands.looking import proposal_fields
from chargeonce.commands.printing import Cell, json_of, part, rows_of, status
from chargeonce_client import (
    AnswerKind,
    BankStatus,
    ChargeStatus,
    DeskOutcome,
    GetServerStatusResponse,
    OperationKind,
    Resolution,
)
from contract.situations import differs_in, said_besides

_INTERRUPTED = "the step may be stored: chargeonce history NAME tells"
_NOTHING_SENT = "nothing was sent"
_ANSWERS = {words.option(words.word(AnswerKind, number)): number for number in AnswerKind.values() if number}

_at_the_desk = asking("command", later=("query",), interrupted=_INTERRUPTED, is_step=True)
_asked_only = asking("command", later=("query",))


def _reasoned(command: Command) -> Command:
    return click.option(
        "--reason", required=True, callback=words.filled, help="Why, for people: it is recorded with the step."
    )(command)


def _of_a_proposal(command: Command) -> Command:
    """Give a command the options that name a proposal, and say whether it is to be shown first."""
    command = click.option("--yes", is_flag=True, help="Do not ask whether the open proposal is meant.")(command)
    return click.option(
        "--proposal",
        type=click.IntRange(min=1),
        metavar="N",
        help="The proposal, as `chargeonce explain` shows it. Without it: the open one, which is shown first.",
    )(command)


# ---------------------------------------------------------------- a charge under way
@click.command(epilog=HELP)
@named
@_reasoned
@_at_the_desk
async def try_now(asked: Asking, name: Named, reason: str) -> Exit:
    """Have a charge's next step done now, instead of after the pause.

    NAME is its id or its key. One that is held back is not tried.
    """
    return _done(asked, await asked.client.desk.try_now(await id_of(asked, name), reason=reason))


@click.command(epilog=HELP)
@named
@_reasoned
@_at_the_desk
async def hold(asked: Asking, name: Named, reason: str) -> Exit:
    """Hold a charge back: no step is taken at the bank until it is released.

    NAME is its id or its key. The answer to a step that is on its way still counts. A customer whom the bank waits for is not
    stopped: void the charge for that.
    """
    return _done(asked, await asked.client.desk.hold_back(await id_of(asked, name), reason=reason))


@click.command(epilog=HELP)
@named
@_reasoned
@_at_the_desk
async def release(asked: Asking, name: Named, reason: str) -> Exit:
    """Let a charge go that is held back.

    NAME is its id or its key.
    """
    return _done(asked, await asked.client.desk.let_go(await id_of(asked, name), reason=reason))


@click.command(epilog=HELP)
@named
@_asked_only
async def ask_bank(asked: Asking, name: Named) -> Exit:
    """Ask the bank what it knows of a charge's newest operation that was for it. It changes nothing.

    NAME is the charge's id or its key. The answer names the operation.
    """
    answer = await asked.client.desk.ask_bank(await id_of(asked, name))
    asked.printer.fields(
        {
            "operation": words.word(OperationKind, answer.operation).lower(),
            "key": answer.idempotency_key,
            "bank_said": words.word(AnswerKind, answer.bank_said),
            "transaction_id": answer.transaction_id,
            "differs_in": differs_in(answer),
        },
        json_of(answer),
    )
    if advice := said_besides(answer):
        asked.printer.note(advice, {"advice": advice})
    return Exit.DONE


# ---------------------------------------------------------------- a charge in review
@click.command(epilog=HELP)
@named
@click.option("--executed", metavar="TRANSACTION", callback=words.filled, help="The bank executed it: its transaction.")
@click.option("--not-executed", is_flag=True, help="The bank did not execute it, and never will.")
@click.option(
    "--refunded",
    metavar="TRANSACTION",
    callback=words.filled,
    help="The bank executed it, and all of it has gone back since: its transaction.",
)
@click.option("--refund", metavar="TRANSACTION", callback=words.filled, help="With --refunded: that of the refund.")
@click.option(
    "--evidence",
    required=True,
    callback=words.filled,
    help="Where that is seen: a ticket, a line of a statement, a letter.",
)
@_reasoned
@_at_the_desk
async def propose(
    asked: Asking,
    name: Named,
    executed: str | None,
    not_executed: bool,
    refunded: str | None,
    refund: str | None,
    evidence: str,
    reason: str,
) -> Exit:
    """Propose how the operation in review ended: --executed, --not-executed or --refunded.

    NAME is the charge's id or its key. It then waits until a second person has approved it.
    """
    if [executed is not None, not_executed, refunded is not None].count(True) != 1:
        raise click.UsageError("it is one of --executed TRANSACTION, --not-executed and --refunded TRANSACTION")
    if (refunded is None) != (refund is None):
        raise click.UsageError("--refunded TRANSACTION and --refund TRANSACTION belong together")
    resolution = Resolution.RESOLUTION_EXECUTED if executed else Resolution.RESOLUTION_NOT_EXECUTED
    answer = await asked.client.desk.propose(
        await id_of(asked, name),
        Resolution.RESOLUTION_REFUNDED if refunded else resolution,
        transaction_id=executed or refunded or "",
        refund_transaction_id=refund or "",
        evidence=evidence,
        reason=reason,
    )
    asked.printer.fields(
        {"proposal": str(answer.proposal), **_fields(answer.outcome)},
        json_of(answer),
    )
    line = f"chargeonce desk approve {answer.outcome.charge_id} --proposal {answer.proposal} --reason ..."
    advice = f"a second person approves it: {line}"
    asked.printer.note(advice, {"advice": advice})
    return Exit.DONE


@click.command(epilog=HELP)
@named
@_of_a_proposal
@click.option(
    "--overrules",
    type=click.Choice(list(_ANSWERS)),
    metavar="ANSWER",
    help="Approve it although the bank says this, such as executed, or no-answer. It must say exactly this.",
)
@_reasoned
@_at_the_desk
async def approve(
    asked: Asking, name: Named, proposal: int | None, yes: bool, overrules: str | None, reason: str
) -> Exit:
    """Approve a proposal of somebody else: the charge then has that outcome for ever.

    NAME is the charge's id or its key. The bank is asked first, by a look-up that changes nothing.
    """

    async def approved(charge_id: str, chosen: int) -> Exit:
        overruled = _ANSWERS[overrules] if overrules else AnswerKind.ANSWER_KIND_UNSPECIFIED
        answer = await asked.client.desk.approve(charge_id, chosen, reason=reason, overrules=overruled)
        asked.printer.fields(
            {**_fields(answer.outcome), "bank_said": words.word(AnswerKind, answer.bank_said)}, json_of(answer)
        )
        return Exit.DONE

    return await _with_proposal(asked, name, proposal, "approve it for ever?", approved, is_asked=not yes)


@click.command(epilog=HELP)
@named
@_of_a_proposal
@_reasoned
@_at_the_desk
async def reject(asked: Asking, name: Named, proposal: int | None, yes: bool, reason: str) -> Exit:
    """Turn a proposal down, or take your own back. The charge stays in review.

    NAME is the charge's id or its key.
    """

    async def rejected(charge_id: str, chosen: int) -> Exit:
        return _done(asked, await asked.client.desk.reject(charge_id, chosen, reason=reason))

    return await _with_proposal(asked, name, proposal, "reject it?", rejected, is_asked=not yes)


async def _with_proposal(
    asked: Asking,
    name: Named,
    proposal: int | None,
    question: str,
    step: Callable[[str, int], Awaitable[Exit]],
    *,
    is_asked: bool,
) -> Exit:
    """Take a step about a proposal: the one that is named, or the open one, once it is shown and somebody says yes.

    Raises Unreachable and CallFailed.
    """
    if proposal is not None:
        return await step(await id_of(asked, name), proposal)
    if is_asked and not (asked.printer.is_for_people and sys.stdin.isatty()):
        raise click.UsageError(
            "nobody can be asked here which proposal is meant: name it by --proposal N, or add --yes"
        )
    await asked.reach("query")
    charge = (await known(asked.client, name, lambda charge: charge.HasField("proposal"))).charge
    if not charge.HasField("proposal"):
        asked.printer.error(["the charge has no open proposal, as the view shows it: nothing was sent"])
        return Exit.NOT_KNOWN
    asked.printer.aside(
        {"charge": charge.charge_id, "amount": words.money(charge.amount), **proposal_fields(charge.proposal)},
        {"proposal": json_of(charge.proposal)},
    )
    if is_asked and not _says_yes(question):
        asked.printer.note(_NOTHING_SENT, {"note": _NOTHING_SENT})
        return Exit.INTERRUPTED
    return await step(charge.charge_id, charge.proposal.proposal)


def _says_yes(question: str) -> bool:
    """Ask the person at the terminal. Ctrl-C is a no."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's own would let the prompt go on
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        return False
    finally:
        signal.signal(signal.SIGINT, former)


def _fields(outcome: DeskOutcome) -> dict[str, Cell]:
    return {
        "status": status(words.word(ChargeStatus, outcome.status), of_charge(outcome.status)),
        "held_back": "by an operator" if outcome.held_back else "",
        "charge_id": outcome.charge_id,
        "position": str(outcome.position),
        "journal_id": outcome.journal_id,
    }


def _done(asked: Asking, outcome: DeskOutcome) -> Exit:
    asked.printer.fields(_fields(outcome), json_of(outcome))
    return Exit.DONE


# ---------------------------------------------------------------- the server
@click.command(epilog=HELP)
@asking("command")
async def server_status(asked: Asking) -> Exit:
    """Tell how the command server does: its journal, its banks, and all that is limited."""
    answer = await asked.client.desk.server_status()
    asked.printer.page(
        [
            rows_of(
                {
                    "started_at": words.time(answer.started_at),
                    "takes_new_charges": status(
                        f"no: {answer.not_accepting}" if answer.not_accepting else "yes",
                        Exit.NO if answer.not_accepting else Exit.DONE,
                    ),
                    "unfinished": _unfinished(answer),
                    "held_back": f"{answer.charges_held_back} charges" if answer.charges_held_back else "",
                    "journal": f"{answer.journal_id} at {answer.journal_position}",
                }
            ),
            part(
                ("BANK", "STATE", "CALLS", "ANSWERS", "MEAN"),
                [_bank(bank) for bank in answer.banks],
            ),
            part(
                ("BANK", "STEP", "ANSWER", "COUNT"),
                [
                    (bank.name or "-", told.step, words.word(AnswerKind, told.answer), str(told.count))
                    for bank in answer.banks
                    for told in bank.answers
                ],
            ),
            part(
                ("LIMIT", "USED", "LARGEST"), [(each.name, str(each.used), str(each.limit)) for each in answer.limits]
            ),
        ],
        json_of(answer),
    )
    return Exit.DONE


def _bank(bank: BankStatus) -> tuple[Cell, ...]:
    answers = sum(told.count for told in bank.answers)
    mean = bank.answer_time.ToTimedelta().total_seconds() / answers if answers else 0.0
    return (
        bank.name or "-",
        status("spared", Exit.NO) if bank.is_spared else status("called", Exit.DONE),
        *(  # told to operators of no tenant only
            (f"{bank.calls_under_way} of {bank.calls_at_once} at once", str(answers), f"{1000 * mean:.0f} ms")
            if bank.calls_at_once
            else ("not told", "not told", "not told")
        ),
    )


def _unfinished(answer: GetServerStatusResponse) -> str:
    """Write how many charges are under way, and for how long."""
    if not answer.unfinished_charges:
        return "no charges"
    return f"{answer.unfinished_charges} charges, the oldest for {answer.oldest_unfinished.ToSeconds()} s"
