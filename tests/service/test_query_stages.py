"""Lists by stage and age, operators' steps in a history, and counts of charges that wait for people: of a real query server."""

import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from charging.v1.common_pb2 import AnswerKind, Resolution
from charging.v1.journal_pb2 import Event
from charging.v1.query_pb2 import (
    Charge,
    ChargeStage,
    GetChargeHistoryRequest,
    GetChargeRequest,
    ListChargesRequest,
    ResolutionProposal,
    Situation,
)
from query_service.lookup import END, Conditions, Rows
from query_service.verified import verify
from query_service.view import View
from rig.errors import refused
from rig.processes import free_address
from rig.world import until
from tests.operations import (
    action_required,
    approved,
    authorized,
    capture,
    held,
    held_back,
    let_go,
    not_after_passed,
    off_session,
    operation_abandoned,
    proposed,
    refund,
    rejected,
    time_of,
    try_requested,
    void,
)
from tests.sealed import (
    EPOCH_MICROSECONDS,
    SealedJournal,
    abandoned,
    charged,
    in_review,
    requested,
    token_issued,
    whole_stretch,
)
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import Client, process_of, querying
from tests.service.test_query_service import keys

KEY = "order-0001"
HOUR = 3_600_000_000
DAY = 24 * HOUR


@pytest.fixture
async def feed() -> AsyncIterator[FeedServer]:
    async with feeding(SealedJournal()) as server:
        yield server


@pytest.fixture
async def client(feed: FeedServer, tmp_path: Path) -> AsyncIterator[Client]:
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        yield client


LIVES: dict[str, tuple[Event, ...]] = {
    "asked": (requested("asked"),),
    "told": (requested("told"), token_issued()),
    "customer": (requested("customer"), token_issued(), action_required()),
    "nobody": (off_session("nobody"), token_issued(), action_required()),
    "late": (requested("late"), token_issued(), not_after_passed()),
    "called": (requested("called", minor_units=1000), token_issued(), void(1000)),
    "kept": (requested("kept"), token_issued(), held_back()),
    "freed": (requested("freed"), held_back(), let_go()),
    "paid": (requested("paid"), token_issued(), charged()),
    "unclear": (requested("unclear"), token_issued(), in_review()),
    "unsure": (requested("unsure"), token_issued(), charged(), refund(1250), in_review()),
    "gone": (requested("gone"), abandoned()),
    "kept back": (requested("kept back"), token_issued(), charged(), refund(1250), operation_abandoned()),
    "again": (requested("again"), token_issued(), charged(), refund(1), operation_abandoned(), refund(1, "refund-2")),
    "hold": (held("hold"), token_issued(), authorized()),
    "taken": (held("taken"), token_issued(), authorized(), capture(400)),
}
STAGES: dict[str, set[str]] = {
    "AWAITING_TOKEN": {"asked", "freed", "taken", "again"},
    "AWAITING_EXECUTION": {"told", "kept"},
    "AWAITING_CUSTOMER": {"customer"},
    "CALLING_OFF": {"nobody", "late", "called"},
    "IN_REVIEW": {"unclear", "unsure"},
    "UNFINISHED": {"asked", "freed", "taken", "again", "told", "kept", "customer", "nobody", "late", "called"},
    "HELD_BACK": {"kept"},
    "ABANDONED": {"gone", "kept back"},
    "HOLDING": {"hold"},
    "AT_REST": {"paid", "gone", "kept back", "hold"},
}
SHOWN = ("AT_REST", "AWAITING_TOKEN", "AWAITING_EXECUTION", "AWAITING_CUSTOMER", "CALLING_OFF", "IN_REVIEW")


def append(journal: SealedJournal, key: str, *events: Event, at: int | None = None) -> int:
    for event in events:
        position = journal.append(key, event, at=at)
    return position


def stage(name: str) -> ChargeStage.ValueType:
    return ChargeStage.Value(f"CHARGE_STAGE_{name}")


async def everything(feed: FeedServer) -> int:
    """A charge of each life, and the same of another tenant."""
    for tenant in ("another", "default"):
        for key, (first, *rest) in LIVES.items():
            begun = Event()
            begun.CopyFrom(first)
            begun.charge_requested.tenant = tenant
            position = append(feed.journal, f"{tenant} {key}", begun, *rest)
    await feed.notify()
    return position


