"""The life of a server's process: its arguments, standard streams and signals, and its exit status."""

import argparse
import asyncio
import gc
import importlib.metadata
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, NoReturn

import structlog
import uvloop

from chassis import settings

log = structlog.get_logger()

DISTRIBUTION = "chargeonce"
# A server opens some 30 files, sockets and wake-ups before its first client comes (measured).
FEWEST_FILES = 64
# Signals that stop a server in order. A terminal that closes sends SIGHUP, often twice; operators' scripts send the others.
_ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A second one of these means that its sender does not want to wait.
_INSIST = (signal.SIGTERM, signal.SIGINT)
# A process that was started with one of these ignored, as by nohup, is meant to stay.
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Python's own values stop a busy server every few hundred objects, and for 16 to 91 ms whenever all objects are looked through
# (measured). In a server nearly all objects go without a search; gRPC leaves five of a call in a cycle (measured). The units
# are those of gc.set_threshold: objects more than at the last search, then searches of the younger generation.
GARBAGE_THRESHOLDS = (20_000, 10, 100)


def open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream: else the next file or socket gets its number, and then our log."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


def keep_files_private() -> None:
    """Have files that are made from now on belong to their owner alone, and no crash leave a copy of the memory on disk."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def parser(program: str, description: str, *, epilog: str = "") -> argparse.ArgumentParser:
    """Make a program's parser: --help, --version, and the arguments that the caller adds. It refuses all others.

    `program` is the command that the help shows.
    """
    made = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"{DISTRIBUTION} {_version()}")
    return made


def server_parser(
    program: str, description: str, known: type, environment: Mapping[str, str]
) -> argparse.ArgumentParser:
    """Make a server's parser: its settings come from the environment, and --help lists them."""
    return parser(program, description, epilog=settings.describe(known, environment))


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


class StopRequest:
    """Waits for a signal that asks the process to stop.

    A signal before the first `wait` cancels the server's start. Later signals change nothing, except that a second SIGTERM or
    SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._starting = asyncio.current_task()
        for number in _ASK_TO_STOP:
            if number not in _MAY_BE_IGNORED or signal.getsignal(number) != signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._ask, number)

    @property
    def is_asked(self) -> bool:
        """A signal has come."""
        return self._asked.is_set()

    def wait(self) -> Coroutine[Any, Any, Any]:
        """Return, when awaited, once the process is asked to stop. The first call says that the server has started."""
        self._starting = None
        _settle()
        return self._asked.wait()

    def _ask(self, number: signal.Signals) -> None:
        if self.is_asked:
            return
        log.info("asked to stop", signal=number.name)
        self._asked.set()
        for insisting in _INSIST:
            asyncio.get_running_loop().remove_signal_handler(insisting)
            # For process 1, such as a container's, the kernel's default action is none.
            signal.signal(insisting, signal.SIG_DFL if os.getpid() != 1 else _end_at_once)
        if self._starting:
            self._starting.cancel()


def _settle() -> None:
    """Have the garbage collector leave alone what the start has made, which stays, and run seldom.

    So its pauses grow with the calls under way only.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _end_at_once(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


def serve_until_stopped(serve: Callable[[StopRequest], Awaitable[None]]) -> None:
    """Run a server's main coroutine on uvloop. Raises its exceptions, and OSError if the process may open too few files."""

    async def main() -> None:
        stop = StopRequest()
        try:
            await serve(stop)
        except asyncio.CancelledError:
            if not stop.is_asked:
                raise
            log.info("stopped before it served")

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < FEWEST_FILES:
        raise OSError(f"only {allowed} files may be open at once here, a server needs {FEWEST_FILES}: raise ulimit -n")
    uvloop.run(main())


def run(serve: Callable[[StopRequest], Awaitable[None]], known_errors: tuple[type[Exception], ...]) -> NoReturn:
    """Run a server and exit: 0 when it ended in order, 1 after one of the known errors, printed in a line."""
    known: tuple[type[Exception], ...] = (settings.SettingsError, OSError, *known_errors)
    try:
        serve_until_stopped(serve)
    except known as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # for the person who started the server
        sys.exit(1)
    sys.exit(0)
