"""Starts a PostgreSQL with a synchronous standby, to try things with, and keeps it up until Ctrl-C: `make postgres`."""

import asyncio
import contextlib
import signal
import sys

from rig.fleet import migrate
from rig.postgres import database
from rig.postgres_pair import Pair

TEXT = """
A PostgreSQL with a synchronous standby is up, with an empty journal. In other terminals:

  export COMMAND_JOURNAL='{url}'
  .venv/bin/chargeonce mock-bank
  .venv/bin/chargeonce command-server
  COMMAND_LISTEN=127.0.0.1:50061 COMMAND_FEED_LISTEN=127.0.0.1:50063 .venv/bin/chargeonce command-server
  QUERY_FEED=127.0.0.1:50053,127.0.0.1:50063 .venv/bin/chargeonce query-server

Press Enter to kill the primary (kill -9) and promote its standby; Ctrl-C ends both. Nothing of them is kept.
"""


async def main() -> None:
    """Run the pair."""
    loop = asyncio.get_running_loop()
    async with Pair() as pair:
        url = await database(pair)
        await migrate(url)
        print(TEXT.format(url=url), flush=True)
        stop, pressed = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        with contextlib.suppress(OSError, ValueError):  # no terminal
            loop.add_reader(sys.stdin, lambda: pressed.set() if sys.stdin.readline() else loop.remove_reader(sys.stdin))
        while not stop.is_set():
            waits = [asyncio.ensure_future(it.wait()) for it in (stop, pressed)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if pressed.is_set():
                pressed.clear()
                await pair.fail_over()
                print(f"{pair.primary.address} is the primary now. Its standby begins anew ...", flush=True)
                await pair.rejoin()
                print("and is there.", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
