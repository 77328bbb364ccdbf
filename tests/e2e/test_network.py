"""A sample of prove.network's scenarios, and the properties of their proxy. `make prove` plays all scenarios."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc._cython
import pytest

import gateway_mock
from chassis import server
from prove.network import CONTROLS, SCENARIOS, Lane, Scenario, is_found, play
from prove.network.faultproxy import Fault, Kind, Proxy, Way
from prove.network.world import Broken, World, until, within
from rig.ports import kept

SAMPLE = [
    scenario
    for scenario in SCENARIOS
    if scenario.name
    in {
        "one_call_goes_wrong",
        "answers_lie",
        "the_bank_refuses",
        "requests_come_twice",
        "the_link_breaks",
        "answers_are_monstrous",
        "redirected",
        "charges_are_called_off",
        "voids_meet_executions",
        "holds_lapse",
        "deadlines",
        "cancels_at_each_seam",
        "a_hundred_at_once_with_one_key",
        "one_key_for_other_requests_at_once",
        "idle_links_are_dropped",
        "streams_are_cut",
        "feeds_lie",
        "a_foreign_server_is_in_the_list",
        "nonsense",
        "the_command_server_is_killed",
    }
]


@pytest.mark.parametrize("scenario", SAMPLE, ids=lambda scenario: scenario.name)
async def test_nothing_breaks_and_the_faults_really_fire(scenario: Scenario) -> None:
    """After the harm all charges come to rest and all books agree; a scenario whose faults do not fire shows nothing."""
    harness = await play(scenario, 0)
    assert harness.violations == []
    assert harness.faults.total() > 0


@pytest.mark.parametrize("name", CONTROLS)
async def test_every_control_is_found(name: str) -> None:
    """The check finds each tampering with a world at rest: a check that never finds anything proves nothing."""
    assert await is_found(*CONTROLS[name])


def test_grpc_knows_every_option_that_is_set() -> None:
    """grpc ignores unknown options: with a misspelt one it once disconnected clients for their keepalive pings."""
    library = next(Path(grpc._cython.__file__).parent.glob("cygrpc*.so")).read_bytes()
    for name, _ in (*server.CHANNEL_OPTIONS, *server._SERVER_OPTIONS):
        assert name.encode() + b"\0" in library, name


def test_the_wait_for_a_peer_that_hangs_is_keepalives_time_out() -> None:
    """grpc's keepalive time-out concerns TCP's acknowledgements; the answer to its ping has a time-out of its own."""
    for options in (server.CHANNEL_OPTIONS, server._SERVER_OPTIONS):
        assert dict(options)["grpc.http2.ping_timeout_ms"] == dict(options)["grpc.keepalive_timeout_ms"]


# ---------------------------------------------------------------- the order of scenarios, and the report of a hang
def played(lane: Lane, fired: Counter[str], left_seconds: float) -> str:
    """The name of the scenario that a lane plays next, or "nothing"."""
    chosen = lane.next(fired, left_seconds)
    return chosen[0].name if chosen else "nothing"


def test_every_scenario_is_played_once_and_then_the_one_that_fires_the_rarest_kind() -> None:
    """The first round is played even without time for it; seeds are never played twice."""
    common, rare = SAMPLE[:2]
    lane, fired = Lane(SAMPLE[:2], base=7), Counter({"common": 100, "rare": 3})
    assert [played(lane, fired, left_seconds=0) for _ in range(3)] == [common.name, rare.name, "nothing"]
    lane.played(common, 1.0, {"common"})
    lane.played(rare, 1.0, {"common", "rare"})
    assert lane.next(fired, left_seconds=60) == (rare, 8)
    assert lane.next(fired, left_seconds=60) == (rare, 9)
    assert played(lane, Counter({"common": 100, "rare": 100}), left_seconds=60) == common.name


def test_a_scenario_that_cannot_end_in_the_remaining_time_is_not_begun() -> None:
    """By its longest time so far."""
    quick, long = SAMPLE[:2]
    lane = Lane([quick, long], base=0, plays=Counter({quick.name: 1, long.name: 1}))
    lane.played(quick, 1.0, {"a"})
    lane.played(long, 30.0, {"b"})
    lane.played(long, 20.0, {"b"})
    assert played(lane, Counter(a=100), left_seconds=25) == quick.name
    assert played(lane, Counter(a=100), left_seconds=1) == "nothing"


async def test_a_wait_that_times_out_names_its_condition() -> None:
    """Another time-out within it passes unchanged."""
    with pytest.raises(Broken, match=r"not within 0\.01 s: the sun rises"):
        async with within(0.01, "the sun rises"):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError, match="another"):
        async with within(10, "the sun rises"):
            raise TimeoutError("another")


async def test_the_report_of_a_failed_scenario_has_its_phase_and_command() -> None:
    """A time-out alone explains nothing."""

    async def hangs_up(_: World) -> None:
        raise TimeoutError

    harness = await play(Scenario(hangs_up), 0)
    (violation,) = harness.violations
    assert "TimeoutError" in violation
    assert "in the harm" in violation
    assert "prove.network hangs_up 0" in violation


# ---------------------------------------------------------------- the proxy
@asynccontextmanager
async def an_echo(*faults: Fault) -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter, bytearray]]:
    """An echo server, a proxy before it, a client, and all bytes that the server received."""
    heard = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while said := await reader.read(1_000):
                heard.extend(said)
                writer.write(said)
        writer.close()

    listening = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, Proxy(lambda: ("127.0.0.1", port)) as proxy:
        proxy.order(*faults)
        host, _, at = proxy.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(at))
        try:
            yield proxy, reader, writer, heard
        finally:
            writer.transport.abort()


async def test_without_faults_the_proxy_is_a_wire() -> None:
    """Bytes and their end pass both ways."""
    async with an_echo() as (proxy, reader, writer, _):
        writer.write(b"hello" * 100_000)
        writer.write_eof()
        assert await reader.read(-1) == b"hello" * 100_000
        assert not proxy.fired


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("kind", [Kind.CUT, Kind.RESET])
async def test_a_link_ends_after_exactly_the_given_bytes(kind: Kind, way: Way) -> None:
    """A cut is an end of bytes, a reset is an error; in both cases only the bytes before it pass."""
    async with an_echo(Fault(kind, way, after_bytes=3)) as (proxy, reader, writer, heard):
        writer.write(b"hello")
        if kind is Kind.CUT:
            assert await reader.read(-1) == (b"hel" if way is Way.DOWN else b"")
        else:
            with pytest.raises(ConnectionResetError):
                while await reader.read(1):
                    pass
        assert bytes(heard) == (b"hel" if way is Way.UP else b"hello")[: len(heard)]
        assert proxy.fired == {kind: 1}


async def test_a_black_hole_drops_bytes_without_an_error() -> None:
    """Bytes sent into it arrive nowhere, and the fault counts when a client hangs up."""
    async with an_echo(Fault(Kind.BLACK_HOLE, when=b"now")) as (proxy, reader, writer, heard):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"now")
        writer.close()
        await until(lambda: proxy.hung_up[Way.UP], 20, "who hangs up is counted")
        assert bytes(heard) == b"hello"
        assert not proxy.hung_up[Way.DOWN]


async def test_a_duplicate_arrives_twice_over_another_link() -> None:
    """The client gets the first answer; the second is dropped."""
    async with an_echo(Fault(Kind.DUPLICATE, seconds=0.05)) as (proxy, reader, writer, heard):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        await until(lambda: proxy.fired[Kind.DUPLICATE], 20, "the duplicate arrives")
        assert bytes(heard) == b"hellohello"


async def test_a_forged_answer_replaces_the_true_one() -> None:
    """The server does the work, and the client reads another answer."""
    async with an_echo(Fault(Kind.FORGE, Way.DOWN, forged=(b"good", b"bye"), seconds=0)) as (_, reader, writer, heard):
        writer.write(b"hello")
        assert await reader.read(-1) == b"goodbye"
        assert bytes(heard) == b"hello"


async def test_late_and_slow_bytes_are_the_same_bytes() -> None:
    """Delay and throttle change the time of bytes, not the bytes."""
    faults = (Fault(Kind.DELAY, seconds=0.05), Fault(Kind.THROTTLE, Way.UP, when=b"slow", seconds=0.001))
    async with an_echo(*faults) as (proxy, reader, writer, _):
        begun = time.monotonic()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert time.monotonic() - begun >= 0.05
        writer.write(b"slowly")
        assert await reader.readexactly(6) == b"slowly"
        assert proxy.fired == {Kind.DELAY: 1, Kind.THROTTLE: 1}


async def test_a_kept_port_stays_reserved_for_its_server_while_the_server_is_down(tmp_path: Path) -> None:
    """A program that asks for any free port never gets it, and a server that asks for this port does."""
    with kept(1) as (address,):
        for _ in range(2):
            async with gateway_mock.serve(address, tmp_path / "bank.db") as listening:
                assert listening == address
        for _ in range(4):  # a process may often have no more than a thousand files
            with contextlib.ExitStack() as stack:
                others = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(500)]
                assert address not in {f"127.0.0.1:{other.getsockname()[1]}" for other in others}
