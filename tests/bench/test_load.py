"""The load generator: its counts, the times at which charges are due, and its treatment of a server that refuses."""

import asyncio
import contextlib
import itertools
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc import StatusCode

from bench.load import Generator, Order, Step, Tally, key_prefix, quantile, results, schedule, step
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.command_pb2_grpc import CommandServiceServicer, add_CommandServiceServicer_to_server
from charging.v1.common_pb2 import ChargeStatus
from command_service.card_numbers import card_number_in
from rig.world import World, a_request, a_world, until

HOLD: dict[str, Any] = {
    "fault": "in_progress",
    "retry_after": "0",
    "times": 1_000_000,
}  # until the test removes the faults


class HeldUp(Generator):
    """A generator that each charge delays for longer than the pause between two charges."""

    dues: list[float]

    async def charge(self, due: float) -> None:
        time.sleep(0.002)  # noqa: ASYNC251  # it is the loop that has to be held up
        self.dues.append(due)


def an_order(world: World, *, in_flight: int = 1, steps: tuple[Step, ...] = (), obey: bool = False) -> Order:
    return Order(
        str(world.running.listen),
        in_flight,
        steps,
        seconds=0.2,
        warmup_seconds=0.0,
        obey_retry_info=obey,
        call_seconds=20.0,
    )


@pytest.mark.parametrize(
    ("count", "share", "value"),
    [(100, 0.5, 50), (100, 0.99, 99), (100, 1.0, 100), (1_000, 0.999, 999), (3, 0.99, 3), (1, 0.5, 1), (100, 0.07, 7)],
)
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(count: int, share: float, value: int) -> None:
    """By nearest rank: always a value that was measured."""
    assert quantile([float(each) for each in range(1, count + 1)], share) == value


@pytest.mark.parametrize("process", [1, 6187, 4111, 4111111])
def test_no_key_looks_like_a_card_number(monkeypatch: pytest.MonkeyPatch, process: int) -> None:
    """For any process and time. Some in a hundred of the benchmark's charges were once refused for their keys."""
    monkeypatch.setattr(os, "getpid", lambda: process)
    for now in (
        0x18EC538375723166,
        0x1853837572316612,
        *range(1_790_000_000 * 10**9, 1_890_000_000 * 10**9, 10**17 + 7),
    ):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        assert not re.search("[0-9][^0-9A-Za-z]+[0-9]", f"{key_prefix('bench')}1")
        for number in (1, 1001, 1111, 111_111, 1_111_111):
            for of_card in (False, True):
                assert not card_number_in(f"{key_prefix('bench')}{number}", of_card=of_card)


def test_every_quantile_of_no_values_is_zero() -> None:
    """A service without answers has no latencies, and the driver goes on."""
    assert quantile([], 0.99) == 0.0


def test_a_schedule_gives_the_time_at_which_each_charge_of_each_step_is_due() -> None:
    """Sent and answered calls do not change it."""
    steps = [step("4:1"), step("10:0.5"), step("2:1")]
    assert list(schedule(steps)) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0])


def test_results_have_rates_latencies_and_seconds() -> None:
    """In milliseconds, and a charge belongs to the second in which it was due."""
    tally = Tally(sent=5, refusals=2, advised=1, unsent=1)
    for second, latency in ((0, 0.010), (0, 0.020), (2, 0.030), (2, 0.500)):
        tally.add(second, latency)
    tally.errors["UNAVAILABLE"] += 1
    told = results(tally, 4.0)
    assert (told["charges"], told["rate"], told["p50_ms"], told["p99_ms"], told["max_ms"]) == (
        4,
        1.0,
        20.0,
        500.0,
        500.0,
    )
    assert (told["sent"], told["refusals"], told["advised"], told["unsent"]) == (5, 2, 1, 1)
    assert told["errors"] == {"UNAVAILABLE": 1}
    assert (told["by_second"], told["p99_ms_by_second"]) == ([2, 0, 2, 0], [20.0, 0.0, 500.0, 0.0])


