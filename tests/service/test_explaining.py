"""A charge explained by real servers: a bank with faults, a command server, and a query server that asks it about attempts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest

from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import AnswerKind, Attempts, Card
from charging.v1.journal_pb2 import GetAttemptsResponse
from charging.v1.query_pb2 import ChargeStage, ExplainChargeRequest, ExplainChargeResponse, Situation
from query_service.parts import Parts
from query_service.settings import Settings
from rig.errors import told
from rig.processes import free_address
from rig.world import (
    ABANDONED,
    CHARGED,
    IN_REVIEW,
    OPERATION_ABANDONED,
    OPERATION_EXECUTED,
    PENDING,
    REQUIRES_ACTION,
    World,
    a_hold,
    a_request,
    a_world,
    id_of,
    records,
    until,
)
from tests.sealed import SealedJournal, charge_id_of, charged, token_issued
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import Client, querying

ALWAYS = 1_000_000
NO_ANSWER = AnswerKind.ANSWER_KIND_NO_ANSWER
DAY = 24 * 3600 * 1_000_000


class Ahead(Parts):
    """The product's own parts, with a clock that is ahead."""

    def __init__(self, by: Callable[[], int], chosen: Settings) -> None:
        super().__init__(chosen)
        self._by = by

    def now(self) -> int:
        return super().now() + self._by()


@dataclass
class Town:
    """The three servers. The query server's clock is so many microseconds ahead."""

    world: World
    client: Client
    ahead: int = 0

    async def explained(self, key: str) -> ExplainChargeResponse:
        return await self.client.queries.ExplainCharge(ExplainChargeRequest(idempotency_key=key), timeout=30)

    async def seen(
        self, request: ChargeRequest, situation: Situation.ValueType, in_vain: int = 0
    ) -> ExplainChargeResponse:
        """Wait until a charge is explained as one in a situation, of which so many attempts have been in vain."""
        found = ExplainChargeResponse()

        async def is_seen() -> bool:
            try:
                found.CopyFrom(await self.explained(request.idempotency_key))
            except grpc.aio.AioRpcError as error:
                assert told(error).reason == "CHARGE_NOT_FOUND"  # not yet
            return found.situation == situation and found.attempts.in_vain >= in_vain

        await until(is_seen)
        return found


@asynccontextmanager
async def a_town(folder: Path, *, abandon_after: str = "300") -> AsyncIterator[Town]:
    # The feed's address is kept, so that the command server is found again after a restart.
    settings = {"COMMAND_FEED_LISTEN": free_address(), "COMMAND_ABANDON_AFTER_SECONDS": abandon_after}
    async with a_world(folder, **settings) as world:  # type: ignore[arg-type]  # none of them is the maker of parts
        town = Town(world, None)  # type: ignore[arg-type]  # in a moment
        parts = partial(Ahead, lambda: town.ahead)
        async with querying(str(world.running.feed_listen), folder / "view.db", parts) as (_, town.client):
            yield town


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with a_town(tmp_path) as town:
        yield town


def commands(answer: ExplainChargeResponse) -> list[str]:
    return [action.command for action in answer.actions]


def at(microseconds: int) -> str:
    """The time of day, as a sentence has it."""
    seconds = microseconds // 1_000_000 % 86_400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02} UTC"


