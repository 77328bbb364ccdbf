"""The answers of a real query server that follows a real feed."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1.health_pb2 import HealthCheckResponse

from charging.v1.command_pb2 import CaptureMode
from charging.v1.common_pb2 import ChargeStatus, DeclineReason, OperationKind, OperationStatus, ReviewReason
from charging.v1.query_pb2 import (
    VIEW_STATE_LIVE,
    Charge,
    ChargeStage,
    CurrencySummary,
    ExplainChargeRequest,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
    ListChargesResponse,
    Operation,
    WatchChargeRequest,
    WatchChargeResponse,
)
from chassis.disk import Disk
from query_service.api import QueryService
from query_service.mirrors import Mirror
from query_service.pages import token_after
from query_service.parts import Parts
from query_service.waiting import Waiting
from rig.errors import Told, refused, told
from tests.sealed import (
    CARD,
    EPOCH_MICROSECONDS,
    SealedJournal,
    abandoned,
    charge_id_of,
    charged,
    declined,
    in_review,
    requested,
    token_issued,
)
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import DEADLINE_SECONDS, Client, KeptDisk, client_of, querying, refused_in_time

Call = Callable[[Client], Awaitable[Any]]


@pytest.fixture
async def feed() -> AsyncIterator[FeedServer]:
    async with feeding(SealedJournal()) as server:
        yield server


@pytest.fixture
async def client(feed: FeedServer, tmp_path: Path) -> AsyncIterator[Client]:
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        yield client


def time_of(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time


def keys(page: ListChargesResponse) -> list[str]:
    return [charge.idempotency_key for charge in page.charges]


# ---------------------------------------------------------------- GetCharge
async def test_a_charge_is_shown_whole_by_its_id_and_by_its_key(feed: FeedServer, client: Client) -> None:
    """Every field of the contract, and the position of the answer."""
    wanted = requested("order-0001", "user-7", minor_units=999, description="a book", metadata={"b": "2", "a": "1"})
    feed.journal.append("order-0001", wanted)
    feed.journal.append("order-0001", token_issued())
    position = feed.journal.append("order-0001", charged("transaction-9"))
    await feed.notify()
    by_key = await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-0001", min_position=position))
    by_id = await client.queries.GetCharge(GetChargeRequest(charge_id=charge_id_of("order-0001")))
    assert by_key.charge == by_id.charge
    assert by_key.charge == Charge(
        charge_id=charge_id_of("order-0001"),
        idempotency_key="order-0001",
        user_id="user-7",
        card=CARD,
        amount=wanted.charge_requested.amount,
        description="a book",
        metadata={"a": "1", "b": "2"},
        status=ChargeStatus.CHARGE_STATUS_CHARGED,
        transaction_id="transaction-9",
        requested_at=time_of(EPOCH_MICROSECONDS + 1),
        updated_at=time_of(EPOCH_MICROSECONDS + 3),
        journal_id="journal-one",
        version=3,
        position=3,
        stage=ChargeStage.CHARGE_STAGE_AT_REST,
        stage_since=time_of(EPOCH_MICROSECONDS + 3),
        capture=CaptureMode.CAPTURE_MODE_AUTOMATIC,
        authorized_minor_units=999,
        captured_minor_units=999,
        operations=[
            Operation(
                kind=OperationKind.OPERATION_KIND_CHARGE,
                idempotency_key="order-0001",
                amount=wanted.charge_requested.amount,
                status=OperationStatus.OPERATION_STATUS_EXECUTED,
                transaction_id="transaction-9",
                requested_at=time_of(EPOCH_MICROSECONDS + 1),
                updated_at=time_of(EPOCH_MICROSECONDS + 3),
                actor="anonymous",
            )
        ],
    )
    assert by_key.as_of_position == 3
    assert by_key.lag.records == 0
    assert by_key.lag.silence_milliseconds >= 0


async def test_a_declined_charge_and_one_in_review_have_their_reason(feed: FeedServer, client: Client) -> None:
    """The reasons are shown as stored."""
    feed.journal.charge("order-0001", "user-1", declined(DeclineReason.DECLINE_REASON_EXPIRED_CARD))
    position = feed.journal.charge("order-0002", "user-1", in_review(ReviewReason.REVIEW_REASON_FIELDS_DIFFER))
    await feed.notify()
    one = await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-0001", min_position=position))
    two = await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-0002"))
    assert one.charge.status == ChargeStatus.CHARGE_STATUS_DECLINED
    assert one.charge.decline_reason == DeclineReason.DECLINE_REASON_EXPIRED_CARD
    assert two.charge.status == ChargeStatus.CHARGE_STATUS_IN_REVIEW
    assert two.charge.review_reason == ReviewReason.REVIEW_REASON_FIELDS_DIFFER


@pytest.mark.parametrize(
    "request_",
    [
        GetChargeRequest(charge_id=charge_id_of("never")),
        GetChargeRequest(charge_id="{" + charge_id_of("order-0001") + "}"),
        GetChargeRequest(charge_id="4111111111111111"),
        GetChargeRequest(idempotency_key="never-used"),
        GetChargeRequest(idempotency_key="'; DROP TABLE charge; --"),
    ],
)
async def test_not_found_names_the_position_and_advises_the_same_key(
    feed: FeedServer, client: Client, request_: GetChargeRequest
) -> None:
    """A lagging view must never be read as "take a new key", and a malformed id is the same case as an unknown one."""
    request_.min_position = feed.journal.charge("order-0001")
    await feed.notify()
    error = await refused(client.queries.GetCharge(request_))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
    assert error.metadata == {"as_of_position": "1", "advice": "RETRY_SAME_KEY"}
    assert request_.charge_id + request_.idempotency_key not in error.text


# ---------------------------------------------------------------- refusals
# Its digest is right, since it holds no secret; its position is beyond every possible one.
FORGED_TOKEN = token_after({"": 2**63}, ListChargesRequest())


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.queries.GetCharge(GetChargeRequest()), "by"),
        (lambda c: c.queries.GetCharge(GetChargeRequest(charge_id="")), "charge_id"),
        (lambda c: c.queries.GetCharge(GetChargeRequest(idempotency_key="")), "idempotency_key"),
        (lambda c: c.queries.GetCharge(GetChargeRequest(charge_id="x" * 256)), "charge_id"),
        (lambda c: c.queries.GetCharge(GetChargeRequest(charge_id="x", min_position=-1)), "min_position"),
        (lambda c: c.queries.GetChargeHistory(GetChargeHistoryRequest()), "by"),
        (lambda c: c.queries.ExplainCharge(ExplainChargeRequest()), "by"),
        (lambda c: c.queries.GetChargeHistory(GetChargeHistoryRequest(idempotency_key="x" * 256)), "idempotency_key"),
        (lambda c: c.queries.WatchCharge(WatchChargeRequest()).read(), "by"),
        (lambda c: c.queries.WatchCharge(WatchChargeRequest(charge_id="x", min_position=-9)).read(), "min_position"),
        (lambda c: c.queries.GetUserSummary(GetUserSummaryRequest()), "user_id"),
        (lambda c: c.queries.GetUserSummary(GetUserSummaryRequest(user_id="x" * 256)), "user_id"),
        (lambda c: c.queries.GetUserSummary(GetUserSummaryRequest(user_id="x", min_position=-1)), "min_position"),
        (lambda c: c.queries.GetViewStatus(GetViewStatusRequest(min_position=-(2**63))), "min_position"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(min_position=-1)), "min_position"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(user_id="x" * 256)), "user_id"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(page_size=-1)), "page_size"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(status=999)), "status"),  # type: ignore[arg-type]  # on purpose
        (lambda c: c.queries.ListCharges(ListChargesRequest(requested_from=Timestamp(nanos=-1))), "requested_from"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(requested_from=Timestamp(nanos=10**9))), "requested_from"),
        (
            lambda c: c.queries.ListCharges(ListChargesRequest(requested_before=Timestamp(seconds=253402300800))),
            "requested_before",
        ),
        (lambda c: c.queries.ListCharges(ListChargesRequest(page_token="garbage")), "page_token"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(page_token="ä" * 32)), "page_token"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(page_token="A" * 32)), "page_token"),
        (lambda c: c.queries.ListCharges(ListChargesRequest(page_token=FORGED_TOKEN)), "page_token"),
    ],
)
async def test_an_invalid_request_is_refused_and_its_field_is_named(client: Client, call: Call, field: str) -> None:
    """The field, never its value; and the advice is not to send it again."""
    error = await refused(call(client))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert error.fields == {field}
    assert error.metadata == {"advice": "DO_NOT_RETRY"}
    assert error.text == "the request is invalid: see the field violations"


async def test_bytes_that_are_no_request_are_refused_with_our_own_text(feed: FeedServer, tmp_path: Path) -> None:
    """Not with the decoder's text."""
    async with (
        querying(feed.address, tmp_path / "view.db") as (running, _),
        grpc.aio.insecure_channel(str(running.listen)) as channel,
    ):
        call: Any = channel.unary_unary("/charging.v1.QueryService/GetCharge")
        error = await refused(call(b"\xff\xff\xff"))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


