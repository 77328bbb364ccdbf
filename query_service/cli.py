"""The query server's command line."""

import asyncio
import gc
import os
import sqlite3
from collections.abc import Sequence
from typing import Any

# Before grpc is loaded: its C core writes to standard error from threads that serve, and a pipe without a reader would block
# these for ever. The server logs such errors itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from chassis import process, settings, telemetry
from query_service.serving import serve
from query_service.settings import Settings
from query_service.verified import BrokenFeed
from query_service.view_file import ViewUnusable

# A batch is some forty thousand rows and records, and as many may arrive meanwhile. All are freed without the collector;
# its scan of them every 700 allocations costs a third of the projection's time (measured).
COLLECTED_AFTER = 100_000


PROGRAM = "python -m query_service"


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> None:
    """Run the server. See --help."""
    process.open_standard_streams()
    process.keep_files_private()
    process.server_parser(
        program, "Answers queries from a view of the charges, which it follows.", Settings, os.environ
    ).parse_args(arguments)
    telemetry.configure_logging("query")
    gc.set_threshold(COLLECTED_AFTER)
    process.run(_serve_until_stopped, (BrokenFeed, ViewUnusable, sqlite3.OperationalError))


async def _serve_until_stopped(stop: process.StopRequest) -> None:
    async with serve(settings.read(Settings, os.environ)) as running:
        damages = [mirror.view.damage for mirror in running.mirrors]
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait()), *damages]
        await asyncio.wait([*ends, running.following], return_when=asyncio.FIRST_COMPLETED)
        if running.following.done():
            running.following.result()  # raises what broke; a stopped projection breaks nothing: its view is still served
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for damage in damages:
            if damage.done():
                raise damage.result()