async def test_latency_in_an_open_loop_counts_from_the_moment_at_which_a_charge_was_due(tmp_path: Path) -> None:
    """Not from the moment at which it was sent: a delayed generator hides no latency."""
    async with a_world(tmp_path) as world:
        generator = Generator(an_order(world, steps=(Step(10.0, 0.2),)))
        await generator.open()
        loop = asyncio.get_running_loop()
        due = loop.time() - 3_600.0
        generator.begun = due
        await generator.charge(due)
        assert list(generator.tally.latencies) == pytest.approx([3_600.0], abs=100.0)
        assert list(generator.tally.by_second) == [0]
        await generator.close()


async def test_an_open_loop_keeps_to_its_schedule_however_late_it_is(tmp_path: Path) -> None:
    """One late charge delays none of the charges after it."""
    async with a_world(tmp_path) as world:
        generator = HeldUp(an_order(world, steps=(Step(1_000.0, 0.1), Step(500.0, 0.1))))
        generator.dues = []
        generator.until = time.perf_counter() + 3_600.0
        await generator.open_loop()
        await generator.close()
    pauses = [after - before for before, after in itertools.pairwise(sorted(generator.dues))]
    assert pauses == pytest.approx([0.001] * 100 + [0.002] * 49)


async def test_a_refused_client_waits_as_long_as_the_server_says_and_asks_again_with_the_same_key(
    tmp_path: Path,
) -> None:
    """It obeys RetryInfo. Each refusal is counted, and none is an error."""
    waits: list[float] = []
    async with a_world(tmp_path, COMMAND_MAX_CALLS="1") as world:
        await world.trouble("token", **HOLD)
        held = asyncio.ensure_future(world.charge(a_request()))
        await until(lambda: world.running.vitals().unfinished_charges)

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            await world.referee.no_more_trouble()
            await held

        generator = Generator(an_order(world, obey=True), sleep=wait)
        await generator.open()
        await generator.charge(0.0)
        assert len(waits) == generator.tally.refusals == generator.tally.advised == 1
        assert 0.5 <= waits[0] <= 0.75
        assert not generator.tally.errors
        assert len(generator.tally.latencies) == 1
        assert len(await world.referee.movements()) == 2
        await generator.close()


async def test_a_refused_client_that_does_not_obey_counts_an_error_by_its_reason(tmp_path: Path) -> None:
    """The reason is the service's own."""
    async with a_world(tmp_path, COMMAND_MAX_CALLS="1") as world:
        await world.trouble("token", **HOLD)
        held = asyncio.ensure_future(world.charge(a_request()))
        await until(lambda: world.running.vitals().unfinished_charges)
        generator = Generator(an_order(world))
        await generator.open()
        await generator.charge(0.0)
        assert dict(generator.tally.errors) == {"RESOURCE_EXHAUSTED TOO_MANY_CALLS": 1}
        assert (generator.tally.refusals, generator.tally.advised) == (1, 1)
        assert not generator.tally.latencies
        await world.referee.no_more_trouble()
        await held
        await generator.close()