# ---------------------------------------------------------------- min_position
async def test_a_query_waits_until_the_view_shows_its_position(feed: FeedServer, client: Client) -> None:
    """A client reads its own writes: it passes on the position that the command returned."""
    position = feed.journal.charge("order-0001", "user-1", token_issued(), charged())
    await feed.hold(2)
    await client.queries.GetViewStatus(GetViewStatusRequest(min_position=2))
    asked = asyncio.ensure_future(
        client.queries.GetCharge(GetChargeRequest(idempotency_key="order-0001", min_position=position))
    )
    early = await client.queries.GetCharge(GetChargeRequest(idempotency_key="order-0001"))
    assert early.charge.status == ChargeStatus.CHARGE_STATUS_PENDING
    await feed.hold(None)
    answer = await asked
    assert answer.charge.status == ChargeStatus.CHARGE_STATUS_CHARGED
    assert answer.as_of_position == position


POSITION_99: list[Call] = [
    lambda c: c.queries.GetCharge(GetChargeRequest(charge_id="x", min_position=99), timeout=DEADLINE_SECONDS),
    lambda c: c.queries.GetChargeHistory(
        GetChargeHistoryRequest(charge_id="x", min_position=99), timeout=DEADLINE_SECONDS
    ),
    lambda c: c.queries.WatchCharge(
        WatchChargeRequest(charge_id="x", min_position=99), timeout=DEADLINE_SECONDS
    ).read(),
    lambda c: c.queries.GetUserSummary(GetUserSummaryRequest(user_id="x", min_position=99), timeout=DEADLINE_SECONDS),
    lambda c: c.queries.ListCharges(ListChargesRequest(min_position=99), timeout=DEADLINE_SECONDS),
    lambda c: c.queries.GetViewStatus(GetViewStatusRequest(min_position=99), timeout=DEADLINE_SECONDS),
]


