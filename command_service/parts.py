"""The parts of a command server, one method a part, and how they are put together.

A server in production, a server of the simulation and one with a planted bug differ in parts only: they override a
method here, or wrap its result. All contacts with the world outside of the process come from here: the clock, chance, the
journal's files, the connection to the bank, and the process's own end.
"""

import os
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import certifi
import httpx
import structlog

from charging.v1.operator_pb2 import GetServerStatusResponse
from chassis import punctual, stderr
from chassis.disk import LOCAL_DISK, Disk
from chassis.exposure import is_loopback
from chassis.settings import SettingsError
from chassis.shares import Rates, Shares
from chassis.tls import ClientTls
from chassis.tracing import Tracer, open_tracer
from chassis.watched import Watched
from command_service.api import CommandService
from command_service.attempts import Memory
from command_service.bank import Bank
from command_service.bank.breaker import Breaker
from command_service.bank.configured import Banks, read_banks
from command_service.bank.dialect import Dialect
from command_service.bank.gateway import Gateway
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.line import Line
from command_service.bank.lines import THE_ONLY_ONE, Lines
from command_service.bank.routes import Route, rule
from command_service.bank.transport import open_transport
from command_service.bank.two_step import TwoStepBank
from command_service.bank.unconfigured import Unconfigured
from command_service.desk import CALLS_AT_ONCE, OperatorService, Reconciler, Room
from command_service.duplicates import Recent
from command_service.feed import Feed
from command_service.intake import Intake, screened
from command_service.journal import Journal
from command_service.journal.commits import RHYTHM, GroupCommit, Rhythm
from command_service.journal.store import Store, random_id
from command_service.observed import Observed
from command_service.owners import Owners
from command_service.reception import Reception
from command_service.runner import Runner
from command_service.settings import Settings, check_way_to
from contract.entrance import Entrance
from contract.errors import command_refusal as refusal

log = structlog.get_logger()

# Exit status when a commit's fate is unknown, from sysexits.h: an I/O error.
EX_IOERR = 74


@dataclass(frozen=True, slots=True)
class Assembled:
    """The parts that run charges, over one journal and its banks."""

    lines: Lines
    runner: Runner
    reception: Reception
    memory: Memory

    async def close(self) -> None:
        """Stop each charge at its present step. It is as safe as a crash, and the next start goes on from there."""
        await self.reception.close()
        await self.runner.close()


