"""Two tenants at three real servers, over mutual TLS: to one of them the other's charges do not exist, whatever it tries.

Neither the answers nor their time tell a foreign charge from one that was never there.
"""

import asyncio
import contextlib
import time
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from charging.v1.command_pb2 import CaptureRequest, ChargeRequest, ChargeResponse, RefundRequest, VoidRequest
from charging.v1.query_pb2 import (
    Charge,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
    WatchChargeRequest,
)
from command_service.codec import charge_id_of
from rig.errors import Told, refused
from rig.world import CHARGED, FRESH, REPLAYED, a_hold, a_request, money
from tests.security.two_tenants import Client, TwoTenants, two_tenants

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHARGES = 60
CALLS = 300
TRIES = 3
LANES = 4
NEVER = "11111111-2222-5333-8444-555555555555"


@dataclass(frozen=True)
class Street:
    """The servers, one client of each tenant, and what A has there: a charge that is refunded in part, and a hold."""

    servers: TwoTenants
    a: Client
    b: Client
    charged: ChargeRequest
    refunded: RefundRequest
    held: ChargeRequest

    async def shown(self, request: ChargeRequest) -> Charge:
        """A charge as its owner sees it."""
        name = GetChargeRequest(idempotency_key=request.idempotency_key)
        shown: Charge = (await self.a.queries.GetCharge(name)).charge
        return shown


