"""Starts servers with a charge in each situation in which it is stuck, and says how to look at them: `make stuck`."""

import asyncio
import contextlib
import os
import signal
import sys

from charging.v1.query_pb2 import Situation
from contract.situations import SITUATIONS
from rig import stuck
from rig.processes import DidNotStart
from rig.staffed import BANKS

# Not SERVER_AWAY: nothing could be tried without the server. A line of the standard input tells to stop it.
HERE = [it for it in stuck.ORDER if it != Situation.SITUATION_SERVER_AWAY]

TEXT = """
{charges}

In other terminals, as the operator ann, and as ben, who approves what ann has proposed:

  export CHARGEONCE_COMMAND={command} CHARGEONCE_QUERY={query} CHARGEONCE_FEED={feed}
  export CHARGEONCE_TOKEN_FILE={folder}/ann.token
  .venv/bin/chargeonce explain in-review-1

The tokens of the client, shop, and of an operator of all tenants, night, are there too. The banks' statements:
  {banks}
Prometheus reads http://{command_metrics}/metrics and http://{query_metrics}/metrics.

Type a key here to end the cause of that charge's trouble, or `stop` and `start` for the command server; Ctrl-C ends everything.
Nothing is kept."""


async def main() -> None:
    """Run the world until a signal asks to stop."""
    telling = asyncio.ensure_future(_tell())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, telling.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await telling


async def _tell() -> None:
    print(
        "Starting three banks, a command server and a query server, and bringing charges into trouble ...", flush=True
    )
    async with stuck.world() as world:
        for situation in HERE:
            await world.provoke(situation)
        at = world.addresses
        print(
            TEXT.format(
                charges="\n".join(f"  {it.key:<22}{SITUATIONS[it.situation].what}" for it in world.stuck.values()),
                command=at["command"],
                query=at["query"],
                feed=at["feed"],
                folder=world.folder,
                banks=", ".join(f"{name} http://{at[name]}/statement" for name in BANKS),
                command_metrics=at["command metrics"],
                query_metrics=at["query metrics"],
            ),
            flush=True,
        )
        lines: asyncio.Queue[str] = asyncio.Queue()
        with contextlib.suppress(OSError, ValueError):  # no terminal: until a signal
            asyncio.get_running_loop().add_reader(sys.stdin, _read, lines)
        while True:
            try:
                await _do(world, (await lines.get()).strip())
            except DidNotStart as error:
                print(f"{error}\nEnd the cause of another charge's trouble first.", flush=True)


def _read(lines: "asyncio.Queue[str]") -> None:
    """Hand on what was typed. Not by `readline`, which would keep a second line to itself."""
    typed = os.read(sys.stdin.fileno(), 4096)
    for line in typed.decode(errors="replace").splitlines():
        lines.put_nowait(line)
    if not typed:
        asyncio.get_running_loop().remove_reader(sys.stdin)


async def _do(world: stuck.StuckWorld, word: str) -> None:
    if word in world.stuck:
        await world.mend(word)
        print(f"{word}: its cause has ended", flush=True)
    elif word in ("stop", "start"):
        await (world.stop_command() if word == "stop" else world.start_command())
        print(f"the command server: {word}", flush=True)
    elif word:
        print(f"neither a key, nor stop or start: {word}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
