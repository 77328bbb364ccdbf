"""What the client makes of errors, at a server that answers by script: the rule for the next call, and for the last word."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from chargeonce_client import (
    AskBankResponse,
    ChargeResponse,
    Client,
    DeskOutcome,
    GetChargeResponse,
    Refused,
    Settings,
    Unsettled,
    connect,
)
from charging.v1.operator_pb2 import HoldBackResponse
from tests.client.charging import CHARGED, PENDING, charge
from tests.client.scripted import Error, a_server_of

LOST = (StatusCode.UNAVAILABLE, "", "", "")
OF_A_PROXY = (StatusCode.UNAVAILABLE, "proxy.example", "UPSTREAM_RESET", "DO_NOT_RETRY")
INVALID = (StatusCode.INVALID_ARGUMENT, "charging.v1", "INVALID_REQUEST", "DO_NOT_RETRY")
UNAUTHENTICATED = (StatusCode.UNAUTHENTICATED, "charging.v1", "UNAUTHENTICATED", "DO_NOT_RETRY")
CORRUPT = (StatusCode.DATA_LOSS, "charging.v1", "JOURNAL_CORRUPT", "ASK_STATUS")
UNEXPECTED = (StatusCode.INTERNAL, "charging.v1", "UNEXPECTED", "ASK_STATUS")
LATER_WHILE_AWAY = (StatusCode.UNAVAILABLE, "charging.v1", "MOON", "WAIT_FOR_THE_MOON")
LATER_REFUSAL = (StatusCode.ALREADY_EXISTS, "charging.v1", "MOON", "WAIT_FOR_THE_MOON")
BUSY = (StatusCode.UNAVAILABLE, "charging.v1", "JOURNAL_BUSY", "RETRY_SAME_KEY")
BANK_AWAY = (StatusCode.UNAVAILABLE, "charging.v1", "BANK_UNREACHABLE", "RETRY_SAME_KEY")
STOPPING = (StatusCode.UNAVAILABLE, "charging.v1", "SERVER_STOPPING", "RETRY_SAME_KEY")
UNKNOWN_OUTCOME = (StatusCode.DEADLINE_EXCEEDED, "charging.v1", "OUTCOME_UNKNOWN", "RETRY_SAME_KEY")
CONTRADICTED = (StatusCode.FAILED_PRECONDITION, "charging.v1", "BANK_CONTRADICTS", "ASK_STATUS")
CHANGED = (StatusCode.ABORTED, "charging.v1", "PROPOSAL_CHANGED", "ASK_STATUS")
SECOND_PERSON = (StatusCode.PERMISSION_DENIED, "charging.v1", "SECOND_PERSON_NEEDED", "DO_NOT_RETRY")
STILL_PENDING, DONE = ChargeResponse(status=PENDING), ChargeResponse(status=CHARGED)


@asynccontextmanager
async def client_of(*lines: Error | Message) -> AsyncIterator[Client]:
    """Connect a client to a server that answers each call with the next line."""
    async with a_server_of(*lines) as address, connect(Settings(address, address)) as client:
        yield client


@pytest.mark.parametrize("line", [LOST, OF_A_PROXY, LATER_WHILE_AWAY, STILL_PENDING])
async def test_what_leaves_a_charge_open_is_asked_again(line: Error | Message) -> None:
    async with client_of(line, DONE) as client:
        assert (await charge(client)).status == CHARGED


@pytest.mark.parametrize("line", [LOST, OF_A_PROXY, LATER_WHILE_AWAY, UNEXPECTED])
async def test_a_query_that_cannot_be_answered_now_is_asked_again(line: Error) -> None:
    async with client_of(line, GetChargeResponse(as_of_position=1)) as client:
        assert (await client.get(key="order-1")).as_of_position == 1


@pytest.mark.parametrize("line", [INVALID, UNAUTHENTICATED, CORRUPT, LATER_REFUSAL])
async def test_a_refusal_is_the_result(line: Error) -> None:
    async with client_of(line) as client:
        with pytest.raises(Refused) as error:
            await charge(client)
        assert (error.value.code, error.value.reason, error.value.advice) == (line[0], *line[2:])


@pytest.mark.parametrize("earlier", [STILL_PENDING, LOST])
@pytest.mark.parametrize("line", [UNAUTHENTICATED, CORRUPT])
async def test_a_refusal_without_a_look_for_the_key_leaves_an_earlier_try_open(
    earlier: Error | Message, line: Error
) -> None:
    async with client_of(earlier, line) as client:
        with pytest.raises(Unsettled) as error:
            await charge(client)
        assert error.value.reason == line[2]


async def test_a_refusal_of_the_request_itself_holds_for_earlier_tries() -> None:
    async with client_of(LOST, INVALID) as client:
        with pytest.raises(Refused):
            await charge(client)


# ---------------------------------------------------------------- the desk
HELD = HoldBackResponse(outcome=DeskOutcome(charge_id="1", held_back=True))


@pytest.mark.parametrize("line", [LOST, OF_A_PROXY, STOPPING, UNKNOWN_OUTCOME, UNEXPECTED, LATER_WHILE_AWAY])
async def test_a_step_of_the_desk_that_may_be_stored_is_not_repeated(line: Error) -> None:
    """It has no key: if somebody let the charge go meanwhile, a repeat would hold it back again."""
    async with client_of(line, HELD) as client:
        with pytest.raises(Unsettled) as error:
            await client.desk.hold_back("1", reason="the bank asked us to")
        assert (error.value.code, error.value.reason) == (line[0], line[2] if line[1] == "charging.v1" else "")


@pytest.mark.parametrize("line", [BUSY, BANK_AWAY])
async def test_a_step_of_which_nothing_was_stored_is_repeated(line: Error) -> None:
    async with client_of(line, HELD) as client:
        assert (await client.desk.hold_back("1", reason="the bank asked us to")).held_back


@pytest.mark.parametrize("line", [LOST, STOPPING, UNEXPECTED])
async def test_a_question_to_the_desk_is_asked_again(line: Error) -> None:
    async with client_of(line, AskBankResponse(transaction_id="txn_1")) as client:
        assert (await client.desk.ask_bank("1")).transaction_id == "txn_1"


@pytest.mark.parametrize("earlier", [None, BUSY])
@pytest.mark.parametrize("line", [CONTRADICTED, CHANGED, SECOND_PERSON, UNAUTHENTICATED])
async def test_what_the_desk_refuses_is_refused_whatever_was_tried_before(earlier: Error | None, line: Error) -> None:
    async with client_of(*filter(None, [earlier, line])) as client:
        with pytest.raises(Refused) as error:
            await client.desk.approve("1", 7, reason="seen in the statement")
        assert error.value.reason == line[2]
