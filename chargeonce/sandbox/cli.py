"""`chargeonce sandbox`: the mock bank and both servers, for the tests of a client in any language."""

import os

# Before the imports, which take most of a start: a parent that dies meanwhile is noticed too.
PARENT = os.getppid()

import asyncio
import contextlib
import fcntl
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from chargeonce import sandbox
from chassis import process, settings, telemetry
from chassis.exposure import is_loopback
from command_service.journal import JournalRefused
from gateway_mock.schema import LedgerUnusable
from query_service.verified import BrokenFeed
from query_service.view_file import ViewUnusable

log = structlog.get_logger()

# How often the parent is looked for. Not PR_SET_PDEATHSIG: the kernel sends this signal when the *thread* ends that started
# the process, and the runtimes of Go, Java and Rust end threads as they like.
LOOK_SECONDS = 0.25
KNOWN_ERRORS = (
    settings.SettingsError,
    OSError,
    sqlite3.Error,
    JournalRefused,
    LedgerUnusable,
    BrokenFeed,
    ViewUnusable,
)
DESCRIPTION = """\
Runs the mock bank, the command server and the query server in one process, for tests of clients in any language.

When all of them serve it prints one line of JSON with their addresses, and closes its standard output:

  {"command": "127.0.0.1:41001", "query": "127.0.0.1:41002", "feed": "127.0.0.1:41003",
   "bank": "http://127.0.0.1:41004", "folder": "/tmp/...", "log": "/tmp/.../sandbox.log", "pid": 4711}

It ends at SIGTERM and Ctrl-C, and when the process that started it has ended, however that came about; one that is started by
process 1, such as a container's, runs until it is told to stop. No money moves, and everybody may do everything here.
The exit status is 0 after an orderly end, and 1 if it cannot serve: then a line on standard error says why.
"""
EPILOG = """\
The servers' own settings, variables of the environment such as COMMAND_MAX_AMOUNTS, hold here too, except addresses and files;
chargeonce command-server --help, query-server --help and mock-bank --help list them."""


def main(arguments: Sequence[str] | None = None, *, program: str = "chargeonce sandbox") -> int:
    """Run the sandbox. See --help. Returns the exit status."""
    process.open_standard_streams()
    process.keep_files_private()
    parser = process.parser(program, DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where journal, view, ledger, log and addresses are kept: started again there, also after kill -9, it goes on "
        "with what it had, on the same ports; without it they are in a temporary folder, which an orderly end removes",
    )
    parser.add_argument(
        "--default-ports",
        action="store_true",
        help="listen on 50051 (commands), 50052 (queries), 50053 (feed) and 8080 (bank); without it on free ports",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="HOST",
        help="the address to listen on, 127.0.0.1 if not given; with 0.0.0.0, as in a container, everybody who reaches the "
        "ports may do everything: COMMAND_OPEN and QUERY_OPEN count as yes",
    )
    chosen = parser.parse_args(arguments)
    environment = dict(os.environ)
    if not is_loopback(chosen.host):
        environment = {"COMMAND_OPEN": "yes", "QUERY_OPEN": "yes", **environment}
    out, said = (os.fdopen(os.dup(stream), "w") for stream in (1, 2))
    try:
        with _kept(chosen.folder) as folder:
            log_file = folder / "sandbox.log"
            _turn_streams_to(log_file)
            ports = sandbox.DEFAULT_PORTS if chosen.default_ports else sandbox.ports_before(folder)
            telemetry.configure_logging("sandbox")

            async def serve_until_stopped(stop: process.StopRequest) -> None:
                watching = asyncio.create_task(_end_with(PARENT))
                async with sandbox.serve(folder, chosen.host, ports, environment) as serving:
                    with out:
                        print(sandbox.told(serving, folder, log_file), file=out)
                    asked = asyncio.create_task(stop.wait())
                    await asyncio.wait([asked, serving.broken], return_when=asyncio.FIRST_COMPLETED)
                    if serving.broken.done():
                        raise serving.broken.result()
                watching.cancel()

            process.serve_until_stopped(serve_until_stopped)
    except KNOWN_ERRORS as error:
        print(f"error: {error}", file=said, flush=True)
        return 1
    return 0


@contextlib.contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """Give the folder, made if need be, or a temporary one that is removed at the end."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    made = Path(tempfile.mkdtemp(prefix="chargeonce-sandbox-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _turn_streams_to(log: Path) -> None:
    """Have all that this process writes to its standard streams go to a file, which no other sandbox has.

    Raises OSError.
    """
    with log.open("ab") as file:
        try:
            fcntl.flock(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # held by the streams, and so for as long as the process lives
        except BlockingIOError:
            raise OSError(f"another sandbox runs over {log.parent}") from None
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


async def _end_with(parent: int) -> None:
    """End this process in order once its parent has ended: then another process is its parent."""
    while parent != 1:
        if os.getppid() != parent:
            log.info("the parent has ended", parent=parent)
            signal.raise_signal(signal.SIGTERM)
            return
        await asyncio.sleep(LOOK_SECONDS)