def _id(request: ChargeRequest, tenant: str = "a") -> str:
    return charge_id_of(tenant, request.idempotency_key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def street(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Street]:
    window = {"COMMAND_DUPLICATE_WINDOW_SECONDS": "3600"}
    async with two_tenants(tmp_path_factory.mktemp("tenants"), **window) as servers:
        a, b = await servers.client("a"), await servers.client("b")
        charged, held = a_request("order-1"), a_hold("hold-1", user_id="anne")
        refunded = RefundRequest(idempotency_key="refund-1", charge_id=_id(charged), amount=money(250))
        last = [await a.commands.Charge(charged), await a.commands.Charge(held)][-1]
        last = (await a.commands.Refund(refunded)).outcome
        others = (a_request(f"order-of-many-{n}", user_id=f"user-{n}") for n in range(CHARGES))
        positions = [answer.position for answer in await asyncio.gather(*map(a.commands.Charge, others))]
        await _seen(a, max(last.position, *positions))
        yield Street(servers, a, b, charged, refunded, held)


async def _seen(client: Client, position: int) -> None:
    """Wait until the view shows a position."""
    await client.queries.GetViewStatus(GetViewStatusRequest(min_position=position), timeout=20)


# ---------------------------------------------------------------- what is told
def _as_told_to_all(error: Told) -> bytes:
    """Every byte of an error, but for the view's position: it may have moved on from one call to the next."""
    position = error.metadata.get("as_of_position", "")
    return error.everything.replace(position.encode(), b"N") if position else error.everything


Asked = Callable[[Client, dict[str, Any]], Awaitable[object]]
QUERIES: dict[str, Asked] = {
    "GetCharge": lambda client, name: client.queries.GetCharge(GetChargeRequest(**name)),
    "GetChargeHistory": lambda client, name: client.queries.GetChargeHistory(GetChargeHistoryRequest(**name)),
    "WatchCharge": lambda client, name: anext(aiter(client.queries.WatchCharge(WatchChargeRequest(**name)))),
}
FOLLOWING: dict[str, Asked] = {
    "Capture": lambda client, wish: client.commands.Capture(CaptureRequest(**wish)),
    "Void": lambda client, wish: client.commands.Void(VoidRequest(**wish)),
    "Refund": lambda client, wish: client.commands.Refund(RefundRequest(**wish)),
}


@pytest.mark.parametrize("method", QUERIES)
async def test_b_reads_and_watches_as_charges_that_were_never_there(street: Street, method: str) -> None:
    """By id and by key, every byte of the error."""
    for request in (street.charged, street.held):
        foreign = [{"charge_id": _id(request)}, {"idempotency_key": request.idempotency_key}]
        never = [{"charge_id": NEVER}, {"idempotency_key": "never"}]
        for theirs, nobodys in zip(foreign, never, strict=True):
            assert await QUERIES[method](street.a, theirs)
            told = [await refused(QUERIES[method](street.b, name)) for name in (theirs, nobodys)]
            assert told[0].reason == "CHARGE_NOT_FOUND"
            assert _as_told_to_all(told[0]) == _as_told_to_all(told[1])


async def test_b_lists_sums_and_counts_nothing_of_as(street: Street) -> None:
    """Nor by A's user, nor with the token of A's next page; and the number of charges is that of B's own."""
    ask, mine = street.b.queries, a_request("list-b", user_id="bob")
    position = (await street.b.commands.Charge(mine)).position
    await _seen(street.b, position)
    theirs = await street.a.queries.ListCharges(ListChargesRequest(page_size=2))
    assert theirs.next_page_token
    pages = [
        await ask.ListCharges(ListChargesRequest(page_size=1000)),
        await ask.ListCharges(ListChargesRequest(page_size=2, page_token=theirs.next_page_token)),
        await ask.ListCharges(ListChargesRequest(user_id="anne")),
    ]
    others = {charge.charge_id for page in pages for charge in page.charges} - {_id(mine, "b")}
    own = await ask.ListCharges(ListChargesRequest(page_size=1000))
    assert others <= {charge.charge_id for charge in own.charges}
    assert not {charge.charge_id for charge in own.charges} & {_id(street.charged), _id(street.held)}
    assert not pages[2].charges
    anne, nobody = [await ask.GetUserSummary(GetUserSummaryRequest(user_id=user)) for user in ("anne", "nobody")]
    assert (list(anne.currencies), list(nobody.currencies)) == ([], [])
    assert (await ask.GetViewStatus(GetViewStatusRequest())).charge_count == len(own.charges)
    whole = await street.a.queries.ListCharges(ListChargesRequest(page_size=1000))
    counted = (await street.a.queries.GetViewStatus(GetViewStatusRequest())).charge_count
    assert counted == len(whole.charges) >= CHARGES + 2


@pytest.mark.parametrize("method", FOLLOWING)
async def test_b_moves_no_money_of_as(street: Street, method: str) -> None:
    """Capture, void and refund, with a key of B's own and with A's: as for an id that was never given out. A's is as before."""
    before = [await street.shown(request) for request in (street.charged, street.held)]
    movements = await street.servers.movements()
    for request in (street.charged, street.held):
        for key in ("b-tries", street.refunded.idempotency_key):
            wishes = [{"charge_id": each, "idempotency_key": key} for each in (_id(request), NEVER)]
            told: list[Told] = [await refused(FOLLOWING[method](street.b, wish)) for wish in wishes]
            assert told[0].reason == "CHARGE_NOT_FOUND"
            assert _as_told_to_all(told[0]) == _as_told_to_all(told[1])
    assert [await street.shown(request) for request in (street.charged, street.held)] == before
    assert await street.servers.movements() == movements


async def test_b_replays_as_refund_and_is_told_nothing(street: Street) -> None:
    """The very request to which A hears its outcome again."""
    again = (await street.a.commands.Refund(street.refunded)).outcome
    assert again.outcome_source == REPLAYED
    never = RefundRequest(idempotency_key="refund-1", charge_id=NEVER, amount=money(250))
    told = [await refused(street.b.commands.Refund(request)) for request in (street.refunded, never)]
    assert told[0].reason == "CHARGE_NOT_FOUND"
    assert _as_told_to_all(told[0]) == _as_told_to_all(told[1])


async def test_b_replays_as_charge_and_gets_its_own(street: Street) -> None:
    """A key belongs to its tenant: B's charge is another one, and A's has moved its money once."""
    answer: ChargeResponse = await street.b.commands.Charge(street.charged)
    assert (answer.status, answer.outcome_source) == (CHARGED, FRESH)
    assert answer.charge_id == _id(street.charged, "b") != _id(street.charged)
    await _seen(street.b, answer.position)
    moved = [
        movement.kind for movement in await street.servers.movements() if movement.reference == _id(street.charged)
    ]
    assert moved == ["charge"]
    known = GetChargeRequest(idempotency_key=street.charged.idempotency_key)
    assert (await street.b.queries.GetCharge(known)).charge.charge_id == answer.charge_id
    assert (await street.shown(street.charged)).charge_id == _id(street.charged)


async def test_the_window_of_duplicates_names_no_foreign_charge(street: Street) -> None:
    """A has such a charge already, and B may make its first; of the second, B is told its own charge."""
    alike = {"user_id": "twin"}
    theirs = a_request("twin-a", **alike)
    await street.a.commands.Charge(theirs)
    assert (await street.b.commands.Charge(a_request("twin-b", **alike))).status == CHARGED
    told = await refused(street.b.commands.Charge(a_request("twin-b2", **alike)))
    assert told.reason == "POSSIBLE_DUPLICATE"
    assert _id(a_request("twin-b"), "b").encode() in told.everything
    assert _id(theirs).encode() not in told.everything


# ---------------------------------------------------------------- time
async def _seconds(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    with contextlib.suppress(Exception):
        await call
    return time.perf_counter() - began


def _auc(some: Sequence[float], others: Sequence[float]) -> float:
    """The chance that one of some is longer than one of others: a half if nobody can tell them apart."""
    ordered = sorted(others)
    wins = sum(bisect_left(ordered, time_) + bisect_right(ordered, time_) for time_ in some)
    return wins / 2 / len(some) / len(others)


def _refund(client: Client, name: dict[str, Any]) -> Awaitable[object]:
    return FOLLOWING["Refund"](client, {"idempotency_key": str(uuid.uuid4()), **name})


@pytest.mark.parametrize("ask", [QUERIES["GetCharge"], _refund], ids=["GetCharge", "Refund"])
async def test_a_foreign_charge_takes_the_time_of_an_unknown_one(street: Street, ask: Asked) -> None:
    """Three hundred calls of each, by turns: by its time alone nobody can sort them."""
    measured = 0.0
    for _ in range(TRIES):
        foreigns, unknowns = list[float](), list[float]()

        async def lane(first: int, foreigns: list[float] = foreigns, unknowns: list[float] = unknowns) -> None:
            for n in range(first, CALLS, LANES):
                theirs = charge_id_of("a", f"order-of-many-{n % CHARGES}")
                pair = [(foreigns, theirs), (unknowns, str(uuid.uuid4()))]
                for times, charge_id in pair if n // LANES % 2 else reversed(pair):
                    times.append(await _seconds(ask(street.b, {"charge_id": charge_id})))

        await asyncio.gather(*map(lane, range(LANES)))
        measured = _auc(foreigns, unknowns)
        if abs(measured - 0.5) < 0.15:
            return
    raise AssertionError(f"{TRIES} times: {measured:.2f}")
