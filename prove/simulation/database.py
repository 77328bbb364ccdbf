"""A simulated PostgreSQL: a primary, its synchronous standby, and the way between them.

A record is durable when both nodes hold it, or when the primary holds it whose operator has taken it off its standby: then no
failover is allowed until there is a standby again that holds all.
"""

import asyncio
from collections.abc import Callable

from command_service.journal.postgres.session import Lost
from command_service.journal.postgres.session import Session as AnySession
from prove.simulation.durable import Durable
from prove.simulation.host import Process
from prove.simulation.machine import Machine
from prove.simulation.sessions import Session
from prove.simulation.stage import Stage
from prove.simulation.tables import Inserted

# As the real one's.
CONNECT_SECONDS = 3.0
# From node to node, one way.
LATENCY_SECONDS = (0.0002, 0.003)


class Database:
    """Two nodes, one of which is the primary."""

    def __init__(self, stage: Stage, durable: Durable, journal_id: str) -> None:
        self.journal_id = journal_id
        self.machines = (Machine("a", stage, self._note_written), Machine("b", stage, self._note_written))
        self.primary = self.machines[0]
        self.standby: Machine | None = self.machines[1]
        self.has_pretender = False
        """A former primary takes commits without a standby: PostgreSQL's operators have failed to keep it away."""
        self.at_warning: Callable[[], None] = lambda: None
        """A wait for the standby was cancelled, and what was written is to be lost by a failover."""
        self.at_wait: Callable[[], None] = lambda: None
        """A commit waits for the standby, and the primary is to die meanwhile."""
        self._stage = stage
        self._durable = durable
        self._noted = 0
        self._era = 0
        """Which primary it is, counted: what is on its way from an earlier one is nothing any more."""
        self._stalls_until = 0.0
        for machine in self.machines:
            machine.warns = lambda machine=machine: self._warns(machine)  # type: ignore[misc]
        self.machines[1].is_standby = True

    def nodes_for(self, process: Process) -> "list[Node]":
        """The nodes as a process knows them."""
        return [Node(self._stage, self, machine, process) for machine in self.machines]

    def spoils(self, kind: str, machine: Machine) -> bool:
        """Whether a fault happens now to a session of a node. Beside a pretender the primary is within reach, always."""
        return not (self.has_pretender and machine is self.primary) and self._stage.dice.fires(kind)

    # ------------------------------------------------------------ replication
    def _note_written(self, machine: Machine) -> None:
        if machine is not self.primary:
            return
        if not machine.waits_for_standby:
            self._note_durable(len(machine.log))
        self._send_soon()

    def _send_soon(self) -> None:
        self._stage.later(self._latency(), self._ship, self._era, len(self.primary.log))

    def _ship(self, era: int, until: int) -> None:
        standby = self.standby
        if era != self._era or standby is None or not standby.is_up or standby.is_paused:
            return
        if (left := self._stalls_until - self._stage.loop.time()) > 0:
            self._stage.later(left, self._ship, era, until)
            return
        standby.receive(self.primary.log[len(standby.log) : until])
        self._note_durable(len(standby.log))
        self._stage.later(self._latency(), self._confirm, era, until)

    def _confirm(self, era: int, until: int) -> None:
        if era == self._era:
            self.primary.note_confirmed(until)

    def _note_durable(self, until: int) -> None:
        for change in self.primary.log[self._noted : until]:
            if isinstance(change, Inserted):
                for position, key, _, _, chain, event in change.rows:
                    self._durable.note(position, key, chain, event)
        self._noted = max(self._noted, until)

    def _latency(self) -> float:
        return self._stage.dice.uniform(*LATENCY_SECONDS)

    def _warns(self, machine: Machine) -> bool:
        """Whether a wait is cancelled: then what was written comes to the standby late, or never."""
        if machine is not self.primary:
            return False
        if self._stage.dice.draws("pg_killed_in_commit"):
            self._stage.later(self._stage.dice.uniform(0.0, sum(LATENCY_SECONDS)), self.at_wait)
        if not self.spoils("pg_warned", machine):
            return False
        self._stalls_until = self._stage.loop.time() + self._stage.dice.uniform(0.2, 3.0)
        if self._stage.dice.draws("pg_warned_lost"):
            self._stage.later(self._stage.dice.uniform(0.0, 0.1), self.at_warning)
        self._stage.note(f"node {machine.name}", "a wait for the standby is cancelled")
        return True

    # ------------------------------------------------------------ what operators do
    def follow_again(self) -> None:
        """The standby is back, and gets what it missed."""
        self._send_soon()

    def promote(self, *, waits_for_standby: bool) -> None:
        """Make the standby the primary."""
        assert self.standby is not None
        former, self.primary, self.standby = self.primary, self.standby, None
        self._era += 1
        self._stalls_until = 0.0
        self.primary.promote(former.timeline + 1, waits_for_standby=waits_for_standby)

    def take_in(self, machine: Machine) -> None:
        """Make a former primary the standby: it forgets all that the primary does not hold."""
        machine.become_standby_of(self.primary)
        self.standby = machine
        self._era += 1
        self._note_durable(len(machine.log))
        self.primary.waits_for_standby = True
        self.primary.note_confirmed(len(machine.log))


class Node:
    """A node, as one process knows it."""

    def __init__(self, stage: Stage, database: Database, machine: Machine, process: Process) -> None:
        self.name = f"node {machine.name}"
        self._stage = stage
        self._database = database
        self._machine = machine
        self._process = process

    async def connect(self) -> AnySession:
        """Open a connection. Raises Lost if that is not possible now."""
        await asyncio.sleep(self._stage.dice.uniform(0.001, 0.005))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._machine.awake()
        except TimeoutError:
            raise Lost(f"{self.name} does not answer") from None
        if not self._machine.is_up or self._database.spoils("pg_unreachable", self._machine):
            raise Lost(f"{self.name} cannot be reached")
        session = Session(self._stage, self._database, self._machine)
        self._process.sessions.append(session)
        return session
