"""What befalls a simulated PostgreSQL as a whole, and what its operators do about it: one such thing at a time."""

from functools import partial

from prove.simulation.database import Database
from prove.simulation.machine import Machine
from prove.simulation.plan import Weather
from prove.simulation.stage import Stage


class Outages:
    """Kills, pauses and promotes the nodes of a database. Each outage ends by itself with a primary and its standby."""

    def __init__(self, stage: Stage, database: Database) -> None:
        self._stage = stage
        self._dice = stage.dice
        self._database = database
        self._is_busy = False
        database.at_warning = partial(self._fail_over_now, "pg_warned_lost")
        database.at_wait = partial(self._fail_over_now, "pg_killed_in_commit")

    def begin(self, event: Weather) -> bool:
        """Begin what the plan wants; return whether it could."""
        database, dice = self._database, self._dice
        if event.kind == "pg_clock_jump":
            dice.pick(database.machines).clock_offset += dice.uniform(-20.0, 20.0)
            return True
        standby = database.standby
        if self._is_busy or standby is None:
            return False
        self._is_busy = True
        match event.kind:
            case "pg_failover":
                self._fail_over()
            case "pg_paused_failover":
                self._fail_over_while_paused(event.seconds)
            case "pg_restart":
                database.primary.kill()
                self._stage.later(dice.uniform(0.2, 3.0), self._restart, database.primary)
            case "pg_pause":
                database.primary.pause()
                self._stage.later(event.seconds, self._resume, database.primary)
            case "pg_standby_gone":
                standby.kill()
                self._stage.later(event.seconds, self._restart, standby)
        return True

    # ------------------------------------------------------------ failover
    def _fail_over_now(self, kind: str) -> None:
        """Fail over in the middle of something, if nothing else is amiss."""
        if not self._is_busy and self._database.standby is not None:
            self._is_busy = True
            self._dice.met(kind)
            self._fail_over()

    def _fail_over(self) -> None:
        former = self._database.primary
        former.kill()
        self._note(f"node {former.name} is killed")
        self._stage.later(self._dice.uniform(0.05, 3.0), self._promote)
        self._stage.later(self._dice.uniform(3.0, 6.0), self._bring_back, former)

    def _fail_over_while_paused(self, seconds: float) -> None:
        former = self._database.primary
        former.pause()
        self._note(f"node {former.name} stands still")
        self._stage.later(self._dice.uniform(0.05, 3.0), self._promote)
        self._stage.later(3.0 + min(seconds, 5.0), self._go_on, former)

    def _promote(self) -> None:
        self._database.promote(waits_for_standby=self._dice.whole(0, 1) == 0)
        self._note(f"node {self._database.primary.name} is promoted")

    def _bring_back(self, former: Machine) -> None:
        """It comes back as what it was, or at once as the standby."""
        if not self._dice.draws("pg_old_primary"):
            self._take_in(former)
            return
        self._dice.met("pg_old_primary")
        former.restart()
        former.waits_for_standby = self._dice.whole(0, 2) == 0
        self._database.has_pretender = not former.waits_for_standby
        self._note(f"node {former.name} is back, and does not know that it was relieved")
        self._stage.later(self._dice.uniform(1.0, 6.0), self._take_in, former)

    def _go_on(self, former: Machine) -> None:
        former.resume()
        self._note(f"node {former.name} goes on, and does not know that it was relieved")
        self._stage.later(self._dice.uniform(0.5, 6.0), self._take_in, former)

    def _take_in(self, former: Machine) -> None:
        self._database.has_pretender = False
        self._database.take_in(former)
        self._note(f"node {former.name} is the standby now")
        self._is_busy = False

    # ------------------------------------------------------------ without failover
    def _restart(self, machine: Machine) -> None:
        machine.restart()
        self._database.follow_again()
        self._note(f"node {machine.name} is up again")
        self._is_busy = False

    def _resume(self, machine: Machine) -> None:
        machine.resume()
        self._is_busy = False

    def _note(self, text: str) -> None:
        self._stage.note("database", text)