async def test_lists_are_of_each_stage(feed: FeedServer, client: Client) -> None:
    """Of one tenant; and each charge shows the stage by which it is found."""
    position = await everything(feed)
    for name, expected in STAGES.items():
        request = ListChargesRequest(stage=stage(name), min_position=position)
        found = (await client.queries.ListCharges(request)).charges
        assert {charge.idempotency_key for charge in found} == expected, name
        if name in SHOWN:
            assert {charge.stage for charge in found} == {stage(name)}
        request.user_id = "user-1"
        assert {charge.idempotency_key for charge in (await client.queries.ListCharges(request)).charges} == expected


async def test_a_page_of_a_stage_goes_on_with_the_next(feed: FeedServer, client: Client) -> None:
    """And its token is of no other stage, age or time of a hold."""
    position = await everything(feed)
    request = ListChargesRequest(stage=stage("UNFINISHED"), page_size=4, min_position=position)
    found: list[str] = []
    while True:
        page = await client.queries.ListCharges(request)
        found += keys(page)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert (len(found), set(found)) == (10, STAGES["UNFINISHED"])
    for other in (
        ListChargesRequest(stage=stage("AT_REST")),
        ListChargesRequest(stage=stage("UNFINISHED"), stage_since_before=time_of(EPOCH_MICROSECONDS)),
        ListChargesRequest(stage=stage("UNFINISHED"), hold_expires_before=time_of(EPOCH_MICROSECONDS)),
    ):
        other.page_token = request.page_token
        assert "page_token" in (await refused(client.queries.ListCharges(other))).fields


async def test_an_age_is_that_of_the_stage(feed: FeedServer, client: Client) -> None:
    """Of the operation under way its request, of a charge at rest its outcome: not the charge's own request."""
    at = EPOCH_MICROSECONDS
    append(feed.journal, "old", requested("old"), at=at)
    append(feed.journal, "paid", requested("paid"), token_issued(), at=at)
    append(feed.journal, "paid", charged(), at=at + 2 * HOUR)
    append(feed.journal, "held", held("held"), token_issued(), authorized(), at=at)
    append(feed.journal, "held", capture(400), at=at + 2 * HOUR)
    position = append(feed.journal, "held", try_requested(), at=at + 3 * HOUR)
    await feed.notify()

    async def listed(name: str, hours: int) -> list[str]:
        before = time_of(at + hours * HOUR)
        request = ListChargesRequest(stage=stage(name), stage_since_before=before, min_position=position)
        return keys(await client.queries.ListCharges(request))

    assert await listed("UNFINISHED", 1) == ["old"]
    assert await listed("UNFINISHED", 3) == ["held", "old"]
    assert await listed("AT_REST", 1) == []
    assert await listed("AT_REST", 3) == ["paid"]
    shown = (await client.queries.GetCharge(GetChargeRequest(idempotency_key="held"))).charge
    assert shown.stage_since == time_of(at + 2 * HOUR)
    without = ListChargesRequest(stage_since_before=time_of(at))
    assert "stage_since_before" in (await refused(client.queries.ListCharges(without))).fields
    unknown = ListChargesRequest(stage=99)  # type: ignore[arg-type]  # none of the contract's
    assert "stage" in (await refused(client.queries.ListCharges(unknown))).fields


async def test_no_stage_began_before_its_charge_whatever_the_clock_did(feed: FeedServer, client: Client) -> None:
    """By this an age is looked up as a range of positions."""
    append(feed.journal, KEY, requested(KEY), token_issued(), at=EPOCH_MICROSECONDS + HOUR)
    position = append(feed.journal, KEY, charged(), at=EPOCH_MICROSECONDS)
    await feed.notify()
    request = ListChargesRequest(
        stage=stage("AT_REST"), stage_since_before=time_of(EPOCH_MICROSECONDS + HOUR), min_position=position
    )
    assert keys(await client.queries.ListCharges(request)) == []
    request.stage_since_before.CopyFrom(time_of(EPOCH_MICROSECONDS + HOUR + 1))
    (listed,) = (await client.queries.ListCharges(request)).charges
    assert listed.stage_since == listed.requested_at


