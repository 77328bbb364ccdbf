"""The cost of a process, as the kernel counts it: CPU time and memory of a process and its children, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a process and all its descendants."""

    cpu_seconds: float
    """User and system time, that of ended children included."""
    memory_mb: float
    """Proportional set size in MB (10^6 bytes): a page shared by n processes counts 1/n in each."""


def cost(pid: int) -> Cost:
    """The cost of a process and all its descendants until now; zero if it has ended."""
    ticks, kilobytes = 0, 0
    for each in [pid, *_below(pid)]:
        try:
            # The name, in brackets, may hold blanks: fields are counted after it.
            fields = (PROC / str(each) / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
            kilobytes += _proportional_kilobytes(each)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Cost(ticks * TICK_SECONDS, kilobytes * 1024 / 1e6)


def _below(pid: int) -> list[int]:
    try:
        children = [
            int(child)
            for task in (PROC / str(pid) / "task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [each for child in children for each in _below(child)]


def _proportional_kilobytes(pid: int) -> int:
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def load_average() -> float:
    """The mean number of processes that wanted to run over the last minute: other load on this machine."""
    return os.getloadavg()[0]