@pytest.mark.parametrize("call", POSITION_99)
async def test_a_view_that_does_not_reach_the_position_reports_its_own_before_the_clients_deadline(
    feed: FeedServer, client: Client, call: Call
) -> None:
    """UNAVAILABLE and not DEADLINE_EXCEEDED: the client learns the view's position, and that it may ask again."""
    feed.journal.charge("order-0001", "user-1", token_issued())
    await feed.hold(1)
    await client.queries.GetViewStatus(GetViewStatusRequest(min_position=1))
    error = await refused_in_time(lambda: call(client))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "VIEW_BEHIND")
    assert error.metadata["as_of_position"] == "1"
    assert error.metadata["head_position"] in ("0", "1", "2")  # from the last message of the feed
    assert error.metadata["advice"] == "ASK_STATUS"
    assert error.retry_after_seconds == 1.0


async def test_no_query_waits_longer_than_its_bound_even_without_a_deadline(feed: FeedServer, tmp_path: Path) -> None:
    """The bound is 5 s, and shorter here."""

    class Impatient(Parts):
        def queries(self, mirrors: Sequence[Mirror]) -> QueryService:
            return QueryService(
                mirrors, max_calls=9, max_watchers=9, weights=self.weights, now=self.now, longest_wait_seconds=0.05
            )

    async with querying(feed.address, tmp_path / "view.db", Impatient) as (_, client):
        error = await refused(client.queries.GetViewStatus(GetViewStatusRequest(min_position=2**63 - 1)))
    assert error.reason == "VIEW_BEHIND"


