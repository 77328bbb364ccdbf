"""Calling off: a transaction that is still open is closed for ever, unexecuted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.contract.mock_bank.client import ORDER, Client, running

KINDS = ("charge", "authorize", "capture", "void", "refund")


async def opened(bank: Client, kind: str) -> str:
    """Open a transaction of this kind, and give its token."""
    if kind in ("charge", "authorize"):
        return await bank.token(kind=kind)
    opening = await bank.open("charge" if kind == "refund" else "authorize")
    return str((await bank.follow(kind, opening["transaction_id"])).json()["token"])


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_was_called_off_is_never_executed(path: Path, kind: str) -> None:
    """However often it is called off; across a restart; and no other is opened under its reference."""
    async with running(path) as bank:
        token = await opened(bank, kind)
        before, moved = await bank.transaction(token), await bank.movements()
        cancelled = await bank.cancel(token)
        assert (cancelled.status_code, cancelled.json()) == (200, before | {"state": "cancelled"})
        assert (await bank.cancel(token)).json() == cancelled.json()
    async with running(path) as bank:
        late = await bank.execute(token)
        assert late.status_code == 410
        members = {key: value for key, value in before.items() if key not in ("state", "expires_at")}
        assert late.json() == members | {"error": "token_cancelled"}
        assert await bank.transaction(token) == cancelled.json()
        order = {
            key: members[key] for key in ("reference", "kind", "amount", "currency", "on", "final") if key in members
        }
        again = await (bank.follow(**order) if "on" in order else bank.order(kind=kind))
        assert again.json() == cancelled.json()
        assert await bank.movements() == moved


async def test_calling_off_what_is_closed_says_how_it_was_closed(bank: Client) -> None:
    """In the form of a look-up, and changes nothing."""
    executed, declined, expired = [
        await bank.token(reference=state, card="tok_declined" if state == "declined" else "tok_visa")
        for state in ("executed", "declined", "expired")
    ]
    await bank.execute(executed)
    await bank.execute(declined)
    await bank.fault("look_up", "expire_token")
    for token, state in ((expired, "expired"), (executed, "executed"), (declined, "declined")):
        before = await bank.transaction(token)
        assert before["state"] == state
        assert (await bank.cancel(token)).json() == before == await bank.transaction(token)


async def test_a_late_one_is_closed_as_expired_not_as_cancelled(path: Path) -> None:
    """So another may be opened under its reference."""
    async with running(path, token_seconds=0) as bank:
        token = await bank.token()
        assert (await bank.cancel(token)).json()["state"] == "expired"
        assert await bank.token() != token


async def test_an_unknown_token_cannot_be_called_off_and_a_body_is_refused(bank: Client) -> None:
    unknown = await bank.cancel("ttok_none")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "token_unknown"})
    token = await bank.token()
    refused = await bank.http.post(f"/transactions/{token}/cancel", content=b"{}")
    assert (refused.status_code, refused.json()) == (400, {"error": "bad_request", "field": "body"})
    assert (await bank.transaction(token))["state"] == "created"


@pytest.mark.parametrize("kind", ["charge", "refund"])
async def test_of_an_execution_and_a_calling_off_at_once_one_wins_and_both_are_told(bank: Client, kind: str) -> None:
    """Twenty races with three of each; both ends happen to be seen or not, but never two ends of one race."""
    for number in range(20):
        charge = await bank.open("charge")
        order: dict[str, Any] = {"reference": f"raced-{number}"}
        raced = await (
            bank.order(**order) if kind == "charge" else bank.follow(kind, charge["transaction_id"], **order)
        )
        token = raced.json()["token"]
        calls = [bank.execute(token), bank.cancel(token)] * 3
        said = [answer.json() for answer in await asyncio.gather(*(calls if number % 2 else reversed(calls)))]
        state = (await bank.transaction(token))["state"]
        moved = [m for m in await bank.movements() if m["token"] == token]
        told = {answer.get("state") or answer.get("result") or answer["error"] for answer in said}
        if state == "executed":
            assert (told <= {"executed", "already_executed"}, len(moved)) == (True, 1)
        else:
            assert (state, told, moved) == ("cancelled", {"cancelled", "token_cancelled"}, [])


async def test_the_log_of_calls_lists_a_calling_off(bank: Client) -> None:
    """With its kind, as the steps of other kinds."""
    token = await opened(bank, "refund")
    await bank.cancel(token)
    calls = [(call["path"].rpartition("/")[2], call["kind"], call["reference"]) for call in await bank.calls()]
    assert calls[-2:] == [("transactions", "refund", "refund-1"), ("cancel", "refund", "refund-1")]
    assert ORDER["reference"] not in [reference for _, _, reference in calls]