@pytest.mark.parametrize(
    ("code", "refusals"),
    [(StatusCode.UNAVAILABLE, 1), (StatusCode.CANCELLED, 1), (StatusCode.DEADLINE_EXCEEDED, 0)],
)
async def test_a_refusal_without_retry_info_counts_as_one_without_advice(code: StatusCode, refusals: int) -> None:
    """As of gRPC itself, which knows no advice. A charge that was too late was not refused."""

    class Refuser(CommandServiceServicer):
        async def Charge(self, _: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: N802  # the contract's name
            await context.abort(code, "no")
            raise AssertionError("abort always raises")

    server = grpc.aio.server()
    add_CommandServiceServicer_to_server(Refuser(), server)  # type: ignore[abstract]  # one method is called
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    generator = Generator(Order(f"127.0.0.1:{port}", 1, (), 0.2, 0.0, obey_retry_info=True, call_seconds=20.0))
    await generator.open()
    await generator.charge(0.0)
    await generator.close()
    await server.stop(0)
    assert dict(generator.tally.errors) == {f"{code.name}: no": 1}
    assert (generator.tally.refusals, generator.tally.advised) == (refusals, 0)


async def test_a_closed_loop_makes_charges_and_prints_begin_and_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole generator against the whole product: every counted charge has moved money once."""
    async with a_world(tmp_path) as world:
        await Generator(an_order(world, in_flight=4)).run()
        moved = await world.referee.movements()
    begin, end = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"event"')]
    assert '"begin"' in begin
    assert '"errors": {}' in end
    assert len(moved) >= 4


async def test_calls_go_to_several_servers_in_turns() -> None:
    """As many to each, also if there are more servers than a generator has connections by itself."""
    taken = [0] * 5
    targets = []

    class Counter(CommandServiceServicer):
        def __init__(self, number: int) -> None:
            self._number = number

        async def Charge(self, _: ChargeRequest, context: Any) -> ChargeResponse:  # noqa: ARG002, N802  # the contract's
            taken[self._number] += 1
            return ChargeResponse(status=ChargeStatus.CHARGE_STATUS_CHARGED)

    async with contextlib.AsyncExitStack() as stack:
        for number in range(len(taken)):
            server = grpc.aio.server()
            add_CommandServiceServicer_to_server(Counter(number), server)  # type: ignore[abstract]  # one method is called
            targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            stack.push_async_callback(server.stop, 0)
        generator = Generator(Order(",".join(targets), 1, (), 0.2, 0.0, obey_retry_info=True, call_seconds=20.0))
        await generator.open()
        for _ in range(3 * len(taken)):
            await generator.charge(0.0)
        await generator.close()
    assert taken == [3] * len(taken)


@asynccontextmanager
async def an_ingress(*answers: bytes | None) -> AsyncIterator[tuple[str, list[bytes], list[asyncio.Task[None]]]]:
    """A server that gives these answers in turn; None closes the connection. Its URL, its requests, its connections."""
    requests: list[bytes] = []
    connections: list[asyncio.Task[None]] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                requests.append(head + await reader.readexactly(int(length[1])))
                if (answer := left.pop(0)) is None:
                    break
                writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}/Charges/charge", requests, connections
    server.close()
    await asyncio.gather(*connections)


def an_answer(status: int, body: bytes, *, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} .\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


CHARGED = ChargeResponse(status=ChargeStatus.CHARGE_STATUS_CHARGED).SerializeToString()


async def test_charges_over_http_have_their_key_in_the_header_and_share_a_connection() -> None:
    """The body is the message that the product gets over gRPC."""
    async with an_ingress(*[an_answer(200, CHARGED)] * 3) as (url, requests, connections):
        generator = Generator(Order(url, 1, (), 0.2, 0.0, obey_retry_info=False, call_seconds=20.0))
        await generator.open()
        for _ in range(3):
            await generator.charge(time.perf_counter())
        await generator.close()
    assert (len(generator.tally.latencies), dict(generator.tally.errors), len(connections)) == (3, {}, 1)
    keys = [request.partition(b"Idempotency-Key: ")[2].partition(b"\r\n")[0].decode() for request in requests]
    bodies = [ChargeRequest.FromString(request.partition(b"\r\n\r\n")[2]).idempotency_key for request in requests]
    assert requests[0].startswith(b"POST /Charges/charge HTTP/1.1\r\n")
    assert keys == bodies
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("answer", "error", "connections"),
    [
        (an_answer(500, b"no handler"), "HTTP 500: no handler", 2),
        (an_answer(202, CHARGED), "HTTP 202: ", 2),
        (an_answer(200, b""), "CHARGE_STATUS_UNSPECIFIED", 2),
        (b"no HTTP at all\r\n\r\n", "HttpParserError", 3),
        (None, "ConnectionResetError", 3),
    ],
)
async def test_a_charge_over_http_that_fails_counts_as_an_error_and_the_next_one_is_made(
    answer: bytes | None, error: str, connections: int
) -> None:
    """So an error of such a peer fails the comparison like any other. A connection is kept only if both sides keep it."""
    async with an_ingress(answer, an_answer(200, CHARGED, more="Connection: close\r\n"), an_answer(200, CHARGED)) as at:
        generator = Generator(Order(at[0], 1, (), 0.2, 0.0, obey_retry_info=False, call_seconds=20.0))
        await generator.open()
        for _ in range(3):
            await generator.charge(time.perf_counter())
        await generator.close()
    ((reason, count),) = generator.tally.errors.items()
    assert count == 1
    assert reason.startswith(error)
    assert len(generator.tally.latencies) == 2
    assert len(at[2]) == connections
