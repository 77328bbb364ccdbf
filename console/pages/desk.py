"""The desk: the forms of what may be done about a charge, and what is done with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from chargeonce_client import CallFailed, Charge
from charging.v1.common_pb2 import AnswerKind, OperationKind, Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    AskBankRequest,
    HoldBackRequest,
    LetGoRequest,
    ProposeResolutionRequest,
    RejectResolutionRequest,
    TryNowRequest,
)
from charging.v1.query_pb2 import ChargeStage, PossibleAction, ResolutionProposal
from console import words
from console.html import Child, tag
from console.pages import parts
from console.visit import Refuse, Visit
from contract.situations import differs_in, said_besides

# The service counts bytes; what is longer than this is too long in any writing.
_LONGEST_TEXT = 1_500
_NOTHING = AnswerKind.Name(AnswerKind.ANSWER_KIND_UNSPECIFIED)
_SERVICE = "charging.v1.OperatorService/"
_PROPOSES = "Proposes how the operation ended, with the evidence for it; a second person approves it."

_ANOTHER = "The open proposal is another one than you had seen. Read it anew, and give a reason for that one."


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the desk. `done` is said after it, `button` before it."""

    method: str
    request: Callable[[Visit, str], Any]
    button: str
    done: str


def _proposal(visit: Visit) -> int:
    try:
        return int(visit.given("proposal"))
    except ValueError:
        raise Refuse(400, "The form names no proposal.") from None


def _overruled(visit: Visit) -> AnswerKind.ValueType:
    try:
        return AnswerKind.Value(visit.given("overrules") or _NOTHING)
    except ValueError:
        raise Refuse(400, "The form names no answer of a bank.") from None


def _with_reason(request: Callable[..., Any]) -> Callable[[Visit, str], Any]:
    return lambda visit, charge_id: request(charge_id=charge_id, reason=visit.given("reason"))


def _proposed(visit: Visit, charge_id: str) -> ProposeResolutionRequest:
    try:
        resolution = Resolution.Value(visit.given("resolution"))
    except ValueError:
        raise Refuse(400, "The form names no outcome.") from None
    return ProposeResolutionRequest(
        charge_id=charge_id,
        reason=visit.given("reason"),
        resolution=resolution,
        transaction_id=visit.given("transaction"),
        refund_transaction_id=visit.given("refund"),
        evidence=visit.given("evidence"),
    )


STEPS: Mapping[str, Step] = {
    "try-now": Step(
        "TryNow",
        _with_reason(TryNowRequest),
        "Try now",
        "Its next step is due now. While its bank is spared, that is with the next probe.",
    ),
    "hold-back": Step("HoldBack", _with_reason(HoldBackRequest), "Hold back", "It is held back."),
    "let-go": Step("LetGo", _with_reason(LetGoRequest), "Let go", "It goes on."),
    "ask-bank": Step("AskBank", lambda _, charge_id: AskBankRequest(charge_id=charge_id), "Ask the bank", ""),
    "propose": Step(
        "ProposeResolution", _proposed, "Propose", "The resolution is proposed. A second person has to approve it."
    ),
    "approve": Step(
        "ApproveResolution",
        lambda visit, charge_id: ApproveResolutionRequest(
            charge_id=charge_id,
            reason=visit.given("reason"),
            proposal=_proposal(visit),
            overrules=_overruled(visit),
        ),
        "Approve",
        "The resolution is approved: this is the outcome.",
    ),
    "reject": Step(
        "RejectResolution",
        lambda visit, charge_id: RejectResolutionRequest(
            charge_id=charge_id, reason=visit.given("reason"), proposal=_proposal(visit)
        ),
        "Reject",
        "The proposal is turned down.",
    ),
}


async def take(visit: Visit, charge_id: str, name: str) -> Response:
    """Take a step, and show the charge with what that has done. Raises CallFailed."""
    step = STEPS[name]
    answer: Any = await visit.asker.desk(lambda desk: getattr(desk, step.method), step.request(visit, charge_id))
    if name == "ask-bank":
        said = words.word(AnswerKind, answer.bank_said) or "nothing"
        which = f", transaction {answer.transaction_id}" if answer.transaction_id else ""
        differs = f"; it differs from ours in {fields}" if (fields := differs_in(answer)) else ""
        asked = f"{words.word(OperationKind, answer.operation)} {answer.idempotency_key}"
        besides = f" {more}" if (more := said_besides(answer)) else ""
        visit.session.notices.append(f"The bank says of the {asked}: {said}{which}{differs}.{besides}")
        return visit.go(parts.place(charge_id, visit.given("journal")))
    visit.session.notices.append(step.done)
    outcome = answer.outcome
    place = parts.place(charge_id, outcome.journal_id)
    return visit.go(f"{place}{'&' if '?' in place else '?'}after={outcome.position}")


