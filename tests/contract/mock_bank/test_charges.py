"""The mock bank's promises for a charge: money moves once, and closed is for ever.

The tests of this folder use real HTTP and the real server; where a process has to die, a real process.
"""

import asyncio
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.contract.mock_bank.client import ORDER, Client, running

# The token step


async def test_the_token_step_opens_a_transaction_and_moves_no_money(bank: Client) -> None:
    """The answer is complete, and the statement empty."""
    opened = (await bank.order()).json()
    assert opened.pop("token").startswith("ttok_")
    assert opened.pop("expires_at").endswith("Z")
    assert opened == {**ORDER, "kind": "charge", "state": "created", "transaction_id": None, "reason": None}
    assert await bank.movements() == []


@pytest.mark.parametrize(
    ("card", "state"), [("tok_visa", "executed"), ("tok_mastercard", "executed"), ("tok_declined", "declined")]
)
async def test_a_known_reference_gives_its_transaction_back_as_it_is_now(bank: Client, card: str, state: str) -> None:
    """Open or closed, it is the same transaction, and there is no second one."""
    first = (await bank.order(card=card)).json()
    assert (await bank.order(card=card)).json() == first
    await bank.execute(first["token"])
    again = (await bank.order(card=card)).json()
    assert (again["token"], again["state"]) == (first["token"], state)
    assert again == await bank.transaction(first["token"])


async def test_fifty_token_steps_of_one_reference_at_once_open_one_transaction(bank: Client) -> None:
    """All fifty get the same token."""
    assert len(set(await asyncio.gather(*(bank.token() for _ in range(50))))) == 1


@pytest.mark.parametrize("changed", [{"card": "tok_mastercard"}, {"amount": 1251}, {"currency": "USD"}])
@pytest.mark.parametrize("token_seconds", [900, 0], ids=["open", "expired"])
async def test_a_known_reference_with_other_fields_is_refused(
    path: Path, changed: Mapping[str, object], token_seconds: int
) -> None:
    """Whether its transaction is open or expired; and the transaction stays unchanged."""
    async with running(path, token_seconds=token_seconds) as bank:
        token = await bank.token()
        before = await bank.transaction(token)
        refused = await bank.order(**changed)
        assert (refused.status_code, refused.json()) == (409, {"error": "reference_reused"})
        assert (await bank.http.get("/transactions?reference=charge-1")).json() == before


async def test_only_an_expired_transaction_makes_room_for_another_under_its_reference(bank: Client) -> None:
    """For one only: from then on the reference means the newest transaction."""
    first = await bank.token()
    await bank.fault("execute", "expire_token")
    assert (await bank.execute(first)).status_code == 410
    tokens = set(await asyncio.gather(*(bank.token() for _ in range(20))))
    assert len(tokens) == 1
    assert first not in tokens
    assert (await bank.execute(tokens.pop())).json()["result"] == "executed"
    assert (await bank.execute(first)).status_code == 410
    assert len(await bank.movements()) == 1


async def test_a_token_step_that_finds_its_transaction_late_closes_it_and_opens_another(path: Path) -> None:
    """No call has looked at the first since its time was over; it is closed all the same."""
    async with running(path, token_seconds=0) as bank:
        first = await bank.token()
        assert await bank.token() != first
    async with running(path) as bank:
        assert (await bank.transaction(first))["state"] == "expired"


async def test_the_ledger_itself_holds_no_second_live_transaction_of_a_reference(path: Path) -> None:
    """SQLite refuses the row, even if the code above it does not."""
    async with running(path) as bank:
        await bank.token()
    with (
        closing(sqlite3.connect(path)) as ledger,
        pytest.raises(sqlite3.IntegrityError, match=r"transactions\.reference"),
    ):
        ledger.execute(
            "INSERT INTO transactions (token, reference, kind, card, amount, currency, state, opened_at, expires_at)"
            " SELECT 'other', reference, kind, card, amount, currency, 'created', opened_at, expires_at FROM transactions"
        )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"[" * 60_000, "body"),
        (b'{"reference": "\xff"}', "body"),
        (b'{"reference": "charge-1", "reference": "charge-2"}', "body"),
        (json.dumps(ORDER | {"more": 1}).encode(), "body"),
        (json.dumps(ORDER | {"amount": float("nan")}).encode(), "body"),
        (json.dumps({"amount": 1}).replace("1}", "1" * 5_000 + "}").encode(), "amount"),
        *[(json.dumps({k: v for k, v in ORDER.items() if k != key}).encode(), key) for key in ORDER],
        *[(json.dumps(ORDER | {"amount": v}).encode(), "amount") for v in (0, -1, 1.0, True, "1", None, 2**63)],
        *[(json.dumps(ORDER | {"reference": v}).encode(), "reference") for v in ("", "a b", "\n", "a" * 129, 1)],
        *[(json.dumps(ORDER | {"currency": v}).encode(), "currency") for v in ("eur", "EURO", "", "EU\u0405", 978)],
        (json.dumps(ORDER | {"card": 1}).encode(), "card"),
    ],
)
async def test_a_malformed_order_is_refused_with_the_name_of_its_field(bank: Client, body: bytes, field: str) -> None:
    """And opens nothing."""
    refused = await bank.http.post("/transactions", content=body)
    assert refused.status_code == 400
    assert refused.json() in (
        {"error": "bad_request", "field": field},
        # Python refuses to read a number of five thousand digits: to it that is no JSON.
        {"error": "bad_request", "field": "body"} if len(body) > 5_000 else None,
    )
    assert (await bank.http.get("/transactions?reference=charge-1")).status_code == 404


