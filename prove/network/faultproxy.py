"""A TCP proxy that does wrong on order: it stands between any two parties and knows nothing of what they say.

1. A fault is ordered, and waits. The first chunk of bytes that goes its way (and holds `when`, if that is given) on a link
   without a fault claims it; from that chunk on so many bytes still get through, and then it fires.
2. `fired` counts what was really done to somebody's bytes, not what was ordered.
3. Without faults it is a wire: bytes go on in order, and an end that stops reading stops the other one.
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

# More than any request of ours, so that one usually is one chunk; small enough for a thousand links.
CHUNK_BYTES = 32 << 10
# Many requests; a copy is not to grow with what a link carries.
COPIED_BYTES = 256 << 10


class Kind(StrEnum):
    """What is done to a link."""

    DELAY = "delay"
    """The bytes come `seconds` later."""
    CUT = "cut"
    """Both ends are closed, in order (FIN)."""
    RESET = "reset"
    """Both ends are reset (RST): what was under way may be lost."""
    BLACK_HOLE = "black_hole"
    """Nothing gets through any more, either way, and nobody is told: to each end the other is just silent."""
    STALL = "stall"
    """Bytes of this way are not read any more, as by a reader that does not read."""
    THROTTLE = "throttle"
    """From now on a byte each `seconds`."""
    LOSE_ANSWER = "lose_answer"
    """What goes up gets through. What comes down after it does not: `seconds` after its first byte both ends are closed."""
    DUPLICATE = "duplicate"
    """What goes up within `seconds` is sent a second time after that, over a link of its own."""
    FORGE = "forge"
    """Instead of these bytes come others, `forged`, and then the link is closed."""


class Way(StrEnum):
    """Which way bytes go: up to the server, or down to the client."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong once."""

    kind: Kind
    way: Way = Way.UP
    when: bytes = b""
    after_bytes: int = 0
    seconds: float = 0.1
    forged: Iterable[bytes] = ()


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    streams: dict[Way, tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    fault: Fault | None = None
    left_bytes: int = 0
    copied: bytearray | None = None
    silence_seconds: float | None = None
    """How long the link is silent, once an answer that is to be lost has come. None: no answer is to be lost."""
    has_fired: bool = False
    is_dark: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, *, reset: bool) -> None:
        """Close both ends."""
        for _, sink in self.streams.values():
            if reset and (raw := sink.get_extra_info("socket")) is not None:
                # Lingering for no time turns a close into a reset.
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sink.transport.abort()
            else:
                sink.close()
        self.gone.set()


