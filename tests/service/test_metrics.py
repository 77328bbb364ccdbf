"""The metrics, as Prometheus reads them from real servers after real calls, faults and errors; and GetServerStatus."""

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import ANSWER_KIND_EXECUTED, ANSWER_KIND_NO_ANSWER, ANSWER_KIND_TOKEN, Card
from charging.v1.operator_pb2 import (
    GetServerStatusRequest,
    GetServerStatusResponse,
    ReconcileBegin,
    ReconcileRequest,
)
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from charging.v1.query_pb2 import GetChargeRequest, GetUserSummaryRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from chassis.instruments import Description, Histogram
from command_service.bank import Bank
from command_service.parts import Parts
from command_service.values import Answer, Effect
from rig.around import Around
from rig.metrics_page import command_metrics, query_metrics
from rig.processes import Town, free_address
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import CHARGED, PENDING, a_request, a_world, heard, money, until

CHARGE = "CommandService/Charge"


class Read:
    """Metrics, once read."""

    def __init__(self, text: str) -> None:
        self.samples = [
            (sample.name.removeprefix("chargeonce_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("chargeonce_")
        ]

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 if there is none."""
        return sum(value for known, told, value in self.samples if known == name and labels.items() <= told.items())


class Watched:
    """Servers as processes, whose metrics are read."""

    def __init__(self, folder: Path) -> None:
        self.town = Town(folder)
        self.at = {"command": free_address(), "query": free_address()}

    async def read(self, server: str = "command") -> Read:
        async with httpx.AsyncClient(timeout=PATIENT_SECONDS, trust_env=False, verify=False) as http:
            return Read((await http.get(f"http://{self.at[server]}/metrics")).text)

    async def reads(self, holds: Callable[[Read], bool], server: str = "command") -> None:
        async def seen() -> bool:
            return holds(await self.read(server))

        await until(seen)

    async def start(self, **settings: str) -> None:
        await self.town.start_bank()
        await self.town.start_command(COMMAND_METRICS_LISTEN=self.at["command"], **settings)
        await self.town.start_query(QUERY_METRICS_LISTEN=self.at["query"])


@asynccontextmanager
async def watched_town(
    folder: Path, **settings: str
) -> AsyncIterator[tuple[Watched, Referee, grpc.aio.Channel, grpc.aio.Channel]]:
    watched = Watched(folder)
    try:
        await watched.start(**settings)
        town = watched.town
        async with (
            Referee(town.bank_url) as referee,
            grpc.aio.insecure_channel(town.command.listen) as commands,
            grpc.aio.insecure_channel(town.query.listen) as queries,
        ):
            yield watched, referee, commands, queries
    finally:
        await watched.town.__aexit__()


async def reconciled(commands: grpc.aio.Channel) -> None:
    """Have a statement of one line compared, so that there is a result."""
    at = datetime.now(UTC) - timedelta(minutes=10)
    columns = 'currency = "EUR"\n[columns]\nreference = "reference"\namount = "amount"\ntime = "time"\n'
    begin = ReconcileBegin(mapping=columns)
    getattr(begin, "from").FromDatetime(at - timedelta(minutes=10))
    begin.to.FromDatetime(at + timedelta(minutes=1))
    csv = f"reference,amount,time\norder-1,1.00,{at.isoformat()}\n".encode()
    requests = iter([ReconcileRequest(begin=begin), ReconcileRequest(csv=csv)])
    answers = OperatorServiceStub(commands).Reconcile(requests, timeout=4 * PATIENT_SECONDS)
    assert [answer async for answer in answers][-1].HasField("result")


async def status(commands: grpc.aio.Channel) -> GetServerStatusResponse:
    return await OperatorServiceStub(commands).GetServerStatus(GetServerStatusRequest(), timeout=PATIENT_SECONDS)


async def test_calls_bank_calls_commits_feed_view_and_queries_are_counted_as_they_were(tmp_path: Path) -> None:
    """An answer that is lost, a decline and refusals included; and GetServerStatus tells the same of the bank."""
    async with watched_town(tmp_path) as (watched, referee, commands, queries):
        stub, asking = CommandServiceStub(commands), QueryServiceStub(queries)
        await referee.trouble("execute", "lose_answer")
        first = await heard(lambda: stub.Charge(a_request("order-lost-1"), timeout=PATIENT_SECONDS))
        assert first.status == CHARGED
        declined = a_request("order-declined", card=Card(token="tok_declined"))
        await heard(lambda: stub.Charge(declined, timeout=PATIENT_SECONDS))
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Charge(a_request("order-wrong-1", amount=money(-1)), timeout=PATIENT_SECONDS)
        await asking.GetCharge(
            GetChargeRequest(charge_id=first.charge_id, min_position=first.position), timeout=PATIENT_SECONDS
        )
        await asking.GetUserSummary(GetUserSummaryRequest(user_id="alice"), timeout=PATIENT_SECONDS)
        read = await watched.read()
        assert read.of("rpc_duration_seconds_count", method=CHARGE, code="OK") == 2
        assert read.of("rpc_duration_seconds_count", method=CHARGE, code="INVALID_ARGUMENT") == 2
        calls = {
            ("token", "token"): 2,
            ("execute", "no_answer"): 1,
            ("execute", "executed"): 1,
            ("execute", "declined"): 1,
        }
        counted = {
            (step, answer): read.of("bank_call_duration_seconds_count", step=step, answer=answer, operation="charge")
            for step, answer in calls
        }
        assert counted == calls
        assert read.of("bank_call_duration_seconds_count") == sum(calls.values())
        head = read.of("journal_position")
        assert head == 6
        assert read.of("journal_commit_records_sum") == head
        assert read.of("journal_commit_records_count") == read.of("journal_commit_duration_seconds_count") > 0
        assert read.of("limit_maximum", limit="calls") == 2000
        assert read.of("bank_calls_limit") == 128
        await watched.reads(lambda now: now.of("feed_records_total") == head and not now.of("feed_reader_lag_records"))
        assert (await watched.read()).of("feed_readers") == 1
        await watched.reads(lambda now: now.of("view_position") == head, "query")
        viewed = await watched.read("query")
        assert viewed.of("view_batch_records_sum") == head
        assert viewed.of("view_batch_duration_seconds_count") == viewed.of("view_batch_records_count")
        assert viewed.of("query_duration_seconds_count", query="charge") == 1
        assert viewed.of("query_duration_seconds_count", query="sums") == 1
        assert viewed.of("rpc_duration_seconds_count", method="QueryService/GetCharge", code="OK") == 1
        told = await status(commands)
        (bank,) = told.banks
        answers = {(each.step, each.answer): each.count for each in bank.answers}
        assert answers["token", ANSWER_KIND_TOKEN] == 2
        assert answers["execute", ANSWER_KIND_NO_ANSWER] == answers["execute", ANSWER_KIND_EXECUTED] == 1
        assert sum(bank.duration_counts) == sum(calls.values())
        assert len(bank.duration_counts) == len(bank.duration_bounds) + 1
        assert told.journal_position == head
        assert {limit.name: limit.limit for limit in told.limits}["calls"] == 2000


@pytest.mark.parametrize("server", ["command", "query"])
async def test_what_is_read_is_what_the_page_describes(server: str, tmp_path: Path) -> None:
    """With no label more than described; and the classes of a histogram add up."""
    metrics: Mapping[str, Description] = {
        each.name: each for each in (command_metrics() if server == "command" else query_metrics())
    }
    async with watched_town(tmp_path) as (watched, _, commands, queries):
        answer = await heard(lambda: CommandServiceStub(commands).Charge(a_request(), timeout=PATIENT_SECONDS))
        wanted = GetChargeRequest(charge_id=answer.charge_id, min_position=answer.position)
        await QueryServiceStub(queries).GetCharge(wanted, timeout=PATIENT_SECONDS)
        await reconciled(commands)
        read = await watched.read(server)
        found = set()
        for name, labels, value in read.samples:
            stem = next((name.removesuffix(end) for end in ("_bucket", "_count", "_sum") if name.endswith(end)), name)
            described = metrics[stem if stem in metrics else name]
            found.add(described.name)
            assert set(labels) - {"le"} <= set(described.labels), name
            if name.endswith("_bucket") and labels["le"] == "+Inf":
                same = {label: told for label, told in labels.items() if label != "le"}
                assert value == read.of(f"{stem}_count", **same)
        assert set(metrics) == found


async def test_a_charge_whose_bank_is_silent_is_stuck_until_the_bank_answers(tmp_path: Path) -> None:
    """In the situation of its step, and only once it is old enough."""
    async with watched_town(tmp_path, COMMAND_ATTENTION_AFTER_SECONDS="1") as (watched, referee, commands, _):
        await referee.trouble("execute", "lose_answer", times=1_000_000)
        await referee.trouble("look_up", "lose_answer", times=1_000_000)
        answer = await heard(lambda: CommandServiceStub(commands).Charge(a_request(), timeout=1.0))
        assert answer.status == PENDING
        await watched.reads(lambda now: now.of("stuck_charges", situation="execution_unknown") == 1)
        assert (await watched.read()).of("stuck_charges") == 1
        assert (await status(commands)).unfinished_charges == 1
        await referee.no_more_trouble()
        await watched.reads(lambda now: now.of("stuck_charges") == 0)


class _Faulty(Around[Bank]):
    """A bank whose adapter has a fault, while it is told so."""

    has_fault = True

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if type(self).has_fault:
            raise ZeroDivisionError
        return await self.inner.perform(effect, look_up_first=look_up_first)


class _FaultyParts(Parts):
    def bank(self) -> Bank:
        return _Faulty(super().bank()).as_one()


async def test_a_charge_that_a_fault_of_ours_stops_is_told_until_it_is_taken_up(tmp_path: Path) -> None:
    _Faulty.has_fault = True
    metrics = free_address()
    async with (
        a_world(tmp_path, _FaultyParts, COMMAND_METRICS_LISTEN=metrics) as world,
        httpx.AsyncClient(timeout=PATIENT_SECONDS, trust_env=False, verify=False) as http,
    ):

        async def read() -> Read:
            return Read((await http.get(f"http://{metrics}/metrics")).text)

        request = a_request()
        await world.pending(request)
        found = await read()
        assert found.of("stopped_charges") == 1
        assert found.of("charge_faults_total") >= 1
        assert found.of("bank_call_duration_seconds_count") == 0
        _Faulty.has_fault = False
        assert (await world.charge(request)).status == CHARGED
        assert (await read()).of("stopped_charges") == 0


def test_a_measured_value_falls_into_the_class_of_the_next_bound() -> None:
    """Its own bound included, as Prometheus wants it."""
    histogram = Histogram("seconds", "some", (1.0, 2.0), ("of",))
    for measured in (0.5, 1.0, 1.5, 2.0, 2.1, 100.0):
        histogram.note(measured, ("it",))
    histogram.note(math.inf, ("",))
    classes: dict[Any, list[int]] = {values: child.counts for values, child in histogram.items()}
    assert classes == {("it",): [2, 2, 2], ("",): [0, 0, 1]}
    told = {(sample.name, tuple(sample.labels.items())): sample.value for sample in histogram.read("x").samples}
    assert told["x_seconds_bucket", (("of", "it"), ("le", "2.0"))] == 4
    assert told["x_seconds_bucket", (("le", "+Inf"),)] == 1
