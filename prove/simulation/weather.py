"""The weather of a story: harm that begins at a time and lasts for a while, such as a bank that is down or a full disk."""

from collections.abc import Mapping, Sequence

from prove.simulation.bank import Bank
from prove.simulation.disk import Disk
from prove.simulation.faults import MET
from prove.simulation.outages import Outages
from prove.simulation.plan import Weather
from prove.simulation.servers import Servers
from prove.simulation.stage import Stage

LASTING = ("bank_down", "unauthorized", "disk_full", "clock_before_1970")


class Sky:
    """Brings the plan's weather over banks, a disk and servers."""

    def __init__(
        self, stage: Stage, banks: Mapping[str, Bank], disk: Disk, servers: Servers, outages: Outages | None
    ) -> None:
        """`outages` are those of the database, if there is one."""
        self._stage = stage
        self._banks = banks
        self._disk = disk
        self._servers = servers
        self._outages = outages

    def begin(self, event: Weather) -> None:
        """Begin it, unless the faults have stopped or the mask leaves it out."""
        stage, servers, dice = self._stage, self._servers, self._stage.dice
        if dice.is_over or event.kind in stage.mask.kinds:
            return
        command = servers.a_command()
        match event.kind:
            case "kill_command" if command.alive:
                servers.kill(command, "killed")
            case "stop_command" if command.alive and command.is_up:
                command.start(servers.stop(command))
            case "pause_command" if command.alive:
                command.resumes_at = stage.loop.time() + event.seconds
            case "kill_query":
                view = dice.pick(servers.queries)
                if not view.alive:
                    return
                servers.kill(view, "killed")
            case "stop_query":
                view = dice.pick(servers.queries)
                if not view.alive or not view.is_up:
                    return
                view.start(servers.stop(view))
            case "bank_down" | "bank_silent" | "unauthorized" | "clock_before_1970" | "disk_full":
                self._set(event.kind, event.bank, is_on=True)
                stage.later(event.seconds, self.end, event.kind, event.bank)
            case "bank_restart":
                for bank in self._over(event.bank):
                    bank.lives += 1
            case "clock_jump":
                furthest = stage.plan.clock_jump_seconds * 1e6
                stage.clock_offset += int(dice.uniform(-furthest, furthest))
            case kind if kind.startswith("pg_"):
                if self._outages is None or not self._outages.begin(event):
                    return
            case _:
                return
        if event.kind not in MET:
            dice.fired[event.kind] += 1
        stage.note("weather", event.kind, *([event.bank] if event.bank else []), f"{event.seconds:.1f} s")

    def end(self, kind: str, bank: str | None = None) -> None:
        """End a weather that lasts."""
        self._set(kind, bank, is_on=False)
        self._stage.note("weather", kind, *([bank] if bank else []), "ends")

    def clear(self) -> None:
        """End all faults, for the rest of the story."""
        self._stage.dice.is_over = True
        self._stage.note("weather", "faults stop")
        for kind in LASTING:
            self.end(kind)
        for bank in self._banks.values():
            bank.calm()
        for process in self._servers.processes.values():
            process.ticks_left = 0

    def _over(self, bank: str | None) -> Sequence[Bank]:
        return [*self._banks.values()] if bank is None else [self._banks[bank]]

    def _set(self, kind: str, bank: str | None, *, is_on: bool) -> None:
        match kind:
            case "bank_down":
                for each in self._over(bank):
                    each.is_down = is_on
            case "bank_silent":
                for each in self._over(bank):
                    each.is_silent = is_on
            case "unauthorized":
                for each in self._over(bank):
                    each.is_unauthorized = is_on
            case "clock_before_1970":
                self._stage.is_clock_unset = is_on
            case "disk_full":
                self._disk.is_full = is_on
