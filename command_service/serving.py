"""A running command server: its parts put together, its two gRPC servers, its health and its gauges."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import NoReturn

import grpc.aio
import structlog

from charging.v1 import command_pb2_grpc, operator_pb2_grpc
from charging.v1.operator_pb2 import GetServerStatusResponse
from chassis import gate, metrics, server, settings
from chassis.exposure import check_exposure
from chassis.instruments import Figures
from chassis.shares import Shares
from chassis.watched import keep_fresh
from command_service.failures import Unreadable
from command_service.feed import ANY_READER, MAX_READERS, JournalService
from command_service.journal import Journal, JournalRefused
from command_service.parts import Parts
from command_service.reception import Reception
from command_service.reconciling import kept
from command_service.reconciling.reconciler import Reconciler
from command_service.settings import Settings
from command_service.status import status
from command_service.vitals import GAUGES, Vitals, Watched, vitals
from contract.errors import DOMAIN, Reason
from contract.errors import command_refusal as refusal

log = structlog.get_logger()

# A charge is far smaller. A larger limit would only let clients fill our memory.
COMMAND_BYTES = 16 << 10
# A client that needs more calls at once opens a second connection: see docs/adr/0018.
CALLS_A_CONNECTION = 500
NOT_ACCEPTING = {
    "full": "the journal's disk is full, or a quota or a limit on file sizes is reached",
    "busy": "another program holds the journal's write lock",
    "away": "the journal's database cannot be reached, or waits for its standby",
}
# The contract with its comments, which reflection serves.
DESCRIPTORS = resources.files("charging.v1").joinpath("descriptors.binpb").read_bytes()


@dataclass(frozen=True, slots=True)
class Serving:
    """A running command server, for the code that started it in this process."""

    listen: settings.Address
    feed_listen: settings.Address
    reception: Reception
    journal: Journal
    vitals: Callable[[], Vitals]


@asynccontextmanager
async def serve(chosen: Settings, make_parts: Callable[[Settings], Parts] = Parts) -> AsyncIterator[Serving]:
    """Run a command server; leaving the context drains it. `make_parts` makes its parts.

    Raises JournalRefused if the journal must not be used, SettingsError if files that a setting names cannot be, OSError if an
    address is not available.
    """
    check_exposure(
        {
            "COMMAND_LISTEN": chosen.listen,
            "COMMAND_FEED_LISTEN": chosen.feed_listen,
            "COMMAND_METRICS_LISTEN": chosen.metrics_listen,
        },
        {"COMMAND_TLS": chosen.tls is not None, "COMMAND_POLICY": chosen.policy is not None},
        override="COMMAND_OPEN",
        is_open=chosen.is_open,
    )
    parts = make_parts(chosen)
    async with contextlib.AsyncExitStack() as stack:
        tls, admission = parts.entrance.tls, parts.entrance.gate
        journal = await parts.journal()
        stack.push_async_callback(journal.close)
        banks = parts.banks()
        for bank in banks.values():
            stack.push_async_callback(bank.close)
        assembled = parts.assemble(journal, banks)
        stack.push_async_callback(assembled.close)
        with _refusing_unreadable(f"the journal {chosen.journal} holds a record that cannot be read"):
            await assembled.reception.recall()
        runner, commands = assembled.runner, parts.commands(assembled.reception)
        feed = parts.feed(journal)
        readers = JournalService(feed, Shares(MAX_READERS, parts.weights), assembled.memory.of)
        limits = {**commands.limits, "unfinished_charges": runner.places, **readers.limits}
        figures = _Figures(parts, Watched(runner, assembled.lines, journal, feed, limits))
        operators = parts.operators(journal, assembled, figures.status, Reconciler(chosen))
        stack.push_async_callback(operators.close)
        limits |= operators.limits

        def register(grpc_server: grpc.aio.Server) -> None:
            command_pb2_grpc.add_CommandServiceServicer_to_server(commands, grpc_server)
            operator_pb2_grpc.add_OperatorServiceServicer_to_server(operators, grpc_server)

        stack.callback(parts.close)
        listen = partial(
            server.Server.start,
            domain=DOMAIN,
            unreadable=refusal(Reason.INVALID_REQUEST),
            unexpected=refusal(Reason.UNEXPECTED),
            request_bytes=COMMAND_BYTES,
            reflect=chosen.reflection,
            gate=admission,
            tls=tls,
            descriptors=DESCRIPTORS,
            observed=parts.observed.calls,
        )
        command_server = await listen(
            chosen.listen,
            register,
            services=["charging.v1.CommandService", "charging.v1.OperatorService"],
            calls_a_connection=CALLS_A_CONNECTION,
        )
        stack.push_async_callback(command_server.drain, 0.0)
        feed_server = await listen(
            chosen.feed_listen,
            readers.register,
            services=["charging.v1.JournalService"],
            anybody=ANY_READER,
        )
        stack.push_async_callback(feed_server.drain, 0.0)
        with _refusing_unreadable(f"the journal {chosen.journal} holds an unfinished charge that cannot be read"):
            found = await runner.recover()
        assembled.memory.is_complete.set()
        await feed_server.set_serving(True)
        watching = asyncio.create_task(_keep_health(journal, command_server))
        stack.callback(watching.cancel)
        for work in (runner.keep_up(), keep_fresh(parts.watched), admission.keep_looking()):
            stack.callback(asyncio.create_task(work).cancel)
        await figures.offer(stack)
        log.info(
            "serving",
            service="command",
            listen=str(command_server.address),
            feed=str(feed_server.address),
            journal=str(chosen.journal),
            journal_id=journal.journal_id,
            made_anew=journal.made_anew,
            position=journal.head.position,
            restored=journal.restored,
            unfinished=found,
        )
        if chosen.journal.lies_in_memory:
            log.warning("the journal lies in memory: it does not outlive this machine's power")
        yield Serving(command_server.address, feed_server.address, assembled.reception, journal, figures.vitals)
        log.info("draining", unfinished=runner.unfinished)
        watching.cancel()
        # Waiting calls get most of the time to see their outcome, and the rest of it to answer PENDING.
        asyncio.get_running_loop().call_later(chosen.drain_seconds * 0.8, commands.stop)
        asyncio.get_running_loop().call_later(chosen.drain_seconds * 0.8, operators.stop)
        await command_server.drain(chosen.drain_seconds)
        feed.stop()  # last, so that readers get the last outcomes too
        await feed_server.drain(2.0)
        log.info("stopped", position=journal.head.position, unfinished=runner.unfinished)


class _Figures:
    """The figures of a server, for Prometheus and for operators."""

    def __init__(self, parts: Parts, watched: Watched) -> None:
        self._parts = parts
        self._watched = watched
        self._started_at = parts.now()

    def vitals(self) -> Vitals:
        """Take the vitals of this moment."""
        parts = self._parts
        limit = parts.settings.attention_after_seconds
        return vitals(self._watched, now=parts.now(), attention_after_seconds=limit)

    def status(self, tenant: str) -> GetServerStatusResponse:
        """Tell the server's state, as far as it is a tenant's; an empty one is told all."""
        parts = self._parts
        return status(self._watched, parts.observed, tenant=tenant, started_at=self._started_at, now=parts.now())

    async def offer(self, stack: contextlib.AsyncExitStack) -> None:
        """Offer the metrics until the stack ends, if the settings say where. Raises OSError."""
        parts, entrance = self._parts, self._parts.entrance
        if (listen := parts.settings.metrics_listen) is None:
            return
        gauges = {**GAUGES, **gate.GAUGES, **kept.GAUGES}
        instruments = parts.observed.instruments
        offered = await metrics.offer(listen, instruments, gauges, self._take, entrance.gate, entrance.tls)
        stack.callback(offered.close)

    def _take(self) -> Figures:
        parts = self._parts
        results = kept.kept(kept.folder(parts.settings))
        reconciled = kept.figures(results, parts.configured.banks, parts.now())
        return {**self.vitals().figures(), **parts.entrance.gate.figures(), **reconciled}


@contextlib.contextmanager
def _refusing_unreadable(text: str) -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        raise JournalRefused(f"{text}: {error}") from error


async def _keep_health(journal: Journal, command_server: server.Server) -> NoReturn:
    """Keep health true: a server that cannot store takes no new charges, and is NOT_SERVING until it can."""
    said = None
    while True:
        if (why := journal.not_accepting) != said:
            said = why
            await command_server.set_serving(not why)
            if why:
                log.error(f"{NOT_ACCEPTING[why]}: no new charges are taken")
        await asyncio.sleep(0.25)
