"""What the banks of a story have in common, whatever their API: how each is doing, what it was asked for, and its lies.

A bank of a story is never wrong. What goes wrong goes wrong around it, on the way and in its answers: that is
`prove.simulation.wire`, which knows no API.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from charging.v1.common_pb2 import DeclineReason
from gateway_mock import model
from judge.history import BankCall, Movement

CARDS = {**model.CARDS, "tok_odd": "a reason of the bank's own"}
DECLINES = {card: reason for card, reason in CARDS.items() if reason is not None}
Reply = tuple[int, dict[str, str], bytes]
Step = Literal["token", "execute", "cancel", "look_up"]
Said = dict[str, Any]
EPOCH_SECONDS = 1_790_000_000
"""What every clock says when a story begins: seconds since 1970."""
BEGAN = datetime(2026, 9, 21, tzinfo=UTC)
"""The same, as banks of two steps and of one tell it: but for half a day, which matters to nobody."""


class Chaos(Protocol):
    """Whether a fault happens now. Each asking is a draw of the seed's; a yes counts as fired."""

    def fires(self, kind: str) -> bool: ...  # noqa: D102  # the class says it
    def met(self, kind: str) -> None: ...  # noqa: D102
    def uniform(self, low: float, high: float) -> float: ...  # noqa: D102
    def pick(self, things: Any) -> Any: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and what the bank's API says that it is."""

    step: Step
    method: str
    target: str
    body: bytes
    key: str = ""
    """Under which the bank knows a repeated request; empty if it names none."""
    token: str = ""
    """Of the transaction that it names, as the journal would hold it; empty if it names none."""
    shown: str = ""
    """What a story tells of it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A charge that a bank has executed, and that the journal has lost since: it was restored from an older copy."""

    reference: str
    card: str
    amount: int
    currency: str
    is_held: bool
    age_seconds: float

    @property
    def kind(self) -> str:
        """What it is to the bank."""
        return "authorize" if self.is_held else "charge"


