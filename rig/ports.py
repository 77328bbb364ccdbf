"""Ports that are kept: a server that is down for a moment finds its own again, whoever asks for any port meanwhile.

A socket that is bound and never listens keeps the kernel from giving its port away, and is in no listener's way.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from rig.processes import Town


@contextlib.contextmanager
def kept(count: int) -> Iterator[list[str]]:
    """Keep so many ports, as host:port."""
    with contextlib.ExitStack() as stack:
        addresses = []
        for _ in range(count):
            placeholder = stack.enter_context(socket.socket())
            placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            placeholder.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{placeholder.getsockname()[1]}")
        yield addresses


@contextlib.contextmanager
def town_with_kept_ports(folder: Path) -> Iterator[Town]:
    """A town, not started yet, whose servers are always on the same ports."""
    with kept(4) as (bank, command, feed, query):
        town = Town(folder)
        town.bank.serving = {"listen": bank}
        town.command.serving = {"listen": command, "feed": feed}
        town.query.serving = {"listen": query}
        yield town
