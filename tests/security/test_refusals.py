"""Refused calls are counted by each server, and logged, but no more than so many a second."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
import pytest_asyncio

from chassis.gate import REFUSALS_LOGGED_A_SECOND
from rig.processes import Server
from tests.security.guarded import (
    CHARGE,
    GET,
    NOTHING,
    READER,
    REFUND,
    SHOP,
    STATUS,
    SUBSCRIBE,
    Guarded,
    Shown,
    a_new_second,
    a_policy,
    an_identity,
    as_identity,
    bearing,
    becomes,
    guarded,
    refusals_logged,
    token_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = a_policy(SHOP, READER, an_identity("nobody"))
CALLS = 300
OMITTED = "more calls were refused than were logged"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    async with guarded(tmp_path_factory.mktemp("town"), POLICY, client_certificates=False) as made:
        yield made


def server_of(town: Guarded, name: str) -> Server:
    return town.town.query if name == "query" else town.town.command


async def counted(town: Guarded, server: str) -> Counter[str]:
    """The two gauges of refused calls."""
    trusting = ssl.create_default_context(cadata=town.authority.pem.decode())
    async with httpx.AsyncClient(verify=trusting, trust_env=False, timeout=30) as client:
        page = await client.get(f"https://{town.addresses[f'{server} metrics']}/metrics")
    read = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if line.startswith("chargeonce_calls_"))
    return Counter({name.removeprefix("chargeonce_calls_"): int(float(value)) for name, value in read.items()})


@pytest.mark.parametrize(("server", "methods"), [("command", (CHARGE, REFUND, SUBSCRIBE)), ("query", (GET, STATUS))])
async def test_refused_calls_are_counted_by_whether_their_caller_is_known(
    town: Guarded, server: str, methods: Sequence[str]
) -> None:
    """On every port of a server together; calls that are let through are not."""
    await a_new_second()
    before = await counted(town, server)
    for method in methods:
        for shown in (NOTHING, bearing("wrong")):
            await town.error(method, shown)
        await town.error(method, as_identity("nobody"))
        await town.error(method, as_identity("query-server" if method is SUBSCRIBE else "shop"))
    now = await counted(town, server)
    assert now - before == Counter(unauthenticated=2 * len(methods), not_permitted=len(methods))
    assert before.keys() == {"unauthenticated", "not_permitted"}


@pytest.mark.parametrize(("server", "method"), [("command", CHARGE), ("query", GET)])
async def test_a_refusal_is_logged_with_what_is_proven_of_its_caller(town: Guarded, server: str, method: str) -> None:
    """The method, the reason, the identity if it is known, and where the call came from; nothing that it showed."""
    await a_new_second()
    count = len(refusals_logged(server_of(town, server)))
    basic = Shown(authorization=("Basic b25lOnR3bw==",))
    for shown in (NOTHING, bearing(token_of("shop") + "x"), as_identity("nobody"), basic):
        await town.error(method, shown)
    await becomes(lambda: len(refusals_logged(server_of(town, server))) == count + 4)
    entries = refusals_logged(server_of(town, server))[count:]
    assert [entry["why"] for entry in entries] == [
        "it presents no token, and no certificate with a name that can be read",
        "the token cannot be read",
        f"it needs the role {'charge' if method is CHARGE else 'read'}",
        "its header of authorization holds no bearer token",
    ]
    assert [entry["identity"] for entry in entries] == [None, None, "nobody", None]
    for entry in entries:
        assert (entry["level"], entry["method"]) == ("warning", method)
        assert entry["peer"].startswith("ipv4:127.0.0.1:")
    assert not any(secret in str(entries) for secret in (token_of("shop"), token_of("nobody"), "b25lOnR3bw"))


@pytest.mark.parametrize(("server", "method"), [("command", CHARGE), ("query", GET)])
async def test_a_flood_of_refused_calls_is_counted_whole_and_logged_in_part(
    town: Guarded, server: str, method: str
) -> None:
    """The log says how many were left out, as soon as a later call is refused."""
    process = server_of(town, server)
    await a_new_second()
    before, logged, began = await counted(town, server), len(refusals_logged(process)), time.time()
    begin = process.log.stat().st_size
    await asyncio.gather(*(town.error(method) for _ in range(CALLS)))
    seconds = int(time.time()) - int(began) + 1
    await a_new_second()
    await town.error(method)
    assert (await counted(town, server) - before) == Counter(unauthenticated=CALLS + 1)

    def left_out() -> int:
        return sum(entry["left_out"] for entry in process.entries(begin) if entry["event"] == OMITTED)

    await becomes(lambda: len(refusals_logged(process)) - logged + left_out() == CALLS + 1)
    entries = len(refusals_logged(process)) - logged
    assert REFUSALS_LOGGED_A_SECOND < entries <= REFUSALS_LOGGED_A_SECOND * seconds + 1