# ---------------------------------------------------------------- ListCharges
async def test_pages_show_every_charge_once_newest_first(feed: FeedServer, client: Client) -> None:
    """In the order of the journal; the page size is 50 by default, and at most 1000."""
    names = [f"order-{number:04}" for number in range(1060)]
    for name in names:
        position = feed.journal.charge(name)
    await feed.notify()
    first = await client.queries.ListCharges(ListChargesRequest(min_position=position))
    assert keys(first) == names[:-51:-1]
    most = await client.queries.ListCharges(ListChargesRequest(page_size=10**9, page_token=first.next_page_token))
    assert keys(most) == names[-51:-1051:-1]
    last = await client.queries.ListCharges(ListChargesRequest(page_size=10, page_token=most.next_page_token))
    assert (keys(last), last.next_page_token) == (names[9::-1], "")


async def test_pages_are_stable_while_charges_are_added(feed: FeedServer, client: Client) -> None:
    """A charge requested after the first page was read shifts no other."""
    for number in range(4):
        position = feed.journal.charge(f"order-{number:04}")
    await feed.notify()
    first = await client.queries.ListCharges(ListChargesRequest(page_size=2, min_position=position))
    position = feed.journal.charge("order-9999")
    await feed.notify()
    rest = await client.queries.ListCharges(
        ListChargesRequest(page_size=2, page_token=first.next_page_token, min_position=position)
    )
    assert keys(first) + keys(rest) == ["order-0003", "order-0002", "order-0001", "order-0000"]
    assert not rest.next_page_token


async def test_a_list_holds_the_charges_that_meet_all_its_conditions(feed: FeedServer, client: Client) -> None:
    """User, status and time, alone and together."""
    feed.journal.charge("order-0001", "user-1", token_issued(), charged())  # at 1
    feed.journal.charge("order-0002", "user-2", declined())  # at 4
    feed.journal.charge("order-0003", "user-1", declined())  # at 6
    position = feed.journal.charge("order-0004", "user-1")  # at 8
    await feed.notify()

    async def listed(**conditions: Any) -> str:
        page = await client.queries.ListCharges(ListChargesRequest(min_position=position, **conditions))
        return " ".join(key[-1] for key in keys(page))

    at = {place: time_of(EPOCH_MICROSECONDS + place) for place in range(10)}
    assert await listed() == "4 3 2 1"
    assert await listed(user_id="user-1") == "4 3 1"
    assert await listed(user_id="user-3") == ""
    assert await listed(status=ChargeStatus.CHARGE_STATUS_CHARGED) == "1"
    assert await listed(status=ChargeStatus.CHARGE_STATUS_DECLINED) == "3 2"
    assert await listed(status=ChargeStatus.CHARGE_STATUS_REFUNDED) == ""
    assert await listed(user_id="user-1", status=ChargeStatus.CHARGE_STATUS_DECLINED) == "3"
    assert await listed(requested_from=at[4]) == "4 3 2"
    assert await listed(requested_before=at[4]) == "1"
    assert await listed(requested_from=at[1], requested_before=at[8]) == "3 2 1"
    assert await listed(requested_from=at[8], requested_before=at[1]) == ""
    assert await listed(user_id="user-1", requested_from=at[2], requested_before=at[8]) == "3"
    assert await listed(status=ChargeStatus.CHARGE_STATUS_DECLINED, requested_from=at[5]) == "3"
    just_after = time_of(EPOCH_MICROSECONDS + 4)
    just_after.nanos += 1
    assert await listed(requested_from=just_after) == "4 3"
    assert await listed(requested_before=just_after) == "2 1"


async def test_a_range_of_times_is_right_with_any_steps_of_the_clock(feed: FeedServer, client: Client) -> None:
    """Charges are listed in the journal's order and chosen by their times, whose order may differ."""
    times = [5, 6, 2, 3, 9, 1, 7, 8, 4, 10, 0]
    for place, time in enumerate(times):
        key = f"order-{place:04}"
        position = feed.journal.append(key, requested(key), at=EPOCH_MICROSECONDS + time)
    await feed.notify()
    for low in range(12):
        for high in range(12):
            page = await client.queries.ListCharges(
                ListChargesRequest(
                    requested_from=time_of(EPOCH_MICROSECONDS + low),
                    requested_before=time_of(EPOCH_MICROSECONDS + high),
                    min_position=position,
                )
            )
            expected = [f"order-{place:04}" for place, time in enumerate(times) if low <= time < high]
            assert keys(page) == expected[::-1]


