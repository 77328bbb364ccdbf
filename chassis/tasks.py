"""Tasks that belong to a part of a server and not to the call that started them."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from structlog.contextvars import clear_contextvars

from chassis.tracing import leave_trace

T = TypeVar("T")


def start_shared(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start a task that works for many calls. It is in no trace, and its log lines say nothing of the call that began it."""
    context = contextvars.copy_context()
    context.run(leave_trace)
    context.run(clear_contextvars)
    return asyncio.create_task(work, context=context)


class Tasks:
    """Keeps tasks until they end: no client's deadline or cancellation reaches them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task. Every caller that awaits it gets its exception, and asyncio never reports it as not retrieved."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Cancel the running tasks, and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
