"""The command server as a process: its start, its health and figures, its stop, and kill -9."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import structlog.testing
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from charging.v1 import command_pb2_grpc, journal_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.common_pb2 import Card, Money
from charging.v1.journal_pb2 import Event, SubscribeRequest
from command_service.codec import charge_id_of
from command_service.journal.commits import GroupCommit
from command_service.journal.sqlite.file import SqliteFile
from rig.errors import refused
from rig.processes import DidNotStart, Server, Town, free_address
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import (
    CHARGED,
    PENDING,
    REPLAYED,
    World,
    a_request,
    a_world,
    assert_books_agree,
    head,
    id_of,
    records,
    until,
)

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
OF_A_NEWER_PROGRAM = b"\xa2\x06\x00"  # an event of an unknown kind
HOLD: dict[str, Any] = {
    "fault": "in_progress",
    "retry_after": "0",
    "times": 1_000_000,
}  # until `no_more_trouble`


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


@asynccontextmanager
async def a_town(folder: Path, **settings: str) -> AsyncIterator[tuple[Town, Referee]]:
    """A bank and a command server with settings of its own, as processes."""
    town = Town(folder)
    try:
        await town.start_bank()
        await town.start_command(**settings)
        async with Referee(town.bank_url) as referee:
            yield town, referee
    finally:
        await town.__aexit__()


# Written out, since the stubs of these two packages are typed for synchronous channels only.
async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    check: grpc.aio.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    return (await check(HealthCheckRequest(service=service), timeout=PATIENT_SECONDS)).status


async def health_changes(channel: grpc.aio.Channel) -> AsyncIterator[int]:
    watch: grpc.aio.UnaryStreamMultiCallable[HealthCheckRequest, HealthCheckResponse] = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    async for answer in watch(HealthCheckRequest()):
        yield answer.status


async def services(channel: grpc.aio.Channel) -> set[str]:
    ask: grpc.aio.StreamStreamMultiCallable[ServerReflectionRequest, ServerReflectionResponse] = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    async for answer in ask(iter([ServerReflectionRequest(list_services="")])):
        return {service.name for service in answer.list_services_response.service}
    raise AssertionError("no answer")


# ---------------------------------------------------------------- health and reflection
async def test_both_ports_are_serving_and_each_has_the_health_of_its_own_service(world: World) -> None:
    """grpc.health.v1, for load balancers."""
    for channel, service in ((world.channel, "CommandService"), (world.feed_channel, "JournalService")):
        assert await health(channel) == SERVING
        assert await health(channel, f"charging.v1.{service}") == SERVING
    answer = await refused(health(world.channel, "charging.v1.JournalService"))
    assert answer.code is grpc.StatusCode.NOT_FOUND


async def test_a_server_without_room_on_its_disk_is_not_serving_but_its_feed_is(tmp_path: Path) -> None:
    """Commands go elsewhere; stored records can still be read."""
    async with a_world(tmp_path, COMMAND_FREE_BYTES=str(1 << 50)) as world:

        async def says_so() -> bool:
            return await health(world.channel) == NOT_SERVING

        await until(says_so)
        assert await health(world.channel, "charging.v1.CommandService") == NOT_SERVING
        assert await health(world.feed_channel) == SERVING


async def test_reflection_lists_each_ports_services(world: World) -> None:
    """With them grpcurl needs no .proto files."""
    reflection = {f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")}
    own = {"grpc.health.v1.Health", *reflection}
    assert await services(world.channel) == own | {"charging.v1.CommandService", "charging.v1.OperatorService"}
    assert await services(world.feed_channel) == own | {"charging.v1.JournalService"}


async def test_reflection_can_be_switched_off(tmp_path: Path) -> None:
    """Its method is then unknown."""
    async with a_world(tmp_path, COMMAND_REFLECTION="no") as world:
        for channel in (world.channel, world.feed_channel):
            assert (await refused(services(channel))).code is grpc.StatusCode.UNIMPLEMENTED


# ---------------------------------------------------------------- servers that do not start
async def fails_to_start(log: Path, **environment: str) -> list[str]:
    """Start a server that exits with status 1 instead of serving; return its lines."""
    server = Server("command_service", environment, log)
    try:
        with pytest.raises(DidNotStart):
            await server.start()
        assert await server.ended() == 1
    finally:
        await server.kill()
    assert "Traceback" not in server.text()
    return server.text().splitlines()


async def test_a_second_server_on_the_same_journal_or_port_ends_with_an_error(world: World, tmp_path: Path) -> None:
    """Its line names the journal or port that is taken; the first server goes on."""

    def second(journal: Path, **taken: str) -> Awaitable[list[str]]:
        free = {"COMMAND_LISTEN": "127.0.0.1:0", "COMMAND_FEED_LISTEN": "127.0.0.1:0"}
        log = journal.with_suffix(".log")
        return fails_to_start(log, **{**free, "COMMAND_JOURNAL": f"sqlite:///{journal}", **taken})

    listen, feed_listen = str(world.running.listen), str(world.running.feed_listen)
    said = await asyncio.gather(
        second(world.journal),
        second(tmp_path / "other.db", COMMAND_LISTEN=listen),
        second(tmp_path / "third.db", COMMAND_FEED_LISTEN=feed_listen),
        second(tmp_path / "fourth.db", COMMAND_METRICS_LISTEN=listen),
    )
    assert [lines[-1] for lines in said] == [  # for a port, grpc has logged a line of its own before
        f"error: another server has the journal {world.journal} open: stop it first, or use another file",
        f"error: cannot listen on {listen}: is another server running there?",
        f"error: cannot listen on {feed_listen}: is another server running there?",
        f"error: cannot offer metrics on {listen}: Address already in use",
    ]
    assert (await world.charge(a_request())).status == CHARGED


async def test_all_problems_of_the_settings_are_reported_together(tmp_path: Path) -> None:
    """Each with its variable and why it exists, and never with its value; exit status 1, before any file is opened."""
    wrong = {
        "COMMAND_LISTEN": "secret-value",
        "COMMAND_FEED_LISTEN": "127.0.0.1:secret-value",
        "COMMAND_JOURNAL": "postgresql://secret-value",
        "COMMAND_BANK_URL": "ftp://secret-value",
        "COMMAND_BANK_TIMEOUT_SECONDS": "secret-value",
        "COMMAND_BANK_CALLS": "0",
        "COMMAND_MAX_CALLS": "-1",
        "COMMAND_MAX_UNFINISHED": "1e6",
        "COMMAND_ABANDON_AFTER_SECONDS": "nan",
        "COMMAND_ATTENTION_AFTER_SECONDS": "0",
        "COMMAND_FREE_BYTES": "much",
        "COMMAND_DRAIN_SECONDS": "601",
        "COMMAND_REFLECTION": "true",
        "COMMAND_METRICS_LISTEN": "9090",
    }
    said = await fails_to_start(tmp_path / "wrong.log", **wrong)
    assert said[0] == "error: settings cannot be used:"
    assert [line.split(":")[0].strip() for line in said[1:]] == list(wrong)
    assert all(line.endswith(")") for line in said[1:])
    assert not any("secret-value" in line for line in said)


async def test_a_journal_with_an_unfinished_charge_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """The server does not serve from a journal that it cannot read: one line, exit status 1."""
    journal = tmp_path / "journal.db"
    await store(journal, OF_A_NEWER_PROGRAM, finished=False)
    (said,) = await fails_to_start(
        tmp_path / "failed.log",
        COMMAND_LISTEN="127.0.0.1:0",
        COMMAND_FEED_LISTEN="127.0.0.1:0",
        COMMAND_JOURNAL=f"sqlite:///{journal}",
    )
    assert said.startswith(f"error: the journal {journal} holds an unfinished charge that cannot be read: ")


async def store(path: Path, event: bytes, *, finished: bool, key: str = "order-1234") -> None:
    """Append an event as the first one of a key's charge."""
    journal = await GroupCommit.open(
        await SqliteFile(path).open(), now=lambda: 1_000_000, end_process=lambda: sys.exit("unknown")
    )
    await journal.append(charge_id_of("default", key), 0, [event], finished=finished)
    await journal.close()