# ---------------------------------------------------------------- under way
async def test_a_bank_that_is_silent_is_told_with_counts_and_times_and_what_may_be_done(town: Town) -> None:
    """Before there is a token: no money has moved."""
    request = a_request("order-1")
    await town.world.trouble("token", "error_before", times=ALWAYS)
    waiting = asyncio.create_task(town.world.charge(request))
    answer = await town.seen(request, Situation.SITUATION_BANK_SILENT, in_vain=2)
    requested_at = records(town.world.journal)[0].recorded_at
    assert "No money has moved" in answer.what
    assert f"The charge of 12.50 EUR was requested at {at(requested_at)}." in answer.what
    times = f"{answer.attempts.in_vain} times in a row, last at {at(answer.attempts.last_at.ToMicroseconds())}"
    assert times in answer.what
    assert answer.attempts.last_answer == AnswerKind.ANSWER_KIND_NO_ANSWER
    assert answer.attempts_unknown_because == ""
    assert "gives up" in answer.next
    assert answer.charge.stage == ChargeStage.CHARGE_STAGE_AWAITING_TOKEN
    assert commands(answer) == [
        "chargeonce desk try order-1 --reason ...",
        "chargeonce desk hold order-1 --reason ...",
        "chargeonce void order-1",
    ]
    assert [action.role for action in answer.actions] == ["operate", "operate", "charge"]
    await town.world.referee.no_more_trouble()
    assert (await waiting).status == CHARGED
    decided = await town.seen(request, Situation.SITUATION_DECIDED)
    assert (decided.next, decided.HasField("attempts")) == ("Nothing.", False)
    assert "In all 12.50 EUR moved." in decided.what
    assert commands(decided) == ["chargeonce refund order-1"]


@pytest.mark.parametrize(
    ("fault", "situation"),
    [
        ({"fault": "error_before"}, Situation.SITUATION_EXECUTION_UNKNOWN),
        ({"fault": "in_progress", "retry_after": "1"}, Situation.SITUATION_BANK_SLOW),
        ({"fault": "refuse", "status": 401}, Situation.SITUATION_BANK_REFUSES_US),
    ],
    ids=["no answer", "in progress", "credentials"],
)
async def test_after_the_token_money_may_have_moved(
    town: Town, fault: dict[str, object], situation: Situation.ValueType
) -> None:
    """Whatever it is that the bank says, as long as it is no outcome."""
    request = a_request()
    await town.world.referee.trouble(on="execute", times=ALWAYS, **fault)  # type: ignore[arg-type]  # of several types
    waiting = asyncio.create_task(town.world.charge(request))
    answer = await town.seen(request, situation, in_vain=1)
    assert "money may have moved" in answer.what
    assert answer.charge.stage == ChargeStage.CHARGE_STAGE_AWAITING_EXECUTION
    await town.world.referee.no_more_trouble()
    assert (await waiting).status == CHARGED


async def test_a_charge_that_is_called_off_without_an_answer_says_so(town: Town) -> None:
    """The void waits for its end, and cannot be asked for again."""
    request = a_request()
    for step in ("execute", "cancel"):
        await town.world.trouble(step, "error_before", times=ALWAYS)
    waiting = [asyncio.create_task(town.world.charge(request))]
    await town.seen(request, Situation.SITUATION_EXECUTION_UNKNOWN)
    waiting.append(asyncio.create_task(town.world.void(id_of(request))))  # type: ignore[arg-type]  # of another answer
    answer = await town.seen(request, Situation.SITUATION_CALLING_OFF)
    assert "called off" in answer.what
    assert not any(command.startswith("chargeonce void") for command in commands(answer))
    await town.world.referee.no_more_trouble()
    await asyncio.gather(*waiting)


async def test_a_customer_who_is_awaited_may_be_voided(town: Town) -> None:
    request = a_request(card=Card(token="tok_3ds"))
    assert (await town.world.charge(request)).status == REQUIRES_ACTION
    answer = await town.seen(request, Situation.SITUATION_AWAITING_CUSTOMER)
    assert "waits for a step of the customer" in answer.what
    assert "gives up waiting for the customer at" in answer.next
    assert f"chargeonce void {request.idempotency_key}" in commands(answer)


# ---------------------------------------------------------------- at rest
async def test_a_charge_in_review_is_for_two_people(town: Town) -> None:
    """Each thing that they may find has its command."""
    request = a_request("order-1")
    await town.world.trouble("token", "wrong_amount", times=2)
    assert (await town.world.charge(request)).status == IN_REVIEW
    answer = await town.seen(request, Situation.SITUATION_IN_REVIEW)
    assert "fields differ" in answer.what
    assert commands(answer) == [
        "chargeonce desk ask-bank order-1",
        "chargeonce desk propose order-1 --executed TRANSACTION --evidence ... --reason ...",
        "chargeonce desk propose order-1 --not-executed --evidence ... --reason ...",
        "chargeonce desk propose order-1 --refunded TRANSACTION --refund TRANSACTION --evidence ... --reason ...",
    ]


