"""A command server at work: its parts put together, its two gRPC servers, its health and its gauges."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import NoReturn

import prometheus_client
import structlog

from charging.v1 import command_pb2_grpc
from chassis import metrics, server, settings
from command_service.charge import ImpossibleEvent
from command_service.codec import UnknownEvent
from command_service.errors import DOMAIN, Reason, refusal
from command_service.feed import JournalService
from command_service.journal import Journal, JournalCorrupt, JournalRefused
from command_service.parts import Parts
from command_service.runner import Runner
from command_service.settings import Settings

log = structlog.get_logger()

# A charge fits well; more would only be a way to fill our memory.
COMMAND_BYTES = 16 << 10
NOT_ACCEPTING = {
    "full": "the journal's disk is full, or a quota or a limit on file sizes is reached",
    "busy": "another program holds the journal's write lock",
}
# The contract with its comments, which reflection serves.
DESCRIPTORS = resources.files("charging.v1").joinpath("descriptors.binpb").read_bytes()


@dataclass(frozen=True, slots=True)
class Serving:
    """A command server at work, for whoever started it in this process."""

    listen: settings.Address
    feed_listen: settings.Address
    runner: Runner
    journal: Journal


@asynccontextmanager
async def serve(chosen: Settings, make_parts: Callable[[Settings], Parts] = Parts) -> AsyncIterator[Serving]:
    """Run a command server; leaving the context drains it. `make_parts` gives the parts that it is put together from.

    Raises JournalRefused if the journal must not be served from, OSError if an address cannot be had.
    """
    parts = make_parts(chosen)
    async with contextlib.AsyncExitStack() as stack:
        journal = await parts.journal()
        stack.push_async_callback(journal.close)
        bank = parts.bank()
        stack.push_async_callback(bank.close)
        runner = parts.runner(journal, bank)
        stack.push_async_callback(runner.close)
        commands = parts.commands(parts.reception(runner))
        feed = parts.feed(journal)
        command_server = await server.Server.start(
            chosen.listen,
            lambda grpc_server: command_pb2_grpc.add_CommandServiceServicer_to_server(commands, grpc_server),
            services=["charging.v1.CommandService"],
            domain=DOMAIN,
            unreadable=refusal(Reason.INVALID_REQUEST),
            unexpected=refusal(Reason.UNEXPECTED),
            request_bytes=COMMAND_BYTES,
            reflect=chosen.reflection,
            descriptors=DESCRIPTORS,
        )
        stack.push_async_callback(command_server.drain, 0.0)
        feed_server = await server.Server.start(
            chosen.feed_listen,
            JournalService(feed).register,
            services=["charging.v1.JournalService"],
            domain=DOMAIN,
            unreadable=refusal(Reason.INVALID_REQUEST),
            unexpected=refusal(Reason.UNEXPECTED),
            request_bytes=COMMAND_BYTES,
            reflect=chosen.reflection,
            descriptors=DESCRIPTORS,
        )
        stack.push_async_callback(feed_server.drain, 0.0)
        try:
            found = await runner.recover()
        except (JournalCorrupt, UnknownEvent, ImpossibleEvent) as error:
            raise JournalRefused(
                f"the journal {chosen.journal} holds an unfinished charge that cannot be read: {error}"
            ) from error
        await feed_server.set_serving(True)
        watching = asyncio.create_task(_tell_health(journal, command_server))
        stack.callback(watching.cancel)
        await _offer_gauges(runner, journal, chosen.metrics_listen)
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
        yield Serving(command_server.address, feed_server.address, runner, journal)
        log.info("draining", unfinished=runner.unfinished)
        watching.cancel()
        # Waiting calls get most of the time to see their outcome, and the rest of it to say that there is none yet.
        asyncio.get_running_loop().call_later(chosen.drain_seconds * 0.8, commands.stop)
        await command_server.drain(chosen.drain_seconds)
        feed.stop()  # last, so that readers are told of the last outcomes too
        await feed_server.drain(2.0)
        log.info("stopped", position=journal.head.position, unfinished=runner.unfinished)


async def _tell_health(journal: Journal, command_server: server.Server) -> NoReturn:
    """Keep health true: a server that cannot store takes no new charges, and says so until it can."""
    said = None
    while True:
        if (why := journal.not_accepting) != said:
            said = why
            await command_server.set_serving(not why)
            if why:
                log.error(f"{NOT_ACCEPTING[why]}: no new charges are taken")
        await asyncio.sleep(0.25)


async def _offer_gauges(runner: Runner, journal: Journal, listen: settings.Address | None) -> None:
    if listen is None:
        return
    for name, text, read in (
        ("oldest_unfinished_seconds", "Age of the oldest unfinished charge", lambda: runner.oldest_unfinished_seconds),
        ("unfinished_charges", "Charges on their way", lambda: runner.unfinished),
        ("charges_needing_attention", "Charges unfinished for too long", lambda: runner.needing_attention),
        ("bank_breaker_open", "1 while the bank is being spared", lambda: runner.breaker_is_open),
        ("journal_position", "The journal's head", lambda: journal.head.position),
        (
            "journal_wal_bytes",
            "What is not in the database yet; a long reader makes it grow",
            lambda: journal.wal_bytes,
        ),
        ("journal_accepting", "1 while new charges can be stored", lambda: journal.accepting),
    ):
        prometheus_client.Gauge(f"chargeonce_{name}", text).set_function(read)
    await metrics.serve(listen)
