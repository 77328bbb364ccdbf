"""Handshakes that never end take nothing from clients that mean well, and are let go."""

import resource
import select
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tls.conftest import safe_town
from tests.tls.probes import Callers, context

HALF_OPEN = 2_000
# The beginning of a ClientHello that promises 512 bytes.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
# A handshake may take five seconds; the rest is for a machine that is busy.
LET_GO_SECONDS = 60
# A good client's handshake and first answer, in the median beside 2,000 others: one that had to wait for these would wait
# for their five seconds each time.
GOOD_SECONDS = 3.0


@pytest.fixture
def many_files() -> Iterator[None]:
    """Servers that are started meanwhile may open as many files as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("which", ["command", "command metrics", "bank"])
async def test_2000_half_open_and_slow_handshakes_while_good_clients_go_on(
    which: str, tmp_path: Path, many_files: None
) -> None:
    async with safe_town(tmp_path) as safe:
        port, trusted = safe.ports[which], context(safe.authority.pem, safe.client)
        took: list[tuple[float, float]] = []

        def good() -> bool:
            began = time.monotonic()
            answers = port.answers(trusted)
            took.append((began, time.monotonic() - began))
            return answers

        lines: list[socket.socket] = []
        try:
            with Callers(("good", good)) as callers:
                lines += [socket.create_connection(("127.0.0.1", port.number), 20) for _ in range(HALF_OPEN)]
                are_open = time.monotonic()
                drip(lines[::2], 4)
            assert callers.failed == []
            assert statistics.median([seconds for began, seconds in took if began >= are_open]) < GOOD_SECONDS
            let_go(lines, LET_GO_SECONDS)
        finally:
            for line in lines:
                line.close()
        assert port.answers(trusted)


def drip(lines: list[socket.socket], seconds: float) -> None:
    """Send a hello on each line, byte by byte."""
    for byte in HELLO:
        for line in lines:
            with suppress(OSError):  # it may have been let go already
                line.send(bytes([byte]))
        time.sleep(seconds / len(HELLO))


def let_go(lines: list[socket.socket], seconds: float) -> None:
    """Wait until the server has closed all of these connections."""
    poll, waiting = select.poll(), {line.fileno(): line for line in lines}
    for line in lines:
        poll.register(line, select.POLLIN)
    ends = time.monotonic() + seconds
    while waiting and time.monotonic() < ends:
        for number, _ in poll.poll(1_000):
            try:
                is_open = bool(waiting[number].recv(4096))  # an alert, or its HTTP/2 settings, may come first
            except OSError:
                is_open = False
            if not is_open:
                poll.unregister(number)
                del waiting[number]
    assert len(waiting) == 0, f"{len(waiting)} connections are still open"