def usual(charge: Charge) -> Sequence[PossibleAction]:
    """Return what is usual at a charge's stage, if no query server explains it. The command servers decide all the same."""
    match charge.stage:
        case ChargeStage.CHARGE_STAGE_IN_REVIEW if charge.HasField("proposal"):
            names = ["approve", "reject"]
        case ChargeStage.CHARGE_STAGE_IN_REVIEW:
            names = ["propose"]
        case stage if stage in parts.WAITS_FOR:
            names = ["let-go"] if charge.held_back else ["try-now", "hold-back"]
        case _:
            names = []
    return [PossibleAction(method=_SERVICE + STEPS[name].method, role="operate") for name in names]


def forms(
    visit: Visit,
    charge_id: str,
    journal_id: str,
    actions: Sequence[PossibleAction],
    proposal: ResolutionProposal | None,
    failed: tuple[str, CallFailed] | None,
) -> Child:
    """Show what may be done, each with its form. `failed` is the step that was just refused: its form keeps its fields."""
    by_method: dict[str, PossibleAction] = {}
    for each in actions:
        offered = PossibleAction()
        offered.CopyFrom(each)
        if same := by_method.get(each.method):  # of a proposal there is one for each outcome, and one form
            offered.command = f"{same.command}\n{each.command}"
        by_method[each.method] = offered
    shown: list[Child] = []
    for name, step in STEPS.items():
        action = by_method.pop(_SERVICE + step.method, None)
        if action is None and name != "ask-bank":
            continue
        shown.append(_form(visit, charge_id, journal_id, name, action, proposal, failed))
    for action in by_method.values():
        shown.append(
            tag.div(
                tag.h3(action.method.rpartition("/")[2]),
                tag.p(action.text),
                tag.p("By: the role ", tag.b(action.role), class_="aside"),
                tag.pre(tag.code(action.command), tabindex=0, aria_label="The command") if action.command else None,
                class_="action",
            )
        )
    return shown


def _form(
    visit: Visit,
    charge_id: str,
    journal_id: str,
    name: str,
    action: PossibleAction | None,
    proposal: ResolutionProposal | None,
    failed: tuple[str, CallFailed] | None,
) -> Child:
    step = STEPS[name]
    failure = failed[1] if failed and failed[0] == name else None

    is_another = failure is not None and failure.reason == "PROPOSAL_CHANGED"

    def kept(field: str) -> str:
        return visit.given(field) if failure and not is_another else ""  # a reason is given for one proposal

    def area(field: str, text: str) -> Child:
        return [
            tag.label(text, for_=f"{name}-{field}"),
            tag.textarea(kept(field), id=f"{name}-{field}", name=field, required=True, maxlength=_LONGEST_TEXT, rows=2),
        ]

    def line(field: str, text: str) -> Child:
        return [
            tag.label(text, for_=f"{name}-{field}"),
            tag.input(id=f"{name}-{field}", name=field, value=kept(field), maxlength=128, autocomplete="off"),
        ]

    fields: list[Child] = [tag.input(type="hidden", name="journal", value=journal_id)]
    if name == "propose":
        outcomes = [
            ("", "Choose what the evidence shows"),
            ("RESOLUTION_EXECUTED", "The bank executed it"),
            ("RESOLUTION_NOT_EXECUTED", "The bank did not execute it, and never will"),
            ("RESOLUTION_REFUNDED", "The bank executed it, and the whole amount has gone back since"),
        ]
        fields += [
            tag.label("What happened", for_="propose-resolution"),
            tag.select(
                parts.options(kept("resolution"), outcomes), id="propose-resolution", name="resolution", required=True
            ),
            line("transaction", "The bank's id of the transaction, if it was executed"),
            line("refund", "The bank's id of the refund, if it was refunded"),
            area("evidence", "Evidence: where that is seen, such as a ticket or a line of a statement"),
        ]
    if name in ("approve", "reject"):
        number = proposal.proposal if proposal is not None else 0
        fields.append(tag.input(type="hidden", name="proposal", value=number))
    if name != "ask-bank":
        fields.append(area("reason", "Reason, for the history"))
    if name == "approve" and failure is not None and (said := failure.metadata.get("bank_said")):
        fields.append(
            tag.label(
                tag.input(type="checkbox", name="overrules", value=f"ANSWER_KIND_{said}"),
                f" Approve it although the bank said: {said.lower().replace('_', ' ')}. It must say so again. The history will"
                " tell.",
                class_="choice",
            )
        )
    text = (
        action.text
        if action
        else "Asks the bank what it knows of the newest operation that was for it. It changes nothing."
    )
    text = _PROPOSES if name == "propose" else text
    return tag.div(
        tag.h3(step.button),
        tag.p(text),
        tag.p("Not by: ", tag.b(action.not_by), class_="aside") if action and action.not_by else None,
        tag.p(words.trouble(failure), class_="error", role="alert") if failure else None,
        tag.p(_ANOTHER, class_="error") if is_another else None,
        visit.post(parts.place(charge_id, step=name), fields, tag.button(step.button, type="submit")),
        tag.details(
            tag.summary("As a command"), tag.pre(tag.code(action.command), tabindex=0, aria_label="The command")
        )
        if action and action.command
        else None,
        class_="action",
    )
