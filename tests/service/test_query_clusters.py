"""One query server over the journals of two real command servers, each with a bank of its own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import (
    VIEW_STATE_DISCONNECTED,
    VIEW_STATE_LIVE,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
    WatchChargeRequest,
)
from rig.errors import refused
from rig.world import World, a_request, a_world
from tests.service.journals_rig import health, stand, status
from tests.service.query_rig import Client, querying
from tests.service.test_query_service import read


@asynccontextmanager
async def two_clusters(folder: Path) -> AsyncIterator[tuple[World, World, Client]]:
    """Two command servers, each with a journal and a bank of its own, and a query server that follows both."""
    async with a_world(made(folder / "east")) as east, a_world(made(folder / "west")) as west:
        feeds = f"{east.running.feed_listen};{west.running.feed_listen}"
        async with querying(feeds, folder / "view.db") as (_, client):
            await client.becomes(HealthCheckResponse.SERVING)
            yield east, west, client


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_a_client_reads_its_own_write_of_either_cluster(tmp_path: Path) -> None:
    """By the position and the journal in the answer to its command, through every query; and the answer names that journal."""
    async with two_clusters(tmp_path) as (east, west, client):
        for world, other in ((east, west), (west, east)):
            request = a_request()
            answer = await world.charge(request)
            assert answer.journal_id == world.running.journal.journal_id != other.running.journal.journal_id
            place: dict[str, Any] = {"min_position": answer.position, "journal_id": answer.journal_id}
            name: dict[str, Any] = {"idempotency_key": request.idempotency_key}
            seen = await client.queries.GetCharge(GetChargeRequest(**name, **place))
            assert (seen.charge.charge_id, seen.charge.status) == (answer.charge_id, ChargeStatus.CHARGE_STATUS_CHARGED)
            assert seen.charge.journal_id == answer.journal_id
            assert [(one.journal_id, one.position) for one in seen.positions] == [(answer.journal_id, answer.position)]
            assert (seen.as_of_position, seen.lag) == (answer.position, seen.positions[0].lag)
            assert seen.positions[0].head_position == answer.position
            by_id = await client.queries.GetCharge(GetChargeRequest(charge_id=answer.charge_id))
            assert by_id.charge == seen.charge
            history = await client.queries.GetChargeHistory(GetChargeHistoryRequest(**name))
            assert ([entry.event for entry in history.entries][-1], history.as_of_position) == (
                "Charged",
                answer.position,
            )
            watch = client.queries.WatchCharge(WatchChargeRequest(**name, **place))
            assert (await read(watch)).charge == seen.charge
            refunded = await world.refund(answer.charge_id, 450)
            assert refunded.journal_id == answer.journal_id
            while (told := await read(watch)).charge.position < refunded.position:
                pass
            assert (told.charge.refunded_minor_units, told.positions[0].journal_id) == (450, answer.journal_id)
            watch.cancel()
        listed = await client.queries.ListCharges(ListChargesRequest())
        (sums,) = (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="alice"))).currencies
        journals = [world.running.journal.journal_id for world in (west, east)]
    assert [charge.journal_id for charge in listed.charges] == journals  # the newest charge first
    assert [one.journal_id for one in listed.positions] == journals[::-1]
    assert (sums.charged_minor_units, sums.charged_count, sums.refunded_minor_units, sums.net_minor_units) == (
        2500,
        2,
        900,
        1600,
    )


async def test_a_charge_that_both_clusters_have_is_not_one_of_them_by_chance(tmp_path: Path) -> None:
    """Callers who were moved between clusters may charge one order twice. The answer names the journals; each shows its own."""
    async with two_clusters(tmp_path) as (east, west, client):
        request = a_request()
        answers = [await world.charge(request) for world in (east, west)]
        assert answers[0].charge_id == answers[1].charge_id
        for answer in answers:
            place: dict[str, Any] = {"min_position": answer.position, "journal_id": answer.journal_id}
            await client.queries.GetViewStatus(GetViewStatusRequest(**place))
        names: Sequence[dict[str, Any]] = (
            {"idempotency_key": request.idempotency_key},
            {"charge_id": answers[0].charge_id},
        )
        for name in names:
            for call in (
                client.queries.GetCharge(GetChargeRequest(**name)),
                client.queries.GetChargeHistory(GetChargeHistoryRequest(**name)),
                client.queries.WatchCharge(WatchChargeRequest(**name)).read(),
            ):
                error = await refused(call)
                assert (error.code, error.reason, error.advice) == (
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "CHARGE_IN_SEVERAL_JOURNALS",
                    "ASK_STATUS",
                )
                assert error.metadata["journal_ids"].split() == [answer.journal_id for answer in answers]
            for answer in answers:
                own = await client.queries.GetCharge(GetChargeRequest(**name, journal_id=answer.journal_id))
                assert own.charge.transaction_id == answer.transaction_id
                history = GetChargeHistoryRequest(**name, journal_id=answer.journal_id)
                assert (await client.queries.GetChargeHistory(history)).positions[0].journal_id == answer.journal_id


async def test_a_cluster_that_is_down_does_not_stop_the_others_answers(tmp_path: Path) -> None:
    """Its part goes stale, and the lag tells. When it comes back its view goes on."""
    async with two_clusters(tmp_path) as (east, west, client):
        before = await west.charge(a_request())
        place: dict[str, Any] = {"min_position": before.position, "journal_id": before.journal_id}
        await client.queries.GetViewStatus(GetViewStatusRequest(**place))
        await west.stop()
        await stand(client, VIEW_STATE_LIVE, VIEW_STATE_DISCONNECTED)
        answer = await east.charge(a_request())
        place = {"min_position": answer.position, "journal_id": answer.journal_id}
        (sums,) = (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="alice", **place))).currencies
        assert sums.charged_count == 2
        silent = await client.queries.GetCharge(GetChargeRequest(charge_id=before.charge_id))
        live = await client.queries.GetCharge(GetChargeRequest(charge_id=answer.charge_id))
        listed = await client.queries.ListCharges(ListChargesRequest())
        told = await status(client)
        assert await health(client) == HealthCheckResponse.SERVING
        await west.start()  # the world's end, which compares the books, asks for it
    assert silent.lag.silence_milliseconds >= live.lag.silence_milliseconds
    assert listed.as_of_position == told.as_of_position == told.head_position == 0
    assert listed.lag.silence_milliseconds == max(one.lag.silence_milliseconds for one in listed.positions)
    assert (told.state, told.journal_id, told.charge_count) == (VIEW_STATE_DISCONNECTED, "", 2)
