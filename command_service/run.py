"""A charge on its way to rest, as its loop and the calls that wait for it share it."""

import asyncio
from dataclasses import dataclass

import structlog

from command_service.charge import Charge
from command_service.events import ReviewRequired
from command_service.operation import AtRest
from command_service.streams import Snapshot

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Run:
    """A charge on its way to rest."""

    snapshot: Snapshot
    was_in_journal: bool
    """Not begun by this process: a crash or a stop had interrupted it."""
    ended: "asyncio.Future[None]"
    """Done when the loop has ended. Add a callback and do not await it: a caller that is cancelled would cancel it for all."""
    is_driven: bool = False
    """A task brings it to rest: that of the call that began it, or the runner's own after a start."""
    bank_calls: int = 0

    def log_rest(self) -> None:
        """Log the outcome."""
        match self.snapshot.state:
            case Charge(AtRest(outcome=ReviewRequired(reason, evidence))):
                log.error(
                    "a charge needs review",
                    charge_id=self.snapshot.charge_id,
                    reason=reason.value,
                    fields=evidence.fields,
                    status=evidence.status,
                )
            case Charge(AtRest(outcome=outcome, position=position)):
                log.info(
                    "charge at rest",
                    charge_id=self.snapshot.charge_id,
                    outcome=type(outcome).__name__,
                    position=position,
                    bank_calls=self.bank_calls,
                    recovered=self.was_in_journal,
                )