# ---------------------------------------------------------------- SIGTERM
async def test_on_sigterm_a_waiting_call_gets_its_outcome_and_new_ones_are_refused(tmp_path: Path) -> None:
    """Health is NOT_SERVING first, streams get the outcome and end, and the exit status is 0."""
    async with a_town(tmp_path) as (town, referee):
        async with (
            grpc.aio.insecure_channel(town.command.listen) as channel,
            grpc.aio.insecure_channel(town.command.serving["feed"]) as feed_channel,
        ):
            await referee.trouble("execute", **HOLD)
            changes = health_changes(channel)
            assert await anext(changes) == SERVING
            following = asyncio.ensure_future(followed(feed_channel))
            request = a_request()
            commands = command_pb2_grpc.CommandServiceStub(channel)
            waiting = asyncio.ensure_future(commands.Charge(request, timeout=PATIENT_SECONDS))
            await until(lambda: head(town.journal).position == 2)
            stopping = asyncio.ensure_future(town.command.stop())
            assert await anext(changes) == NOT_SERVING
            async with grpc.aio.insecure_channel(town.command.listen) as late:

                async def is_refused() -> bool:
                    call = command_pb2_grpc.CommandServiceStub(late).Charge(ChargeRequest(), timeout=PATIENT_SECONDS)
                    return (await refused(call)).code is grpc.StatusCode.UNAVAILABLE

                await until(is_refused)
            await referee.no_more_trouble()
            assert (await waiting).status == CHARGED
            assert await following == ([1, 2, 3], "SERVER_STOPPING")
        assert await stopping == 0
        assert town.command.entries()[-1]["event"] == "stopped"
        assert [entry for entry in town.command.entries() if entry["level"] != "info"] == []
        await assert_books_agree(town.journal, referee)