@pytest.mark.parametrize("card", ["tok_amex", "", "visa", "\ud800"])
async def test_an_unknown_card_is_refused(bank: Client, card: str) -> None:
    """422, and nothing is opened."""
    refused = await bank.order(card=card)
    assert (refused.status_code, refused.json()) == (422, {"error": "card_unknown"})
    assert (await bank.http.get("/transactions?reference=charge-1")).status_code == 404


async def test_the_largest_amount_is_kept_to_the_last_unit(bank: Client) -> None:
    """2^63-1 is no float anywhere on its way."""
    token = await bank.token(amount=2**63 - 1)
    assert (await bank.execute(token)).json()["amount"] == 2**63 - 1
    assert [movement["minor_units"] for movement in await bank.movements()] == [2**63 - 1]


# The execute step


async def test_executing_moves_the_money_once_and_always_reports_it(bank: Client) -> None:
    """The second answer differs from the first in its result only."""
    token = await bank.token()
    first = (await bank.execute(token)).json()
    assert first.pop("result") == "executed"
    assert first.pop("transaction_id").startswith("txn_")
    assert first == {**ORDER, "kind": "charge", "token": token, "reason": None}
    again = (await bank.execute(token)).json()
    assert again.pop("result") == "already_executed"
    assert [again["transaction_id"]] == [movement["transaction_id"] for movement in await bank.movements()]


@pytest.mark.parametrize("seconds", [0, 0.3], ids=["as they come", "all having seen it open"])
async def test_fifty_executions_of_one_token_at_once_move_the_money_once(bank: Client, seconds: float) -> None:
    """One says executed, the others already executed, all the same transaction id."""
    token = await bank.token()
    await bank.fault("execute", "delay", seconds=seconds, times=50)
    said = [response.json() for response in await asyncio.gather(*(bank.execute(token) for _ in range(50)))]
    assert sorted(answer["result"] for answer in said) == ["already_executed"] * 49 + ["executed"]
    assert {answer["transaction_id"] for answer in said} == {(await bank.movements())[0]["transaction_id"]}
    assert len(await bank.movements()) == 1


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("tok_declined", "card_declined"),
        ("tok_insufficient_funds", "insufficient_funds"),
        ("tok_expired_card", "expired_card"),
    ],
)
async def test_a_decline_is_for_ever(path: Path, card: str, reason: str) -> None:
    """With its reason, across a restart, and although the card might have recovered."""
    async with running(path) as bank:
        token = await bank.token(card=card)
        first = (await bank.execute(token)).json()
        assert (first["result"], first["reason"], first["transaction_id"]) == ("declined", reason, None)
    async with running(path) as bank:
        assert (await bank.execute(token)).json() == first
        assert await bank.movements() == []


async def test_a_late_token_is_closed_for_ever_before_any_answer_says_so(path: Path) -> None:
    """A bank restarted with the longest lifetime of tokens still says expired."""
    async with running(path, token_seconds=0) as bank:
        token = await bank.token()
        late = await bank.execute(token)
        assert late.status_code == 410
        assert late.json() == {
            **ORDER,
            "kind": "charge",
            "token": token,
            "error": "token_expired",
            "transaction_id": None,
            "reason": None,
        }
    async with running(path) as bank:
        assert (await bank.transaction(token))["state"] == "expired"
        assert (await bank.execute(token)).status_code == 410
        assert await bank.movements() == []


@pytest.mark.parametrize("by", ["token", "reference"])
async def test_expired_in_a_look_up_is_final(path: Path, by: str) -> None:
    """Looking at a late transaction closes it."""
    async with running(path, token_seconds=0) as bank:
        token = await bank.token()
        where = f"/transactions/{token}" if by == "token" else "/transactions?reference=charge-1"
        assert (await bank.http.get(where)).json()["state"] == "expired"
    with closing(sqlite3.connect(path)) as ledger:
        assert ledger.execute("SELECT state FROM transactions").fetchall() == [("expired",)]


async def test_an_executed_transaction_never_expires(path: Path) -> None:
    """Not even if any step asks after its time."""
    async with running(path) as bank:
        token = await bank.token()
        await bank.execute(token)
    with closing(sqlite3.connect(path)) as ledger, ledger:
        ledger.execute("UPDATE transactions SET expires_at = 0")
    async with running(path) as bank:
        assert (await bank.execute(token)).json()["result"] == "already_executed"
        assert (await bank.order()).json()["token"] == token
        assert (await bank.transaction(token))["state"] == "executed"


