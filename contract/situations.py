"""The situations of a charge that people ask about: what each means, what is safe to do, and what tells of it.

One table for all who speak of them: `ExplainCharge`, the gauges and alerts, docs/operating.md, the command line, the console.
A test holds every alert and every row of the documents to it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from charging.v1.common_pb2 import AnswerKind
from charging.v1.operator_pb2 import AskBankResponse
from charging.v1.query_pb2 import ChargeStage, Situation


class Row(NamedTuple):
    """One situation. `what` and `advice` are sentences for people.

    `alert` is the name of the alert that fires while charges are in it; empty if nothing is stuck.
    """

    what: str
    advice: str
    alert: str = ""


SITUATIONS: Mapping[Situation.ValueType, Row] = {
    Situation.SITUATION_DECIDED: Row(
        "The outcome is decided, and the service has nothing left to do.",
        "Nothing has to be done.",
    ),
    Situation.SITUATION_UNDER_WAY: Row(
        "It is under way, and not decided yet.",
        "Wait: it goes on by itself. Do not refund and do not charge again before it is decided.",
    ),
    Situation.SITUATION_BANK_SILENT: Row(
        "The bank does not answer the request for a token. No money has moved for it, unless the journal was restored.",
        "Look at the bank. The service asks again by itself, and gives up when its time is over, though never with a"
        " restored journal. Never charge the order, or ask for this refund or capture, under another key before this one is"
        " abandoned.",
        "ChargeonceBankSilent",
    ),
    Situation.SITUATION_EXECUTION_UNKNOWN: Row(
        "The bank was told to execute, or may have been, and its answer is missing: money may have moved.",
        "Look at the bank. The service asks again by itself with the same token, which cannot move money twice, and never gives"
        " up. Do not refund and do not charge again before it is decided.",
        "ChargeonceExecutionUnknown",
    ),
    Situation.SITUATION_BANK_REFUSES_US: Row(
        "The bank does not accept our credentials. If it gave a token before, money may have moved.",
        "Put the right key or certificate in place; it is read again without a restart. The service then goes on by itself."
        " Do not refund and do not charge again before it is decided.",
        "ChargeonceBankRefusesUs",
    ),
    Situation.SITUATION_BANK_SLOW: Row(
        "The bank says that it is still working on it.",
        "Ask the bank about its reference. The service goes on asking by itself. Do not refund and do not charge again before"
        " it is decided.",
        "ChargeonceBankSlow",
    ),
    Situation.SITUATION_CALLING_OFF: Row(
        "It is being called off, and the bank has not said yet that its transaction is closed.",
        "Look at the bank. The service goes on by itself; until the bank's answer the money may have moved. Do not charge again"
        " before it is decided.",
        "ChargeonceCallingOff",
    ),
    Situation.SITUATION_AWAITING_CUSTOMER: Row(
        "The bank waits for a step of the customer, which moves the money. None had moved when the bank last answered.",
        "Send the customer to the address, or void the charge: to hold it back does not stop the customer. It ends by itself"
        " when the bank gives up waiting.",
        "ChargeonceAwaitingCustomer",
    ),
    Situation.SITUATION_HELD_BACK: Row(
        "An operator holds it back, so no step is taken at the bank.",
        "Read the reason in its history. Let it go when the reason is over. A step before that may have moved the money, and a"
        " step of the customer still does: do not charge again before it is decided.",
        "ChargeonceHeldBack",
    ),
    Situation.SITUATION_IN_REVIEW: Row(
        "The bank contradicted itself or us, so nobody may guess the outcome: money may have moved. The service takes no"
        " further step.",
        "Ask the bank and look at its statement. Then propose a resolution with the evidence; a second person approves it. Do"
        " not refund and do not charge again before it is decided.",
        "ChargeonceInReview",
    ),
    Situation.SITUATION_AWAITING_APPROVAL: Row(
        "It is in review, so money may have moved, and a proposal to resolve it waits for a second person.",
        "A second person checks the evidence against the bank, and approves or rejects the proposal. Do not refund and do not"
        " charge again before it is decided.",
        "ChargeonceAwaitingApproval",
    ),
    Situation.SITUATION_ABANDONED: Row(
        "The bank could not be reached in time, so the charge, or its newest capture, void or refund, is given up: it has moved"
        " no money, and never will.",
        "Nothing has to be repaired. Ask for the same once more under a new key if it is still wanted: for a capture, void or"
        " refund of this same charge; or for the charge, unless the customer has paid under another key since.",
        "ChargeonceAbandoned",
    ),
    Situation.SITUATION_BANK_MISSING: Row(
        "It is at a bank that no setting names, so nobody can ask that bank.",
        "Put the same bank back into the banks' file, with the same account, and restart the server. The charge then goes on by"
        " itself. The money may have moved: do not charge again at another bank.",
        "ChargeonceBankMissing",
    ),
    Situation.SITUATION_HOLD_ENDING: Row(
        "The bank holds money for it, and the hold lapses soon or has lapsed.",
        "Capture it or void it before the hold lapses. After that the money cannot be captured: void it, to end it.",
        "ChargeonceHoldEnding",
    ),
    Situation.SITUATION_SERVER_AWAY: Row(
        "It is not decided, and no command server can be asked about it.",
        "Start the command server over the same journal. It goes on with every unfinished charge by itself. Do not charge again"
        " elsewhere meanwhile.",
        "ChargeonceServerAway",
    ),
    Situation.SITUATION_STOPPED: Row(
        "It is not decided, and the command server has stopped at it by a fault of its own.",
        "Read the server's log for the charge's id. If the journal is damaged, `chargeonce journal restore` a backup before you"
        " restart the server: it does not start over damage. A start takes every unfinished charge up again; if the cause is"
        " over, a try at the desk takes up this one. Do not charge again elsewhere meanwhile.",
        "ChargeonceStopped",
    ),
}

HOLD_LAPSED = Row(
    "The bank held money for it, and the hold has lapsed.",
    "Void it, to end it: the money cannot be captured any more.",
)
"""What is said of HOLD_ENDING once the time that the bank named has passed."""

NO_END_YET = (
    "While the charge is under way this is no end: the bank may not know it yet, and it may still be charged. Wait for its"
    " outcome."
)
"""What is said besides when the bank, asked by people, answers CALLED_OFF."""
ID_NOT_KEPT = (
    "The bank executed it as it is, and its money moved, but under an id that may not be kept: find it at the bank by our"
    " reference."
)
"""What is said instead of a difference when the bank, asked by people, has nothing but such an id against us."""


def differs_in(answer: AskBankResponse) -> str:
    """Return the fields in which the bank's transaction differs from ours, for people; empty if it does not, but for its id."""
    return "" if _has_unusable_id(answer) else ", ".join(answer.differing_fields)


