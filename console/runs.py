"""Reconciliations that somebody has begun here: each goes on while its page is read, and is kept for a while after its end."""

import asyncio
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from chargeonce_client import CallFailed
from charging.v1.operator_pb2 import (
    FindingKind,
    ReconcileFinding,
    ReconcileProgress,
    ReconcileRequest,
    Reconciliation,
)
from chassis.telemetry import log_unexpected
from console import words
from console.servers import Asker, SignInNeeded

MOST_RUNS = 20
# A page of more is read by nobody: the command line writes all into a file.
MOST_FINDINGS = 500
# Of a message of the contract.
PIECE_BYTES = 12 << 10


@dataclass(slots=True)
class Run:
    """One reconciliation."""

    bank: str
    owner: str
    """The name of the session that began it: nobody else sees it."""
    name: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    progress: ReconcileProgress = field(default_factory=ReconcileProgress)
    findings: list[ReconcileFinding] = field(default_factory=list)
    counts: Counter["FindingKind.ValueType"] = field(default_factory=Counter)
    result: Reconciliation | None = None
    failure: str = ""
    """Why it ended without a result."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.result is not None or bool(self.failure)


@dataclass(slots=True)
class Runs:
    """All of them, the newest one last."""

    _by_name: OrderedDict[str, Run] = field(default_factory=OrderedDict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def find(self, name: str, owner: str) -> Run | None:
        """Return a session's run."""
        run = self._by_name.get(name)
        return run if run is not None and run.owner == owner else None

    def begin(self, asker: Asker, requests: AsyncIterator[ReconcileRequest], run: Run) -> asyncio.Task[None]:
        """Begin one. The requests are read from a browser, or are one."""
        while len(self._by_name) >= MOST_RUNS:
            self._by_name.popitem(last=False)
        self._by_name[run.name] = run
        task = asyncio.create_task(_follow(asker, requests, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        """Cancel all: they change nothing, so that nothing is lost but their results."""
        for task in self._tasks:
            task.cancel()


async def _follow(asker: Asker, requests: AsyncIterator[ReconcileRequest], run: Run) -> None:
    try:
        async for message in asker.reconcile(requests):
            match message.WhichOneof("item"):
                case "progress":
                    run.progress = message.progress
                case "finding":
                    run.counts[message.finding.kind] += 1
                    if len(run.findings) < MOST_FINDINGS:
                        run.findings.append(message.finding)
                case "result":
                    run.result = message.result
            _tell(run)
        if run.result is None:
            run.failure = "The server ended it without a result."
    except CallFailed as failure:
        run.failure = words.trouble(failure)
    except SignInNeeded:
        run.failure = "The servers do not know the person any more."
    except Exception as error:
        log_unexpected("a reconciliation failed", error)
        run.failure = "A fault of the console. Its log says where."
    finally:
        run.failure = run.failure or ("" if run.result else "It was stopped.")
        _tell(run)


def _tell(run: Run) -> None:
    run.changed.set()
    run.changed = asyncio.Event()