async def test_amount_and_currency_are_compared_if_given(bank: Client) -> None:
    """Nothing is executed if they differ, nor if they are malformed."""
    token = await bank.token()
    for other in ({"amount": 1}, {"currency": "USD"}):
        differs = await bank.execute(token, **({"amount": 1250, "currency": "EUR"} | other))
        assert (differs.status_code, differs.json()) == (409, {"error": "fields_differ"})
    for said, field in (({"amount": 1250}, "currency"), ({"amount": 1250, "currency": "EUR", "more": 1}, "body")):
        assert (await bank.execute(token, **said)).json() == {"error": "bad_request", "field": field}
    assert (await bank.execute(token, amount=1250, currency="EUR")).json()["result"] == "executed"


async def test_unknown_names_are_answered_as_unknown(bank: Client) -> None:
    """Tokens, references, and paths."""
    assert (await bank.execute("ttok_none")).json() == {"error": "token_unknown"}
    for where, error in (
        ("/transactions/ttok_none", "token_unknown"),
        ("/transactions?reference=none", "reference_unknown"),
        ("/nowhere", "not_found"),
        ("/", "not_found"),
    ):
        unknown = await bank.http.get(where)
        assert (unknown.status_code, unknown.json()) == (404, {"error": error})
    for where in ("/transactions", "/transactions?reference=a&reference=b", "/transactions?token=a"):
        assert (await bank.http.get(where)).json() == {"error": "bad_request", "field": "reference"}


# The referee


async def test_the_statement_lists_every_movement_in_the_order_of_execution(bank: Client) -> None:
    """In exactly the fields of the design. A transaction that moved no money is not in it."""
    tokens = [await bank.token(reference=f"charge-{n}", amount=n) for n in (1, 2, 3)]
    await bank.execute(await bank.token(reference="charge-4", card="tok_declined"))
    executed = [(await bank.execute(token)).json() for token in reversed(tokens)]
    statement = (await bank.http.get("/statement")).json()
    assert list(statement) == ["movements"]
    assert all(movement.pop("executed_at").endswith("Z") for movement in statement["movements"])
    assert statement["movements"] == [
        {
            "transaction_id": answer["transaction_id"],
            "token": answer["token"],
            "reference": answer["reference"],
            "kind": "charge",
            "minor_units": answer["amount"],
            "currency_code": "EUR",
        }
        for answer in executed
    ]


async def test_executions_in_one_commit_are_all_in_the_statement(bank: Client) -> None:
    """Fifty concurrent ones share commits; each has its own movement."""
    tokens = await asyncio.gather(*(bank.token(reference=f"charge-{n}") for n in range(50)))
    said = [answer.json() for answer in await asyncio.gather(*(bank.execute(token) for token in tokens))]
    moved = {(m["transaction_id"], m["token"], m["reference"]) for m in await bank.movements()}
    assert moved == {(answer["transaction_id"], answer["token"], answer["reference"]) for answer in said}
    assert len(moved) == 50


async def test_the_log_of_calls_has_each_request_and_its_answer(bank: Client) -> None:
    """In order, with the fault that a call met. The referee's own calls are not in it."""
    token = await bank.token()
    await bank.fault("execute", "lose_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await bank.execute(token)
    await bank.http.get("/transactions?reference=charge-1")
    await bank.http.post("/transactions", content=b"nonsense")
    calls = await bank.calls()
    assert all(call.pop("at").endswith("Z") for call in calls)
    assert [tuple(call) for call in calls] == [
        ("n", "method", "path", "reference", "token", "kind", "fault", "status")
    ] * 4
    assert [tuple(call.values()) for call in calls] == [
        (1, "POST", "/transactions", "charge-1", token, "charge", None, 200),
        (2, "POST", f"/transactions/{token}/execute", "charge-1", token, "charge", "lose_answer", None),
        (3, "GET", "/transactions", "charge-1", token, "charge", None, 200),
        (4, "POST", "/transactions", None, None, None, None, 400),
    ]
    assert [call["n"] for call in await bank.calls(after=2)] == [3, 4]
    assert await bank.calls(after=10**17) == []
    assert (await bank.http.get("/calls?after=-1")).json() == {"error": "bad_request", "field": "after"}


async def test_a_slow_card_takes_its_time_once(path: Path) -> None:
    """So that a client can see a deadline pass: the state is open meanwhile, and a repeat is answered at once."""
    async with running(path) as bank:
        token = await bank.token(card="tok_slow")
        slow = asyncio.create_task(bank.execute(token))
        await asyncio.sleep(0.1)
        assert (await bank.transaction(token))["state"] == "created"
        assert (await slow).json()["result"] == "executed"
        took = []
        for _ in range(5):  # each of which would be slow
            began = monotonic()
            assert (await bank.execute(token)).json()["result"] == "already_executed"
            took.append(monotonic() - began)
        assert min(took) < 1, "it is not slow any more"
        assert len(await bank.movements()) == 1