async def test_a_page_token_is_valid_for_its_own_conditions_only(feed: FeedServer, client: Client) -> None:
    """With other conditions, or with any changed character, it is refused; with another page size it is accepted."""
    for number in range(3):
        position = feed.journal.charge(f"order-{number:04}")
    await feed.notify()
    own = ListChargesRequest(user_id="user-1", requested_from=time_of(0), page_size=1, min_position=position)
    token = (await client.queries.ListCharges(own)).next_page_token
    taken = await client.queries.ListCharges(
        ListChargesRequest(user_id="user-1", requested_from=time_of(0), page_size=9, page_token=token)
    )
    assert keys(taken) == ["order-0001", "order-0000"]
    others = [
        ListChargesRequest(user_id="user-1", page_token=token),
        ListChargesRequest(user_id="user-2", requested_from=time_of(0), page_token=token),
        ListChargesRequest(user_id="user-1", requested_from=time_of(1), page_token=token),
        ListChargesRequest(user_id="user-1", requested_before=time_of(0), page_token=token),
        ListChargesRequest(
            user_id="user-1",
            requested_from=time_of(0),
            status=ChargeStatus.CHARGE_STATUS_PENDING,
            page_token=token,
        ),
        *(
            ListChargesRequest(
                user_id="user-1",
                requested_from=time_of(0),
                page_token=token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :],
            )
            for place in range(len(token))
        ),
        ListChargesRequest(user_id="user-1", requested_from=time_of(0), page_token=token[:-4]),
    ]
    for other in others:
        error = await refused(client.queries.ListCharges(other))
        assert (error.reason, set(error.fields)) == ("INVALID_REQUEST", {"page_token"})


async def test_a_page_ends_before_it_is_too_large_for_its_receiver(feed: FeedServer, client: Client) -> None:
    """grpc's clients accept 4 MiB; the next page continues."""
    names = [f"order-{number:04}" for number in range(400)]
    for name in names:
        metadata = {f"key-{number}": "v" * 500 for number in range(20)}
        position = feed.journal.append(name, requested(name, metadata=metadata))
    feed.batch_records = 50
    await feed.notify()
    request, seen, pages = ListChargesRequest(page_size=1000, min_position=position), list[str](), 0
    while pages == 0 or request.page_token:
        page = await client.queries.ListCharges(request)
        seen += keys(page)
        request.page_token = page.next_page_token
        pages += 1
    assert seen == names[::-1]
    assert pages > 1


# ---------------------------------------------------------------- WatchCharge
async def test_a_watcher_gets_the_present_state_and_then_each_change(feed: FeedServer, client: Client) -> None:
    """And no change of other charges."""
    position = feed.journal.charge("order-0001")
    await feed.notify()
    watch = client.queries.WatchCharge(WatchChargeRequest(idempotency_key="order-0001", min_position=position))
    seen = [await read(watch)]
    for event in (token_issued(), charged()):
        feed.journal.charge(f"other-{feed.journal.head}")
        feed.journal.append("order-0001", event)
        await feed.notify()
        seen.append(await read(watch))
    watch.cancel()
    assert [(one.charge.version, one.as_of_position) for one in seen] == [(1, 1), (2, 3), (3, 5)]
    assert seen[-1].charge.status == ChargeStatus.CHARGE_STATUS_CHARGED


async def test_an_idle_watcher_reads_nothing_and_an_unchanged_charge_is_not_sent_again(
    feed: FeedServer, tmp_path: Path
) -> None:
    """Ten thousand idle watchers cost nothing: each reads the view once per possible change of its own charge."""
    position = feed.journal.charge("order-0001")
    statements: list[str] = []
    disk, register = KeptDisk(), Waiting()

    class Kept(Parts):
        def disk(self) -> Disk:
            return disk.as_one()

        def waiting(self) -> Waiting:
            return register

    async with querying(feed.address, tmp_path / "view.db", Kept) as (_, client):
        watch = client.queries.WatchCharge(WatchChargeRequest(idempotency_key="order-0001", min_position=position))
        await read(watch)
        await disk.by_the_reader(lambda reader: reader.set_trace_callback(statements.append))
        position = feed.journal.charge("order-0002", "user-1", token_issued(), charged())
        await feed.notify()
        await client.queries.GetViewStatus(GetViewStatusRequest(min_position=position))
        assert not [statement for statement in statements if "FROM charge " in statement]
        register.begun_at(position)  # wakes every watcher
        await client.queries.GetViewStatus(GetViewStatusRequest())
        assert len([statement for statement in statements if "FROM charge " in statement]) == 1
        feed.journal.append("order-0001", token_issued())
        await feed.notify()
        assert (await read(watch)).charge.version == 2
        watch.cancel()


