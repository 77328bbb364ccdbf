"""Waiting for a point in time to well under a millisecond, which the event loop's timers do not do."""

import asyncio

# The poll of a loop ends a whole number of milliseconds after it began, and the system adds a little.
_TIMERS_SECONDS = 0.0015


async def wait_until(at: float) -> None:
    """Return at a time of the running loop's clock, or now if it has passed.

    A timer alone is late by a part of a millisecond that depends on what the loop did before: it would tell how long that took.
    The last moment is waited for by letting others run again and again.
    """
    loop = asyncio.get_running_loop()
    await asyncio.sleep(at - _TIMERS_SECONDS - loop.time())
    while loop.time() < at:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0)
