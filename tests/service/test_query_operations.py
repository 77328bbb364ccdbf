"""The answers of a real query server about holds, captures, voids and refunds."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import ChargeStatus, DeclineReason, Money, OperationKind, OperationStatus, ReviewReason
from charging.v1.journal_pb2 import Event
from charging.v1.query_pb2 import (
    Charge,
    ChargeStage,
    CurrencySummary,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    ListChargesRequest,
    Operation,
    WatchChargeRequest,
)
from query_service import schema
from query_service.verified import verify
from query_service.view import View
from rig.processes import free_address
from tests.operations import (
    AMOUNT,
    HOLD_ENDS,
    authorized,
    called_off,
    capture,
    captured,
    held,
    lapsed,
    operation_declined,
    refund,
    refunded,
    time_of,
    void,
    voided,
)
from tests.sealed import EPOCH_MICROSECONDS, SealedJournal, charged, in_review, requested, token_issued, whole_stretch
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import Client, process_of, querying
from tests.service.test_query_service import keys, read

KEY = "order-0001"
HOLD = (token_issued(), authorized())
DONE = OperationStatus.OPERATION_STATUS_EXECUTED


@pytest.fixture
async def feed() -> AsyncIterator[FeedServer]:
    async with feeding(SealedJournal()) as server:
        yield server


@pytest.fixture
async def client(feed: FeedServer, tmp_path: Path) -> AsyncIterator[Client]:
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        yield client


def append(journal: SealedJournal, key: str, *events: Event) -> int:
    """Append events to a charge; return the last position."""
    for event in events:
        position = journal.append(key, event)
    return position


def operation(
    kind: OperationKind.ValueType, key: str, minor_units: int, at: int, until: int, **more: object
) -> Operation:
    """An executed operation; `at` and `until` are the positions of its first and its newest event."""
    fields = {"actor": "shop", "status": DONE, **more}
    return Operation(
        kind=kind,
        idempotency_key=key,
        amount=Money(minor_units=minor_units, currency_code="EUR"),
        requested_at=time_of(EPOCH_MICROSECONDS + at),
        updated_at=time_of(EPOCH_MICROSECONDS + until),
        **fields,  # type: ignore[arg-type]  # named fields of several types
    )


async def test_a_charge_shows_its_money_and_all_its_operations(feed: FeedServer, client: Client) -> None:
    """In every answer alike: Get, List and Watch."""
    first = held(KEY)
    first.charge_requested.not_after.CopyFrom(time_of(EPOCH_MICROSECONDS + 99))
    first.charge_requested.card.fingerprint = "fp_1"
    position = append(
        feed.journal,
        KEY,
        *(first, *HOLD, capture(400, "c-1"), token_issued(), captured("tx-c"), refund(100, "r-1", reason="one broken")),
        *(token_issued(), refunded("tx-r"), void(600, "v-1", reason="sold out"), operation_declined()),
    )
    await feed.notify()
    shown = (await client.queries.GetCharge(GetChargeRequest(idempotency_key=KEY, min_position=position))).charge
    assert shown == Charge(
        charge_id=shown.charge_id,
        idempotency_key=KEY,
        user_id="user-1",
        card=first.charge_requested.card,
        amount=first.charge_requested.amount,
        status=ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED,
        transaction_id="hold-1",
        requested_at=time_of(EPOCH_MICROSECONDS + 1),
        updated_at=time_of(EPOCH_MICROSECONDS + 11),
        journal_id="journal-one",
        version=11,
        position=11,
        stage=ChargeStage.CHARGE_STAGE_AT_REST,
        stage_since=time_of(EPOCH_MICROSECONDS + 11),
        capture=CaptureMode.CAPTURE_MODE_MANUAL,
        not_after=time_of(EPOCH_MICROSECONDS + 99),
        authorized_minor_units=AMOUNT,
        captured_minor_units=400,
        refunded_minor_units=100,
        held_minor_units=600,
        hold_expires_at=time_of(HOLD_ENDS),
        operations=[
            operation(
                OperationKind.OPERATION_KIND_AUTHORIZE, KEY, AMOUNT, 1, 3, transaction_id="hold-1", actor="anonymous"
            ),
            operation(OperationKind.OPERATION_KIND_CAPTURE, "c-1", 400, 4, 6, transaction_id="tx-c"),
            operation(
                OperationKind.OPERATION_KIND_REFUND, "r-1", 100, 7, 9, transaction_id="tx-r", reason="one broken"
            ),
            operation(
                OperationKind.OPERATION_KIND_VOID,
                "v-1",
                600,
                10,
                11,
                status=OperationStatus.OPERATION_STATUS_DECLINED,
                decline_reason=DeclineReason.DECLINE_REASON_OTHER,
                reason="sold out",
            ),
        ],
    )
    (listed,) = (await client.queries.ListCharges(ListChargesRequest())).charges
    watch = client.queries.WatchCharge(WatchChargeRequest(charge_id=shown.charge_id))
    assert listed == shown
    assert (await read(watch)).charge == shown
    position = append(feed.journal, KEY, capture(600, "c-2", final=True))
    await feed.notify()
    changed = (await read(watch)).charge
    watch.cancel()
    assert changed.status == ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED  # what its book says, until it is executed
    assert (changed.operations[-1].status, changed.operations[-1].final) == (
        OperationStatus.OPERATION_STATUS_PENDING,
        True,
    )


async def test_the_reason_for_the_review_is_that_of_the_operation_in_review(feed: FeedServer, client: Client) -> None:
    """Transaction and reasons of the charge itself stay those of its first operation."""
    unclear = in_review(ReviewReason.REVIEW_REASON_FIELDS_DIFFER)
    position = append(feed.journal, KEY, held(KEY), *HOLD, capture(400), token_issued(), unclear)
    await feed.notify()
    shown = (await client.queries.GetCharge(GetChargeRequest(idempotency_key=KEY, min_position=position))).charge
    assert (shown.status, shown.review_reason) == (
        ChargeStatus.CHARGE_STATUS_IN_REVIEW,
        ReviewReason.REVIEW_REASON_FIELDS_DIFFER,
    )
    assert (shown.transaction_id, shown.held_minor_units) == ("hold-1", AMOUNT)


async def test_a_history_names_the_operation_of_each_event(feed: FeedServer, client: Client) -> None:
    """Its kind and its key, and the status of the charge after the event: here a void comes too late to call a hold off."""
    append(feed.journal, KEY, held(KEY), token_issued(), void(AMOUNT, "v-1"), authorized())
    position = append(feed.journal, KEY, token_issued(), voided())
    await feed.notify()
    answer = await client.queries.GetChargeHistory(GetChargeHistoryRequest(idempotency_key=KEY, min_position=position))
    names = {kind: OperationKind.Name(kind).removeprefix("OPERATION_KIND_") for kind in OperationKind.values()}
    assert [
        (
            one.event,
            names[one.operation],
            one.idempotency_key,
            ChargeStatus.Name(one.status).removeprefix("CHARGE_STATUS_"),
        )
        for one in answer.entries
    ] == [
        ("ChargeRequested", "AUTHORIZE", KEY, "PENDING"),
        ("TokenIssued", "AUTHORIZE", KEY, "PENDING"),
        ("VoidRequested", "VOID", "v-1", "PENDING"),
        ("Authorized", "AUTHORIZE", KEY, "AUTHORIZED"),
        ("TokenIssued", "VOID", "v-1", "AUTHORIZED"),
        ("Voided", "VOID", "v-1", "VOIDED"),
    ]


def several(journal: SealedJournal, tenant: str = "default") -> int:
    """A user's charges in each of the new statuses, and one charged."""
    for name, *events in (
        ("held", *HOLD),
        ("part", *HOLD, capture(400), token_issued(), captured(), refund(100), token_issued(), refunded()),
        ("back", *HOLD, capture(AMOUNT), token_issued(), captured(), refund(AMOUNT), token_issued(), refunded()),
        ("void", *HOLD, void(AMOUNT), token_issued(), voided()),
        ("off", token_issued(), void(AMOUNT), called_off()),
        ("late", *HOLD, capture(AMOUNT), lapsed()),
    ):
        position = append(journal, f"{tenant} {name}", held(name, tenant=tenant), *events)
    paid = requested("paid", minor_units=50, tenant=tenant)
    return max(position, append(journal, f"{tenant} paid", paid, token_issued(), charged()))


