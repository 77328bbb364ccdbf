"""The exceptions that a call can end with: one tree, sorted by whose fault each is.

    CallFailed
    ├── CommandRefused             the client's: the command cannot be accepted as it is
    │   ├── InvalidRequest         a new request breaks the rules of screening
    │   ├── KeyReused              the key belongs to another request
    │   ├── PossibleDuplicate      it looks like the second charge of one intent
    │   ├── ChargeUnknown          there is no such charge
    │   ├── ChargeInReview         people look into the charge first
    │   ├── DoesNotFit             the operation cannot follow in this charge as it stands
    │   ├── MoreThanIsLeft         the operation is for more than is left
    │   ├── TooManyOperations      the charge has as many operations, or steps of the desk, as it may have
    │   ├── NotAtTheDesk           the charge is not at a stage for this step of the desk
    │   ├── RefundKeyTaken         a client has a refund under the key that an approval would store
    │   ├── AnotherProposal        another proposal is open
    │   ├── ProposalChanged        the proposal is not open any more
    │   ├── SecondPersonNeeded     who has proposed a resolution may not approve it
    │   ├── BankContradicts        the bank says otherwise than the proposal
    │   └── BankSaysNothing        the bank does not answer the look-up before an approval
    ├── NotNow                     nobody's: nothing was stored, and a later attempt may succeed
    │   ├── BankUnreachable        the bank does not answer
    │   ├── TooManyUnfinished      too many charges are under way
    │   ├── TenantLimit            too many charges of this tenant are under way
    │   ├── OperationUnderWay      another operation of the charge is under way
    │   └── NotStored              the journal stored nothing, definitely
    │       ├── JournalFull        its disk is full
    │       ├── JournalAway        its database cannot be reached
    │       └── JournalBusy        another program holds its write lock
    └── Unreadable                 ours: the journal cannot be read on
        ├── JournalCorrupt         a record does not fit the chain
        ├── UnknownEvent           a record's bytes are no event that this program knows
        └── ImpossibleEvent        an event cannot follow the events before it

Each leaf has one row in `command_service.errors`, which turns it into the status that a client sees.
"""


class CallFailed(Exception):
    """A call ends without an answer."""


class CommandRefused(CallFailed):
    """The command cannot be accepted as it is."""


class InvalidRequest(CommandRefused):
    """A new request breaks the rules of screening. `faults` are pairs of field and text."""

    def __init__(self, faults: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(faults)
        self.faults = faults


class KeyReused(CommandRefused):
    """The idempotency key belongs to another request.

    `charge` is its charge's state. `progress` is that of the operation, if the key belongs to one that follows.
    """

    def __init__(self, charge: object = None, progress: object = None) -> None:
        super().__init__(charge, progress)
        self.charge = charge
        self.progress = progress


class PossibleDuplicate(CommandRefused):
    """Within the operator's window, a charge of the same user, card, amount and currency was requested: `charge_id`."""

    def __init__(self, charge_id: str = "") -> None:
        super().__init__(charge_id)
        self.charge_id = charge_id


class ChargeUnknown(CommandRefused):
    """The journal holds no such charge of this tenant."""


class ChargeInReview(CommandRefused):
    """The charge is in review: nothing may follow until people have settled it."""


class DoesNotFit(CommandRefused):
    """An operation of this kind cannot follow in this charge as it stands: `charge` is its state."""

    def __init__(self, charge: object = None, kind: object = None) -> None:
        super().__init__(charge, kind)
        self.charge = charge
        self.kind = kind


class MoreThanIsLeft(CommandRefused):
    """The operation is for more than is left: `left`, in minor units."""

    def __init__(self, left: int = 0) -> None:
        super().__init__(left)
        self.left = left


class TooManyOperations(CommandRefused):
    """The charge has as many operations, or steps of the desk, as it may have."""


class NotAtTheDesk(CommandRefused):
    """The charge is not at a stage for this step of the desk: `charge` is its state."""

    def __init__(self, charge: object = None) -> None:
        super().__init__(charge)
        self.charge = charge


class RefundKeyTaken(CommandRefused):
    """A client has a refund under the key that an approval would store. Another proposal has another key."""


class AnotherProposal(CommandRefused):
    """Another proposal is open: the one at the position `proposal`, by `actor`."""

    def __init__(self, proposal: int = 0, actor: str = "") -> None:
        super().__init__(proposal, actor)
        self.proposal = proposal
        self.actor = actor


class ProposalChanged(CommandRefused):
    """The open proposal is another one, or there is none."""


class SecondPersonNeeded(CommandRefused):
    """Who has proposed a resolution may not approve it."""


class BankContradicts(CommandRefused):
    """The bank says otherwise than the proposal: `bank_said` is the kind of its answer, by its name.

    `differs_in` are the fields in which its transaction differs from ours, `transaction_id` is its id, if it told that.
    """

    def __init__(self, bank_said: str = "", differs_in: tuple[str, ...] = (), transaction_id: str = "") -> None:
        super().__init__(bank_said)
        self.bank_said = bank_said
        self.differs_in = differs_in
        self.transaction_id = transaction_id


class BankSaysNothing(CommandRefused):
    """The bank does not answer the look-up before an approval: `bank_said` is that, as in BankContradicts.

    No `retry_after_seconds`: it cannot be asked.
    """

    def __init__(self, bank_said: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(bank_said, retry_after_seconds)
        self.bank_said = bank_said
        self.retry_after_seconds = retry_after_seconds


class NotNow(CallFailed):
    """Nothing was stored, and a later attempt may succeed. Charges that the journal holds are still answered."""

    def __init__(self, *args: object, retry_after_seconds: float = 5.0) -> None:
        super().__init__(*args)
        self.retry_after_seconds = retry_after_seconds


class BankUnreachable(NotNow):
    """The bank does not answer, or does not accept our set-up."""


class TooManyUnfinished(NotNow):
    """Too many charges are under way."""


class TenantLimit(NotNow):
    """Too many charges of this tenant are under way."""


class OperationUnderWay(NotNow):
    """Another operation of the charge is under way, and one at a time is."""


class NotStored(NotNow):
    """The journal stored nothing, definitely. The subclass says why."""


class JournalFull(NotStored):
    """The disk is full, or a quota or a limit on a file's size is reached."""


class JournalAway(NotStored):
    """The database that holds the journal cannot be reached, or waits for its standby."""


class JournalBusy(NotStored):
    """Another program holds the file's write lock longer than an append waits."""


class Unreadable(CallFailed):
    """The journal cannot be read on, and nothing is guessed."""


class JournalCorrupt(Unreadable):
    """A stored record does not fit the chain. `position` is the first untrusted one; None if the store cannot name it."""

    def __init__(self, position: int | None) -> None:
        fault = (
            "the file is damaged" if position is None else f"the record at position {position} does not fit the chain"
        )
        super().__init__(fault)
        self.position = position


class UnknownEvent(Unreadable):
    """The bytes of a record are no event that this program knows."""


class ImpossibleEvent(Unreadable):
    """The journal holds an event that cannot follow the events before it."""