async def test_watching_an_unknown_charge_is_not_found(client: Client) -> None:
    """With the same error as in GetCharge."""
    error = await refused(client.queries.WatchCharge(WatchChargeRequest(charge_id=charge_id_of("never"))).read())
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
    assert error.metadata == {"as_of_position": "0", "advice": "RETRY_SAME_KEY"}


async def test_watchers_are_limited_and_one_that_hangs_up_frees_its_slot(feed: FeedServer, tmp_path: Path) -> None:
    """Beyond the limit a call is refused at once, with the time to retry after."""
    position = feed.journal.charge("order-0001")
    watch = WatchChargeRequest(idempotency_key="order-0001", min_position=position)
    async with querying(feed.address, tmp_path / "view.db", QUERY_MAX_WATCHERS="1") as (_, client):
        first = client.queries.WatchCharge(watch)
        await read(first)
        error = await refused(client.queries.WatchCharge(watch).read())
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        assert error.retry_after_seconds == 0.5
        first.cancel()
        async with asyncio.timeout(20):
            while isinstance(answer := await watched_or_refused(client, watch), Told):
                assert answer.reason == "TOO_MANY_CALLS"  # until the server has noticed
        assert answer.charge.version == 1


async def watched_or_refused(client: Client, request: WatchChargeRequest) -> WatchChargeResponse | Told:
    """Return a stream's first message, or its error."""
    try:
        return await read(client.queries.WatchCharge(request))
    except grpc.aio.AioRpcError as error:
        return told(error)


async def test_a_stopping_server_advises_its_watchers_to_watch_again(feed: FeedServer, tmp_path: Path) -> None:
    """It ends their streams itself, and does not wait for them."""
    position = feed.journal.charge("order-0001")
    async with contextlib.AsyncExitStack() as server:
        running, _ = await server.enter_async_context(querying(feed.address, tmp_path / "view.db"))
        async with client_of(str(running.listen)) as client:
            watch = client.queries.WatchCharge(WatchChargeRequest(idempotency_key="order-0001", min_position=position))
            await read(watch)
            ending = asyncio.ensure_future(refused(watch.read()))
            await server.aclose()
            error = await ending
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


async def read(watch: Any) -> WatchChargeResponse:
    """Read a stream's next message."""
    response = await watch.read()
    assert isinstance(response, WatchChargeResponse)
    return response


# ---------------------------------------------------------------- the other queries
async def test_a_history_has_the_status_after_each_event(feed: FeedServer, client: Client) -> None:
    """Oldest first, with the positions in the journal and the versions in the stream."""
    feed.journal.charge("order-0001")
    feed.journal.charge("order-0002")
    feed.journal.append("order-0001", token_issued())
    position = feed.journal.append("order-0001", charged())
    await feed.notify()
    answer = await client.queries.GetChargeHistory(
        GetChargeHistoryRequest(charge_id=charge_id_of("order-0001"), min_position=position)
    )
    assert answer.charge_id == charge_id_of("order-0001")
    assert [(one.position, one.version, one.event, one.status) for one in answer.entries] == [
        (1, 1, "ChargeRequested", ChargeStatus.CHARGE_STATUS_PENDING),
        (3, 2, "TokenIssued", ChargeStatus.CHARGE_STATUS_PENDING),
        (4, 3, "Charged", ChargeStatus.CHARGE_STATUS_CHARGED),
    ]
    assert [one.recorded_at for one in answer.entries] == [time_of(EPOCH_MICROSECONDS + at) for at in (1, 3, 4)]
    error = await refused(client.queries.GetChargeHistory(GetChargeHistoryRequest(idempotency_key="never-used")))
    assert error.reason == "CHARGE_NOT_FOUND"