async def followed(channel: grpc.aio.Channel) -> tuple[list[int], str]:
    """The positions that a reader of the feed gets until the stream ends, and the reason of its end."""
    positions: list[int] = []

    async def read() -> None:
        async for message in journal_pb2_grpc.JournalServiceStub(channel).Subscribe(SubscribeRequest()):
            positions.extend(record.position for record in message.batch.records)

    return positions, (await refused(read())).reason


async def test_on_sigterm_a_call_without_an_outcome_answers_pending(tmp_path: Path) -> None:
    """Before the end of the drain's time, and with exit status 0; the next start goes on with the charge."""
    async with a_town(tmp_path, COMMAND_DRAIN_SECONDS="4") as (town, referee):
        await referee.trouble("execute", "hang_before", seconds=60)
        request = a_request()
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            call = command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=PATIENT_SECONDS)
            waiting = asyncio.ensure_future(call)
            await until(lambda: head(town.journal).position == 2)
            stopping = asyncio.ensure_future(town.command.stop())
            assert (await waiting).status == PENDING
        assert await stopping == 0
        await town.start_command()
        await until(lambda: head(town.journal).position == 3)
        assert Event.FromString(records(town.journal)[-1].event).HasField("charged")
        await assert_books_agree(town.journal, referee)


async def test_a_log_whose_reader_has_gone_loses_its_entries_and_no_charge(tmp_path: Path) -> None:
    """The reader of standard error has gone. Calls without an answer are logged, and the charges go on."""
    town = Town(tmp_path)
    town.command.prefix = ("sh", "-c", '"$0" "$@" 2>&1 | head -n 1')  # reads the entry "serving", and goes
    try:
        await town.start_bank()
        await town.start_command()
        async with Referee(town.bank_url) as referee, grpc.aio.insecure_channel(town.command.listen) as channel:
            commands = command_pb2_grpc.CommandServiceStub(channel)
            await referee.trouble("token", "lose_answer", times=2)
            await referee.trouble("execute", "refuse", status=403, times=2)
            for _ in range(2):  # the pipe may still take the first entry after the reader's end
                assert (await commands.Charge(a_request(), timeout=PATIENT_SECONDS)).status == CHARGED
            await assert_books_agree(town.journal, referee)
    finally:
        await town.__aexit__()