class Parts:
    """The parts of a server, by its settings."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        self.watched: list[Watched[Any]] = []
        """What the parts made so far read from files that may be replaced while the server runs."""

    def clock(self) -> float:
        """Return seconds from an arbitrary start. They never go back."""
        return time.monotonic()

    def now(self) -> int:
        """Return the time of day in microseconds since 1970. It may go back."""
        return time.time_ns() // 1_000

    async def wait_until(self, at: float) -> None:
        """Wait until a time of the loop's clock, to well under a millisecond."""
        await punctual.wait_until(at)

    def chance(self) -> random.Random:
        """Make the source of jitter."""
        return random.Random()

    def weights(self) -> Mapping[str, float]:
        """Return the present weights of the tenants' shares."""
        return self.entrance.weights()

    def rate_of(self, tenant: str) -> float | None:
        """Return the number of calls a second that a tenant may make now; None: as many as it likes."""
        return self.entrance.rate_of(tenant)

    def end_process(self) -> NoReturn:
        """End the process without running another line of ours: the next start reads the result of the commit."""
        stderr.drain()  # writes the logged reason; it waits a moment at most, and no other code runs meanwhile
        os._exit(EX_IOERR)

    def disk(self) -> Disk:
        """Return the machine that holds the journal."""
        return LOCAL_DISK

    def new_id(self) -> str:
        """Make the id of a new journal."""
        return random_id()

    def rhythm(self) -> Rhythm:
        """Return the journal's waiting times."""
        return RHYTHM

    async def store(self) -> Store:
        """Open the journal's store. Raises JournalRefused if it must not be used, SettingsError if not over such a network."""
        check_way_to(self.settings.journal, is_open=self.settings.is_open)
        return await self.settings.journal.open(
            new_id=self.new_id,
            free_bytes=self.settings.free_bytes,
            must_exist=self.settings.journal_must_exist,
            any_file_system=self.settings.journal_any_file_system,
            disk=self.disk(),
        )

    async def journal(self) -> Journal:
        """Open the journal, over its store. Raises JournalRefused if it must not be served from."""
        return await GroupCommit.open(
            await self.store(),
            now=self.now,
            end_process=self.end_process,
            rhythm=self.rhythm(),
            observed=self.observed,
        )

    @cached_property
    def tracer(self) -> Tracer | None:
        """What records traces; None if the settings name no collector. Raises SettingsError if it cannot be used."""
        if not self.settings.traces:
            return None
        return open_tracer("COMMAND_TRACES", "chargeonce-command", self.settings.traces, self.settings.traces_sampled)

    @cached_property
    def observed(self) -> Observed:
        """What the server observes of its work. Raises as `tracer`."""
        return Observed(self.clock, self.tracer)

    def close(self) -> None:
        """Send what was traced and not sent yet."""
        if self.tracer is not None:
            self.tracer.close()

    @cached_property
    def entrance(self) -> Entrance:
        """What stands before the ports. Raises Unusable if its files cannot be used."""
        made = Entrance(self.settings, refusal)
        self.watched += made.watched
        return made

    @cached_property
    def configured(self) -> Banks:
        """The banks as the settings name them. Raises Unusable if their file cannot be used."""
        chosen = self.settings
        if chosen.banks is not None:
            return read_banks(chosen.banks)
        only = BankSettings(
            THE_ONLY_ONE,
            "two_step",
            chosen.bank_url,
            tls=chosen.bank_tls,
            calls=chosen.bank_calls,
            timeout_seconds=chosen.bank_timeout_seconds,
        )
        return Banks({THE_ONLY_ONE: only}, (Route({THE_ONLY_ONE: 1.0}),))

    def wire(self, bank: BankSettings) -> httpx.AsyncBaseTransport:
        """Make the HTTP connections to a bank. Raises Unusable or SettingsError if its certificates cannot be used."""
        url = httpx.URL(bank.url)
        if url.scheme == "http" and bank.tls is not None:
            raise SettingsError("COMMAND_BANK_TLS is set, and COMMAND_BANK_URL is http: is https meant?")
        if url.scheme == "http" and not is_loopback(url.host):
            log.warning("the bank is called in plaintext: others may read the calls, and answer them", bank=bank.name)
        verify: ssl.SSLContext | bool = True
        if bank.tls is not None:
            made = ClientTls(bank.tls, default_authorities=Path(certifi.where()))
            self.watched.append(made.watched)
            verify = made.context
        return open_transport(max_connections=bank.calls, verify=verify, proxy=bank.proxy)

    def dialect(self) -> Dialect:
        """Put the API of the bank without a name over its wire."""
        return Gateway(self.settings.bank_url, self.wire(self.configured.banks[THE_ONLY_ONE]))

    def banks(self) -> Mapping[str, Bank]:
        """Make the adapters of all banks, by their names. Raises SettingsError if one cannot be made of its settings."""
        if self.settings.banks is None:
            return {THE_ONLY_ONE: self.bank()}
        return {
            name: KINDS[bank.kind](bank, self.wire(bank), self.watched) for name, bank in self.configured.banks.items()
        }

    def bank(self) -> Bank:
        """Make the adapter of the bank without a name, over its dialect."""
        return TwoStepBank(self.dialect(), call_timeout_seconds=self.settings.bank_timeout_seconds)

    def line(self, bank: Bank, *, calls_at_once: int, name: str = THE_ONLY_ONE) -> Line:
        """Make the line to a bank, with its breaker."""
        breaker = Breaker(self.clock, self.chance())
        return Line(bank, breaker, calls_at_once=calls_at_once, name=name, observed=self.observed)

    def lines(self, banks: Mapping[str, Bank]) -> Lines:
        """Make the lines to all banks."""
        configured = self.configured
        return Lines(
            {
                name: self.line(bank, calls_at_once=configured.banks[name].calls, name=name)
                for name, bank in banks.items()
            },
            partial(rule, configured.routes),
            lambda name: self.line(Unconfigured(name), calls_at_once=1, name=name),
            unnamed=configured.unnamed,
        )

    def runner(self, journal: Journal, lines: Lines) -> Runner:
        """Make the loop."""
        return Runner(
            journal,
            lines,
            abandon_after_seconds=self.settings.abandon_after_seconds,
            now=self.now,
            chance=self.chance(),
            unfinished=Shares(self.settings.max_unfinished, self.weights),
            observed=self.observed,
        )

    def reception(self, journal: Journal, runner: Runner, lines: Lines) -> Reception:
        """Make the door for commands."""
        recent = Recent(self.settings.duplicate_window_seconds, self.now)
        return Reception(journal, runner, lines, recent, self.wait_until)

    def assemble(self, journal: Journal, banks: Mapping[str, Bank]) -> "Assembled":
        """Put together the parts that run charges."""
        lines = self.lines(banks)
        runner = self.runner(journal, lines)
        return Assembled(lines, runner, self.reception(journal, runner, lines), Memory(runner, lines, journal))

    def intake(self) -> Intake:
        """Make the reader and screening of clients' messages."""
        return screened(self.settings.max_amounts)

    def commands(self, reception: Reception) -> CommandService:
        """Make the service that clients call."""
        calls, rates = Shares(self.settings.max_calls, self.weights), Rates(self.rate_of, self.clock)
        return CommandService(self.intake(), reception, calls, rates)

    def operators(
        self,
        journal: Journal,
        assembled: Assembled,
        status: Callable[[str], GetServerStatusResponse] = lambda _: GetServerStatusResponse(),
        reconciler: Reconciler | None = None,
    ) -> OperatorService:
        """Make the service that operators call."""
        return OperatorService(
            journal,
            assembled.runner,
            assembled.lines,
            Room(Shares(CALLS_AT_ONCE, self.weights), Rates(self.rate_of, self.clock)),
            self.wait_until,
            status=status,
            reconciler=reconciler,
        )

    def feed(self, journal: Journal) -> Feed:
        """Make the feed that readers follow."""
        return Feed(journal, Owners(journal).of, observed=self.observed)