async def test_lists_are_of_holds_that_lapse_before_a_time(feed: FeedServer, client: Client) -> None:
    """Whatever their stage is, unless it is named."""
    for number, hours in enumerate((1, 2, 3)):
        hold = authorized(expires_at=EPOCH_MICROSECONDS + hours * HOUR)
        append(feed.journal, f"order-{number}", held(f"order-{number}"), token_issued(), hold)
    position = append(feed.journal, "order-1", capture(400))
    await feed.notify()
    before = time_of(EPOCH_MICROSECONDS + 3 * HOUR)
    request = ListChargesRequest(hold_expires_before=before, min_position=position)
    assert keys(await client.queries.ListCharges(request)) == ["order-1", "order-0"]
    request.stage = stage("HOLDING")
    assert keys(await client.queries.ListCharges(request)) == ["order-0"]


# ---------------------------------------------------------------- the desk
async def test_a_history_shows_what_operators_did_and_why(feed: FeedServer, client: Client) -> None:
    """Each step with its operator; a proposal with what it says. The outcome is that of the operation."""
    append(feed.journal, KEY, requested(KEY), try_requested("ann", "now"), token_issued(), in_review())
    first = append(feed.journal, KEY, proposed(Resolution.RESOLUTION_NOT_EXECUTED, "ann"))
    second = append(feed.journal, KEY, rejected(first, "bob"), proposed(actor="bob"))
    await feed.notify()
    shown: Charge = (await client.queries.GetCharge(GetChargeRequest(idempotency_key=KEY, min_position=second))).charge
    assert shown.stage == ChargeStage.CHARGE_STAGE_IN_REVIEW
    assert shown.proposal == ResolutionProposal(
        proposal=second,
        actor="bob",
        reason="the bank's letter",
        resolution=Resolution.RESOLUTION_EXECUTED,
        transaction_id="found-1",
        evidence="ticket 7",
        proposed_at=time_of(EPOCH_MICROSECONDS + second),
    )
    (listed,) = (await client.queries.ListCharges(ListChargesRequest())).charges
    assert listed == shown
    approval_event = approved(second, "ann")
    approval_event.resolution_approved.bank_said = AnswerKind.ANSWER_KIND_DECLINED
    approval_event.resolution_approved.contradicts_bank = True
    end = append(feed.journal, KEY, approval_event, charged("found-1"))
    await feed.notify()
    history = await client.queries.GetChargeHistory(GetChargeHistoryRequest(idempotency_key=KEY, min_position=end))
    approval = history.entries[-2]
    assert (approval.bank_said, approval.contradicts_bank) == (AnswerKind.ANSWER_KIND_DECLINED, True)
    assert all(not entry.bank_said and not entry.contradicts_bank for entry in history.entries if entry != approval)
    assert [(entry.event, entry.actor, entry.reason, entry.proposal.proposal) for entry in history.entries] == [
        ("ChargeRequested", "anonymous", "", 0),
        ("TryRequested", "ann", "now", 0),
        ("TokenIssued", "anonymous", "", 0),
        ("ReviewRequired", "anonymous", "", 0),
        ("ResolutionProposed", "ann", "the bank's letter", first),
        ("ResolutionRejected", "bob", "not so", 0),
        ("ResolutionProposed", "bob", "the bank's letter", second),
        ("ResolutionApproved", "ann", "checked", 0),
        ("Charged", "anonymous", "", 0),
    ]
    shown = (await client.queries.GetCharge(GetChargeRequest(idempotency_key=KEY))).charge
    assert (shown.stage, shown.transaction_id, shown.HasField("proposal")) == (stage("AT_REST"), "found-1", False)


