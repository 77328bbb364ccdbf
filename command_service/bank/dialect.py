"""A bank of two steps in its own API: the five questions that a `Dialect` puts to it, and the replies that the dialect reads.

What a reply means for a charge is decided in `command_service.bank.two_step`, for all banks.
"""

import re
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Protocol

from command_service.bank.transport import Exchange
from command_service.card_numbers import card_number_in
from command_service.values import (
    CallOff,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    InProgress,
    Kind,
    NoAnswer,
    Operation,
    RequestToken,
    value,
)

# The form of a bank's ids that are stored. "." and ".." would turn into another path.
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.:-]{1,128}")


def is_storable(bank_id: str) -> bool:
    """Whether an id of the bank's may be stored and put into a path: it has the form of an id and holds no card number."""
    return _ID.fullmatch(bank_id) is not None and not card_number_in(bank_id)


class Stage(Enum):
    """How far a transaction has come, says the bank. All but the first two are for ever."""

    CREATED = "created"
    AWAITS_CUSTOMER = "awaits_customer"
    EXECUTED = "executed"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


# The fields that are compared, as evidence names them.
_FIELDS = ("token", "reference", "kind", "on", "card", "amount", "currency", "final")


@value
class Transaction:
    """What the bank says of a transaction: well formed, and not believed before it is compared with ours."""

    stage: Stage
    token: str
    reference: str
    card: str
    amount_minor: int
    currency: str
    transaction_id: str = ""
    """Empty unless executed; empty too if the bank executed it under an id that is not storable."""
    reason: DeclineReason | None = None
    """None unless declined."""
    exchange: Exchange | None = None
    """What brought it. None: the dialect knew it without asking."""
    kind: Kind = Kind.CHARGE
    on: str = ""
    """The id of the transaction that it follows; empty for one that opens a charge."""
    is_final: bool = False
    hold_expires_at: int = 0
    """In microseconds since 1970; 0 unless it is an executed authorize and the bank tells it."""
    url: str = ""
    """Where to send the customer, as the bank says it; empty unless it awaits the customer."""
    action_expires_at: int = 0
    """In microseconds since 1970; 0 unless it awaits the customer and the bank tells until when."""

    def differences(self, effect: Effect) -> tuple[str, ...]:
        """The names of the fields that are not ours. The token is compared if the effect has one."""
        wanted = effect.operation
        token = None if isinstance(effect, RequestToken) else effect.token
        theirs = (
            self.token,
            self.reference,
            self.kind,
            self.on,
            self.card,
            self.amount_minor,
            self.currency,
            self.is_final,
        )
        ours = (
            self.token if token is None else token,
            wanted.reference,
            wanted.kind,
            wanted.on,
            wanted.request.card.token,
            wanted.amount.minor_units,
            wanted.amount.currency_code,
            wanted.is_final,
        )
        if theirs == ours:  # As nearly always, and several times in each step.
            return ()
        return tuple(name for name, said, our in zip(_FIELDS, theirs, ours, strict=True) if said != our)

    @property
    def has_unusable_id(self) -> bool:
        """The money moved, and the name it moved under may not be stored."""
        return self.stage is Stage.EXECUTED and not self.transaction_id

    def evidence(self, *fields: str) -> Evidence:
        """What may be kept of it: of an unusable id nothing, not even a hash, from which a card number could be guessed."""
        if self.exchange is None:
            return Evidence(fields)
        return Evidence(fields, self.exchange.status) if self.has_unusable_id else self.exchange.evidence(*fields)


def unexecuted(operation: Operation, exchange: Exchange | None = None) -> Transaction:
    """The transaction of an operation whose token is its own reference, and which the bank has not executed."""
    return Transaction(
        Stage.CREATED,
        operation.reference,
        operation.reference,
        operation.request.card.token,
        operation.amount.minor_units,
        operation.amount.currency_code,
        exchange=exchange,
        kind=operation.kind,
        on=operation.on,
        is_final=operation.is_final,
    )


@value
class Refusal:
    """A definite no, in the bank's own words; to a look-up, that there is no such transaction."""

    exchange: Exchange | None = None

    def evidence(self) -> Evidence:
        """What may be kept of it."""
        return Evidence() if self.exchange is None else self.exchange.evidence()


Reply = Transaction | Refusal | InProgress | NoAnswer
Question = Callable[..., Awaitable[Reply]]
"""One of a dialect's questions, ready to be put: it takes `fresh` and nothing else."""


class Dialect(Protocol):
    """The five questions in one bank's own API.

    1. A question is put once. A dialect repeats none, draws no conclusion from a reply, and compares nothing with ours.
    2. A question raises nothing, whatever comes back or does not; only cancelling passes. The deadline is the caller's.
    3. `request_token` is idempotent by the operation's reference, `execute` and `cancel` by the token. A bank that promises
       less gets its transaction looked up within the question. The look-ups change nothing.
    4. A reply is read whole and strictly, or it is `NoAnswer`: a proxy's 404 is no refusal by the bank, JSON or not.
    5. A `Refusal` is definite: the bank has not done what it was asked. To a look-up it says that there is no such
       transaction; a look-up refused for any other reason is `NoAnswer`.
    6. `DECLINED`, `EXPIRED` and `CANCELLED` are for ever. If the bank would still execute the transaction, the dialect calls
       it off first, and until it knows the outcome of that, it says `InProgress` or `NoAnswer`. So it does if `cancel`
       leaves the transaction open.
    7. A `Transaction` has a token that `is_storable`, and a transaction id that is, or none.
    8. With `fresh` the question goes over a connection that has never been used, so that the reply is to this question.
    9. A reply to an HTTP request passes through `heard` before anything else is awaited.
    """

    async def request_token(self, effect: RequestToken, *, fresh: bool) -> Reply:
        """Ask for the transaction of our reference: the known one as it is now, or a new one if there is none alive."""
        ...

    async def execute(self, effect: Execute, *, fresh: bool) -> Reply:
        """Tell the bank to execute the token's transaction, and say how it ended."""
        ...

    async def cancel(self, effect: CallOff, token: str, *, fresh: bool) -> Reply:
        """Tell the bank to close the token's transaction for ever, unless it is closed, and say how it ended."""
        ...

    async def find_by_token(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        """Ask what the bank knows of the token's transaction."""
        ...

    async def find_by_reference(self, effect: Effect, *, fresh: bool) -> Reply:
        """Ask what the bank knows of the newest transaction of our reference."""
        ...

    def finds_at_once(self, operation: Operation) -> bool:
        """Whether `find_by_reference` sees a transaction of this operation as soon as the bank has it."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def heard(exchange: Exchange, reply: Reply, effect: Effect) -> Reply:
    """Hand on a reply that an exchange brought. Only one that names our transaction leaves the connection in use."""
    if not isinstance(reply, Transaction) or reply.differences(effect):
        exchange.end_connection()
    return reply
