"""A batch of appends, decided and sealed under the head's lock; and whether it stands there, when a commit's answer is lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from command_service.journal import Appended, VersionConflict
from command_service.journal.postgres.session import Session
from command_service.journal.records import Row, seal
from command_service.journal.store import Append, Head


@dataclass(slots=True)
class Plan:
    """A batch, sealed after a head: what it stores, and what its callers are told."""

    head: Head
    outcomes: list[Appended] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    finished: dict[bytes, bool] = field(default_factory=dict)
    """By stream: whether it is finished after the batch."""

    @classmethod
    def of(
        cls, batch: Sequence[Append], keys: Sequence[bytes], found: Mapping[bytes, int], head: Head, recorded_at: int
    ) -> "Plan":
        """Decide about each append, and seal what is to be stored. The head and the versions are those under the lock."""
        versions, place, recorded_at = dict(found), head.place, max(recorded_at, head.recorded_at)
        plan = cls(head)
        for append, key in zip(batch, keys, strict=True):
            if versions[key] != append.expected_version:
                plan.outcomes.append(VersionConflict())
                continue
            records, place = seal(append, key, place, recorded_at)
            versions[key] = append.expected_version + len(records)
            plan.outcomes.append(records)
            plan.rows += [(it.position, key, it.version, it.recorded_at, it.chain, it.event) for it in records]
            plan.finished[key] = append.finished
        plan.head = Head(place, recorded_at)
        return plan

    def streams(self, *, finished: bool) -> list[bytes]:
        """The batch's streams that are finished after it, or not."""
        return [key for key, it in self.finished.items() if it is finished]

    async def stands(self, session: Session) -> bool:
        """Whether it was committed. The head must be locked: then no transaction of ours is under way."""
        newest = await session.at(self.head.place.position)
        return newest is not None and newest[4] == self.head.place.chain
