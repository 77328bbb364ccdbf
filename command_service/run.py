"""A charge on its way to rest, as its loop and the calls that wait for it share it."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from command_service.charge import Charge
from command_service.events import ReviewRequired
from command_service.operation import AtRest, awaits_customer
from command_service.streams import Snapshot
from command_service.values import Answer, Operation

log = structlog.get_logger()


@dataclass(slots=True)
class Tries:
    """The attempts at the operation under way, as this process remembers them: in memory only, so that a restart forgets them.

    Times are microseconds since 1970, 0 for none.
    """

    taken_up_at: int = 0
    """When this process took the operation over from an earlier process or another server; 0: it has it from its request."""
    reference: str = ""
    """The operation's; empty until its first attempt."""
    bank_calls: int = 0
    in_vain: int = 0
    """Attempts in a row that have not moved the charge on."""
    last_answer: Answer | None = None
    last_at: int = 0
    next_at: int = 0
    is_under_way: bool = False

    @contextlib.contextmanager
    def under_way(self) -> Iterator["Tries"]:
        """Make an attempt."""
        self.is_under_way = True
        try:
            yield self
        finally:
            self.is_under_way = False

    def note(self, answer: Answer, now: int, bank_calls: int) -> None:
        """Note the bank's answer, for which it was called so often."""
        self.last_answer, self.last_at = answer, now
        self.bank_calls += bank_calls

    def note_end(self, *, is_in_vain: bool, is_answered: bool) -> None:
        """Note what came of an attempt. Without an answer it was none: the step was not wanted any more."""
        self.in_vain = self.in_vain + is_answered if is_in_vain else 0


@dataclass(slots=True, eq=False)
class Run:
    """A charge on its way to rest."""

    snapshot: Snapshot
    was_in_journal: bool
    """Not begun by this process: a crash or a stop had interrupted it."""
    ended: "asyncio.Future[None]"
    """Done when the loop has ended. Add a callback and do not await it: a caller that is cancelled would cancel it for all."""
    told: "asyncio.Future[None]" = field(init=False)
    """Done too while the customer's step is awaited: then the call that began the charge is told so. Do not await it."""
    is_driven: bool = False
    """A task brings it to rest: that of the call that began it, or the runner's own after a start."""
    bank_calls: int = 0
    tries: Tries = field(default_factory=Tries)
    _began: float = field(init=False)
    _moved_on: asyncio.Event | None = field(default=None, init=False)
    _wanted_look: "asyncio.Future[None] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._began = self.ended.get_loop().time()
        self.told = self.ended.get_loop().create_future()
        self.ended.add_done_callback(self._tell)
        self._note_customer()

    @property
    def tenant(self) -> str:
        """The tenant whose charge it is."""
        assert isinstance(self.snapshot.state, Charge), "a charge on its way has events"
        return self.snapshot.state.request.tenant

    def tries_at(self, operation: Operation) -> Tries:
        """Return the attempts at the operation under way: new ones if those known are of one that has ended."""
        if self.tries.reference not in ("", operation.reference):
            self.tries = Tries()
        self.tries.reference = operation.reference
        return self.tries

    @property
    def age_seconds(self) -> float:
        """The time since this process took the charge up."""
        return self.ended.get_loop().time() - self._began

    def move_on(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot that a client's command or another server has made. It ends a pause."""
        if snapshot.version > self.snapshot.version:
            self.snapshot = snapshot
            self._note_customer()
            self.wake()

    def _note_customer(self) -> None:
        """Tell that the customer's step is awaited; or that it is not any more, and the outcome is waited for again."""
        state = self.snapshot.state
        if isinstance(state, Charge) and awaits_customer(state.opening):
            self._tell()
        elif self.told.done() and not self.ended.done():
            self.told = self.ended.get_loop().create_future()

    def _tell(self, _: object = None) -> None:
        for future in (self.told, self._wanted_look):
            if future is not None and not future.done():
                future.set_result(None)

    def look(self) -> "asyncio.Future[None]":
        """Have the loop's next turn come at once; done after it, or at the end. Do not await it.

        Calls that come before it begins share it, so that however fast they come, the loop does one turn after the other.
        """
        if self.ended.done():
            return self.ended
        if self._wanted_look is None:
            self._wanted_look = self.ended.get_loop().create_future()
        self.wake()
        return self._wanted_look

    @property
    def is_look_wanted(self) -> bool:
        """Whether a call waits for the next turn of the loop."""
        return self._wanted_look is not None

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Do a turn of the loop, given whether a call waits for it: what it learns is for every call that waits now."""
        look, self._wanted_look = self._wanted_look, None
        try:
            yield look is not None
        finally:
            if look is not None and not look.done():
                look.set_result(None)

    def wake(self) -> None:
        """End a pause."""
        if self._moved_on is not None:
            self._moved_on.set()

    async def pause(self, seconds: float, *, now: int = 0) -> bool:
        """Wait, at most until a client's command moves the charge on, or `wake`; return whether one of them happened.

        With `now`, in microseconds since 1970, it is a pause before the next attempt.
        """
        if self.is_look_wanted:
            return True
        tries = self.tries
        tries.next_at = now and now + int(seconds * 1_000_000)
        self._moved_on = moved_on = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await moved_on.wait()
        self._moved_on = None
        tries.next_at = 0
        return moved_on.is_set()

    def log_rest(self) -> None:
        """Log the outcome."""
        match self.snapshot.state:
            case Charge(newest=AtRest(operation, outcome=ReviewRequired(reason, evidence))):
                log.error(
                    "a charge needs review",
                    charge_id=self.snapshot.charge_id,
                    operation=operation.kind.value,
                    reason=reason.value,
                    fields=evidence.fields,
                    status=evidence.status,
                )
            case Charge(newest=AtRest(operation, outcome=outcome, position=position)):
                log.info(
                    "charge at rest",
                    charge_id=self.snapshot.charge_id,
                    operation=operation.kind.value,
                    outcome=type(outcome).__name__,
                    position=position,
                    bank_calls=self.bank_calls,
                    recovered=self.was_in_journal,
                )
