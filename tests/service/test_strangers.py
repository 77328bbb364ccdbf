"""Another tenant's charge does not exist: through a real server a stranger hears what he hears of one that was never there."""

import contextlib
import sqlite3
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from charging.v1 import query_pb2_grpc
from charging.v1.query_pb2 import (
    ExplainChargeRequest,
    GetChargeHistoryRequest,
    GetChargeRequest,
    GetUserSummaryRequest,
    GetViewStatusRequest,
    ListChargesRequest,
    WatchChargeRequest,
)
from chassis.caller import Caller
from contract.errors import query_refusal as refusal
from query_service import schema
from query_service.api import QueryService
from query_service.mirrors import Mirror
from query_service.parts import Parts
from query_service.view import View
from rig.alone import start_alone
from rig.errors import refused
from tests.sealed import SealedJournal, charge_id_of, charged, requested, token_issued
from tests.service.feed_server import feeding
from tests.service.query_rig import Client, client_of, querying

CHARGES = 2_000
CALLS = 400
TRIES = 3


@dataclass
class Town:
    """A server whose clients are of one tenant on one port, and of the other on another."""

    owner: Client
    stranger: Client
    view: Path


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    journal, made = SealedJournal(), list[QueryService]()
    for n in range(CHARGES):
        journal.append(f"owner {n}", requested(f"order-{n}", "alice", tenant="default"))
    for n in range(20):
        journal.append(f"owner {n}", token_issued())
        journal.append(f"owner {n}", charged())
        journal.append(f"stranger {n}", requested(f"mine-{n}", "bob", tenant="stranger"))

    class Kept(Parts):
        def queries(self, mirrors: Sequence[Mirror]) -> QueryService:
            made.append(super().queries(mirrors))
            return made[0]

    async with contextlib.AsyncExitStack() as stack:
        feed = await stack.enter_async_context(feeding(journal))
        view = tmp_path / "view.db"
        _, owner = await stack.enter_async_context(querying(feed.address, view, Kept))
        await owner.reaches(journal.head)
        other_port = await start_alone(
            lambda server: query_pb2_grpc.add_QueryServiceServicer_to_server(made[0], server),
            "charging.v1.QueryService",
            refusal,
            anybody=Caller("stranger", "somebody"),
        )
        stack.push_async_callback(other_port.drain, 0.0)
        stranger = await stack.enter_async_context(client_of(str(other_port.address)))
        yield Town(owner, stranger, view)


Ask = Callable[[Client, dict[str, Any]], Awaitable[object]]
ASKED: dict[str, Ask] = {
    "GetCharge": lambda client, name: client.queries.GetCharge(GetChargeRequest(**name)),
    "GetChargeHistory": lambda client, name: client.queries.GetChargeHistory(GetChargeHistoryRequest(**name)),
    "ExplainCharge": lambda client, name: client.queries.ExplainCharge(ExplainChargeRequest(**name)),
    "WatchCharge": lambda client, name: anext(aiter(client.queries.WatchCharge(WatchChargeRequest(**name)))),
}


def foreign(n: int) -> list[dict[str, Any]]:
    return [{"charge_id": charge_id_of(f"owner {n}")}, {"idempotency_key": f"order-{n}"}]


def unknown(n: int) -> list[dict[str, Any]]:
    return [{"charge_id": charge_id_of(f"nobody {n}")}, {"idempotency_key": f"never-{n}"}]


@pytest.mark.parametrize("method", ASKED)
async def test_a_foreign_charge_is_answered_word_for_word_like_an_unknown_one(town: Town, method: str) -> None:
    """Code, text and every byte of the details, by id and by key, whether it is over or under way."""
    for n in (0, 1, CHARGES - 1):
        for theirs, never in zip(foreign(n), unknown(n), strict=True):
            assert await ASKED[method](town.owner, theirs)
            told = [await refused(ASKED[method](town.stranger, name)) for name in (theirs, never)]
            assert told[0].reason == "CHARGE_NOT_FOUND"
            assert told[0].everything == told[1].everything


async def test_lists_sums_counts_and_page_tokens_tell_a_stranger_nothing_of_others(town: Town) -> None:
    """With their user, and with the token of their next page: as with a user and a token that mean nothing to him."""
    ask, mine = town.stranger.queries, [f"mine-{n}" for n in reversed(range(20))]
    assert not (await ask.ListCharges(ListChargesRequest(user_id="alice"))).charges
    assert (await town.owner.queries.ListCharges(ListChargesRequest(user_id="alice", page_size=9))).next_page_token
    alice = await ask.GetUserSummary(GetUserSummaryRequest(user_id="alice"))
    nobody = await ask.GetUserSummary(GetUserSummaryRequest(user_id="nobody"))
    assert (list(alice.currencies), list(nobody.currencies)) == ([], [])
    assert (await ask.GetViewStatus(GetViewStatusRequest())).charge_count == 20
    theirs = await town.owner.queries.ListCharges(ListChargesRequest(page_size=5))
    page = await ask.ListCharges(ListChargesRequest(page_size=100, page_token=theirs.next_page_token))
    shown = [charge.idempotency_key for charge in page.charges]
    assert shown == mine[20 - len(shown) :]


# ---------------------------------------------------------------- time
async def _seconds(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    with contextlib.suppress(Exception):
        await call()
    return time.perf_counter() - began


def _auc(some: Sequence[float], others: Sequence[float]) -> float:
    """The chance that one of some is longer than one of others: a half if nobody can tell them apart."""
    ordered = sorted(others)
    wins = sum(bisect_left(ordered, time_) + bisect_right(ordered, time_) for time_ in some)
    return wins / 2 / len(some) / len(others)


@pytest.mark.parametrize("by", [0, 1], ids=["id", "key"])
@pytest.mark.parametrize("method", ASKED)
async def test_a_foreign_charge_takes_the_time_of_an_unknown_one(town: Town, method: str, by: int) -> None:
    """Four hundred calls of each, by turns: by its time alone nobody can sort them."""
    for _ in range(TRIES):
        foreigns, unknowns = list[float](), list[float]()
        for n in range(CALLS):
            pair = [(foreigns, foreign(n * 5)[by]), (unknowns, unknown(n * 5)[by])]
            for times, name in pair if n % 2 else reversed(pair):
                times.append(await _seconds(lambda name=name: ASKED[method](town.stranger, name)))  # type: ignore[misc]
        if abs(_auc(foreigns, unknowns) - 0.5) < 0.15:
            return
    raise AssertionError(f"{TRIES} times: {_auc(foreigns, unknowns):.2f}")


async def test_a_query_by_id_meets_no_row_of_another_tenant(tmp_path: Path) -> None:
    """A look into the table would take longer, from a disk by milliseconds. SQLite finds the tenant in the index itself."""
    path = tmp_path / "view.db"
    await (await View.open(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        query = f"EXPLAIN QUERY PLAN {schema.select_charges(schema.BY_ID)}"
        plan = [step[3] for step in connection.execute(query, {"tenant": 1, "charge_id": b""})]
    assert plan == [
        "SEARCH charge USING PRIMARY KEY (tenant=? AND requested_position=?)",
        "SCALAR SUBQUERY 1",
        "SEARCH charge USING COVERING INDEX charge_by_id (charge_id=? AND tenant=?)",
    ]
