"""The entries of the journal: its operations at one bank, with how far each has come.

It folds just as much as it needs, since the core's own fold takes several times as long: whether money moved, and between which
moments. A test holds it to the core (tests/reconcile/test_entries.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from charging.v1.command_pb2 import CaptureMode
from charging.v1.journal_pb2 import Event
from command_service.bank.statement import LineKind
from command_service.journal import START, JournalRefused, Place, Record
from command_service.journal.store import Reading

# Charges that have come to rest and may be refunded soon: one that is not among them is read again.
REMEMBERED = 100_000


class State(IntEnum):
    """How far an operation has come."""

    MOVED = 1
    NOT_MOVED = 2
    UNDER_WAY = 3
    IN_REVIEW = 4


class Entry(NamedTuple):
    """An operation, as the journal has it.

    `minor_units` is what the merchant gets by it, negative for a refund. If the bank has executed it, that was after `began`
    and before `at`; `at` is also when it came to rest, or its newest event. Times are in microseconds since 1970.
    """

    reference: str
    charge_id: str
    kind: LineKind
    state: State
    minor_units: int
    currency_code: str
    transaction_id: str
    began: int
    at: int


class _Operation:
    __slots__ = ("at", "began", "currency_code", "kind", "minor_units", "reference", "state", "transaction_id")

    def __init__(self, reference: str, kind: LineKind, minor_units: int, currency_code: str, at: int) -> None:
        self.reference = reference
        self.kind = kind
        self.state = State.UNDER_WAY
        self.minor_units = -minor_units if kind is LineKind.REFUND else minor_units
        self.currency_code = currency_code
        self.transaction_id = ""
        self.began = self.at = at

    def entry(self, charge_id: str) -> Entry:
        return Entry(
            self.reference,
            charge_id,
            self.kind,
            self.state,
            self.minor_units,
            self.currency_code,
            self.transaction_id,
            self.began,
            self.at,
        )


class _Charge:
    """A charge: whether it is at the bank that is asked about, and its operations that may still change."""

    __slots__ = ("is_wanted", "open")

    def __init__(self, *, is_wanted: bool) -> None:
        self.is_wanted = is_wanted
        self.open: list[_Operation] = []


_FOLLOWING = {
    "capture_requested": LineKind.CAPTURE,
    "void_requested": LineKind.VOID,
    "refund_requested": LineKind.REFUND,
}
_MOVED = frozenset({"charged", "authorized", "captured", "voided", "refunded"})
_OPENED = frozenset({"charged", "authorized", "charge_declined", "charge_abandoned", "charge_called_off"})
_UNDONE = frozenset(
    {
        "charge_declined",
        "charge_abandoned",
        "charge_called_off",
        "authorization_expired",
        "operation_declined",
        "operation_abandoned",
    }
)
# Field 2 of the event: its first byte tells it, and nothing in it is needed. A third of all events are of this kind.
_TOKEN_ISSUED = Event.DESCRIPTOR.fields_by_name["token_issued"].number << 3 | 2


class Entries:
    """Reads the entries of one bank from a journal. `is_wanted` says whether charges with this name of a bank are meant."""

    def __init__(self, journal: Reading, is_wanted: Callable[[str], bool]) -> None:
        self._journal = journal
        self._is_wanted = is_wanted
        self._charges: dict[str, _Charge] = {}
        self._at_rest: OrderedDict[str, bool] = OrderedDict()
        self.position = 0
        """How far the journal was read."""

    def since(self, at: int) -> Iterator[Entry]:
        """Yield the operations that came to rest at a moment or later, then those that have not.

        Each comes once. The journal is read up to its head as it was opened. Raises JournalRefused, JournalCorrupt.
        """
        place = self._place_before(at)
        self.position = place.position
        ended = list[Entry]()
        for record in self._journal.records(place):
            self._fold(record, ended)
            if ended:
                self.position = record.position
                yield from ended
                ended.clear()
        for charge_id in self._journal.unfinished():
            if charge_id not in self._charges:
                self._take_up(charge_id)
        for charge_id, charge in self._charges.items():
            if charge.is_wanted:
                yield from (operation.entry(charge_id) for operation in charge.open)

    def find(self, reference: str) -> Entry | None:
        """Find the operation that opens a charge by its reference, which is the charge's id; however old it is."""
        try:
            records = self._journal.stream(reference)
        except ValueError:
            return None
        fresh, found = Entries(self._journal, self._is_wanted), list[Entry]()
        for record in records:
            fresh._fold(record, found)
        for charge in fresh._charges.values():
            found += [operation.entry(reference) for operation in charge.open if charge.is_wanted]
        return next((entry for entry in found if entry.reference == reference), None)

    def _place_before(self, at: int) -> Place:
        """Find the last place before a moment. Recorded times never run backwards."""
        low, high = 0, self._journal.head.position
        while low < high:
            middle = (low + high) // 2
            record = next(self._journal.records(Place(middle, self._journal.chain_at(middle))))
            low, high = (middle + 1, high) if record.recorded_at < at else (low, middle)
        return START if low == 0 else Place(low, self._journal.chain_at(low))

    def _take_up(self, charge_id: str, before_version: int | None = None) -> _Charge:
        """Read a charge that began before the place, or was at rest for long, as it was before a version."""
        records = self._journal.stream(charge_id)
        for record in records[: None if before_version is None else before_version - 1]:
            self._fold(record, [])
        return self._charges.get(charge_id) or _Charge(is_wanted=self._at_rest.get(charge_id, False))

    def _charge_of(self, record: Record) -> _Charge:
        charge = self._charges.get(record.charge_id)
        if charge is None:
            is_wanted = self._at_rest.pop(record.charge_id, None)
            if is_wanted is None:
                charge = self._take_up(record.charge_id, record.version)
                self._at_rest.pop(record.charge_id, None)
            else:
                charge = _Charge(is_wanted=is_wanted)
            self._charges[record.charge_id] = charge
        return charge

    def _fold(self, record: Record, ended: list[Entry]) -> None:
        """Fold a record; add the entries of the operations that are at rest after it to `ended`."""
        charge_id, stored, at = record.charge_id, record.event, record.recorded_at
        if stored[0] == _TOKEN_ISSUED:
            if waiting := self._charge_of(record).open:
                waiting[0].began = waiting[0].at = at
            return
        event = Event.FromString(stored)
        name = event.WhichOneof("kind")
        if name == "charge_requested":
            requested = event.charge_requested
            is_held = requested.capture == CaptureMode.CAPTURE_MODE_MANUAL
            charge = self._charges[charge_id] = _Charge(is_wanted=self._is_wanted(requested.bank))
            kind = LineKind.AUTHORIZE if is_held else LineKind.CHARGE
            amount = requested.amount
            charge.open.append(_Operation(charge_id, kind, amount.minor_units, amount.currency_code, at))
            return
        charge = self._charge_of(record)
        if name in _FOLLOWING:
            asked = getattr(event, name)
            charge.open.append(
                _Operation(
                    asked.operation_id, _FOLLOWING[name], asked.amount.minor_units, asked.amount.currency_code, at
                )
            )
            return
        if name is None:
            raise JournalRefused(f"the record at position {record.position} is an event of a newer program")
        if name == "review_required":
            for operation in charge.open:
                operation.state, operation.at = State.IN_REVIEW, at
        elif charge.open and (name in _MOVED or name in _UNDONE):
            operation = charge.open[0]
            operation.at = at
            if name in _MOVED:
                operation.state, operation.transaction_id = State.MOVED, getattr(event, name).transaction_id
            else:
                operation.state = State.NOT_MOVED
            # A void that waited for the opening operation ends with it; if money is held now, it goes on.
            number = len(charge.open) if name in _OPENED and name != "authorized" else 1
            for each in charge.open[1:number]:
                each.state, each.at = State.NOT_MOVED, at
            if charge.is_wanted:
                ended += [each.entry(charge_id) for each in charge.open[:number]]
            del charge.open[:number]
            for each in charge.open:  # A void in review with its opening is under way again.
                each.state = State.UNDER_WAY
        if not charge.open:
            self._charges.pop(charge_id, None)
            self._at_rest[charge_id] = charge.is_wanted
            if len(self._at_rest) > REMEMBERED:
                self._at_rest.popitem(last=False)