async def test_a_users_summary_sums_up_each_currency_by_status(feed: FeedServer, client: Client) -> None:
    """In alphabetical order and without other users' charges; a user without charges has an empty summary."""
    feed.journal.charge("order-0001", "user-1", token_issued(), charged(), minor_units=100)
    feed.journal.charge("order-0002", "user-1", token_issued(), charged(), minor_units=20)
    feed.journal.charge("order-0003", "user-1", declined(), minor_units=3)
    feed.journal.charge("order-0004", "user-1", token_issued(), minor_units=400)
    feed.journal.charge("order-0005", "user-1", in_review(), minor_units=50)
    feed.journal.charge("order-0006", "user-1", abandoned(), minor_units=6)
    feed.journal.charge("order-0007", "user-1", minor_units=7, currency="CHF")
    position = feed.journal.charge("order-0008", "user-2", token_issued(), charged())
    await feed.notify()
    answer = await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-1", min_position=position))
    assert list(answer.currencies) == [
        CurrencySummary(currency_code="CHF", pending_minor_units=7, pending_count=1),
        CurrencySummary(
            currency_code="EUR",
            charged_minor_units=120,
            charged_count=2,
            net_minor_units=120,
            declined_minor_units=3,
            declined_count=1,
            pending_minor_units=400,
            pending_count=1,
            in_review_minor_units=50,
            in_review_count=1,
            abandoned_minor_units=6,
            abandoned_count=1,
        ),
    ]
    assert answer.as_of_position == position
    assert not (await client.queries.GetUserSummary(GetUserSummaryRequest(user_id="user-9"))).currencies


async def test_the_view_reports_its_state(feed: FeedServer, client: Client) -> None:
    """Its journal, its position, the number of its charges, and that it is live."""
    position = feed.journal.charge("order-0001", "user-1", token_issued())
    await feed.notify()
    await client.becomes(HealthCheckResponse.SERVING)
    status = await client.queries.GetViewStatus(GetViewStatusRequest(min_position=position))
    assert (status.journal_id, status.as_of_position, status.head_position) == ("journal-one", 2, 2)
    assert (status.charge_count, status.state, status.lag.records) == (1, VIEW_STATE_LIVE, 0)


async def test_queries_are_limited_and_the_others_are_advised_to_retry(feed: FeedServer, tmp_path: Path) -> None:
    """A query holds a slot during its read. The one reading thread is kept busy here, so queries queue."""
    gate = threading.Event()
    async with querying(feed.address, tmp_path / "view.db", QUERY_MAX_CALLS="1") as (running, client):
        busy = asyncio.ensure_future(running.mirrors[0].view.read("default", lambda _: gate.wait(30)))
        one, other = await first_of_two(client, GetViewStatusRequest())
        error = await one
        gate.set()
        assert await other == 0
        await busy
        assert await shown_or_refused(client, GetViewStatusRequest()) == 0
    assert isinstance(error, Told)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert error.retry_after_seconds == 0.5


async def test_queries_that_wait_for_a_position_take_no_slot_from_the_others(feed: FeedServer, tmp_path: Path) -> None:
    """The status of a lagging view can still be read. Waiting has its own limit, of the same size."""
    async with querying(feed.address, tmp_path / "view.db", QUERY_MAX_CALLS="1") as (_, client):
        one, waits = await first_of_two(client, GetViewStatusRequest(min_position=1))
        error = await one
        watch = client.queries.WatchCharge(WatchChargeRequest(idempotency_key="order-0001", min_position=1))
        assert await shown_or_refused(client, GetViewStatusRequest()) == 0
        feed.journal.charge("order-0001")
        await feed.notify()
        assert await waits == 1
        assert await shown_or_refused(client, GetViewStatusRequest(min_position=1)) == 1
        assert (await read(watch)).charge.version == 1  # watchers have a limit of their own
        watch.cancel()
    assert isinstance(error, Told)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")


async def first_of_two(
    client: Client, request: GetViewStatusRequest
) -> "tuple[asyncio.Future[Told | int], asyncio.Future[Told | int]]":
    """Send a query twice; return the call that ends first, and the other."""
    two = [asyncio.ensure_future(shown_or_refused(client, request)) for _ in range(2)]
    (one,), (other,) = await asyncio.wait(two, return_when=asyncio.FIRST_COMPLETED)
    return one, other


async def shown_or_refused(client: Client, request: GetViewStatusRequest) -> Told | int:
    """Return the position shown, or the error."""
    try:
        return (await client.queries.GetViewStatus(request)).as_of_position
    except grpc.aio.AioRpcError as error:
        return told(error)
