"""A charge explained for people: its situation, what happened, what comes next, and what may be done by whom.

Pure: from the charge and its history as the view shows them, what a command server said of its attempts, and the time. The
sentences are for somebody at three in the morning: counts, times and amounts, and whether money may have moved.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from charging.v1.common_pb2 import (
    AnswerKind,
    Attempts,
    ChargeStatus,
    DeclineReason,
    Money,
    OperationKind,
    OperationStatus,
    Resolution,
    ReviewReason,
)
from charging.v1.query_pb2 import (
    Charge,
    ChargeStage,
    ExplainChargeResponse,
    HistoryEntry,
    Operation,
    PossibleAction,
    Situation,
)
from contract.currencies import EXPONENTS
from contract.situations import HOLD_LAPSED, SITUATIONS, Row
from query_service.situations import NOT_ASKED, UNDER_WAY, Asked, situation_of
from query_service.words import AUTHORIZE, CAPTURE, CHARGE, MANUAL, REFUND, VOID


def explain(
    charge: Charge, entries: Sequence[HistoryEntry], asked: Asked = NOT_ASKED, *, now: int
) -> ExplainChargeResponse:
    """Explain a charge. `now` is in microseconds since 1970."""
    situation = situation_of(charge, asked, now=now)
    told = _Telling(charge, entries, asked, situation, now)
    explained = ExplainChargeResponse(
        charge=charge,
        situation=situation,
        what=" ".join(told.what()),
        next=told.next(),
        advice=told.row.advice,
        actions=told.actions(),
        attempts_unknown_because=asked.unknown_because,
    )
    if asked.attempts is not None:
        explained.attempts.CopyFrom(asked.attempts)
        explained.attempts_unknown_because = told.forgotten
    return explained


# ---------------------------------------------------------------- words
_NOUNS: Mapping[OperationKind.ValueType, str] = {
    CHARGE: "charge",
    AUTHORIZE: "hold",
    CAPTURE: "capture",
    VOID: "void",
    REFUND: "refund",
}
_MAY_HAVE: Mapping[OperationKind.ValueType, str] = {
    CHARGE: "money may have moved",
    AUTHORIZE: "the money may be held",
    CAPTURE: "money may have moved",
    VOID: "the hold may be gone",
    REFUND: "money may have gone back",
}
_IN_VAIN: Mapping[AnswerKind.ValueType, str] = {
    AnswerKind.ANSWER_KIND_NO_ANSWER: "has not answered",
    AnswerKind.ANSWER_KIND_NOT_ACCEPTED: "has not accepted our credentials",
    AnswerKind.ANSWER_KIND_IN_PROGRESS: "has said that it is still working on it",
    AnswerKind.ANSWER_KIND_NEEDS_ACTION: "has said that it still waits for the customer",
}
_ENDS: Mapping[OperationStatus.ValueType, str] = {
    OperationStatus.OPERATION_STATUS_EXECUTED: "was executed",
    OperationStatus.OPERATION_STATUS_DECLINED: "was declined",
    OperationStatus.OPERATION_STATUS_ABANDONED: "was given up, since the bank could not be reached in time",
    OperationStatus.OPERATION_STATUS_CALLED_OFF: "was called off before the bank executed it",
}
_FOUND: Mapping[Resolution.ValueType, str] = {
    Resolution.RESOLUTION_EXECUTED: "the bank executed it",
    Resolution.RESOLUTION_NOT_EXECUTED: "the bank did not execute it",
    Resolution.RESOLUTION_REFUNDED: "the bank executed it and the money has gone back",
}
_UNSAID: Mapping[AnswerKind.ValueType, str] = {
    AnswerKind.ANSWER_KIND_UNSPECIFIED: "was not asked",
    AnswerKind.ANSWER_KIND_NO_ANSWER: "did not answer",
    AnswerKind.ANSWER_KIND_NOT_ACCEPTED: "did not accept our credentials",
}
_NOTHING = "Nothing."
_NEXT: Mapping[Situation.ValueType, str] = {
    Situation.SITUATION_DECIDED: _NOTHING,
    Situation.SITUATION_ABANDONED: _NOTHING,
    Situation.SITUATION_HELD_BACK: "Nothing, until an operator lets it go.",
    Situation.SITUATION_IN_REVIEW: "Nothing, until two people have resolved it.",
    Situation.SITUATION_AWAITING_APPROVAL: "Nothing, until a second person approves the proposal, or somebody rejects it.",
    Situation.SITUATION_BANK_MISSING: "Nothing, until a setting names its bank again.",
    Situation.SITUATION_SERVER_AWAY: "Nothing, until a command server is up; then it goes on by itself.",
    Situation.SITUATION_STOPPED: "Nothing, until a call about it, or a start of its command server, takes it up again.",
}


def money(amount: Money) -> str:
    """Write an amount in major units, such as 12.50 EUR."""
    exponent = EXPONENTS.get(amount.currency_code)
    if exponent is None:
        return f"{amount.minor_units} minor units of {amount.currency_code}"
    digits = f"{amount.minor_units:0{exponent + 1}d}"
    return (
        f"{digits[:-exponent]}.{digits[-exponent:]} {amount.currency_code}"
        if exponent
        else f"{digits} {amount.currency_code}"
    )


def _reason(value: int, names: object, prefix: str) -> str:
    name: str = names.Name(value)  # type: ignore[attr-defined]  # an enum of the contract
    return name.removeprefix(prefix).lower().replace("_", " ")


# ---------------------------------------------------------------- sentences and actions
class _Telling:
    """Tells of one charge."""

    def __init__(
        self,
        charge: Charge,
        entries: Sequence[HistoryEntry],
        asked: Asked,
        situation: Situation.ValueType,
        now: int,
    ) -> None:
        self._charge = charge
        self._entries = entries
        self._asked = asked
        self._situation = situation
        self._now = now
        self._today = self._text(now)[:10]
        self._is_under_way = charge.stage in UNDER_WAY

    @property
    def row(self) -> Row:
        """What is said of the situation in general."""
        is_ending = self._situation == Situation.SITUATION_HOLD_ENDING
        return HOLD_LAPSED if is_ending and self._has_lapsed else SITUATIONS[self._situation]

    @property
    def _has_lapsed(self) -> bool:
        """Whether the bank has said that an open hold lapses, and the time has passed."""
        return 0 < self._charge.hold_expires_at.ToMicroseconds() <= self._now

    # ------------------------------------------------------------ what happened
    def what(self) -> Iterator[str]:
        """Tell what happened and where it stands, in sentences."""
        yield self.row.what
        operation = self._operation
        noun = f"{_NOUNS[operation.kind]} of {money(operation.amount)}"
        if self._is_under_way:
            yield f"The {noun} was requested at {self._time(operation.requested_at)}."
            yield from self._under_way(operation)
        elif self._charge.stage == ChargeStage.CHARGE_STAGE_IN_REVIEW:
            why = _reason(operation.review_reason, ReviewReason, "REVIEW_REASON_")
            yield f"The {noun} is in review since {self._time(self._charge.stage_since)}: {why}."
            if self._situation == Situation.SITUATION_AWAITING_APPROVAL:
                yield from self._proposed()
        else:
            yield f"The {noun} {_ENDS[operation.status]} at {self._time(self._charge.stage_since)}{self._because(operation)}."
            yield from self._approved(operation)
            yield from self._book()

    @property
    def _operation(self) -> Operation:
        """The operation under way or in review, or the last one at rest. A void that calls it off waits for it."""
        waiting = (
            OperationStatus.OPERATION_STATUS_PENDING,
            OperationStatus.OPERATION_STATUS_REQUIRES_ACTION,
            OperationStatus.OPERATION_STATUS_IN_REVIEW,
        )
        found = (operation for operation in self._charge.operations if operation.status in waiting)
        return next(found, self._charge.operations[-1])

    def _under_way(self, operation: Operation) -> Iterator[str]:
        may_have, attempts = _MAY_HAVE[operation.kind], self._asked.attempts
        match self._charge.stage:
            case ChargeStage.CHARGE_STAGE_AWAITING_TOKEN:
                if attempts is None:  # so the view may lag, and the token be there
                    yield f"The view shows no token of the bank's for it. If there is a newer step, {may_have}."
                elif attempts.journal_is_restored:
                    yield f"The journal was restored, and may have forgotten that the bank executed it: {may_have}."
                else:
                    noun = _NOUNS[operation.kind]
                    yield f"The bank has not given a token for it, so this {noun} has moved no money."
            case ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION:
                told = (
                    "has been told" if attempts is not None and attempts.HasField("last_at") else "may have been told"
                )
                amount, since = money(operation.amount), self._since("TokenIssued")
                yield f"The bank gave a token at {since}, and {told} to execute {amount} since: {may_have}."
            case ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER:
                since = self._since("ActionRequired")
                yield f"The bank has waited for the customer since {since}. After the customer's step, {may_have}."
            case _:
                begun = self._since("VoidRequested", "NotAfterPassed", "ActionRequired")
                yield f"It has been called off since {begun}; until the bank says that it is closed, {may_have}."
        if attempts is not None:
            yield from self._tried(attempts)
        elif self._asked.unknown_because:
            yield self._asked.unknown_because
        if operation.kind not in (CHARGE, AUTHORIZE):
            yield from self._book("Before it")
        if self._charge.held_back:
            held = self._newest("HeldBack")
            if held is not None:
                yield f"{held.actor} has held it back since {self._time(held.recorded_at)}: {held.reason}"
            if self._charge.stage == ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER:
                yield "The customer's address works all the same. To stop the customer, let the charge go and void it."

    def _tried(self, attempts: Attempts) -> Iterator[str]:
        count = attempts.in_vain
        if not self._asked.is_bank_configured or not attempts.HasField("last_at"):
            return  # nobody calls a bank that no setting names, so no attempt was answered by it
        last = self._time(attempts.last_at)
        if count and attempts.last_answer not in _IN_VAIN:
            yield f"The bank's answer of {last} could not be stored yet."
        elif count:
            times = "once" if count == 1 else f"{count} times in a row"
            yield f"The bank {_IN_VAIN[attempts.last_answer]} {times}, last at {last}."
        if self.forgotten:
            yield self.forgotten

    @property
    def forgotten(self) -> str:
        """What is not known of attempts before the server took the charge up; empty if it has known them all."""
        attempts = self._asked.attempts
        if attempts is None or attempts.since.ToMicroseconds() <= self._operation.requested_at.ToMicroseconds():
            return ""
        since = self._time(attempts.since)
        return f"Attempts before {since} are not known: the command server took the charge up then, as after a restart."

    def _proposed(self) -> Iterator[str]:
        proposal = self._charge.proposal
        yield (
            f"{proposal.actor} proposed at {self._time(proposal.proposed_at)} that {_FOUND[proposal.resolution]} "
            f"(proposal {proposal.proposal})."
        )

    def _approved(self, shown: Operation) -> Iterator[str]:
        """Tell of the last approval, of an operation that is named if another one is shown.

        A charge at rest has one if it was in review, and that of its newest proposal.
        """
        approved, proposed = self._newest("ResolutionApproved"), self._newest("ResolutionProposed")
        if approved is None or proposed is None:
            return
        although = ""
        if approved.contradicts_bank:
            said = _reason(approved.bank_said, AnswerKind, "ANSWER_KIND_")
            although = f", although the bank {_UNSAID.get(approved.bank_said, f'said: {said}')}"
        name = approved.idempotency_key
        is_shown = name == shown.idempotency_key
        found = next((it for it in self._charge.operations if it.idempotency_key == name and not is_shown), None)
        other = f" of the {_NOUNS[found.kind]} of {money(found.amount)}" if found else ""
        yield (
            f"{approved.actor} approved at {self._time(approved.recorded_at)} what {proposed.actor} had proposed{other}, "
            f"that {_FOUND[proposed.proposal.resolution]}{although}."
        )

    def _because(self, operation: Operation) -> str:
        if operation.decline_reason:
            return f", {_reason(operation.decline_reason, DeclineReason, 'DECLINE_REASON_')}"
        return f", the bank's transaction {operation.transaction_id}" if operation.transaction_id else ""

    def _book(self, when: str = "In all") -> Iterator[str]:
        charge = self._charge
        sums = {
            "moved": charge.captured_minor_units,
            "went back": charge.refunded_minor_units,
            "is held": charge.held_minor_units,
        }
        told = [f"{self._money(minor_units)} {what}" for what, minor_units in sums.items() if minor_units]
        yield f"{when} {', '.join(told)}." if told else "No money has moved, and none is held."
        if charge.HasField("hold_expires_at"):
            yield f"The bank {self._lapses}."

    @property
    def _lapses(self) -> str:
        at = self._time(self._charge.hold_expires_at)
        return f"has let the hold lapse at {at}" if self._has_lapsed else f"lets the hold lapse at {at}"

    # ------------------------------------------------------------ what comes next
    def next(self) -> str:
        """Tell what the service does next by itself."""
        if (fixed := _NEXT.get(self._situation)) is not None:
            return fixed
        if self._situation == Situation.SITUATION_HOLD_ENDING:
            return f"Nothing: the bank {self._lapses}."
        return " ".join(self._next_attempt())

    def _next_attempt(self) -> Iterator[str]:
        attempts = self._asked.attempts
        asks = "It asks the bank whether the customer has taken the step"
        if self._charge.stage != ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER:
            asks = "It asks the bank again"
        if attempts is None:
            yield f"{asks}, at a time that is not known here."
        elif attempts.bank_is_spared:
            yield f"The bank is called by probes only, since it does not answer or accept us. {asks} once a probe is answered."
        elif attempts.HasField("next_at"):
            yield f"{asks} at {self._time(attempts.next_at)}."
        elif attempts.is_under_way:
            yield "An attempt is under way now."
        else:
            yield f"{asks} at once."
        if attempts is not None and attempts.journal_is_restored:
            yield "It never gives up, since the journal was restored."
        elif self._charge.stage == ChargeStage.CHARGE_STAGE_AWAITING_TOKEN:
            yield "It gives up when the bank has not answered for as long as COMMAND_ABANDON_AFTER_SECONDS says."
        if self._charge.HasField("action") and self._charge.action.HasField("expires_at"):
            yield f"The bank gives up waiting for the customer at {self._time(self._charge.action.expires_at)}."

    # ------------------------------------------------------------ what may be done
    def actions(self) -> Iterator[PossibleAction]:
        """Name what may be done now: nothing while no command server can be asked."""
        situation, charge = self._situation, self._charge
        if situation == Situation.SITUATION_SERVER_AWAY:
            return
        if situation == Situation.SITUATION_STOPPED:
            text = "Has its server take it up again, if the cause is over."
            yield self._desk("LetGo", text, "release") if charge.held_back else self._desk("TryNow", text, "try")
        elif self._is_under_way:
            yield from self._while_under_way()
        elif situation == Situation.SITUATION_IN_REVIEW:
            yield self._desk("AskBank", "Asks the bank what it knows; changes nothing.", "ask-bank", has_reason=False)
            yield from self._proposals()
        elif situation == Situation.SITUATION_AWAITING_APPROVAL:
            proposal, proposer = charge.proposal.proposal, charge.proposal.actor
            yield self._desk("AskBank", "Asks the bank what it knows; changes nothing.", "ask-bank", has_reason=False)
            text = f"Approves that {_FOUND[charge.proposal.resolution]}: that is its outcome for ever."
            option = f"--proposal {proposal}"
            yield self._desk("ApproveResolution", text, "approve", option, not_by=proposer)
            yield self._desk("RejectResolution", "Rejects the proposal; it stays in review.", "reject", option)
        else:
            yield from self._at_rest()

    def _while_under_way(self) -> Iterator[PossibleAction]:
        charge = self._charge
        if charge.held_back:
            yield self._desk("LetGo", "Lets it go on.", "release")
        else:
            if self._asked.is_bank_configured:
                is_spared = self._asked.attempts is not None and self._asked.attempts.bank_is_spared
                when = "with the next probe of the bank, which is spared" if is_spared else "now"
                yield self._desk("TryNow", f"Has the next step done {when}.", "try")
            text = "Holds it back: no step is taken until it is let go."
            if charge.stage == ChargeStage.CHARGE_STAGE_AWAITING_CUSTOMER:
                text += " The customer's step moves the money all the same."
            yield self._desk("HoldBack", text, "hold")
        if len(charge.operations) == 1:
            when = ", once it is let go" if charge.held_back else ""
            text = f"Calls it off{when}: the bank closes its transaction, unless it has executed it already."
            yield self._command("Void", "charge", text, "void")

    def _proposals(self) -> Iterator[PossibleAction]:
        ways = {
            "that the bank executed it": "--executed TRANSACTION",
            "that the bank did not execute it": "--not-executed",
        }
        if self._operation.kind in (CHARGE, CAPTURE):
            ways["that the bank executed it and all of it has gone back"] = (
                "--refunded TRANSACTION --refund TRANSACTION"
            )
        for found, option in ways.items():
            text = f"Proposes {found}; a second person approves it."
            yield self._desk("ProposeResolution", text, "propose", f"{option} --evidence ...")

    def _at_rest(self) -> Iterator[PossibleAction]:
        charge = self._charge
        if charge.status == ChargeStatus.CHARGE_STATUS_ABANDONED:
            hold = " --hold" * (charge.capture == MANUAL)
            user, card = shlex.quote(charge.user_id), shlex.quote(charge.card.token)
            command = f"chargeonce charge --user {user} --card {card}{hold} {money(charge.amount)}"
            text = "Charges the order under a new key, if the customer still wants to pay."
            yield PossibleAction(method="charging.v1.CommandService/Charge", role="charge", text=text, command=command)
        if charge.held_minor_units:
            held = self._money(charge.held_minor_units)
            if not self._has_lapsed:
                yield self._following(CAPTURE, "Capture", "charge", f"Moves the {held} that is held.")
            yield self._following(VOID, "Void", "charge", f"Lets the {held} that is held go.")
        if left := charge.captured_minor_units - charge.refunded_minor_units:
            yield self._following(REFUND, "Refund", "refund", f"Gives back up to {self._money(left)}.")

    def _following(self, kind: OperationKind.ValueType, method: str, role: str, text: str) -> PossibleAction:
        """An operation that may follow: if one of this kind was given up, that once more, since no amount would mean all."""
        newest, word = self._charge.operations[-1], _NOUNS[kind]
        if newest.kind != kind or newest.status != OperationStatus.OPERATION_STATUS_ABANDONED:
            return self._command(method, role, text, word)
        text = f"Asks once more, under a new key, for the {word} of {money(newest.amount)} that was given up."
        options = ("" if kind == VOID else f" {money(newest.amount)}") + " --final" * newest.final
        return self._command(method, role, text, word, options)

    def _desk(
        self, method: str, text: str, word: str, options: str = "", *, not_by: str = "", has_reason: bool = True
    ) -> PossibleAction:
        words = ("chargeonce desk", word, self._name, options, "--reason ..." * has_reason)
        return PossibleAction(
            method=f"charging.v1.OperatorService/{method}",
            role="operate",
            not_by=not_by,
            text=text,
            command=" ".join(filter(None, words)),
        )

    def _command(self, method: str, role: str, text: str, word: str, options: str = "") -> PossibleAction:
        method = f"charging.v1.CommandService/{method}"
        return PossibleAction(method=method, role=role, text=text, command=f"chargeonce {word} {self._name}{options}")

    @property
    def _name(self) -> str:
        """The charge's name in a command: its key, unless that would be taken for an option."""
        key = self._charge.idempotency_key
        return self._charge.charge_id if key.startswith("-") else shlex.quote(key)

    # ------------------------------------------------------------ times and amounts
    def _money(self, minor_units: int) -> str:
        return money(Money(minor_units=minor_units, currency_code=self._charge.amount.currency_code))

    def _newest(self, *events: str) -> HistoryEntry | None:
        return next((entry for entry in reversed(self._entries) if entry.event in events), None)

    def _since(self, *events: str) -> str:
        entry = self._newest(*events)
        return self._time(entry.recorded_at if entry is not None else self._charge.updated_at)

    def _time(self, time: Timestamp) -> str:
        text = self._text(time.ToMicroseconds())
        return text[11:] if text.startswith(self._today) else text

    def _text(self, microseconds: int) -> str:
        """Write a time as 2026-11-30 10:14:03 UTC."""
        time = Timestamp()
        time.FromMicroseconds(microseconds)
        written = time.ToJsonString()
        return f"{written[:10]} {written[11:19]} UTC"
