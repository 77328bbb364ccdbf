"""The command server's process, and its operator's commands: the only place that builds things and reads settings."""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NoReturn

# Before grpc is loaded: its C core writes to standard error by itself, from threads that serve, which a pipe that nobody
# reads would stop for ever. What it would say we say ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import prometheus_client
import structlog

from charging.v1 import command_pb2_grpc
from chassis import metrics, process, server, settings, stderr, telemetry
from command_service.api import CommandService
from command_service.bank.gateway import GatewayBank
from command_service.bank.transport import open_transport
from command_service.charge import ImpossibleEvent
from command_service.codec import UnknownEvent
from command_service.errors import DOMAIN, Reason, refusal
from command_service.feed import Feed, JournalService
from command_service.journal import JournalCorrupt, JournalRefused
from command_service.journal.file_system import IN_MEMORY, kind_of
from command_service.journal.sqlite import SqliteJournal
from command_service.journal.upkeep import backup
from command_service.operate import print_journal, restore_journal, verify_journal
from command_service.runner import Limits, Runner
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
# Exit status when a commit's fate is unknown, from sysexits.h: an I/O error.
EX_IOERR = 74
# Where the journal was by default before; a server that begins another one beside it would charge anew.
FORMER_JOURNAL = Path("build/journal.db")


@dataclass(frozen=True, slots=True)
class Running:
    """A command server at work, for whoever started it in this process."""

    listen: settings.Address
    feed_listen: settings.Address
    runner: Runner
    journal: SqliteJournal


@asynccontextmanager
async def serve(chosen: Settings) -> AsyncIterator[Running]:
    """Run a command server; leaving the context drains it.

    Raises JournalRefused if the journal must not be served from, OSError if an address cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        journal = await SqliteJournal.open(
            chosen.journal,
            now=_now,
            end_process=_end_process,
            free_bytes=chosen.free_bytes,
            must_exist=chosen.journal_must_exist,
            any_file_system=chosen.journal_any_file_system,
        )
        stack.push_async_callback(journal.close)
        bank = GatewayBank(
            chosen.bank_url,
            open_transport(max_connections=chosen.bank_calls),
            call_timeout_seconds=chosen.bank_timeout_seconds,
        )
        stack.push_async_callback(bank.close)
        limits = Limits(
            bank_calls=chosen.bank_calls,
            unfinished=chosen.max_unfinished,
            abandon_after_seconds=chosen.abandon_after_seconds,
            attention_after_seconds=chosen.attention_after_seconds,
        )
        runner = Runner(journal, bank, limits, clock=time.monotonic, now=_now, chance=random.Random())
        stack.push_async_callback(runner.close)
        commands = CommandService(runner, max_calls=chosen.max_calls, max_amounts=chosen.max_amounts)
        feed = Feed(journal)
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
            journal=str(chosen.journal.absolute()),
            journal_id=journal.journal_id,
            made_anew=journal.made_anew,
            position=journal.head.position,
            restored=journal.restored,
            unfinished=found,
        )
        if kind_of(chosen.journal) in IN_MEMORY:
            log.warning("the journal lies in memory: it does not outlive this machine's power")
        yield Running(command_server.address, feed_server.address, runner, journal)
        log.info("draining", unfinished=runner.unfinished)
        watching.cancel()
        # Waiting calls get most of the time to see their outcome, and the rest of it to say that there is none yet.
        asyncio.get_running_loop().call_later(chosen.drain_seconds * 0.8, commands.stop)
        await command_server.drain(chosen.drain_seconds)
        feed.stop()  # last, so that readers are told of the last outcomes too
        await feed_server.drain(2.0)
        log.info("stopped", position=journal.head.position, unfinished=runner.unfinished)


async def _tell_health(journal: SqliteJournal, command_server: server.Server) -> NoReturn:
    """Keep health true: a server that cannot store takes no new charges, and says so until it can."""
    said = None
    while True:
        if (why := journal.not_accepting) != said:
            said = why
            await command_server.set_serving(not why)
            if why:
                log.error(f"{NOT_ACCEPTING[why]}: no new charges are taken")
        await asyncio.sleep(0.25)


async def _offer_gauges(runner: Runner, journal: SqliteJournal, listen: settings.Address | None) -> None:
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


def _now() -> int:
    return time.time_ns() // 1_000


def _end_process() -> NoReturn:
    """End without another line of ours being run: what a commit left behind is the next start's to find out."""
    stderr.drain()  # the reason, which was logged; it waits a moment at most, and nothing else runs meanwhile
    os._exit(EX_IOERR)


def _read_settings() -> Settings:
    if "COMMAND_JOURNAL" not in os.environ and FORMER_JOURNAL.exists():
        raise settings.SettingsError(
            f"COMMAND_JOURNAL is not set, and {FORMER_JOURNAL}, the default of an earlier version, holds a journal: set "
            f"COMMAND_JOURNAL=sqlite:///{FORMER_JOURNAL} to go on with it, or move it away"
        )
    return settings.read(Settings, os.environ)


async def _serve_until_stopped(stop: process.StopRequest) -> None:
    async with serve(_read_settings()):
        await stop.wait()


def main() -> None:
    """Run the server, or one of the operator's commands."""
    process.open_standard_streams()
    parser = process.server_parser(
        "command_service",
        "Charges cards, each exactly once. Without a command it serves. COMMAND_JOURNAL names the journal.",
        Settings,
        os.environ,
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    printing = commands.add_parser("print-journal", help="print the journal, or one charge's stream")
    printing.add_argument("charge", nargs="?", help="the charge's id")
    commands.add_parser("verify-journal", help="verify all of the journal; exit status 1 if it is damaged")
    backing_up = commands.add_parser("backup", help="copy the journal, also while the server runs, to a new file")
    backing_up.add_argument("to", type=Path)
    restoring = commands.add_parser(
        "restore", help="put a backup in the journal's place, or accept the file that is there, under a new journal id"
    )
    restoring.add_argument("backup", type=Path, nargs="?")
    chosen = parser.parse_args()
    if chosen.command is None:
        telemetry.configure_logging("command")
        process.run(_serve_until_stopped, (JournalRefused,))
    try:
        read = _read_settings()
        path = read.journal
        match chosen.command:
            case "print-journal":
                # Who reads only the head wants no more, and no error: it ends quietly, as any filter does.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                for line in print_journal(path, chosen.charge):
                    print(line)
            case "verify-journal":
                print(verify_journal(path))
            case "backup":
                place = backup(path, chosen.to)
                print(f"copied {place.position} records to {chosen.to}, chain {place.chain.hex()}")
            case "restore":
                journal_id, place = restore_journal(path, chosen.backup, any_file_system=read.journal_any_file_system)
                print(f"restored: {place.position} records under the new journal id {journal_id}")
    except (settings.SettingsError, JournalRefused, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
