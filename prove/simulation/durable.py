"""What of a story's journal is durable: what no power cut, and no failover that is allowed, can take away any more."""

import uuid
from collections.abc import Callable

from charging.v1.journal_pb2 import Event
from judge.desk import STEPS
from prove.simulation.stage import Stage

# The events with which an operation comes to rest.
AT_REST = frozenset(
    {
        *("charged", "authorized", "charge_declined", "charge_abandoned", "charge_called_off", "review_required"),
        *("captured", "voided", "refunded", "operation_declined", "operation_abandoned", "authorization_expired"),
    }
)


class Durable:
    """The durable records, as they became so."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.records: list[tuple[int, bytes]] = []
        """The position and chain of each."""
        self.tokens: set[str] = set()
        self.unfinished: set[bytes] = set()
        self._voids: set[bytes] = set()
        """The charges of which a void waits for the end of the calling off."""
        self._voids_in_review: set[bytes] = set()
        """The charges in review of which a void had waited so: people resolve both."""
        self.at: dict[int, float] = {}
        """When each position became durable."""
        self.hears: Callable[[int, str, str, Event], None] = lambda *_: None
        """Told of each: its position, its charge, and its event with the kind."""

    @property
    def position(self) -> int:
        """The newest position."""
        return self.records[-1][0] if self.records else 0

    def note(self, position: int, key: bytes, chain: bytes, stored: bytes) -> None:
        """Note that a record is durable."""
        self.records.append((position, chain))
        self.at[position] = self._stage.loop.time()
        event = Event.FromString(stored)
        kind = event.WhichOneof("kind")
        if kind == "token_issued":
            self.tokens.add(event.token_issued.token)
        if kind == "void_requested" and key in self.unfinished:
            self._voids.add(key)
        if kind == "review_required" and key in self._voids:
            self._voids_in_review.add(key)
        if kind == "resolution_approved" and key in self._voids_in_review:
            self._voids_in_review.discard(key)
            self._voids.add(key)
        if kind in AT_REST and not (kind == "authorized" and key in self._voids):  # then the void goes on
            self.unfinished.discard(key)
        elif kind not in STEPS:
            self.unfinished.add(key)
        if kind in AT_REST:
            self._voids.discard(key)
        charge_id = uuid.UUID(bytes=key)
        self._stage.note("journal", position, charge_id, kind)
        self.hears(position, str(charge_id), kind or "unknown", event)
