"""Each method by each role, generated from the descriptors, at the real ports; and what needs no role."""

import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from chassis.gate import NoRow
from chassis.server import Server
from chassis.settings import Address
from contract.access import ACCESS, Role, gate_of
from contract.errors import DOMAIN, Reason
from contract.errors import command_refusal as refusal
from rig.errors import told
from tests.security import tokens
from tests.security.guarded import (
    METHODS,
    NOTHING,
    OF_ALL,
    READER,
    SERVICES,
    Guarded,
    Shown,
    a_policy,
    an_identity,
    as_identity,
    bearing,
    guarded,
    token_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLES = [role.value for role in Role]
HEALTH = "/grpc.health.v1.Health"
REFLECTION = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
HEALTHS: Any = health_pb2.HealthListResponse  # type: ignore[attr-defined]  # its types are older
SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING)
POLICY = a_policy(
    READER,
    *(an_identity(f"may-{role}", role) for role in ROLES),
    an_identity("may-nothing"),
    an_identity("of-no-tenant", tenant=""),
    an_identity("may-all", *ROLES),
    *(an_identity(f"may-{role}-for-no-tenant", role, tenant="") for role in ("feed", "operate")),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """A town on all addresses of this machine, whose clients have tokens."""
    folder = tmp_path_factory.mktemp("town")
    async with guarded(folder, POLICY, client_certificates=False, host="0.0.0.0") as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_loopback(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """The same, which only this machine reaches."""
    async with guarded(tmp_path_factory.mktemp("loopback"), POLICY, client_certificates=False) as made:
        yield made


# ---------------------------------------------------------------- roles
async def test_every_method_of_the_contract_has_a_row_and_every_row_a_method() -> None:
    assert sorted(ACCESS) == sorted(METHODS)
    assert {str(role) for role in ACCESS.values()} == set(ROLES)


@pytest.mark.parametrize("method", METHODS)
async def test_each_method_is_permitted_to_its_role_and_to_no_other(town: Guarded, method: str) -> None:
    may_tenant = method not in OF_ALL
    for role in ROLES:
        permitted = await town.is_permitted(method, as_identity(f"may-{role}"))
        assert permitted is (may_tenant and role == ACCESS[method]), role
    assert await town.is_permitted(method, as_identity("may-all")) is may_tenant
    for role in ("feed", "operate"):
        permitted = await town.is_permitted(method, as_identity(f"may-{role}-for-no-tenant"))
        assert permitted is (role == ACCESS[method])


@pytest.mark.parametrize("service", SERVICES)
async def test_whoever_may_not_hears_one_text_whatever_he_lacks_and_sends(town: Guarded, service: str) -> None:
    """Details and trailers too, by whatever method, and for a request that cannot be read."""
    heard = set()
    for method in (each for each in METHODS if service in each):
        for name in ("nothing", *(role for role in ROLES if role != ACCESS[method])):
            error = await town.error(method, as_identity(f"may-{name}"))
            assert error and (error.code.name, error.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
            heard.add(error.everything)
        call: Any = town.channel(service).unary_stream(method)
        authorization = [("authorization", f"Bearer {token_of('may-nothing')}")]
        for request in (b"\xff\xff", b"x" * (100 << 10)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(call(request, metadata=authorization, timeout=20)))
            heard.add(told(caught.value).everything)
    assert len(heard) == 1


async def test_a_service_with_a_method_without_a_row_does_not_start() -> None:
    def register(server: grpc.aio.Server, *methods: str) -> None:
        handler: Any = grpc.unary_unary_rpc_method_handler(lambda *_: b"")
        server.add_registered_method_handlers("charging.v1.CommandService", dict.fromkeys(methods, handler))

    start = partial(
        Server.start,
        Address("127.0.0.1", 0),
        services=["charging.v1.CommandService"],
        gate=gate_of(refusal),
        domain=DOMAIN,
        unreadable=refusal(Reason.INVALID_REQUEST),
        unexpected=refusal(Reason.UNEXPECTED),
        request_bytes=1 << 10,
        reflect=False,
    )
    with pytest.raises(NoRow, match="CommandService/ChargeTwice"):
        await start(lambda server: register(server, "Charge", "ChargeTwice"))
    await (await start(lambda server: register(server, "Charge"))).drain(0.0)


# ---------------------------------------------------------------- health
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "shown", [NOTHING, bearing("wrong"), Shown(authorization=("a", "b"))], ids=["none", "wrong", "two"]
)
async def test_health_needs_no_credential_and_tells_nothing_else(town: Guarded, service: str, shown: Shown) -> None:
    channel = town.channel(service)
    for name in ("", service):
        for method in ("Check", "Watch"):
            answer = await town.ask(f"{HEALTH}/{method}", shown, HealthCheckRequest(service=name), channel)
            assert answer == SERVING.SerializeToString()
    listed = HEALTHS.FromString(await town.ask(f"{HEALTH}/List", shown, channel=channel))
    here = [name for name in SERVICES if town.addresses[name] == town.addresses[service]]
    assert listed == HEALTHS(statuses=dict.fromkeys(("", *here), SERVING))
    error = await town.error(f"{HEALTH}/Check", shown, HealthCheckRequest(service="another"), channel)
    assert error and error.code is grpc.StatusCode.NOT_FOUND


# ---------------------------------------------------------------- reflection
@pytest.mark.parametrize("method", REFLECTION)
@pytest.mark.parametrize("service", SERVICES)
async def test_reflection_needs_any_identity_beyond_loopback(town: Guarded, service: str, method: str) -> None:
    for shown in (NOTHING, bearing("wrong"), bearing(tokens.forged()["expired"])):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _services(town, service, method, shown)
        assert told(caught.value).reason == "UNAUTHENTICATED"
    assert service in await _services(town, service, method, as_identity("may-nothing"))


@pytest.mark.parametrize("method", REFLECTION)
async def test_reflection_is_open_on_loopback(on_loopback: Guarded, method: str) -> None:
    for service in SERVICES:
        assert service in await _services(on_loopback, service, method, NOTHING)
        assert not await on_loopback.is_permitted(f"/{service}/{SERVICES[service].methods[0].name}", NOTHING)


async def _services(town: Guarded, service: str, method: str, shown: Shown) -> list[str]:
    request = ServerReflectionRequest(list_services="*")
    answer = ServerReflectionResponse.FromString(await town.ask(method, shown, request, town.channel(service)))
    return [each.name for each in answer.list_services_response.service]


# ---------------------------------------------------------------- the gauges
async def _gauges(town: Guarded, server: str, *authorization: str) -> httpx.Response:
    trusting = ssl.create_default_context(cadata=town.authority.pem.decode())
    headers = [("authorization", value) for value in authorization]
    async with httpx.AsyncClient(verify=trusting, trust_env=False, timeout=30) as client:
        return await client.get(f"https://{town.addresses[f'{server} metrics']}/metrics", headers=headers)


@pytest.mark.parametrize("server", ["command", "query"])
async def test_the_gauges_need_an_identity_of_no_tenant_beyond_loopback(town: Guarded, server: str) -> None:
    """Each faulty credential hears one text, with the status 401. They tell of all tenants: one of a tenant's hears 403."""
    good = f"Bearer {token_of('of-no-tenant')}"
    heard = set()
    faulty = [(f"Bearer {tokens.forged()['expired']}",), ("Bearer wrong",), ("Basic YTpi",), ("",), (good, good), ()]
    for authorization in faulty:
        answer = await _gauges(town, server, *authorization)
        assert answer.status_code == 401 and "chargeonce" not in answer.text
        heard.add((answer.text, *((name, value) for name, value in answer.headers.items() if name != "date")))
    assert len(heard) == 1
    of_a_tenant = await _gauges(town, server, f"Bearer {token_of('may-nothing')}")
    assert of_a_tenant.status_code == 403 and "chargeonce" not in of_a_tenant.text
    answer = await _gauges(town, server, good)
    assert answer.status_code == 200 and "chargeonce_calls_unauthenticated" in answer.text


@pytest.mark.parametrize("server", ["command", "query"])
async def test_the_gauges_are_open_on_loopback(on_loopback: Guarded, server: str) -> None:
    for authorization in ((), ("Bearer wrong",)):
        answer = await _gauges(on_loopback, server, *authorization)
        assert answer.status_code == 200 and "chargeonce_calls_unauthenticated" in answer.text
