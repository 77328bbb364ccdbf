"""The caller of an RPC: the guard of a real server names it, and without the guard there is none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from chassis.caller import ANYBODY, Caller, GuardedCall, NoCaller, caller_of
from chassis.gate import Gate, Refused
from chassis.refusals import Refusal
from chassis.server import CONNECTION_MILLISECONDS, Server, end_call
from chassis.settings import Address
from rig.referee import PATIENT_SECONDS

REFUSAL = Refusal(grpc.StatusCode.INTERNAL, "UNEXPECTED", "a fault", "DO_NOT_RETRY")


class Asking:
    """Handlers, unary and streaming, that answer with the name of their method and of their caller."""

    def register(self, server: grpc.aio.Server) -> None:
        one: Any = grpc.unary_unary_rpc_method_handler(self.one, bytes, bytes)
        many: Any = grpc.unary_stream_rpc_method_handler(self.many, bytes, bytes)
        server.add_registered_method_handlers("test.Asking", {"One": one, "Many": many})

    async def one(self, _: bytes, context: Any) -> bytes:
        return described(context)

    async def many(self, _: bytes, context: Any) -> AsyncIterator[bytes]:
        yield described(context)


def described(context: Any) -> bytes:
    caller = caller_of(context)
    return f"{context.method} {caller.tenant} {caller.actor}".encode()


@asynccontextmanager
async def asked(
    asking: Asking, connection_milliseconds: int = CONNECTION_MILLISECONDS
) -> AsyncIterator[grpc.aio.Channel]:
    server = await Server.start(
        Address("127.0.0.1", 0),
        asking.register,
        services=["test.Asking"],
        gate=Gate({"/test.Asking/One": "ask", "/test.Asking/Many": "ask"}, Refused(REFUSAL, REFUSAL)),
        domain="test",
        unreadable=REFUSAL,
        unexpected=REFUSAL,
        request_bytes=9,
        reflect=False,
        connection_milliseconds=connection_milliseconds,
    )
    try:
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            yield channel
    finally:
        await server.drain(1.0)


async def test_the_guard_gives_every_handler_its_caller_and_its_method() -> None:
    """Without a policy all calls have the same caller."""
    async with asked(Asking()) as channel:
        one: Any = channel.unary_unary("/test.Asking/One")
        many: Any = channel.unary_stream("/test.Asking/Many")
        assert await one(b"") == b"/test.Asking/One default anonymous"
        assert [each async for each in many(b"")] == [b"/test.Asking/Many default anonymous"]


class Naming(Asking):
    """Answers with the client's end of the connection; the stream does so for two seconds."""

    async def one(self, _: bytes, context: Any) -> bytes:
        await asyncio.sleep(0.01)
        return str(context.peer()).encode()

    async def many(self, _: bytes, context: Any) -> AsyncIterator[bytes]:
        for _number in range(20):
            yield str(context.peer()).encode()
            await asyncio.sleep(0.1)


async def test_clients_are_asked_to_connect_anew_and_no_call_is_dropped() -> None:
    """Their next calls come over a handshake with the certificates of that time; a stream ends in its own time."""
    async with asked(Naming(), connection_milliseconds=200) as channel:
        one: Any = channel.unary_unary("/test.Asking/One")
        many: Any = channel.unary_stream("/test.Asking/Many")
        seen, streamed = set[bytes](), list[bytes]()

        async def calling() -> None:
            while not streamed or len(seen) <= 3:
                seen.add(await one(b""))

        async def streaming() -> None:
            streamed.extend([each async for each in many(b"")])

        async with asyncio.timeout(PATIENT_SECONDS):
            await asyncio.gather(streaming(), *(calling() for _ in range(20)))
        assert len(streamed) == 20 and len(set(streamed)) == 1


class Ending(Asking):
    """Its stream is ended from outside, and refuses by itself a moment later."""

    async def many(self, _: bytes, context: Any) -> AsyncIterator[bytes]:
        call = asyncio.current_task()
        assert call is not None
        yield b""
        end_call(context, call, replace(REFUSAL, text="from outside"), "test")
        await asyncio.sleep(0.02)
        raise replace(REFUSAL, text="by itself")


async def test_a_stream_that_is_ended_from_outside_and_by_itself_ends_once(caplog: pytest.LogCaptureFixture) -> None:
    """As when a policy changes while the server stops: its client hears the first, and the log nothing."""
    async with asked(Ending()) as channel:
        many: Any = channel.unary_stream("/test.Asking/Many")
        with pytest.raises(grpc.aio.AioRpcError, match="from outside"):
            async for _ in many(b""):
                pass
        await asyncio.sleep(0.2)
    assert not caplog.records


async def test_a_handler_that_is_called_without_the_guard_has_no_caller() -> None:
    """It fails, without a default caller. A context that only looks guarded has none either."""

    class Forged:
        caller = ANYBODY

    for context in (None, object(), Forged()):
        with pytest.raises(NoCaller):
            await Asking().one(b"", context)
    shop = Caller("shop", "till 1")
    assert caller_of(GuardedCall("/test.Asking/One", shop, None)) == shop


async def test_a_guarded_call_offers_every_member_of_grpcs_context() -> None:
    """A handler asks it for its deadline and its peer."""

    class Context:
        def time_remaining(self) -> float:
            return 1.5

    assert GuardedCall("/test.Asking/One", ANYBODY, Context()).time_remaining() == 1.5
