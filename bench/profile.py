"""A CPU profile of the command server: python -m bench.profile [--in-flight N] [--seconds S] [--postgres]

The command server runs in this process, as `python -m command_service` would, with a sampler beside it: a timer of the kernel
that counts this process's CPU time (ITIMER_PROF) interrupts it every 2 ms of CPU, and the sampler counts the running lines.
A sampler costs little, unlike a tracing profiler, which makes small functions look large. Bank and load run in processes of
their own.

The signal is handled between two bytecodes of the main thread, so the time within one call into C (gRPC, protobuf) counts for
the line that made the call, and the time of other threads for the line at which the main thread is. The CPU time of each
thread is printed too, from the kernel.
"""

import argparse
import os
import signal
import tempfile
import threading
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType

import uvloop

from bench import sites
from bench.measure import Size, measure
from bench.postgres import make_journal, start_postgres
from chassis import settings, telemetry
from command_service.serving import serve
from command_service.settings import Settings

SAMPLE_SECONDS = 0.002
ROOT = Path(__file__).parent.parent


class Sampler:
    """Counts the main thread's stack each time that the process has used SAMPLE_SECONDS more of CPU time."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        """By the innermost frame."""
        self.owner: Counter[str] = Counter()
        """By the innermost frame of this project, or of the event loop where there is none."""
        self.within: Counter[str] = Counter()
        """By every function of this project on the stack."""
        self.samples = 0

    def start(self) -> None:
        """Begin."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        self.samples += 1
        if frame is None:
            return
        self.own[_place(frame)] += 1
        seen, first = set[str](), ""
        here: FrameType | None = frame
        while here is not None:
            name = here.f_code.co_filename
            if name.startswith(str(ROOT)) and "/build/" not in name and "/bench/" not in name and "/.venv/" not in name:
                place = _function(here)
                first = first or place
                seen.add(place)
            here = here.f_back
        self.owner[first or _library(frame)] += 1
        self.within.update(seen)


def _place(frame: FrameType) -> str:
    return f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


def _function(frame: FrameType) -> str:
    return f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])} {frame.f_code.co_qualname}"


def _library(frame: FrameType) -> str:
    return f"({'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])} {frame.f_code.co_name})"


def _thread_ticks() -> dict[str, tuple[str, int]]:
    names = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    ticks = {}
    for task in Path("/proc/self/task").iterdir():
        name, _, rest = (task / "stat").read_text().rpartition(")")
        fields = rest.split()
        ticks[task.name] = (names.get(task.name, name.partition("(")[2]), int(fields[11]) + int(fields[12]))
    return ticks


async def main(in_flight: int, seconds: float, *, on_postgres: bool) -> None:
    """Serve under load, and print the profile."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bank = await sites.start_bank(stack, folder)
        journal, others = f"sqlite:///{folder / 'journal.db'}", {}
        if on_postgres:
            database = await stack.enter_async_context((await start_postgres(stack)).database())
            await make_journal(database.url)
            journal, others = database.url, dict(database.servers)
        environment = {
            "COMMAND_LISTEN": "127.0.0.1:0",
            "COMMAND_FEED_LISTEN": "127.0.0.1:0",
            "COMMAND_JOURNAL": journal,
            "COMMAND_BANK_URL": f"http://{bank.listen}",
            "COMMAND_DRAIN_SECONDS": "1",
        }
        command = await stack.enter_async_context(serve(settings.read(Settings, environment)))
        query = await sites.start(stack, sites.query_server(folder, str(command.feed_listen)))
        pids = {"service": os.getpid()}, {"bank": bank.pid, "query": query.pid, **others}
        site = sites.Site(str(command.listen), *pids, {}, folder)
        sampler, before = Sampler(), _thread_ticks()
        sampler.start()
        (measured,) = await measure(site, "profiled", [in_flight], Size(1, seconds, 0.5))
        sampler.stop()
        after = _thread_ticks()
    charges = measured.rate * seconds
    print(f"{measured.rate:,.0f} charges/s, CPU ms a charge: {measured.processes_cpu_ms}")
    spent = {task: (name, ticks - before.get(task, ("", 0))[1]) for task, (name, ticks) in after.items()}
    whole = sum(ticks for _, ticks in spent.values()) or 1
    print(f"\nshare of CPU by thread ({charges:,.0f} charges)")
    for name, ticks in sorted(spent.values(), key=lambda each: -each[1])[:8]:
        print(f"  {ticks / whole:6.1%}  {name}")
    for title, counted, most in (
        ("the innermost function of ours, or of the library if none of ours runs", sampler.owner, 45),
        ("functions of ours, with all that they call", sampler.within, 45),
        ("the innermost line", sampler.own, 45),
    ):
        print(f"\n{title}")
        for place, count in counted.most_common(most):
            print(f"  {count / sampler.samples:6.1%}  {place}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.profile")
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--postgres", action="store_true", help="the journal on PostgreSQL")
    chosen = parser.parse_args()
    telemetry.configure_logging("command")
    uvloop.run(main(chosen.in_flight, chosen.seconds, on_postgres=chosen.postgres))
