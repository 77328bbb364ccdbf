"""Orders of faults: which are taken, which calls meet them, and in which order."""

from collections.abc import Mapping

import pytest

from gateway_mock.faults import Kind
from tests.contract.mock_bank.client import Client


async def test_a_fault_waits_for_a_kind_of_transaction(bank: Client) -> None:
    """In every step that knows the transaction's kind; an unknown one has none."""
    charge = await bank.open("charge")
    for on in ("token", "execute", "look_up", "cancel"):
        await bank.fault(on, "error_before", kind="refund")
    await bank.execute(charge["token"])
    assert (await bank.transaction(charge["token"]))["state"] == (await bank.cancel(charge["token"])).json()["state"]
    assert (await bank.http.get("/transactions/ttok_none")).status_code == 404
    assert [fault["fired"] for fault in await bank.faults()] == [0, 0, 0, 0]
    assert (await bank.follow("refund", charge["transaction_id"])).status_code == 503
    token = (await bank.follow("refund", charge["transaction_id"])).json()["token"]
    assert (await bank.execute(token)).status_code == 503
    assert (await bank.http.get(f"/transactions/{token}")).status_code == 503
    assert (await bank.cancel(token)).status_code == 503
    assert [(fault["kind"], fault["fired"]) for fault in await bank.faults()] == [("refund", 1)] * 4


async def test_a_fault_that_waits_for_a_card_meets_what_follows_its_opening(bank: Client) -> None:
    charge = await bank.open("charge", card="tok_mastercard")
    await bank.fault("token", "error_before", card="tok_mastercard", kind="refund")
    await bank.fault("execute", "error_before", card="tok_mastercard", times=1)
    assert (await bank.follow("refund", charge["transaction_id"])).status_code == 503
    token = (await bank.follow("refund", charge["transaction_id"])).json()["token"]
    assert (await bank.execute(token)).status_code == 503


async def test_faults_fire_first_in_first_out_among_those_that_match(bank: Client) -> None:
    """Step, reference and card narrow down; each fires as often as was ordered and not once more."""
    await bank.fault("token", "error_before", status=500, reference="charge-2")
    await bank.fault("token", "error_before", status=501, card="tok_mastercard", times=2)
    await bank.fault("token", "error_before", status=502)
    seen = [
        (await bank.order(**changed)).status_code
        for changed in (
            {"reference": "charge-1"},
            {"reference": "charge-1"},
            {"reference": "charge-2", "card": "tok_mastercard"},
            {"reference": "charge-2", "card": "tok_mastercard"},
            {"reference": "charge-3", "card": "tok_mastercard"},
            {"reference": "charge-3", "card": "tok_mastercard"},
        )
    ]
    assert seen == [502, 200, 500, 501, 501, 200]
    token = await bank.token()
    await bank.fault("execute", "error_before", reference="charge-9")
    await bank.fault("execute", "error_before", card="tok_visa", reference="charge-1")
    assert (await bank.execute(token)).status_code == 503
    assert [fault["fired"] for fault in await bank.faults()] == [1, 2, 1, 0, 1]


async def test_faults_are_listed_as_ordered_and_cleared(bank: Client) -> None:
    """With the defaults of their parameters; after clearing the list is empty."""
    first = await bank.fault("execute", "hang_after", reference="charge-1")
    second = await bank.fault("token", "throttled", times=3, retry_after="soon")
    both = {"card": None, "kind": None, "fired": 0}
    assert await bank.faults() == [
        {"id": first, "on": "execute", "fault": "hang_after", "times": 1, "reference": "charge-1", "seconds": 30}
        | both,
        {"id": second, "on": "token", "fault": "throttled", "times": 3, "reference": None, "retry_after": "soon"}
        | both,
    ]
    assert (await bank.http.delete("/faults")).json() == {"cleared": 2}
    assert await bank.faults() == []
    assert (await bank.order()).status_code == 200


async def test_one_fault_is_forgotten_and_the_others_stay(bank: Client) -> None:
    """One that is not there is no error: it may have been forgotten by somebody else."""
    first = await bank.fault("token", "error_before", status=501, times=9)
    await bank.fault("token", "error_before", status=502, times=9)
    assert (await bank.order()).status_code == 501
    assert (await bank.http.delete(f"/faults/{first}")).json() == {"cleared": 1}
    assert (await bank.http.delete(f"/faults/{first}")).json() == {"cleared": 0}
    assert (await bank.order()).status_code == 502
    assert [fault["fired"] for fault in await bank.faults()] == [1]
    assert (await bank.http.delete("/faults/first")).status_code == 400


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"fault": "reset"}, "on"),
        ({"on": "statement", "fault": "reset"}, "on"),
        ({"on": "token", "fault": "contradict"}, "on"),
        ({"on": ["token"], "fault": "reset"}, "on"),
        ({"on": "token"}, "fault"),
        ({"on": "token", "fault": "explode"}, "fault"),
        ({"on": "token", "fault": "reset", "times": 0}, "times"),
        ({"on": "token", "fault": "reset", "times": True}, "times"),
        ({"on": "token", "fault": "reset", "seconds": 1}, "seconds"),
        ({"on": "token", "fault": "reset", "colour": 1}, "body"),
        ({"on": "token", "fault": "reset", "card": ""}, "card"),
        ({"on": "token", "fault": "reset", "kind": "dispute"}, "kind"),
        ({"on": "cancel", "fault": "contradict"}, "on"),
        ({"on": "token", "fault": "delay", "seconds": -1}, "seconds"),
        ({"on": "token", "fault": "delay", "seconds": 1e9}, "seconds"),
        ({"on": "token", "fault": "refuse", "status": 500}, "status"),
        ({"on": "token", "fault": "error_after", "status": 200}, "status"),
        ({"on": "token", "fault": "huge_body", "bytes": 1}, "bytes"),
        ({"on": "token", "fault": "redirect", "location": "a\r\nb: c"}, "location"),
        ({"on": "token", "fault": "extra_answer", "status": 100}, "status"),
        ({"on": "token", "fault": "extra_answer", "body": "refused"}, "body"),
        ({"on": "token", "fault": "odd_transaction_id"}, "on"),
        ({"on": "execute", "fault": "odd_transaction_id", "transaction_id": ""}, "transaction_id"),
        ({"on": "token", "fault": "throttled", "retry_after": 1}, "retry_after"),
    ],
)
async def test_a_malformed_fault_is_refused_with_the_name_of_its_field(
    bank: Client, order: Mapping[str, object], field: str
) -> None:
    """And is not listed."""
    refused = await bank.http.post("/faults", json=order)
    assert (refused.status_code, refused.json()) == (400, {"error": "bad_request", "field": field})
    assert await bank.faults() == []


@pytest.mark.parametrize("kind", [Kind.STOP_BEFORE, Kind.STOP_AFTER])
async def test_a_bank_inside_a_test_does_not_kill_the_test(bank: Client, kind: Kind) -> None:
    """The faults that kill the process are for a process of its own."""
    refused = await bank.http.post("/faults", json={"on": "token", "fault": kind})
    assert (refused.status_code, refused.json()) == (409, {"error": "runs_in_process"})
