"""Who gets in, and whose forms are taken: over HTTP, without a browser."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from chassis import settings
from chassis.settings import SettingsError
from console.html import tag
from console.serving import serve
from console.settings import Settings
from rig.certs import Authority
from rig.referee import PATIENT_SECONDS
from rig.world import a_request
from tests.console.site import TOKENS, Site, a_site

SECRET = re.compile(r'name="csrf" value="([^"]+)"')


@asynccontextmanager
async def a_client(site: Site, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=site.url, timeout=PATIENT_SECONDS, trust_env=False, **more) as client:
        yield client


async def secret_of(client: httpx.AsyncClient, place: str = "/sign-in") -> str:
    found = SECRET.search((await client.get(place)).text)
    assert found
    return found[1]


async def signed_in(client: httpx.AsyncClient, name: str, to: str = "/") -> httpx.Response:
    csrf = await secret_of(client)
    return await client.post("/sign-in", data={"csrf": csrf, "token": TOKENS[name], "to": to})


# ---------------------------------------------------------------- who gets in
async def test_without_a_sign_in_nothing_is_shown_where_the_servers_have_a_policy(guarded: Site) -> None:
    answer = await guarded.charge(a_request("order-1"))
    async with a_client(guarded) as client:
        for place in ("/", "/charges", f"/charges/{answer.charge_id}", "/search?q=order-1", "/live", "/servers"):
            page = await client.get(place)
            assert (page.status_code, page.headers["location"].partition("?")[0]) == (303, "/sign-in"), place


async def test_a_token_that_the_servers_do_not_know_lets_nobody_in(guarded: Site) -> None:
    async with a_client(guarded) as client:
        for token, says in (("nobodys", "do not know this token"), ("two words", "no bearer token")):
            page = await client.post("/sign-in", data={"csrf": await secret_of(client), "token": token})
            assert page.status_code in (400, 403)
            assert says in page.text
            assert token not in page.text
        assert (await client.get("/")).status_code == 303


async def test_a_session_is_the_browsers_alone_and_ends_with_the_sign_out(guarded: Site) -> None:
    """The cookie is a new one after the sign-in, no script reads it, no other site's form sends it, and it is nobody's."""
    async with a_client(guarded) as client:
        await client.get("/sign-in")
        (before,) = client.cookies.values()
        answer = await signed_in(client, "shop")
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
        (after,) = client.cookies.values()
        assert before != after
        assert (await client.get("/charges")).status_code == 200
        assert TOKENS["shop"] not in cookie + (await client.get("/charges")).text
        csrf = await secret_of(client, "/charges")
        (name,) = client.cookies.keys()
        assert (await client.post("/sign-out", data={"csrf": csrf})).status_code == 303
        for old in (before, after):
            async with a_client(guarded, cookies={name: old}) as late:
                assert (await late.get("/charges")).status_code == 303


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "//["]
)
async def test_a_sign_in_leads_to_no_other_site(guarded: Site, to: str) -> None:
    async with a_client(guarded) as client:
        assert (await client.get("/sign-in", params={"to": to})).status_code == 200
        assert (await signed_in(client, "shop", to)).headers["location"] == "/"
    async with a_client(guarded) as client:
        assert (await signed_in(client, "shop", "/charges?user=bob")).headers["location"] == "/charges?user=bob"


async def test_an_open_server_needs_no_sign_in_on_loopback(site: Site) -> None:
    async with a_client(site) as client:
        assert (await client.get("/charges")).status_code == 200


async def test_a_certificate_of_the_console_is_nobodys_identity(tmp_path: Path) -> None:
    """With one, whoever is not signed in would have its rights: so nobody is asked for."""
    Authority().issue(tmp_path / "certs", dns=["localhost"])
    chosen = settings.read(Settings, {"CONSOLE_SERVERS_TLS": str(tmp_path / "certs")})
    assert not chosen.may_be_nobody
    assert settings.read(Settings, {}).may_be_nobody
    assert not settings.read(Settings, {"CONSOLE_LISTEN": "0.0.0.0:8088"}).may_be_nobody


# ---------------------------------------------------------------- whose forms are taken
async def test_a_form_of_another_page_does_nothing(site: Site) -> None:
    """Without the session's secret, with that of another session, or from another site."""
    answer = await site.in_review(a_request("order-1"))
    place = f"/charges/{answer.charge_id}"
    fields = {"resolution": "RESOLUTION_NOT_EXECUTED", "evidence": "none", "reason": "none"}
    async with a_client(site) as client, a_client(site) as other:
        ours, others = await secret_of(client, place), await secret_of(other, place)
        for sent in ({}, {"csrf": ""}, {"csrf": others}):
            refused = await client.post(f"{place}/propose", data={**fields, **sent})
            assert refused.status_code == 403
        for origin in ("https://evil.example", "null", "http://["):
            refused = await client.post(f"{place}/propose", data={**fields, "csrf": ours}, headers={"origin": origin})
            assert refused.status_code == 403
        as_json = await client.post(f"{place}/propose", json={**fields, "csrf": ours})
        assert as_json.status_code == 415
        assert (await client.get(f"{place}/propose")).status_code == 404
        uploaded = await client.post("/reconciliation/csv?from=2026-11-01&to=2026-11-02", content=b"a,b")
        assert uploaded.status_code == 403
        assert "The open proposal" not in (await client.get(place)).text
        taken = await client.post(f"{place}/propose", data={**fields, "csrf": ours}, headers={"origin": site.url})
        assert taken.status_code == 303
        assert "The open proposal" in (await client.get(taken.headers["location"])).text