# ---------------------------------------------------------------- kill -9
async def test_charges_that_a_kill_interrupts_are_each_charged_exactly_once(tmp_path: Path) -> None:
    """Fifty at once, each at some step: the retries with their keys all get CHARGED."""
    async with a_town(tmp_path) as (town, referee):
        # The kill meets charges at every step, some with a lost answer, and one that is under way in any case.
        requests = [a_request() for _ in range(50)]
        await referee.trouble("execute", reference=id_of(requests[0]), **HOLD)
        for on in ("token", "execute"):
            await referee.trouble(on, "delay", seconds=0.2, times=10)
            await referee.trouble(on, "lose_answer", times=10)
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            commands = command_pb2_grpc.CommandServiceStub(channel)
            calls = [asyncio.ensure_future(commands.Charge(r, timeout=PATIENT_SECONDS)) for r in requests]

            async def some_moved() -> bool:
                return len(await referee.movements()) >= 15

            await until(some_moved)
            await town.command.kill()
            interrupted = await asyncio.gather(*calls, return_exceptions=True)
        await referee.no_more_trouble()
        answered = [answer for answer in interrupted if isinstance(answer, ChargeResponse)]
        assert len(answered) < 50

        await town.start_command()
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            commands = command_pb2_grpc.CommandServiceStub(channel)
            answers = await asyncio.gather(*[commands.Charge(r, timeout=PATIENT_SECONDS) for r in requests])
        assert {answer.status for answer in answers} == {CHARGED}
        assert {answer.transaction_id for answer in answered} <= {answer.transaction_id for answer in answers}
        moved = {movement.reference: movement.transaction_id for movement in await referee.movements()}
        assert moved == {answer.charge_id: answer.transaction_id for answer in answers}
        await assert_books_agree(town.journal, referee)


# ---------------------------------------------------------------- faults of ours
async def test_an_unforeseen_error_reaches_the_client_as_a_fixed_text_and_the_log_without_the_input(
    tmp_path: Path,
) -> None:
    """Here another program renames the journal's table, and the charge has faults, so that the journal is read first."""
    async with Town(tmp_path) as town, grpc.aio.insecure_channel(town.command.listen) as channel:
        request = a_request(description="a very private matter", user_id="mallory and more")
        commands = command_pb2_grpc.CommandServiceStub(channel)
        with closing(sqlite3.connect(town.journal)) as vandal:
            vandal.execute("ALTER TABLE record RENAME TO gone")
        answer = await refused(commands.Charge(request, timeout=PATIENT_SECONDS))
        assert (answer.code, answer.reason, answer.advice) == (
            grpc.StatusCode.INTERNAL,
            "UNEXPECTED",
            "RETRY_SAME_KEY",
        )
        assert answer.text == "a fault in the server; what happened is not known: retry with the same key"
        assert b"record" not in answer.everything
        entry = await town.command.logged("a call failed unexpectedly")  # the log is written a little after the answer
        assert entry["error"] == "OperationalError"
        assert [entry] == [each for each in town.command.entries() if each["level"] == "error"]
        for private in ("private", request.idempotency_key, "mallory", "no such table"):
            assert private not in town.command.text()


async def test_a_charge_that_cannot_be_read_is_data_loss_and_no_new_charge(tmp_path: Path) -> None:
    """Nothing is guessed, the bank is not called, other charges are served, and the log reports it."""
    unknown, damaged = a_request(), a_request()
    await store(tmp_path / "journal.db", OF_A_NEWER_PROGRAM, finished=True, key=unknown.idempotency_key)
    async with a_world(tmp_path) as world:
        world.broken = {"I8"}  # the unknown event is none of a stream's
        await world.charge(damaged)
        flip_a_bit(world.journal, 2)
        before = head(world.journal), await world.referee.calls()
        for request in (unknown, damaged):
            with structlog.testing.capture_logs() as entries:
                answer = await refused(world.charge(request))
            assert (answer.code, answer.reason, answer.advice) == (
                grpc.StatusCode.DATA_LOSS,
                "JOURNAL_CORRUPT",
                "ASK_STATUS",
            )
            assert [entry["log_level"] for entry in entries] == ["error"]
        assert (head(world.journal), await world.referee.calls()) == before
        assert (await world.charge(a_request())).status == CHARGED
        flip_a_bit(world.journal, 2)  # repaired, so that the books can be compared
        assert (await world.charge(damaged)).status == CHARGED


