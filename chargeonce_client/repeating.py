"""The one rule of the contract: when in doubt, the same request again with the same key."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc import StatusCode

from chargeonce_client.errors import CallFailed, Refused, Unsettled

T = TypeVar("T")

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
# With less time than this a last try would end in nothing but its deadline.
_SHORTEST_TRY = 0.2
# What the service refuses before it looks for the key, so that the refusal says nothing of an earlier try.
_NOT_LOOKED = frozenset({StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED, StatusCode.DATA_LOSS})
# A stream is opened anew this often, so that no call is without a deadline.
STREAM_SECONDS = 900.0


async def repeated(
    send: Callable[[float], Awaitable[T]],
    *,
    patience: float,
    deadline: float,
    is_pending: Callable[[T], bool] = lambda _: False,
    has_key: bool = True,
) -> T:
    """Send a request, with a deadline in seconds, until its answer is not pending, or `patience` seconds are over.

    Returns the last answer, which is a pending one only if patience was over. Raises Refused, and Unsettled if there was no
    answer, or if a repeat of what is open is refused without a look for its key.

    A request that changes something and has no key is repeated only after the service's word that nothing was stored.
    """
    now = asyncio.get_running_loop().time
    until = now() + patience
    pending: T | None = None
    tries = 0
    while True:
        failure: CallFailed | None = None
        try:
            answer = await send(min(deadline, max(0.0, until - now())))
        except grpc.aio.AioRpcError as error:
            failure = _to_repeat(error, is_open=has_key and tries > 0)
            if not has_key and not failure.is_safe_without_a_key:
                raise failure from error
        else:
            if not is_pending(answer):
                return answer
            pending = answer
        pause = _pause(tries, failure)
        if now() + pause + _SHORTEST_TRY >= until:
            if pending is not None:
                return pending
            assert failure is not None
            raise failure
        await asyncio.sleep(pause)
        tries += 1


async def reopened(
    open_stream: Callable[[], "grpc.aio.UnaryStreamCall[Any, T]"],
    *,
    patience: float,
    deadline: float,
    silence: float | None = None,
) -> AsyncGenerator[T, None]:
    """Yield the messages of a stream, which is opened again whenever it ends; each time from where its reader is then.

    Its first message must come within `deadline` seconds, and each further one within `silence` seconds. Raises Refused, and
    Unsettled if no message came for `patience` seconds though the stream was to be opened.
    """
    now = asyncio.get_running_loop().time
    tries = 0
    since: float | None = now()  # when we began to try in vain
    while True:
        call = open_stream()
        messages = aiter(call)
        try:
            longest: float | None = deadline if since is None else min(deadline, max(0.0, since + patience - now()))
            while True:
                async with asyncio.timeout(longest):
                    message = await anext(messages, None)
                if message is None:
                    failure = _own_failure(StatusCode.UNAVAILABLE, "the server ended the stream")
                    break
                since, tries, longest = None, 0, silence
                yield message
        except TimeoutError:
            failure = _own_failure(StatusCode.DEADLINE_EXCEEDED, "nothing was heard on the stream")
        except grpc.aio.AioRpcError as error:
            failure = _to_repeat(error)
        finally:
            call.cancel()
        since = now() if since is None else since
        pause = _pause(tries, failure)
        if now() + pause + _SHORTEST_TRY >= since + patience:
            raise failure
        await asyncio.sleep(pause)
        tries += 1


async def streamed(
    call: "grpc.aio.StreamStreamCall[Any, T]", *, silence: float, is_last: Callable[[T], bool]
) -> AsyncGenerator[T, None]:
    """Yield the messages of a stream to its last one, each within `silence` seconds. It is not opened again.

    Raises Refused, and Unsettled if it ends before its last message.
    """
    messages = aiter(call)
    try:
        while True:
            async with asyncio.timeout(silence):
                message = await anext(messages, None)
            if message is None:
                raise _own_failure(StatusCode.UNAVAILABLE, "the server ended the stream")
            yield message
            if is_last(message):
                return
    except TimeoutError:
        raise _own_failure(StatusCode.DEADLINE_EXCEEDED, "nothing was heard on the stream") from None
    except grpc.aio.AioRpcError as error:
        raise _to_repeat(error) from error
    finally:
        call.cancel()


def _to_repeat(error: grpc.aio.AioRpcError, *, is_open: bool = False) -> CallFailed:
    """Return what to raise if patience is over. If a repeat is useless, raises Refused, or Unsettled of what is open."""
    failure = Unsettled(error)
    if failure.may_be_repeated:
        return failure
    if is_open and failure.code in _NOT_LOOKED:
        raise failure
    raise Refused(error) from error


def _own_failure(code: StatusCode, text: str) -> CallFailed:
    return Unsettled(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), text))


def _pause(tries: int, failure: CallFailed | None) -> float:
    """Return the seconds to wait before the next try: as the service says, or longer each time and spread by chance."""
    if failure is not None and failure.retry_after is not None:
        return failure.retry_after
    return min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)
