"""The parts of a command server, one method a part, and how they are put together.

A server in production, a server of the simulation and one with a planted bug differ in parts only: they override a
method here, or wrap what it gives. Whatever reaches outside of the process comes from here: the clock, chance, the
journal's files, the connection to the bank, and the process's own end.
"""

import os
import random
import time
from typing import NoReturn

import httpx

from chassis import stderr
from command_service.api import CommandService
from command_service.bank import Bank
from command_service.bank.gateway import Gateway
from command_service.bank.transport import open_transport
from command_service.bank.two_step import Dialect, TwoStepBank
from command_service.feed import Feed
from command_service.journal.sqlite import SqliteJournal
from command_service.runner import Limits, Runner
from command_service.settings import Settings

# Exit status when a commit's fate is unknown, from sysexits.h: an I/O error.
EX_IOERR = 74


class Parts:
    """The parts that a server's settings ask for."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen

    def clock(self) -> float:
        """Return seconds from an arbitrary start. They never go back."""
        return time.monotonic()

    def now(self) -> int:
        """Return the time of day in microseconds since 1970. It may go back."""
        return time.time_ns() // 1_000

    def chance(self) -> random.Random:
        """Make the source of jitter."""
        return random.Random()

    def end_process(self) -> NoReturn:
        """End the process without running another line of ours: the next start finds out what a commit left behind."""
        stderr.drain()  # the reason, which was logged; it waits a moment at most, and nothing else runs meanwhile
        os._exit(EX_IOERR)

    async def journal(self) -> SqliteJournal:
        """Open the journal. Raises JournalRefused if it must not be served from."""
        return await SqliteJournal.open(
            self.settings.journal,
            now=self.now,
            end_process=self.end_process,
            free_bytes=self.settings.free_bytes,
            must_exist=self.settings.journal_must_exist,
            any_file_system=self.settings.journal_any_file_system,
        )

    def wire(self) -> httpx.AsyncBaseTransport:
        """Make the HTTP connections to the bank."""
        return open_transport(max_connections=self.settings.bank_calls)

    def dialect(self) -> Dialect:
        """Put the bank's own API over the wire."""
        return Gateway(self.settings.bank_url, self.wire())

    def bank(self) -> Bank:
        """Make the bank's adapter, over its dialect."""
        return TwoStepBank(self.dialect(), call_timeout_seconds=self.settings.bank_timeout_seconds)

    def limits(self) -> Limits:
        """Say how much happens at once, and for how long."""
        return Limits(
            bank_calls=self.settings.bank_calls,
            unfinished=self.settings.max_unfinished,
            abandon_after_seconds=self.settings.abandon_after_seconds,
            attention_after_seconds=self.settings.attention_after_seconds,
        )

    def runner(self, journal: SqliteJournal, bank: Bank) -> Runner:
        """Make the loop."""
        return Runner(journal, bank, self.limits(), clock=self.clock, now=self.now, chance=self.chance())

    def reception(self, runner: Runner) -> Runner:
        """Make the door for commands."""
        return runner

    def commands(self, reception: Runner) -> CommandService:
        """Make the service that clients call."""
        return CommandService(reception, max_calls=self.settings.max_calls, max_amounts=self.settings.max_amounts)

    def feed(self, journal: SqliteJournal) -> Feed:
        """Make the feed that readers follow."""
        return Feed(journal)