async def test_an_abandoned_charge_may_be_charged_under_a_new_key(tmp_path: Path) -> None:
    """By a command that names none: then one is made."""
    async with a_town(tmp_path, abandon_after="1") as town:
        request = a_hold("order-1")
        await town.world.trouble("token", "error_before", times=ALWAYS)
        assert (await town.world.charge(request)).status == ABANDONED
        answer = await town.seen(request, Situation.SITUATION_ABANDONED)
        assert "No money has moved, and none is held." in answer.what
        assert commands(answer) == ["chargeonce charge --user alice --card tok_visa --hold 12.50 EUR"]


async def test_a_refund_that_was_given_up_may_be_asked_for_again(tmp_path: Path) -> None:
    """It is not decided that nothing has to be done: the customer waits for the money."""
    async with a_town(tmp_path, abandon_after="1") as town:
        request = a_request("order-1")
        charged_first = await town.world.charge(request)
        await town.world.trouble("token", "error_before", kind="refund", times=ALWAYS)
        assert (await town.world.refund(charged_first.charge_id, 100)).status == OPERATION_ABANDONED
        answer = await town.seen(request, Situation.SITUATION_ABANDONED)
        assert "The refund of 1.00 EUR was given up" in answer.what
        assert "In all 12.50 EUR moved." in answer.what
        assert commands(answer) == ["chargeonce refund order-1 1.00 EUR"]
        await town.world.referee.no_more_trouble()
        assert (await town.world.refund(charged_first.charge_id, 100)).status == OPERATION_EXECUTED
        await town.seen(request, Situation.SITUATION_DECIDED)


async def test_a_hold_is_near_its_end_a_day_before(town: Town) -> None:
    """By the query server's own clock."""
    request = a_hold("order-1")
    ends = (await town.world.charge(request)).expires_at.ToMicroseconds()
    begins = records(town.world.journal)[0].recorded_at
    assert commands(await town.seen(request, Situation.SITUATION_DECIDED)) == [
        "chargeonce capture order-1",
        "chargeonce void order-1",
    ]
    town.ahead = ends - begins - DAY
    answer = await town.seen(request, Situation.SITUATION_HOLD_ENDING)
    assert "In all 12.50 EUR is held." in answer.what
    assert commands(answer) == ["chargeonce capture order-1", "chargeonce void order-1"]


# ---------------------------------------------------------------- what is not known
async def test_a_command_server_that_is_away_is_said_and_a_restart_forgets_attempts(town: Town) -> None:
    """The sentence says from when on they are known, and the counts begin anew."""
    request = a_request()
    await town.world.trouble("execute", "error_before", times=ALWAYS)
    assert (await town.world.pending(request)).status == PENDING
    before = await town.seen(request, Situation.SITUATION_EXECUTION_UNKNOWN, in_vain=3)
    await town.world.stop()
    away = await town.seen(request, Situation.SITUATION_SERVER_AWAY)
    assert "Attempts are not known" in away.attempts_unknown_because
    assert (list(away.actions), away.HasField("attempts")) == ([], False)
    assert "may have been told to execute 12.50 EUR" in away.what
    await town.world.start()
    after = await town.seen(request, Situation.SITUATION_EXECUTION_UNKNOWN, in_vain=1)
    since = after.attempts.since.ToMicroseconds()
    assert since > before.attempts.last_at.ToMicroseconds()
    assert after.attempts_unknown_because.startswith(f"Attempts before {at(since)} are not known")
    assert after.attempts_unknown_because in after.what
    await town.world.referee.no_more_trouble()
    assert (await town.world.charge(request)).status == CHARGED


