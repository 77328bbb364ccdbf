"""Whom the servers take a client for by its certificate, on every port: by exactly one of its alternative names."""

import datetime
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from charging.v1.command_pb2 import ChargeResponse, RefundRequest
from charging.v1.query_pb2 import GetChargeHistoryRequest, GetChargeHistoryResponse, GetChargeRequest, GetChargeResponse
from command_service.codec import charge_id_of
from rig.certs import TRUST
from rig.world import CHARGED, a_request, head, money
from tests.security import tokens
from tests.security.guarded import (
    CHARGE,
    GET,
    OF_JWT,
    ONE_OF_EACH,
    READER,
    REFUND,
    SHOP,
    SUBSCRIBE,
    Guarded,
    Shown,
    a_new_second,
    a_policy,
    an_identity,
    bearing,
    becomes,
    end_of,
    guarded,
    in_time,
    refusals_logged,
    token_of,
)
from tests.tls.probes import context

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "till.chargeonce.test"
TILL = an_identity("till", "charge", "read", "feed", certificate_uri=f"{TRUST}/till", certificate_dns=HOST)
HISTORY = "/charging.v1.QueryService/GetChargeHistory"
# The names of certificates of the servers' own authority, which stand for nobody.
NOBODIES: dict[str, dict[str, Any]] = {
    "another name": {"uris": [f"{TRUST}/nobody"]},
    "ours is its prefix": {"uris": [f"{TRUST}/till2", f"{TRUST}/till/desk", f"{TRUST}/till/", f"{TRUST}/till?a=b"]},
    "it is a prefix of ours": {"uris": [f"{TRUST}/til", f"{TRUST}/", TRUST]},
    "ours, then a zero": {"uris": [f"{TRUST}/till\0.evil"]},
    "ours, then a line": {"uris": [f"{TRUST}/till\n"]},
    "other capitals": {"uris": [f"{TRUST}/Till", f"{TRUST.upper()}/TILL"]},
    "encoded": {"uris": [f"{TRUST}/%74ill"]},
    "common name only": {"common_name": f"{TRUST}/till"},
    "common name of a host only": {"common_name": HOST},
    "common name beside another name": {"common_name": HOST, "uris": [f"{TRUST}/nobody"]},
    "our URI as a host": {"dns": [f"{TRUST}/till"]},
    "our host as a URI": {"uris": [HOST, f"https://{HOST}"]},
    "a wildcard": {"dns": ["*.chargeonce.test"]},
    "a host with ours as prefix": {"dns": [f"{HOST}.evil.test", f"{HOST}\0.evil.test", f"{HOST}."]},
    "a host of which ours is one": {"dns": ["chargeonce.test", f"a.{HOST}"]},
    "an address": {"ips": ["127.0.0.1"]},
    "two identities": {"uris": [f"{TRUST}/till", f"{TRUST}/shop"]},
    "two identities, by URI and by host": {"uris": [f"{TRUST}/shop"], "dns": [HOST]},
}
TILLS: dict[str, dict[str, Any]] = {
    "the URI": {"uris": [f"{TRUST}/till"]},
    "the host": {"dns": [HOST]},
    "both": {"uris": [f"{TRUST}/till"], "dns": [HOST]},
    "the URI among others": {
        "uris": [f"{TRUST}/nobody", f"{TRUST}/till"],
        "dns": ["elsewhere.test"],
        "ips": ["127.0.0.1"],
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """A town that asks every client for a certificate. It listens on all addresses, so that its gauges are guarded too."""
    folder = tmp_path_factory.mktemp("town")
    async with guarded(folder, a_policy(SHOP, READER, TILL, OF_JWT), client_certificates=True, host="0.0.0.0") as made:
        yield made


async def _gauges(town: Guarded, server: str, shown: Shown) -> httpx.Response:
    authorization = [("authorization", str(value)) for value in shown.authorization]
    verify = context(town.authority.pem, shown.certificate)
    verify.set_alpn_protocols(["http/1.1"])
    async with httpx.AsyncClient(verify=verify, trust_env=False, timeout=30) as client:
        return await client.get(f"https://{town.addresses[f'{server} metrics']}/metrics", headers=authorization)


@pytest.mark.parametrize("name", TILLS)
async def test_an_alternative_name_of_the_policy_is_the_identity(town: Guarded, name: str) -> None:
    shown = Shown(town.client(f"till {name}", **TILLS[name]))
    assert [await town.is_permitted(method, shown) for method in (*ONE_OF_EACH, REFUND)] == [True, True, True, False]
    for server in ("command", "query"):
        assert (await _gauges(town, server, shown)).status_code == 403  # it is known, and has a tenant
    reader = Shown(town.client("reader", uris=[f"{TRUST}/query"]))
    assert {(await _gauges(town, server, reader)).status_code for server in ("command", "query")} == {200}


@pytest.mark.parametrize("name", NOBODIES)
async def test_a_certificate_of_the_authority_without_a_name_of_the_policy_is_nobody(town: Guarded, name: str) -> None:
    """In one text, the same for all, on every port. The log names what it showed."""
    shown = Shown(town.client(f"nobody {name}", **NOBODIES[name]))
    for method in ONE_OF_EACH:
        error, of_another = await town.error(method, shown), await town.error(method, Shown(town.client("stranger")))
        assert error and of_another
        assert (error.code.name, error.reason, error.advice) == ("UNAUTHENTICATED", "UNAUTHENTICATED", "DO_NOT_RETRY")
        assert error.everything == of_another.everything
    for server, method in (("command", CHARGE), ("query", GET)):
        answer, error = await _gauges(town, server, shown), await town.error(method, shown)
        assert error and (answer.status_code, answer.text) == (401, error.text)


async def test_a_certificate_that_expires_ends_its_streams_and_calls_on_its_connection(town: Guarded) -> None:
    """A handshake alone would let whoever holds a stolen certificate go on for as long as the connection lives."""

    async def opened(ends_at: int) -> tuple[Shown, Any]:
        ends = datetime.datetime.fromtimestamp(ends_at, datetime.UTC)
        short = Shown(town.client(f"till until {ends_at}", uris=[f"{TRUST}/till"], not_after=ends))
        feed = town.call(SUBSCRIBE, short)
        assert await feed.read()
        assert all([await town.is_permitted(method, short) for method in ONE_OF_EACH])
        return short, feed

    short, feed = await in_time(opened)
    assert (await end_of(feed)).reason == "UNAUTHENTICATED"
    for method in ONE_OF_EACH:
        error = await town.error(method, short)
        assert error and error.reason == "UNAUTHENTICATED"
    assert "its certificate has expired since it connected" in {
        each["why"] for each in refusals_logged(town.town.query)
    }


async def test_a_token_is_the_identity_whatever_the_certificate_says(town: Guarded) -> None:
    """A token that proves nothing is refused beside a certificate that would be taken."""
    shop, till = town.client("shop"), town.client("till")
    assert await town.is_permitted(REFUND, bearing(token_of("shop"), till))
    assert not await town.is_permitted(REFUND, bearing(token_of("till"), shop))
    assert await town.is_permitted(REFUND, bearing(tokens.signed(), till))
    forged = [f"Bearer {token}" for token in tokens.forged().values() if len(token) < 8 << 10]
    for faulty in ("Bearer wrong", "Basic c2hvcDpzaG9w", "", *forged):
        for method in ONE_OF_EACH:
            error = await town.error(method, Shown(till, (faulty,)))
            assert error and error.reason == "UNAUTHENTICATED"


async def test_the_identity_is_the_actor_in_the_history_and_in_the_journal(town: Guarded) -> None:
    shop, till = Shown(town.client("shop")), Shown(town.client("till"))
    asked = a_request("order-by-till")
    charged = ChargeResponse.FromString(await town.ask(CHARGE, till, asked))
    assert (charged.status, charged.charge_id) == (CHARGED, charge_id_of("shop", "order-by-till"))
    refund = RefundRequest(charge_id=charged.charge_id, idempotency_key="refund-1", amount=money(250))
    await town.ask(REFUND, shop, refund)
    history = GetChargeHistoryRequest(charge_id=charged.charge_id, min_position=charged.position + 1)
    entries = GetChargeHistoryResponse.FromString(await town.ask(HISTORY, till, history)).entries
    assert "RefundRequested" in [entry.event for entry in entries]
    shown = GetChargeResponse.FromString(await town.ask(GET, till, GetChargeRequest(charge_id=charged.charge_id)))
    assert [operation.actor for operation in shown.charge.operations] == ["till", "shop"]
    assert await town.town.operate("print-journal", charged.charge_id) == 0
    printed = [line for line in town.town.command.text().splitlines() if charged.charge_id in line]
    actors = {word: line for line in printed for word in ("ChargeRequested", "RefundRequested") if word in line}
    assert '"actor": "till"' in actors["ChargeRequested"] and '"actor": "shop"' in actors["RefundRequested"]


async def test_the_query_servers_identity_reads_the_feed_and_may_charge_nobody(town: Guarded) -> None:
    """Nor capture, void, refund or read charges; and nothing of it is in the journal."""
    query = Shown(town.certificates / "query")
    assert await town.is_permitted(SUBSCRIBE, query)
    await a_new_second()
    before = head(town.town.journal)
    asked = a_request("order-by-query")
    for method in ("Charge", "Capture", "Void", "Refund"):
        error = await town.error(f"/charging.v1.CommandService/{method}", query, asked if method == "Charge" else None)
        assert error and (error.code.name, error.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert not await town.is_permitted(GET, query)
    assert head(town.town.journal) == before
    await becomes(lambda: refusals_logged(town.town.command)[-1]["identity"] == "query-server")