def said_besides(answer: AskBankResponse) -> str:
    """Return what people have to know of the bank's answer besides; empty if it speaks for itself."""
    if answer.bank_said == AnswerKind.ANSWER_KIND_CALLED_OFF:
        return NO_END_YET
    return ID_NOT_KEPT if _has_unusable_id(answer) else ""


def _has_unusable_id(answer: AskBankResponse) -> bool:
    return [*answer.differing_fields] == ["transaction_id"]


_OF_ANSWER: Mapping[AnswerKind.ValueType, Situation.ValueType] = {
    AnswerKind.ANSWER_KIND_NOT_ACCEPTED: Situation.SITUATION_BANK_REFUSES_US,
    AnswerKind.ANSWER_KIND_IN_PROGRESS: Situation.SITUATION_BANK_SLOW,
}
_WITHOUT_ANSWER: Mapping[ChargeStage.ValueType, Situation.ValueType] = {
    ChargeStage.CHARGE_STAGE_AWAITING_TOKEN: Situation.SITUATION_BANK_SILENT,
    ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION: Situation.SITUATION_EXECUTION_UNKNOWN,
    ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER: Situation.SITUATION_AWAITING_CUSTOMER,
    ChargeStage.CHARGE_STAGE_CALLING_OFF: Situation.SITUATION_CALLING_OFF,
}
_STILL_THE_CUSTOMER = (AnswerKind.ANSWER_KIND_NEEDS_ACTION, AnswerKind.ANSWER_KIND_UNSPECIFIED)


def situation_under_way(
    stage: ChargeStage.ValueType, last_answer: AnswerKind.ValueType, *, is_held_back: bool, is_bank_configured: bool
) -> Situation.ValueType:
    """Return the situation of a charge under way at a stage, of which at least one attempt at its step has been in vain.

    `last_answer` is the bank's to that attempt; unspecified if nothing is known of attempts at a charge that is long at its
    stage. It may have come to rest meanwhile, as by another server of a cluster.
    """
    if stage not in _WITHOUT_ANSWER:
        is_in_review = stage == ChargeStage.CHARGE_STAGE_IN_REVIEW
        return Situation.SITUATION_IN_REVIEW if is_in_review else Situation.SITUATION_DECIDED
    if is_held_back:
        return Situation.SITUATION_HELD_BACK
    if not is_bank_configured:
        return Situation.SITUATION_BANK_MISSING
    if stage == ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER and last_answer not in _STILL_THE_CUSTOMER:
        stage = ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION  # Each look is an execute step, whose answer may be lost.
    if stage == ChargeStage.CHARGE_STAGE_CALLING_OFF and last_answer != AnswerKind.ANSWER_KIND_NOT_ACCEPTED:
        return Situation.SITUATION_CALLING_OFF
    return _OF_ANSWER.get(last_answer, _WITHOUT_ANSWER[stage])