async def test_lists_are_of_each_new_status(feed: FeedServer, client: Client) -> None:
    """A called-off charge and a voided hold have the same status."""
    position = several(feed.journal)
    await feed.notify()
    for status, expected in (
        (ChargeStatus.CHARGE_STATUS_AUTHORIZED, ["held"]),
        (ChargeStatus.CHARGE_STATUS_PARTIALLY_REFUNDED, ["part"]),
        (ChargeStatus.CHARGE_STATUS_REFUNDED, ["back"]),
        (ChargeStatus.CHARGE_STATUS_VOIDED, ["off", "void"]),
        (ChargeStatus.CHARGE_STATUS_AUTHORIZATION_EXPIRED, ["late"]),
        (ChargeStatus.CHARGE_STATUS_CHARGED, ["paid"]),
    ):
        page = await client.queries.ListCharges(ListChargesRequest(status=status, min_position=position))
        assert keys(page) == expected


async def test_a_summary_nets_refunds_and_shows_holds(feed: FeedServer, client: Client) -> None:
    """Money that moved counts once, whatever became of the rest; another tenant's does not count at all."""
    several(feed.journal, tenant="another")
    position = several(feed.journal)
    await feed.notify()
    answer = await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1", min_position=position))
    assert list(answer.currencies) == [
        CurrencySummary(
            currency_code="EUR",
            charged_minor_units=400 + AMOUNT + 50,
            charged_count=3,
            refunded_minor_units=100 + AMOUNT,
            refunded_count=2,
            net_minor_units=350,
            held_minor_units=AMOUNT + 600,
            held_count=2,
            voided_minor_units=2 * AMOUNT,
            voided_count=2,
            authorization_expired_minor_units=AMOUNT,
            authorization_expired_count=1,
        )
    ]


