"""A running console: its channels to the servers, its application, and the server of its pages."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import uvicorn

from chassis.exposure import check_exposure
from chassis.settings import Address
from chassis.tls import ServerTls
from chassis.watched import keep_fresh
from console.app import app_of
from console.servers import connected
from console.settings import Settings
from console.visit import Shared

log = structlog.get_logger()

DRAIN_SECONDS = 3
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Serving:
    """A running console, for the code that started it in this process."""

    listen: Address

    @property
    def address(self) -> str:
        """Where it is, without the scheme."""
        return str(self.listen)


class _Server(uvicorn.Server):
    """Leaves the signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@asynccontextmanager
async def serve(chosen: Settings) -> AsyncIterator[Serving]:
    """Run a console; leaving the context ends it.

    Raises SettingsError, Unusable if certificates cannot be used, OSError if the address cannot be bound.
    """
    check_exposure(
        {"CONSOLE_LISTEN": chosen.listen},
        {"CONSOLE_TLS": chosen.tls is not None},
        override="CONSOLE_OPEN",
        is_open=chosen.is_open,
    )
    chosen.check_servers()
    async with contextlib.AsyncExitStack() as stack:
        tls = None if chosen.tls is None else ServerTls(chosen.tls, client_certificates=False)
        servers = await stack.enter_async_context(connected(chosen))
        listener = stack.enter_context(contextlib.closing(_bound(chosen.listen)))
        shared = Shared(chosen, servers)
        server = _Server(_config(shared, None if tls is None else tls.context))
        tasks = [
            asyncio.create_task(shared.samples.keep_sampling()),
            asyncio.create_task(shared.sessions.keep_sweeping()),
        ]
        if tls is not None:
            tasks.append(asyncio.create_task(keep_fresh([tls.watched])))
        for task in tasks:
            stack.push_async_callback(_end, task)
        serving = asyncio.create_task(server.serve([listener]))
        host, port = listener.getsockname()[:2]
        address = Address(host, port)
        scheme = "http" if tls is None else "https"
        log.info("serving", service="console", listen=str(address), address=f"{scheme}://{address}/")
        try:
            yield Serving(address)
        finally:
            shared.stopping.set()
            shared.runs.stop()
            server.should_exit = True
            await serving
            log.info("stopped")


def _config(shared: Shared, context: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app_of(shared),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_context_factory=None if context is None else lambda *_: context,
    )


def _bound(listen: Address) -> socket.socket:
    """Return a socket that listens. A second console on the port is refused."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((listen.host, listen.port))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise OSError(f"{listen} cannot be listened on: {error.strerror}") from error
    return made


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