async def test_a_name_that_leads_to_this_machine_by_chance_opens_nothing(site: Site) -> None:
    """A page of another site may have its name resolved to 127.0.0.1; the browser still says the name."""
    async with a_client(site) as client:
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 421
        assert (await client.get("/", headers={"host": "localhost:8088"})).status_code == 200


async def test_every_answer_has_its_headers(site: Site) -> None:
    async with a_client(site) as client:
        style = re.search(r'href="(/static/[^"]+\.css)"', (await client.get("/")).text)
        assert style
        for place in ("/", "/charges", "/nowhere", "/health", "/static/0/console.js", style[1]):
            headers = (await client.get(place)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers
        assert "immutable" in (await client.get(style[1])).headers["cache-control"]
        assert (await client.get("/")).headers["cache-control"] == "no-store"


async def test_what_is_too_long_or_no_form_is_refused(site: Site) -> None:
    async with a_client(site) as client:
        csrf = await secret_of(client)
        form = {"content-type": "application/x-www-form-urlencoded"}
        long = await client.post("/tenant", content=b"tenant=" + b"a" * 100_000, headers=form)
        assert long.status_code == 413
        unreadable = await client.post("/tenant", content=b"\xff\xfe", headers=form)
        assert unreadable.status_code in (400, 403)
        wrong = await client.post("/tenant", data={"csrf": csrf, "tenant": "<script>"})
        assert wrong.status_code == 400
        for query in (
            "status=nonsense",
            "age=7y",
            "from=yesterday",
            "page=%00",
            "stage=in+review&age=1m&page=nonsense",
        ):
            page = await client.get(f"/charges?{query}")
            assert "Traceback" not in page.text
            assert page.status_code in (200, 400)


# ---------------------------------------------------------------- where it listens, and whom it trusts
@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"CONSOLE_LISTEN": "0.0.0.0:0"}, "CONSOLE_TLS"),
        ({"CONSOLE_COMMAND": "192.0.2.7:50051"}, "CONSOLE_SERVERS_TLS"),
        ({"CONSOLE_QUERY": "query.example:50052"}, "CONSOLE_SERVERS_TLS"),
        ({"CONSOLE_QUERRY": "127.0.0.1:1"}, "CONSOLE_QUERY"),
    ],
)
async def test_nothing_is_open_by_accident(chosen: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        async with serve(settings.read(Settings, {"CONSOLE_LISTEN": "127.0.0.1:0", **chosen})):
            raise AssertionError


async def test_beyond_this_machine_open_servers_let_nobody_sign_in(tmp_path: Path) -> None:
    """They take every token: everybody who reaches the console would be let in."""
    authority = Authority()
    authority.issue(tmp_path / "tls", dns=["localhost"], ips=["127.0.0.1"])
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = str(tmp_path / "tls")
    async with a_site(tmp_path, CONSOLE_LISTEN="0.0.0.0:0", CONSOLE_TLS=tls) as site:
        url = f"https://127.0.0.1:{site.console.listen.port}"
        async with httpx.AsyncClient(
            base_url=url, verify=ssl.create_default_context(cafile=tmp_path / "ca.pem"), trust_env=False
        ) as client:
            assert (await client.get("/charges")).status_code == 303
            page = await client.post("/sign-in", data={"csrf": await secret_of(client), "token": "anything"})
            assert page.status_code == 403
            assert "has no policy" in page.text
            assert "Secure" in (await client.get("/sign-in", headers={"cookie": ""})).headers["set-cookie"]
            assert "max-age" in page.headers["strict-transport-security"]


# ---------------------------------------------------------------- what cannot be written
def test_no_text_becomes_html_and_no_element_leads_to_another_host() -> None:
    assert tag.p("<b>", title='"<') == '<p title="&quot;&lt;">&lt;b&gt;</p>'
    for name, value in (("href", "javascript:alert(1)"), ("src", "//evil.example"), ("action", "https://evil.example")):
        with pytest.raises(ValueError, match="another host"):
            tag.a(**{name: value})
    for name in ("style", "onclick"):
        with pytest.raises(ValueError, match="policy"):
            tag.a(**{name: "x"})