def flip_a_bit(journal: Path, position: int) -> None:
    """Change a record in the file, as a bad disk would."""
    with closing(sqlite3.connect(journal)) as disk, disk:
        (event,) = disk.execute("SELECT event FROM record WHERE position = ?", (position,)).fetchone()
        disk.execute("UPDATE record SET event = ? WHERE position = ?", (event[:-1] + bytes([event[-1] ^ 1]), position))


# ---------------------------------------------------------------- limits and figures
async def test_the_largest_request_that_the_contract_allows_is_charged(world: World) -> None:
    """Twenty entries of metadata, and every text of its greatest length, in characters of three bytes: within 16 KiB."""
    request = ChargeRequest(
        idempotency_key="k" * 255,
        user_id="u" * 255,
        card=Card(token="tok_visa", brand="b" * 64, last4="4242"),
        amount=Money(minor_units=999_999_999_999, currency_code="IDR"),
        description="\u732b" * 500,
        metadata={f"{n:02}" + "k" * 38: "\u732b" * 153 + "v" for n in range(20)},
    )
    assert (await world.charge(request)).status == CHARGED
    assert world.events(request)[0].charge_requested.metadata == request.metadata


async def test_an_operators_cap_replaces_the_built_in_one_for_new_charges(tmp_path: Path) -> None:
    """The retry of a charge that was accepted under a larger cap is answered."""
    before, after, dollars = a_request(), a_request(), a_request()
    dollars.amount.CopyFrom(Money(minor_units=999_999_999_999, currency_code="USD"))
    async with a_town(tmp_path) as (town, _):

        async def charge(request: ChargeRequest) -> ChargeResponse:
            async with grpc.aio.insecure_channel(town.command.listen) as channel:
                call = command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=PATIENT_SECONDS)
                response: ChargeResponse = await call
                return response

        assert (await charge(before)).status == CHARGED
        assert (await refused(charge(dollars))).fields == {"amount.minor_units"}
        await town.command.stop()
        await town.start_command(COMMAND_MAX_AMOUNTS="EUR=1000,USD=999999999999")
        assert (await charge(before)).outcome_source == REPLAYED
        assert (await refused(charge(after))).fields == {"amount.minor_units"}
        assert (await charge(dollars)).status == CHARGED


async def test_the_age_of_the_oldest_unfinished_charge_is_a_gauge(tmp_path: Path) -> None:
    """It grows while a charge is on its way, and is 0 when all are at rest."""
    metrics = free_address()
    async with (
        a_town(tmp_path, COMMAND_METRICS_LISTEN=metrics) as (town, referee),
        httpx.AsyncClient(timeout=PATIENT_SECONDS, trust_env=False, verify=False) as http,
    ):

        async def gauge(name: str) -> float:
            lines = (await http.get(f"http://{metrics}/metrics")).text.splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith(f"chargeonce_{name} "))

        async def is_getting_old() -> bool:
            return await gauge("oldest_unfinished_seconds") > 0.1

        assert await gauge("oldest_unfinished_seconds") == 0
        await referee.trouble("token", **HOLD)
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            call = command_pb2_grpc.CommandServiceStub(channel).Charge(a_request(), timeout=PATIENT_SECONDS)
            waiting = asyncio.ensure_future(call)
            await until(is_getting_old)
            assert await gauge("unfinished_charges") == 1
            await referee.no_more_trouble()
            await waiting
        assert await gauge("oldest_unfinished_seconds") == await gauge("unfinished_charges") == 0
        assert await gauge("journal_position") == 3