# ---------------------------------------------------------------- counts
async def test_charges_that_wait_for_people_are_counted_for_all_tenants(tmp_path: Path) -> None:
    """Those in review with and without a proposal, those abandoned in the last day, and holds near their end."""
    journal, at = SealedJournal(), EPOCH_MICROSECONDS
    for tenant in ("default", "another"):
        refunded_in_vain = (token_issued(), charged(), refund(1), operation_abandoned())
        for number, events in enumerate(
            (
                *((in_review(),), (token_issued(), in_review()), (in_review(), proposed())),
                *((abandoned(),), refunded_in_vain, (*refunded_in_vain, refund(1, "refund-2"))),
            )
        ):
            key = f"{tenant} {number}"
            append(journal, key, requested(key, tenant=tenant), *events, at=at)
        first = held(f"{tenant} hold", tenant=tenant)
        append(journal, f"{tenant} hold", first, token_issued(), authorized(expires_at=at + 3 * DAY), at=at)
    view = await View.open(tmp_path / "view.db")
    await view.apply(whole_stretch(verify(journal.records, 0, bytes(32))))
    counts = [await view.stuck_counts(now) for now in (at, at + DAY, at + DAY + 1, at + 2 * DAY + 1)]
    await view.close()
    order = ("IN_REVIEW", "AWAITING_APPROVAL", "ABANDONED", "HOLD_ENDING")
    assert [[found[Situation.Value(f"SITUATION_{name}")] for name in order] for found in counts] == [
        [4, 2, 4, 0],
        [4, 2, 4, 0],
        [4, 2, 0, 0],
        [4, 2, 0, 2],
    ]


async def test_a_server_offers_the_numbers_of_charges_that_wait_for_people(feed: FeedServer, tmp_path: Path) -> None:
    """As one gauge, by their situation, soon after the view shows them."""
    now = time.time_ns() // 1_000
    append(feed.journal, KEY, requested(KEY), in_review(), at=now)
    append(feed.journal, "order-0002", requested("order-0002"), abandoned(), at=now)
    metrics = free_address()
    wanted = [
        'chargeonce_view_stuck_charges{situation="in_review"} 1.0',
        'chargeonce_view_stuck_charges{situation="awaiting_approval"} 0.0',
        'chargeonce_view_stuck_charges{situation="abandoned"} 1.0',
        'chargeonce_view_stuck_charges{situation="hold_ending"} 0.0',
    ]
    async with (
        process_of(feed.address, tmp_path / "view.db", QUERY_METRICS_LISTEN=metrics) as process,
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
    ):
        await process.logged("the view has caught up")

        async def is_offered() -> bool:
            page = (await http.get(f"http://{metrics}/metrics")).text
            return all(line in page for line in wanted)

        await until(is_offered)


# ---------------------------------------------------------------- cheap among a million
@pytest.mark.parametrize(
    ("conditions", "index"),
    [
        (Conditions(stage=stage("UNFINISHED")), "charge_unfinished"),
        (Conditions(stage=stage("AWAITING_EXECUTION"), stage_since_before=5), "charge_unfinished"),
        (Conditions(stage=stage("CALLING_OFF"), user_id="user-1"), "charge_unfinished"),
        (Conditions(stage=stage("HELD_BACK")), "charge_unfinished"),
        (Conditions(stage=stage("IN_REVIEW"), stage_since_before=5), "charge_by_status"),
        (Conditions(stage=stage("ABANDONED")), "charge_given_up"),
        (Conditions(stage=stage("HOLDING")), "charge_holding"),
        (Conditions(stage=stage("HOLDING"), hold_expires_before=5), "charge_by_hold"),
        (Conditions(hold_expires_before=5), "charge_by_hold"),
        (Conditions(stage=stage("HOLDING"), user_id="user-1"), "charge_by_user"),
    ],
    ids=[
        *("unfinished", "told and old", "called off, of a user", "held back", "in review", "abandoned"),
        *("holding", "holding and ending", "ending", "holding, of a user"),
    ],
)
async def test_a_list_of_a_stage_walks_through_the_few_of_it(
    tmp_path: Path, conditions: Conditions, index: str
) -> None:
    """And through no others, as the database itself says."""
    path = tmp_path / "view.db"
    await (await View.open(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        Rows(connection, "default").charges(conditions, END, 10)
        connection.set_trace_callback(None)
        (listing,) = [statement for statement in statements if "FROM charge" in statement and "LIMIT 10" in statement]
        plan = connection.execute(f"EXPLAIN QUERY PLAN {listing}").fetchall()
    assert f"USING INDEX {index} (" in plan[0][-1], plan