@dataclass(slots=True)
class Bank(ABC):
    """A bank, whatever its API. Who derives from it holds the transactions."""

    clock: Callable[[], float]
    name: str = ""
    late_factor: float = 1.0
    """How much later than usual what is late comes."""
    calls: list[BankCall] = field(default_factory=list)
    lied_about: set[str] = field(default_factory=set)
    """The charges about which an answer lied: only these may end in review."""
    is_down: bool = False
    is_unauthorized: bool = False
    away_seconds: float = 0.0
    """For how long it will be away, once, after an order; 0: it will not."""
    spares_openings: bool = False
    """It will be away after an order that follows in a charge."""
    lives: int = 0
    is_silent: bool = False
    """It takes every request, and never answers."""
    expects_until: float = 0.0
    """When the last of the requests comes that are late, or copies."""
    wants_customer: Callable[[str], None] = field(default=lambda _: None)
    """Told once of each token whose customer is to take a step."""
    forgot_key: Callable[[], None] = field(default=lambda: None)
    """Told of each look-up that finds a transaction whose key is forgotten: to ask for it again would move money again."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Where customers were sent, each with our reference."""
    confirmed: set[str] = field(default_factory=set)
    """The references of which the customers confirmed in time."""

    def may_leave(self, asked: Asked) -> bool:
        """Whether it may be away for long, now that it has done what was asked."""
        is_opening = self.reference_of(asked) == self.charge_of(asked)
        return self.away_seconds > 0 and not (is_opening and self.spares_openings)

    def leave(self) -> float:
        """Be away; say for how long."""
        self.is_down, seconds, self.away_seconds = True, self.away_seconds, 0.0
        return seconds

    def come_back(self) -> None:
        """Be there again."""
        self.is_down = False

    def now_ms(self) -> float:
        """Tell the time that the rules count in."""
        return self.clock() * 1_000

    def calm(self) -> None:
        """Answer, and be patient, for the rest of the story: faults have stopped."""
        self.is_silent = False

    # ------------------------------------------------------------ the API
    @property
    @abstractmethod
    def cards(self) -> Collection[str]:
        """The cards that it knows."""

    @property
    @abstractmethod
    def strays(self) -> Sequence[tuple[int, Said]]:
        """Answers that nobody here has asked for."""

    @property
    def prefix(self) -> str:
        """What its ids begin with, so that no other bank has the same."""
        return f"{self.name}_" if self.name else ""

    @abstractmethod
    def asked(self, method: str, target: str, body: bytes, key: str) -> Asked:
        """Read a request."""

    @abstractmethod
    def answer(self, asked: Asked, *, token_was_durable: bool | None) -> Reply:
        """Do what is asked for, and answer honestly."""

    @abstractmethod
    def refusal(self, asked: Asked) -> Said:
        """A definite no in the bank's own words, which does not say why."""

    @abstractmethod
    def oblivion(self, asked: Asked) -> Said | None:
        """What it says if it knows nothing of what is asked for; None: it knows all that this asks for."""

    @property
    def at_it(self) -> tuple[int, Said]:
        """What it says while it is at a request."""
        return 202, {"result": "in_progress"}

    def again(self, asked: Asked, reply: Reply) -> Asked | None:  # noqa: ARG002  # most banks leave nothing open
        """The same request as it may come again later, if this one was declined and may still be approved."""
        return None

    @abstractmethod
    def execute_of(self, asked: Asked) -> Asked:
        """The execute step of the token that is asked to be called off."""

    # ------------------------------------------------------------ whom a request is about
    @abstractmethod
    def reference_of(self, asked: Asked) -> str:
        """Our name for it; empty if nobody knows."""

    @abstractmethod
    def charge_of(self, asked: Asked) -> str:
        """The charge: the reference of the transaction that opened it; empty if nobody knows."""

    # ------------------------------------------------------------ what befalls its transactions
    @abstractmethod
    def has_open(self, asked: Asked) -> bool:
        """Whether whom it is about has a transaction that can still be executed, and that may expire."""

    @abstractmethod
    def expire(self, asked: Asked) -> None:
        """Close that transaction as expired."""

    @abstractmethod
    def has_hold(self, asked: Asked) -> bool:
        """Whether it is about an operation on a hold that has not lapsed."""

    @abstractmethod
    def expire_hold(self, asked: Asked) -> None:
        """Let that hold lapse."""

    @abstractmethod
    def recall(self, lost: Lost) -> None:
        """Have executed it, before the story began."""

    @abstractmethod
    def take_step(self, token: str, *, confirms: bool) -> bool:
        """A customer confirms, or refuses; say whether that was in time."""

    def breaks_down(self) -> None:  # noqa: B027  # most banks save no errors
        """Do the next order, and answer it with an error that is saved under its key."""

    # ------------------------------------------------------------ its lies
    @abstractmethod
    def can_lie(self, kind: str, asked: Asked, said: Said) -> bool:
        """Whether this answer can be bent in this way.

        In a look-up only single fields: one that lied as the step did would be a bank that breaks its contract.
        """

    @abstractmethod
    def lie(self, kind: str, asked: Asked, said: Said, chaos: Chaos) -> Said:
        """Bend it."""

    # ------------------------------------------------------------ the statement
    def takes(self, kind: str, *, is_whole: bool, is_final: bool) -> bool:  # noqa: ARG002  # most banks do
        """Whether it takes an order of this kind: for the whole amount of its charge, or the last one of its hold."""
        return True

    @property
    def declines(self) -> Collection[int]:
        """Why it declines what follows in a charge, if it is asked for nothing that its own book forbids."""
        return (DeclineReason.DECLINE_REASON_CARD_DECLINED,)

    @property
    @abstractmethod
    def executed(self) -> int:
        """The number of transactions that were executed."""

    @property
    @abstractmethod
    def movements(self) -> Sequence[Movement]:
        """The statement: one for each of them."""


def told_time(at_ms: float) -> str:
    """Tell a time of a bank's clock: RFC 3339."""
    return (BEGAN + timedelta(milliseconds=at_ms)).isoformat().replace("+00:00", "Z")


def as_reply(status: int, said: Said) -> Reply:
    """Make a reply of a status and its members."""
    return status, {"content-type": "application/json"}, json.dumps(said).encode()
