"""The feed's network in a story: links between a command server and its readers, and a judge of late wake-ups."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from charging.v1.journal_pb2 import SubscribeRequest, SubscribeResponse
from chassis.caller import GuardedCall
from chassis.refusals import Refusal
from command_service.feed import ANY_READER, MESSAGE_EVERY_SECONDS
from judge.history import Session
from prove.simulation.durable import Durable
from prove.simulation.host import Link, Process
from prove.simulation.stage import Stage
from query_service.subscriber import FeedLost, JournalDiverged

# A waiting reader is sent a record in no time, or as late as a slow disk takes for what is queued there. Later, it was not
# woken, but found the record by chance.
WAKE_SECONDS, SLOW_WAKE_SECONDS = 0.001, 4.0


class Feeds:
    """Connects readers to a command server, which `find_server` gives."""

    def __init__(self, stage: Stage, durable: Durable, find_server: Callable[[], Process]) -> None:
        self.sessions: list[Session] = []
        self._stage = stage
        self._durable = durable
        self._find_server = find_server

    async def open(
        self, reader: str, after_position: int, journal_id: str, chain: bytes
    ) -> AsyncGenerator[SubscribeResponse, None]:
        """Subscribe, as a query server does. Raises FeedLost and JournalDiverged."""
        stage = self._stage
        await asyncio.sleep(stage.dice.uniform(0.001, 0.01))
        server = self._find_server()
        if not server.is_up or not server.alive:
            raise FeedLost("nobody listens")
        stage.note(reader, "follows", server.name, "after", after_position)
        link = Link(stage, reader, [], sent_position=after_position)
        server.links.append(link)
        self.sessions.append(Session(after_position, link.seen))
        request = SubscribeRequest(after_position=after_position, journal_id=journal_id, chain=chain)
        link.task = server.start(self._serve(server, link, request))
        try:
            while True:
                message = await link.receive()
                if isinstance(message, Exception):
                    raise message
                link.seen.extend((record.position, record.chain) for record in message.batch.records)
                yield message
        finally:
            link.is_over = True
            if not stage.loop.is_closed():
                stage.later(0.001, cancel, link.task)

    async def _serve(self, server: Process, link: Link, request: SubscribeRequest) -> None:
        loop = self._stage.loop
        try:
            call = GuardedCall("/charging.v1.JournalService/Subscribe", ANY_READER, link)
            async with aclosing(server.feed_service.Subscribe(request, call)) as messages:
                waiting_since = loop.time()
                async for serialised in messages:
                    message = SubscribeResponse.FromString(serialised)
                    self._judge_wake(link, message, waiting_since)
                    await link.send(message)
                    if link.is_over:
                        return
                    waiting_since = loop.time()
        except Refusal as refused:
            is_diverged = refused.reason == "JOURNAL_DIVERGED"
            if is_diverged:
                self._stage.broke("I10", link.reader, "it was told that the journal diverged")
            link.send_end(JournalDiverged() if is_diverged else FeedLost(refused.reason))
        finally:
            with suppress(ValueError):
                server.links.remove(link)

    def _judge_wake(self, link: Link, message: SubscribeResponse, waiting_since: float) -> None:
        """The contract, step 4: a later record comes as soon as it is durable, unless another came just before."""
        if not message.batch.records:
            return
        stage, first, last = self._stage, message.batch.records[0].position, message.batch.records[-1].position
        if last > self._durable.position:
            stage.broke("I10", f"position {last}", "a reader was shown a record before it was durable")
        link.sent_position = last
        if stage.plan.servers:
            return  # others' records come by hints, which may be lost
        ready_at = max(waiting_since, self._durable.at.get(first, 0.0))
        pause = MESSAGE_EVERY_SECONDS + stage.plan.grid_seconds  # a timer fires on the grid
        allowed = pause + (SLOW_WAKE_SECONDS if stage.dice.fired["slow_disk"] else WAKE_SECONDS)
        if (late := stage.loop.time() - ready_at) > allowed:
            stage.broke("L3", f"position {first}", f"a waiting reader was sent the record {late:.1f} s late")


def cancel(task: "asyncio.Task[Any] | None") -> None:
    """Cancel a task, if there is one."""
    if task is not None:
        task.cancel()
