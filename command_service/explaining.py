"""From a refused command to its client's error, with what the client needs for its next step: advice and metadata."""

import contextlib
from collections.abc import Iterator

from charging.v1.common_pb2 import ChargeStatus, OperationStatus
from chassis.refusals import Refusal
from command_service.charge import Charge, is_over_without_money
from command_service.errors import reason_of, refusing
from command_service.failures import (
    AnotherProposal,
    BankContradicts,
    BankSaysNothing,
    DoesNotFit,
    KeyReused,
    MoreThanIsLeft,
    NotAtTheDesk,
    PossibleDuplicate,
    RefundKeyTaken,
)
from command_service.operation import AtRest, AwaitingExecution, AwaitingToken, CallingOff
from command_service.statuses import is_undone, operation_status_told, status_of
from command_service.values import Kind
from contract.errors import REFUND_KEY_TAKEN, WITHOUT_THE_BANKS_WORD
from contract.errors import command_refusal as refusal

Explained = (
    KeyReused
    | PossibleDuplicate
    | MoreThanIsLeft
    | DoesNotFit
    | NotAtTheDesk
    | RefundKeyTaken
    | AnotherProposal
    | BankContradicts
    | BankSaysNothing
)


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Turn a command's failure into its client's error."""
    with refusing():
        try:
            yield
        except (
            KeyReused,
            PossibleDuplicate,
            MoreThanIsLeft,
            DoesNotFit,
            NotAtTheDesk,
            RefundKeyTaken,
            AnotherProposal,
            BankContradicts,
            BankSaysNothing,
        ) as failure:
            raise _explained(failure) from None


def _explained(failure: Explained) -> Refusal:
    reason = reason_of(failure)
    match failure:
        case KeyReused(charge=Charge() as charge, progress=None):
            # A client that obeys may charge its order again, so a new key is advised only where no money moves.
            advice = "USE_NEW_KEY" if is_over_without_money(charge) else "ASK_STATUS"
            return refusal(reason, advice=advice, metadata={"status": _status(charge)})
        case KeyReused(progress=AwaitingToken() | AwaitingExecution() | CallingOff() | AtRest() as progress):
            advice = "USE_NEW_KEY" if is_undone(progress) else "ASK_STATUS"
            name = OperationStatus.Name(operation_status_told(progress)).removeprefix("OPERATION_STATUS_")
            return refusal(reason, advice=advice, metadata={"status": name})
        case PossibleDuplicate():
            return refusal(reason, metadata={"charge_id": failure.charge_id})
        case MoreThanIsLeft():
            return refusal(reason, metadata={"left": failure.left})
        case DoesNotFit(charge=Charge() as charge, kind=kind):
            return refusal(reason, metadata={"status": _status(charge), **_instead(charge, kind)})
        case NotAtTheDesk(charge=Charge() as charge):
            held_back = {"held_back": "true"} if charge.desk.is_held_back else {}
            return refusal(reason, metadata={"status": _status(charge), **held_back})
        case RefundKeyTaken():
            return refusal(reason, text=REFUND_KEY_TAKEN)
        case AnotherProposal(proposal=proposal, actor=actor):
            return refusal(reason, metadata={"proposal": proposal, "actor": actor})
        case BankContradicts(bank_said=bank_said):
            told = {"differs_in": ", ".join(failure.differs_in), "transaction_id": failure.transaction_id}
            return refusal(reason, metadata={"bank_said": bank_said, **{name: it for name, it in told.items() if it}})
        case BankSaysNothing(bank_said=bank_said, retry_after_seconds=seconds):
            said = {"bank_said": bank_said}
            return refusal(reason, text=WITHOUT_THE_BANKS_WORD, retry_after_seconds=seconds, metadata=said)
        case _:
            return refusal(reason)


def _status(charge: Charge) -> str:
    return ChargeStatus.Name(status_of(charge)).removeprefix("CHARGE_STATUS_")


def _instead(charge: Charge, kind: object) -> dict[str, str]:
    """Name the operation that does what the client wanted, where another one does: to take money back."""
    match kind:
        case Kind.REFUND if charge.book.is_open:
            return {"instead": "VOID"}
        case Kind.VOID if charge.book.left(Kind.REFUND):
            return {"instead": "REFUND"}
        case _:  # A capture wants the opposite.
            return {}
