"""A story that a signal ends: the first one cancels it, so that it ends its servers itself, in order."""

import asyncio
import io
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def until_asked_to_stop(story: Coroutine[Any, Any, T]) -> T | None:
    """Tell a story to its end, or until a signal asks it to stop: then it is cancelled, and the answer is None.

    Its servers are in sessions of their own: Ctrl-C, or a terminal that closes, reaches this process only. The first signal
    lets the story end its servers. Later signals do nothing, since they could only interrupt that.
    """
    telling = asyncio.ensure_future(story)

    def stop(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            sys.stdout = io.StringIO()  # a write to a closed terminal fails
        if not telling.cancelling():
            telling.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A process under nohup stays when its terminal closes.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await asyncio.wait([telling])
    return None if telling.cancelled() else telling.result()
