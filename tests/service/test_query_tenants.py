"""Tenants: every query shows its own tenant's rows only, even if another tenant has the same names."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import (
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
    WatchChargeRequest,
)
from chassis.caller import Caller, GuardedCall, NoCaller
from chassis.refusals import Refusal
from query_service.api import QueryService
from query_service.mirrors import Mirror
from query_service.parts import Parts
from query_service.view import View
from tests.sealed import (
    EPOCH_MICROSECONDS,
    SealedJournal,
    charge_id_of,
    charged,
    declined,
    requested,
    token_issued,
)
from tests.service.feed_server import feeding
from tests.service.query_rig import Client, querying
from tests.service.test_query_service import keys, time_of

KEY = "order-0001"


@dataclass
class Town:
    """A query server that follows a journal with charges of two shops, which use the same keys and users."""

    journal: SealedJournal
    client: Client
    queries: QueryService


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    journal = SealedJournal()
    for number, key in enumerate((KEY, "order-0002"), 1):
        for tenant in ("default", "another"):
            amount = 100 * number + (tenant == "another")
            journal.append(f"{tenant} {key}", requested(key, "user-1", minor_units=amount, tenant=tenant))
    for tenant in ("default", "another"):
        journal.append(f"{tenant} {KEY}", token_issued())
    journal.append(f"default {KEY}", charged())
    journal.append(f"another {KEY}", declined())
    made: list[QueryService] = []

    class Kept(Parts):
        def queries(self, mirrors: Sequence[Mirror]) -> QueryService:
            made.append(super().queries(mirrors))
            return made[0]

    async with feeding(journal) as feed, querying(feed.address, tmp_path / "view.db", Kept) as (_, client):
        await client.reaches(journal.head)
        yield Town(journal, client, made[0])


class Context:
    """The members of a call's context that a handler uses."""

    def time_remaining(self) -> float:
        return 5.0

    def peer(self) -> str:
        return "somebody"


def by(tenant: str) -> GuardedCall:
    return GuardedCall("/charging.v1.QueryService/Any", Caller(tenant, "somebody"), Context())


async def test_each_query_shows_the_callers_tenant_only(town: Town) -> None:
    """One key names two charges: every query shows each tenant its own."""
    ask = town.queries
    for tenant, more, status in (
        ("default", 0, ChargeStatus.CHARGE_STATUS_CHARGED),
        ("another", 1, ChargeStatus.CHARGE_STATUS_DECLINED),
    ):
        charge_id = charge_id_of(f"{tenant} {KEY}")
        names: Sequence[dict[str, Any]] = ({"idempotency_key": KEY}, {"charge_id": charge_id})
        for name in names:
            shown = (await ask.GetCharge(GetChargeRequest(**name), by(tenant))).charge
            assert (shown.charge_id, shown.amount.minor_units, shown.status) == (charge_id, 100 + more, status)
            history = await ask.GetChargeHistory(GetChargeHistoryRequest(**name), by(tenant))
            assert (history.charge_id, len(history.entries)) == (charge_id, 3)
            watch = ask.WatchCharge(WatchChargeRequest(**name), by(tenant))
            async with contextlib.aclosing(watch) as messages:  # type: ignore[type-var]  # a generator, typed as an iterator
                assert (await anext(messages)).charge == shown
        page = await ask.ListCharges(ListChargesRequest(), by(tenant))
        assert [charge.amount.minor_units for charge in page.charges] == [200 + more, 100 + more]
        assert keys(await ask.ListCharges(ListChargesRequest(status=status), by(tenant))) == [KEY]
        (sums,) = (await ask.GetUserSummary(GetUserSummaryRequest(user_id="user-1"), by(tenant))).currencies
        assert (sums.pending_minor_units, sums.pending_count) == (200 + more, 1)
        assert sums.charged_minor_units + sums.declined_minor_units == 100 + more
        assert (await ask.GetViewStatus(GetViewStatusRequest(), by(tenant))).charge_count == 2


async def test_a_range_of_times_and_a_page_token_stay_within_the_tenant(town: Town) -> None:
    """The second page of a tenant shows its own charges, even with another tenant's token."""
    since = time_of(EPOCH_MICROSECONDS + 2)
    page = await town.queries.ListCharges(ListChargesRequest(requested_from=since), by("default"))
    assert [charge.amount.minor_units for charge in page.charges] == [200]
    page = await town.queries.ListCharges(ListChargesRequest(requested_before=since), by("another"))
    assert not page.charges
    first = await town.queries.ListCharges(ListChargesRequest(page_size=1), by("default"))
    rest = ListChargesRequest(page_size=9, page_token=first.next_page_token)
    page = await town.queries.ListCharges(rest, by("another"))
    assert [charge.amount.minor_units for charge in page.charges] == [101]


@pytest.mark.parametrize("tenant", ["default", "nobody", "Another", ""])
async def test_another_tenants_charge_is_not_found_by_its_id(town: Town, tenant: str) -> None:
    """It seems not to exist, and a tenant without charges sees none."""
    theirs = charge_id_of(f"another {KEY}")
    calls: list[Any] = [
        town.queries.GetCharge(GetChargeRequest(charge_id=theirs), by(tenant)),
        town.queries.GetChargeHistory(GetChargeHistoryRequest(charge_id=theirs), by(tenant)),
        anext(town.queries.WatchCharge(WatchChargeRequest(charge_id=theirs), by(tenant))),
    ]
    for call in calls:
        with pytest.raises(Refusal) as refused:
            await call
        assert refused.value.reason == "CHARGE_NOT_FOUND"
    if tenant != "default":
        assert not (await town.queries.ListCharges(ListChargesRequest(), by(tenant))).charges
        assert not (await town.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1"), by(tenant))).currencies
        assert (await town.queries.GetViewStatus(GetViewStatusRequest(), by(tenant))).charge_count == 0


async def test_a_client_over_the_network_has_the_default_tenant(town: Town) -> None:
    """Without a policy."""
    page = await town.client.queries.ListCharges(ListChargesRequest())
    assert [charge.amount.minor_units for charge in page.charges] == [200, 100]


async def test_a_query_without_the_guard_is_not_answered(town: Town) -> None:
    """Without a caller there is no tenant whose rows it may show."""
    with pytest.raises(NoCaller):
        await town.queries.ListCharges(ListChargesRequest(), Context())


async def test_the_tenant_comes_first_in_every_key_and_index_but_one(tmp_path: Path) -> None:
    """The exception is the index by id, by which a record of the feed names its charge."""
    path = tmp_path / "view.db"
    await (await View.open(path)).close()
    first = {}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            for _, index, *_ in connection.execute(f"PRAGMA index_list({table})").fetchall():
                first[table, index] = connection.execute(f"PRAGMA index_info({index})").fetchone()[2]
    others = {place: column for place, column in first.items() if column != "tenant"}
    assert {place[0] for place in first} == {
        "tenant",
        "charge",
        "operation",
        "entry",
        "step",
        "summary",
        "totals",
        "checkpoint",
    }
    assert sorted(others.values()) == ["charge_id", "journal_id", "name"]
    assert others["charge", "charge_by_id"] == "charge_id"
