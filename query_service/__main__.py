"""The query server's process: the only place that builds things and reads settings."""

import asyncio
import contextlib
import gc
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

# Before grpc is loaded: its C core writes to standard error by itself, from threads that serve, which a pipe that nobody
# reads would stop for ever. What it would say we say ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import prometheus_client
import structlog

from charging.v1 import query_pb2_grpc
from chassis import metrics, process, server, settings, telemetry
from contract.errors import DOMAIN, Reason
from contract.errors import query_refusal as refusal
from query_service.api import QueryService
from query_service.feed import feed_of
from query_service.settings import Settings
from query_service.subscriber import BrokenFeed, OpenFeed, Subscriber
from query_service.view import View, ViewUnusable
from query_service.waiting import Waiting

log = structlog.get_logger()

# A query fits well; more would only be a way to fill our memory.
QUERY_BYTES = 16 << 10
# The contract with its comments, which reflection serves.
DESCRIPTORS = resources.files("charging.v1").joinpath("descriptors.binpb").read_bytes()
# A batch is some forty thousand rows and records, and as many may be received meanwhile, all of which are freed without the
# collector's help; looking through them every 700 allocations costs a third of the projection's time (measured).
COLLECTED_AFTER = 100_000


@dataclass(frozen=True, slots=True)
class Running:
    """A query server at work, for whoever started it in this process.

    It must not serve on when `following` ends with BrokenFeed, since the feed broke its promises, nor when the view is found
    damaged.
    """

    listen: settings.Address
    subscriber: Subscriber
    view: View
    following: asyncio.Task[None]


@asynccontextmanager
async def serve(chosen: Settings, open_feed: OpenFeed | None = None) -> AsyncIterator[Running]:
    """Run a query server; leaving the context drains it.

    Raises ViewUnusable if the view cannot be had, OSError if the address cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        view = await View.open(chosen.view)
        stack.push_async_callback(view.close)
        waiting = Waiting()
        subscriber = Subscriber(
            view, waiting, open_feed or feed_of(chosen.feed), clock=time.monotonic, chance=random.Random()
        )
        queries = QueryService(view, subscriber, waiting, max_calls=chosen.max_calls, max_watchers=chosen.max_watchers)
        query_server = await server.Server.start(
            chosen.listen,
            lambda grpc_server: query_pb2_grpc.add_QueryServiceServicer_to_server(queries, grpc_server),
            services=["charging.v1.QueryService"],
            domain=DOMAIN,
            unreadable=refusal(Reason.INVALID_REQUEST),
            unexpected=refusal(Reason.UNEXPECTED),
            request_bytes=QUERY_BYTES,
            reflect=chosen.reflection,
            descriptors=DESCRIPTORS,
        )
        stack.push_async_callback(query_server.drain, 0.0)
        following = asyncio.create_task(subscriber.run(query_server.set_serving))
        stack.push_async_callback(_end, following)
        await _offer_gauges(subscriber, waiting, chosen.metrics_listen)
        log.info("serving", service="query", listen=str(query_server.address))
        yield Running(query_server.address, subscriber, view, following)
        log.info("draining")
        waiting.stop()
        await query_server.drain(chosen.drain_seconds)  # the view is followed on, so that waiting calls get there
        log.info("stopped", position=waiting.position)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _offer_gauges(subscriber: Subscriber, waiting: Waiting, listen: settings.Address | None) -> None:
    if listen is None:
        return
    for name, text, read in (
        ("view_position", "The journal position that the view shows", lambda: waiting.position),
        ("view_lag_records", "Records not shown yet", lambda: subscriber.head_position - waiting.position),
        ("feed_silence_seconds", "How long the feed was not heard; -1: never", lambda: _or_never(subscriber)),
    ):
        prometheus_client.Gauge(f"chargeonce_{name}", text).set_function(read)
    await metrics.serve(listen)


def _or_never(subscriber: Subscriber) -> float:
    return -1.0 if subscriber.silence_seconds is None else subscriber.silence_seconds


async def _serve_until_stopped(stop: process.StopRequest) -> None:
    async with serve(settings.read(Settings, os.environ)) as running:
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait()), running.view.damage]
        await asyncio.wait([*ends, running.following], return_when=asyncio.FIRST_COMPLETED)
        if running.following.done():
            running.following.result()  # raises what broke; without that, a stopped projection is served on
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if running.view.damage.done():
            raise running.view.damage.result()


def main() -> None:
    """Run the server."""
    process.open_standard_streams()
    process.server_parser(
        "python -m query_service", "Answers queries from a view of the charges, which it follows.", Settings, os.environ
    ).parse_args()
    telemetry.configure_logging("query")
    gc.set_threshold(COLLECTED_AFTER)
    process.run(_serve_until_stopped, (BrokenFeed, ViewUnusable, sqlite3.OperationalError))


if __name__ == "__main__":
    main()