@dataclass
class Fed:
    """A charge that awaits its execution, and a command server that says of it what the test wants."""

    feed: FeedServer
    client: Client

    async def explained(self, **told: object) -> ExplainChargeResponse:
        """Explain the charge, given what the command server tells."""
        self.feed.attempts[charge_id_of(KEY)] = GetAttemptsResponse(**told)  # type: ignore[arg-type]  # of several types
        request = ExplainChargeRequest(idempotency_key=KEY, min_position=self.feed.journal.head)
        return await self.client.queries.ExplainCharge(request, timeout=30)


KEY = "order-1"


@pytest.fixture
async def fed(tmp_path: Path) -> AsyncIterator[Fed]:
    journal = SealedJournal()
    journal.charge(KEY, "user-1", token_issued())
    async with feeding(journal) as feed, querying(feed.address, tmp_path / "view.db") as (_, client):
        yield Fed(feed, client)


async def test_a_server_that_has_stopped_at_a_charge_says_so_by_an_unfinished_charge_without_attempts(fed: Fed) -> None:
    """Then a call takes it up again, such as a try at the desk."""
    answer = await fed.explained(is_unfinished=True, version=2)
    assert answer.situation == Situation.SITUATION_STOPPED
    assert commands(answer) == [f"chargeonce desk try {KEY} --reason ..."]


async def test_attempts_at_a_later_step_than_the_view_shows_are_not_told(fed: Fed) -> None:
    """By the view alone a bank that is silent would be one that has no token yet. It is months old, and nobody knows better."""
    tried = Attempts(is_driven_here=True, bank_is_configured=True, in_vain=3)
    answer = await fed.explained(is_unfinished=True, version=3, attempts=tried)
    assert answer.situation == Situation.SITUATION_EXECUTION_UNKNOWN
    assert "newest event" in answer.attempts_unknown_because
    assert not answer.HasField("attempts")


async def test_a_charge_that_has_come_to_rest_at_its_server_is_explained_once_the_view_shows_that(fed: Fed) -> None:
    """The answer waits for it."""
    fed.feed.journal.append(KEY, charged())
    asking = asyncio.create_task(fed.explained(version=3))
    await fed.feed.notify()
    assert (await asking).situation == Situation.SITUATION_DECIDED


async def test_attempts_that_another_command_server_knows_are_not_made_up(fed: Fed) -> None:
    """Where servers share a journal and only one of them is followed here. That tells at least whether the bank is known."""
    known = await fed.explained(is_unfinished=True, version=2, attempts=Attempts(bank_is_configured=True))
    assert known.situation == Situation.SITUATION_EXECUTION_UNKNOWN
    assert "money may have moved" in known.what
    assert "Do not refund and do not charge again" in known.advice
    assert "another command server drives" in known.attempts_unknown_because
    assert not known.HasField("attempts")
    missing = await fed.explained(is_unfinished=True, version=2, attempts=Attempts())
    assert missing.situation == Situation.SITUATION_BANK_MISSING


@pytest.mark.parametrize("has_bank", [True, False])
async def test_of_servers_that_share_a_journal_the_one_that_drives_a_charge_knows_whether_its_bank_is_missing(
    tmp_path: Path, has_bank: bool
) -> None:
    """Whatever banks the others have: they do not call it."""
    journal = SealedJournal()
    journal.charge(KEY, "user-1", token_issued())
    driven = Attempts(is_driven_here=True, bank_is_configured=has_bank, in_vain=1, last_answer=NO_ANSWER)
    async with feeding(journal) as driving, feeding(journal) as other:
        for feed, attempts in ((driving, driven), (other, Attempts(bank_is_configured=not has_bank))):
            told = GetAttemptsResponse(is_unfinished=True, version=2, attempts=attempts)
            feed.attempts[charge_id_of(KEY)] = told
        async with querying(f"{driving.address},{other.address}", tmp_path / "view.db") as (_, client):
            request = ExplainChargeRequest(idempotency_key=KEY, min_position=journal.head)
            answer = await client.queries.ExplainCharge(request, timeout=30)
    missing = Situation.SITUATION_BANK_MISSING
    assert answer.situation == (Situation.SITUATION_EXECUTION_UNKNOWN if has_bank else missing)
    assert answer.attempts.in_vain == 1
