"""Whom the query server follows: only a feed whose certificate it was told to trust, for the name that it was told."""

import asyncio
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing

from charging.v1.query_pb2 import VIEW_STATE_LIVE, GetViewStatusRequest
from chassis.settings import SettingsError
from rig.certs import DAY, HERE, Authority
from tests.sealed import SealedJournal, charged, token_issued
from tests.service.feed_server import feeding
from tests.service.query_rig import Client, querying
from tests.tls.probes import NOW

Logs = Sequence[MutableMapping[str, Any]]


@pytest.fixture
def logs() -> Iterator[Logs]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def journal() -> SealedJournal:
    made = SealedJournal()
    made.charge("order-1", "alice", token_issued(), charged(), minor_units=1250)
    return made


def credentials(folder: Path, authorities: bytes | None = None) -> grpc.ServerCredentials:
    pair = (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  # nothing tells of an entry in the log
            await asyncio.sleep(0.01)


async def said(logs: Logs, text: str) -> None:
    await until(lambda: any(text in str(entry.get("why")) for entry in logs))


async def files_in_use(logs: Logs) -> None:
    await until(lambda: any(entry["event"] == "changed files are in use" for entry in logs))


async def is_live(client: Client) -> None:
    async with asyncio.timeout(30):
        while (await client.queries.GetViewStatus(GetViewStatusRequest())).state != VIEW_STATE_LIVE:
            pass


async def shows_nothing(client: Client) -> None:
    answer = await client.queries.GetViewStatus(GetViewStatusRequest())
    assert answer.as_of_position == 0
    assert answer.state != VIEW_STATE_LIVE


IMPOSTORS: dict[str, tuple[Callable[[Path, Authority], grpc.ServerCredentials | None], str]] = {
    "other authority": (
        lambda folder, _: credentials(Authority().issue(folder, ips=HERE)),
        "shows a certificate of no authority in QUERY_FEED_TLS",
    ),
    "self-signed": (
        lambda folder, ours: credentials(ours.issue(folder, ips=HERE, common_name="feed", self_signed=True)),
        "shows a certificate of no authority in QUERY_FEED_TLS",
    ),
    "wrong name": (
        lambda folder, ours: credentials(ours.issue(folder, dns=["localhost"], common_name="127.0.0.1")),
        "shows a certificate for another name",
    ),
    "expired": (
        lambda folder, ours: credentials(ours.issue(folder, ips=HERE, not_before=NOW - 3 * DAY, not_after=NOW - DAY)),
        "shows a certificate that has expired",
    ),
    "not yet valid": (
        lambda folder, ours: credentials(ours.issue(folder, ips=HERE, not_before=NOW + DAY)),
        "shows a certificate that is not valid yet",
    ),
    "plaintext": (lambda _, __: None, "does not speak TLS"),
}


@pytest.mark.parametrize("who", IMPOSTORS)
async def test_an_impostor_on_the_feeds_port_is_never_followed(who: str, tmp_path: Path, logs: Logs) -> None:
    """Nothing of its journal is shown, and the log says why; the true feed on the next address is followed."""
    ours = Authority()
    trust = ours.issue(tmp_path / "query", uris=["spiffe://chargeonce.test/query"], client_only=True)
    show, why = IMPOSTORS[who]
    async with feeding(journal(), show(tmp_path / "impostor", ours)) as impostor:
        settings: dict[str, Any] = {"QUERY_FEED_TLS": str(trust)}
        async with querying(impostor.address, tmp_path / "view.db", **settings) as (_, client):
            await said(logs, f"{impostor.address} {why}")
            await shows_nothing(client)
        true = ours.issue(tmp_path / "feed", ips=HERE)
        async with feeding(journal(), credentials(true, ours.pem)) as feed:
            addresses = f"{impostor.address},{feed.address}"
            async with querying(addresses, tmp_path / "view.db", **settings) as (_, client):
                await is_live(client)
        assert impostor.requests == []


async def test_a_feed_in_tls_refuses_a_query_server_that_it_does_not_know(tmp_path: Path, logs: Logs) -> None:
    ours = Authority()
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "ca.crt").write_bytes(ours.pem)
    async with feeding(journal(), credentials(ours.issue(tmp_path / "feed", ips=HERE), ours.pem)) as feed:
        settings: dict[str, Any] = {"QUERY_FEED_TLS": str(tmp_path / "query")}
        async with querying(feed.address, tmp_path / "view.db", **settings) as (_, client):
            await said(logs, f"{feed.address} closed the connection: it may want another certificate than ours")
            await shows_nothing(client)
            ours.issue(tmp_path / "query", uris=["spiffe://chargeonce.test/query"], client_only=True)
            await is_live(client)  # with the files that are there now


