"""A running query server: its parts put together, its gRPC server, its health and its gauges."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources

import structlog

from charging.v1 import query_pb2_grpc
from charging.v1.query_pb2 import Situation
from chassis import gate, metrics, server, settings
from chassis.exposure import check_exposure
from chassis.instruments import By, Figures, Gauge
from chassis.shares import Shares
from chassis.slots import Slots
from chassis.watched import keep_fresh
from contract.errors import DOMAIN, Reason
from contract.errors import query_refusal as refusal
from query_service.lookup import STUCK_AT_REST
from query_service.mirrors import Mirror, check_apart
from query_service.parts import Parts
from query_service.settings import Settings
from query_service.subscriber import SetServing
from query_service.view import View
from query_service.view_file import ViewUnusable

log = structlog.get_logger()

# Far more than a query needs; a higher limit would only let clients fill our memory.
QUERY_BYTES = 16 << 10
# Often enough for a gauge that is read a few times a minute; a count reads an index of a few rows.
COUNT_SECONDS = 2.0
GAUGES: Mapping[str, Gauge] = {
    "view_position": Gauge("The journal position that the view shows; of several journals, their sum"),
    "view_lag_records": Gauge("Records not shown yet; of several journals, the most of one"),
    "feed_silence_seconds": Gauge("Seconds since the feed's last message; -1: none yet; of several feeds, the worst"),
    "view_holds_ending": Gauge("Open holds that the bank lets lapse within a day, or has"),
    "view_stuck_charges": Gauge(
        "Charges at rest that wait for people, by their situation; those abandoned, of the last day", ("situation",)
    ),
    "limit_used": Gauge("What is used of a limit", ("limit",)),
    "limit_maximum": Gauge("The limit", ("limit",)),
}
# The contract with its comments, for reflection.
DESCRIPTORS = resources.files("charging.v1").joinpath("descriptors.binpb").read_bytes()


@dataclass(frozen=True, slots=True)
class Serving:
    """A running query server, for the code that started it in this process.

    This code must end the server when `following` ends with BrokenFeed, since a feed broke its promises, and when a view is
    found damaged.
    """

    listen: settings.Address
    mirrors: Sequence[Mirror]
    following: asyncio.Task[None]


@asynccontextmanager
async def serve(chosen: Settings, make_parts: Callable[[Settings], Parts] = Parts) -> AsyncIterator[Serving]:
    """Run a query server; leaving the context drains it. `make_parts` makes its parts from the settings.

    Raises as `View.open` and `check_apart`, SettingsError if files that a setting names cannot be used, OSError if the address
    cannot be bound.
    """
    check_exposure(
        {"QUERY_LISTEN": chosen.listen, "QUERY_METRICS_LISTEN": chosen.metrics_listen},
        {"QUERY_TLS": chosen.tls is not None, "QUERY_POLICY": chosen.policy is not None},
        override="QUERY_OPEN",
        is_open=chosen.is_open,
    )
    async with contextlib.AsyncExitStack() as stack:
        parts = make_parts(chosen)
        tls, admission = parts.entrance.tls, parts.entrance.gate
        stack.callback(parts.close)
        mirrors: list[Mirror] = []
        for servers, path in zip(chosen.feeds, chosen.views, strict=True):
            view = await parts.view(path)
            stack.push_async_callback(view.close)
            mirrors.append(parts.mirror(view, servers))
        views = [mirror.view for mirror in mirrors]
        check_apart(views)
        queries = parts.queries(mirrors)
        query_server = await server.Server.start(
            chosen.listen,
            lambda grpc_server: query_pb2_grpc.add_QueryServiceServicer_to_server(queries, grpc_server),
            services=["charging.v1.QueryService"],
            domain=DOMAIN,
            unreadable=refusal(Reason.INVALID_REQUEST),
            unexpected=refusal(Reason.UNEXPECTED),
            request_bytes=QUERY_BYTES,
            reflect=chosen.reflection,
            gate=admission,
            tls=tls,
            descriptors=DESCRIPTORS,
            observed=parts.observed.calls,
        )
        stack.push_async_callback(query_server.drain, 0.0)
        following = asyncio.create_task(_follow(mirrors, query_server.set_serving))
        stack.push_async_callback(_end, following)
        stack.push_async_callback(_end, asyncio.create_task(keep_fresh(parts.watched)))
        stack.push_async_callback(_end, asyncio.create_task(admission.keep_looking()))
        if chosen.metrics_listen is not None:
            stuck = _Stuck(views)
            counting = asyncio.create_task(stuck.keep_counting())
            stack.push_async_callback(_end, counting)

            def take_figures() -> Figures:
                reads = max((mirror.view.turns for mirror in mirrors), key=lambda turns: turns.used)  # all of one limit
                limits: Mapping[str, Shares | Slots] = {**queries.limits, "view_reads": reads}
                return {
                    "view_position": sum(mirror.waiting.position for mirror in mirrors),
                    "view_lag_records": max(mirror.lag_records for mirror in mirrors),
                    "feed_silence_seconds": _longest_silence(mirrors),
                    "view_holds_ending": stuck.counts["hold_ending"],
                    "view_stuck_charges": By("situation", stuck.counts),
                    "limit_used": By("limit", {name: limit.used for name, limit in limits.items()}),
                    "limit_maximum": By("limit", {name: limit.limit for name, limit in limits.items()}),
                    **admission.figures(),
                }

            gauges = {**GAUGES, **gate.GAUGES}
            instruments = parts.observed.instruments
            offered = await metrics.offer(chosen.metrics_listen, instruments, gauges, take_figures, admission, tls)
            stack.callback(offered.close)
        log.info("serving", service="query", listen=str(query_server.address))
        yield Serving(query_server.address, mirrors, following)
        log.info("draining")
        for mirror in mirrors:
            mirror.waiting.stop()
        await query_server.drain(chosen.drain_seconds)  # the views still advance, so that waiting calls can be answered
        await _end(following)
        log.info("stopped", position=sum(mirror.waiting.position for mirror in mirrors))


async def _follow(mirrors: Sequence[Mirror], set_serving: SetServing) -> None:
    """Keep all views up. The server is serving while every one has caught up. The first feed that is broken ends all."""
    caught_up: set[Mirror] = set()

    async def set_one_serving(mirror: Mirror, is_serving: bool) -> None:
        if is_serving:
            caught_up.add(mirror)
        else:
            caught_up.discard(mirror)
        await set_serving(len(caught_up) == len(mirrors))

    try:
        async with asyncio.TaskGroup() as group:
            for mirror in mirrors:
                group.create_task(mirror.subscriber.run(partial(set_one_serving, mirror)))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _longest_silence(mirrors: Sequence[Mirror]) -> float:
    silences = [mirror.subscriber.silence_seconds for mirror in mirrors]
    return -1.0 if None in silences else max(silence for silence in silences if silence is not None)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


class _Stuck:
    """The charges at rest that wait for people, by situation, counted every few seconds: a gauge cannot wait for the view."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views
        self.counts: Mapping[str, int] = {_name(situation): 0 for situation in STUCK_AT_REST}

    async def keep_counting(self) -> None:
        """Count until cancelled, or until a view is found damaged, which ends the server."""
        with contextlib.suppress(ViewUnusable):
            while True:
                counts: Counter[str] = Counter(dict.fromkeys(self.counts, 0))
                for view in self._views:
                    found = await view.stuck_counts(time.time_ns() // 1_000)
                    counts.update({_name(situation): count for situation, count in found.items()})
                self.counts = counts
                await asyncio.sleep(COUNT_SECONDS)


def _name(situation: Situation.ValueType) -> str:
    return Situation.Name(situation).removeprefix("SITUATION_").lower()