class Proxy:
    """Listens on a port of its own for one server. `upstream` says where that is, each time somebody connects."""

    def __init__(self, upstream: Callable[[], tuple[str, int]]) -> None:
        self._upstream = upstream
        self._ordered: list[Fault] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Condition()
        self.address = ""
        self.moved_bytes = 0
        self.fired: Counter[str] = Counter()
        self.hung_up: Counter[Way] = Counter()
        """On dark links: which end has noticed and closed. UP is the client's end, DOWN the server's."""

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=2_000)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.end_all(reset=True)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    @property
    def links(self) -> int:
        """How many links there are now."""
        return len(self._links)

    # ------------------------------------------------------------ orders
    def order(self, *faults: Fault) -> None:
        """Let these happen, in this order, each to the first link that fits."""
        self._ordered += faults

    def forget(self) -> None:
        """Nothing that still waits will happen."""
        self._ordered.clear()

    def end_all(self, *, reset: bool) -> int:
        """End every link now; return how many there were."""
        links = list(self._links)
        for link in links:
            link.end(reset=reset)
        self.fired["reset" if reset else "cut"] += len(links)
        return len(links)

    def darken_all(self) -> int:
        """Make a black hole of every link that there is now; return how many."""
        for link in self._links:
            link.is_dark = True
        self.fired[Kind.BLACK_HOLE] += len(self._links)
        return len(self._links)

    async def has_moved(self, total_bytes: int) -> None:
        """Return once so many bytes have come by, both ways together."""
        async with self._moving:
            await self._moving.wait_for(lambda: self.moved_bytes >= total_bytes)

    # ------------------------------------------------------------ the wire
    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = None
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._upstream())
            link = _Link({Way.UP: (reader, server_writer), Way.DOWN: (server_reader, writer)})
            self._links.add(link)
            await asyncio.gather(self._pump(link, Way.UP), self._pump(link, Way.DOWN))
        except OSError:
            pass  # nobody listens up there, or an end was reset: the other end hears of it below
        except asyncio.CancelledError:
            pass  # the proxy closes; streams log a handler that ends otherwise
        finally:
            self._tasks.discard(task)
            writer.close()
            if link is not None:
                self._links.discard(link)
                link.end(reset=False)

    async def _pump(self, link: _Link, way: Way) -> None:
        source, sink = link.streams[way]
        while chunk := await self._read(link, way, source):
            self.moved_bytes += len(chunk)
            async with self._moving:
                self._moving.notify_all()
            if link.is_dark:
                continue
            if sink.is_closing():
                break
            if link.silence_seconds is not None and way is Way.DOWN:
                self.fired[Kind.LOSE_ANSWER] += 1
                await asyncio.sleep(link.silence_seconds)
                link.end(reset=False)
                break
            if link.fault is None and (fault := self._claim(way, chunk)) is not None:
                link.fault, link.left_bytes = fault, fault.after_bytes
            if link.fault is not None and link.fault.way is way:
                chunk = await self._spoil(link, link.fault, chunk, sink)  # what is left of it
            if chunk and not sink.is_closing():
                sink.write(chunk)
                await sink.drain()
        if not link.is_dark and sink.can_write_eof() and not sink.is_closing():
            sink.write_eof()

    async def _read(self, link: _Link, way: Way, source: asyncio.StreamReader) -> bytes:
        try:
            chunk = await source.read(CHUNK_BYTES)
        except OSError:
            chunk = b""
            if not link.is_dark:
                link.end(reset=True)
        if not chunk and link.is_dark:
            self.hung_up[way] += 1
        return chunk

    def _claim(self, way: Way, chunk: bytes) -> Fault | None:
        for fault in self._ordered:
            if fault.way is way and fault.when in chunk:
                self._ordered.remove(fault)
                return fault
        return None

    async def _spoil(self, link: _Link, fault: Fault, chunk: bytes, sink: asyncio.StreamWriter) -> bytes:
        """Do to a chunk what its link's fault says; return what is to go on as it is."""
        if link.left_bytes >= len(chunk):
            link.left_bytes -= len(chunk)
            return chunk
        passed, rest, link.left_bytes = chunk[: link.left_bytes], chunk[link.left_bytes :], 0
        if fault.kind not in (Kind.DUPLICATE, Kind.LOSE_ANSWER) and not link.has_fired:
            self.fired[fault.kind] += 1
        link.has_fired = True
        if passed:
            sink.write(passed)
            await sink.drain()
        match fault.kind:
            case Kind.DELAY:
                link.fault, link.has_fired = None, False
                await asyncio.sleep(fault.seconds)
                return rest
            case Kind.CUT | Kind.RESET:
                link.end(reset=fault.kind is Kind.RESET)
            case Kind.BLACK_HOLE:
                link.is_dark = True
            case Kind.STALL:
                await link.gone.wait()
            case Kind.THROTTLE:
                for byte in rest:
                    if sink.is_closing():
                        break
                    sink.write(bytes([byte]))
                    await sink.drain()
                    await asyncio.sleep(fault.seconds)
            case Kind.LOSE_ANSWER:
                link.silence_seconds = fault.seconds
                return rest
            case Kind.DUPLICATE:
                if link.copied is None:
                    link.copied = bytearray()
                    copying = asyncio.create_task(self._send_again(link.copied, fault.seconds))
                    self._tasks.add(copying)
                    copying.add_done_callback(self._tasks.discard)
                link.copied += rest[: COPIED_BYTES - len(link.copied)]
                return rest
            case Kind.FORGE:
                for part in fault.forged:
                    if sink.is_closing():
                        break
                    sink.write(part)
                    await sink.drain()
                    await asyncio.sleep(fault.seconds)
                link.end(reset=False)
        return b""

    async def _send_again(self, copied: bytearray, seconds: float) -> None:
        await asyncio.sleep(seconds)
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(*self._upstream())
            try:
                writer.write(copied)
                await writer.drain()
                if await reader.read(1):  # so that it was worked on, not only sent
                    self.fired[Kind.DUPLICATE] += 1
            finally:
                writer.close()