async def test_a_feed_of_an_authority_that_was_taken_away_is_left(tmp_path: Path, logs: Logs) -> None:
    """Its connection is open and goes on to bring records: none of them is shown, and the next connection is not made."""
    former, ours = Authority(), Authority()
    former.issue(tmp_path / "query", client_only=True)
    async with feeding(journal(), credentials(former.issue(tmp_path / "feed", ips=HERE))) as feed:
        settings: dict[str, Any] = {"QUERY_FEED_TLS": str(tmp_path / "query")}
        async with querying(feed.address, tmp_path / "view.db", **settings) as (_, client):
            await is_live(client)
            before = (await client.queries.GetViewStatus(GetViewStatusRequest())).as_of_position
            ours.issue(tmp_path / "query", client_only=True)
            await files_in_use(logs)
            asked = len(feed.requests)
            feed.journal.charge("order-2", "alice", token_issued(), charged(), minor_units=1250)
            await feed.notify()
            await said(logs, f"{feed.address} was trusted by files of QUERY_FEED_TLS that have been replaced")
            await said(logs, f"{feed.address} shows a certificate of no authority in QUERY_FEED_TLS")
            assert len(feed.requests) == asked
            assert (await client.queries.GetViewStatus(GetViewStatusRequest())).as_of_position == before


# ---------------------------------------------------------------- the token
async def test_the_feed_is_shown_the_present_token_at_each_connection(tmp_path: Path, logs: Logs) -> None:
    ours, token = Authority(), tmp_path / "token"
    ours.issue(tmp_path / "query", client_only=True)
    token.write_text("first.token-1\n")
    async with feeding(journal(), credentials(ours.issue(tmp_path / "feed", ips=HERE))) as feed:
        settings: dict[str, Any] = {"QUERY_FEED_TLS": str(tmp_path / "query"), "QUERY_FEED_TOKEN_FILE": str(token)}
        async with querying(feed.address, tmp_path / "view.db", **settings) as (_, client):
            await is_live(client)
            token.write_text("second~token=")
            await files_in_use(logs)
            await feed.cut()
            feed.mend()
            await feed.asked(2)
    assert feed.authorizations[0] == "Bearer first.token-1"
    assert feed.authorizations[-1] == "Bearer second~token="
    assert "token-1" not in str(logs)
    assert "second~" not in str(logs)


async def test_a_token_is_sent_in_plaintext_to_this_machine_only(tmp_path: Path) -> None:
    """Also if the operator lets a feed be followed in plaintext."""
    (tmp_path / "token").write_text("a-token")
    settings: dict[str, Any] = {"QUERY_FEED_TOKEN_FILE": str(tmp_path / "token")}
    async with feeding(journal()) as feed:
        async with querying(feed.address, tmp_path / "view.db", **settings) as (_, client):
            await is_live(client)
        assert feed.authorizations == ["Bearer a-token"]
    for elsewhere in ("192.0.2.1:50053", "feed.example:50053", f"{feed.address},192.0.2.1:50053"):
        with pytest.raises(SettingsError, match="others could read the token"):
            async with querying(elsewhere, tmp_path / "view.db", **settings, QUERY_OPEN="yes"):
                pass


async def test_a_plaintext_feed_of_another_machine_is_refused_unless_meant(tmp_path: Path, logs: Logs) -> None:
    def warned() -> int:
        return sum(str(entry["event"]).startswith("the feed is read in plaintext") for entry in logs)

    async with querying("127.0.0.1:1", tmp_path / "view.db"):
        assert warned() == 0
    with pytest.raises(SettingsError, match="QUERY_FEED_TLS is not set"):
        async with querying("127.0.0.1:1,192.0.2.1:50053", tmp_path / "view.db"):
            pass
    assert warned() == 0
    async with querying("127.0.0.1:1,192.0.2.1:50053", tmp_path / "view.db", QUERY_OPEN="yes"):
        assert warned() == 1


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "t\u00f6ken", "a\x00b"])
async def test_a_file_without_a_token_is_refused_at_the_start_and_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(SettingsError, match="holds no bearer token") as refused:
        async with querying("127.0.0.1:1", tmp_path / "view.db", QUERY_FEED_TOKEN_FILE=str(tmp_path / "token")):
            pass
    assert not content or content not in str(refused.value)
