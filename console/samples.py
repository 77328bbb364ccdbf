"""The last minutes of each command server, as samples of its state: what the small plots of the banks are drawn of."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chargeonce_client import CallFailed
from charging.v1.common_pb2 import AnswerKind
from charging.v1.operator_pb2 import BankStatus, GetServerStatusRequest, GetServerStatusResponse
from console.servers import PART_SECONDS, Asker, SignInNeeded

SAMPLE_SECONDS = 5.0
# Ten minutes.
KEPT = 120
# Nobody looks any more: then nobody's name is used to ask.
WATCHED_SECONDS = 900.0
ERRORS = frozenset(
    {
        AnswerKind.ANSWER_KIND_NO_ANSWER,
        AnswerKind.ANSWER_KIND_NOT_ACCEPTED,
        AnswerKind.ANSWER_KIND_CONTRADICTION,
        AnswerKind.ANSWER_KIND_REFUSED,
    }
)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A bank between two samples. `seconds` is the mean time of an answer; it and the share of errors may be unknown."""

    rate: float
    seconds: float | None
    errors: float | None


@dataclass(slots=True)
class Samples:
    """The samples of all command servers, by their addresses.

    They are taken in the name of the person who looked last, while somebody looks, if this one is told of all tenants, and
    until the end of this one's session. They are shown only to whoever is told these figures too.
    """

    _kept: dict[str, deque[GetServerStatusResponse]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=KEPT))
    )
    _asker: Asker | None = None
    _watched_at: float = 0.0

    @property
    def is_sampling(self) -> bool:
        """Whether there is somebody in whose name samples are taken."""
        return self._asker is not None and time.monotonic() - self._watched_at <= WATCHED_SECONDS

    def add(self, address: str, status: GetServerStatusResponse, asker: Asker) -> None:
        """Add what a server has just said to somebody. Of a server that was started again, what was before is forgotten."""
        if not status.limits:  # the part of it that a tenant is told
            return
        self._asker, self._watched_at = asker, time.monotonic()
        self._add(address, status)

    def _add(self, address: str, status: GetServerStatusResponse) -> None:
        kept = self._kept[address]
        if kept and kept[-1].started_at != status.started_at:
            kept.clear()
        if not kept or _seconds_between(kept[-1], status) >= SAMPLE_SECONDS / 2:
            kept.append(status)

    def stretches(self, address: str, bank: str) -> Sequence[Stretch]:
        """Return the stretches of a bank, the newest one last."""
        kept = self._kept.get(address, ())
        found: list[Stretch] = []
        before: tuple[GetServerStatusResponse, BankStatus] | None = None
        for status in kept:
            here = next((each for each in status.banks if each.name == bank), None)
            if here is None:
                before = None
                continue
            if before is not None:
                found.append(_stretch(before[1], here, _seconds_between(before[0], status)))
            before = status, here
        return found

    async def keep_sampling(self) -> None:
        """Take samples until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            asker = self._asker
            if asker is None or not self.is_sampling:
                continue
            for server in asker.servers.commands:
                try:
                    status = await asker.ask(server.desk.GetServerStatus, GetServerStatusRequest(), PART_SECONDS)
                except CallFailed:
                    continue
                except SignInNeeded:
                    self._asker = None if self._asker is asker else self._asker
                    break
                self._add(server.address, status)


def answers_of(bank: BankStatus) -> Mapping[bool, int]:
    """Return the numbers of a bank's answers: of errors (True) and of all others."""
    counts = {True: 0, False: 0}
    for answer in bank.answers:
        counts[answer.answer in ERRORS] += answer.count
    return counts


def _seconds_between(one: GetServerStatusResponse, other: GetServerStatusResponse) -> float:
    return (other.at.ToNanoseconds() - one.at.ToNanoseconds()) / 1e9


def _stretch(before: BankStatus, after: BankStatus, seconds: float) -> Stretch:
    earlier, later = answers_of(before), answers_of(after)
    errors, others = later[True] - earlier[True], later[False] - earlier[False]
    count = errors + others
    took = (after.answer_time.ToNanoseconds() - before.answer_time.ToNanoseconds()) / 1e9
    return Stretch(
        rate=count / max(seconds, 0.001),
        seconds=took / count if count else None,
        errors=errors / count if count else None,
    )