async def test_holds_near_their_end_are_counted_for_all_tenants(tmp_path: Path) -> None:
    """Those that end before a time, or have ended, and are open still: not one that is let go, nor one without an end."""
    journal, hour = SealedJournal(), 3_600_000_000
    ends = {"over": -hour, "soon": hour, "later": 48 * hour}
    for tenant in ("default", "another"):
        for name, end in ends.items():
            events = (held(name, tenant=tenant), token_issued(), authorized(expires_at=EPOCH_MICROSECONDS + end))
            append(journal, f"{tenant} {name}", *events)
        append(journal, f"{tenant} gone", held("gone", tenant=tenant), *HOLD, void(AMOUNT), token_issued(), voided())
        append(journal, f"{tenant} open", held("open", tenant=tenant), token_issued(), authorized(expires_at=0))
    view = await View.open(tmp_path / "view.db")
    await view.apply(whole_stretch(verify(journal.records, 0, bytes(32))))
    counts = [await view.holds_ending(EPOCH_MICROSECONDS + hours * hour) for hours in (-2, 0, 24, 999)]
    await view.close()
    assert counts == [0, 2, 4, 6]


async def test_to_count_holds_reads_no_other_charges(tmp_path: Path) -> None:
    """A range of an index that holds open holds only, for each tenant: cheap beside a million charges."""
    path = tmp_path / "view.db"
    await (await View.open(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {schema.COUNT_HOLDS_ENDING}", {"before": 1}).fetchall()
    steps = [step[-1] for step in plan]
    assert len(steps) == 2
    assert steps[0].startswith("SCAN tenant")
    assert (
        steps[1]
        == "SEARCH charge USING COVERING INDEX charge_by_hold (tenant=? AND hold_expires_at>? AND hold_expires_at<?)"
    )


async def test_a_server_offers_the_number_of_holds_that_end_within_a_day(feed: FeedServer, tmp_path: Path) -> None:
    """By its own clock, and soon after the view shows them."""
    now, hour = time.time_ns() // 1_000, 3_600_000_000
    for number, hours in enumerate((-1, 23, 25)):
        key = f"order-{number}"
        append(feed.journal, key, held(key), token_issued(), authorized(expires_at=now + hours * hour))
    metrics = free_address()
    async with (
        process_of(feed.address, tmp_path / "view.db", QUERY_METRICS_LISTEN=metrics) as process,
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
        asyncio.timeout(30),
    ):
        await process.logged("the view has caught up")
        while "chargeonce_view_holds_ending 2.0" not in (await http.get(f"http://{metrics}/metrics")).text:
            pass
