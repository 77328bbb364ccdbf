"""The desk at real servers with a policy: who may do what about whose charges, and that two people are two identities."""

import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from charging.v1 import command_pb2_grpc, operator_pb2_grpc, query_pb2_grpc
from charging.v1.common_pb2 import Resolution
from charging.v1.operator_pb2 import (
    ApproveResolutionRequest,
    AskBankRequest,
    GetServerStatusRequest,
    HoldBackRequest,
    ListReconciliationsRequest,
    ProposeResolutionRequest,
)
from charging.v1.query_pb2 import GetChargeRequest, GetViewStatusRequest, ListChargesRequest
from command_service.codec import charge_id_of
from rig.errors import refused
from rig.referee import Referee
from rig.world import CHARGED, IN_REVIEW, a_request, heard
from tests.security.guarded import READER, Guarded, a_policy, an_identity, guarded, token_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = a_policy(
    READER,
    an_identity("shop", "charge", "refund", "read"),
    an_identity("cafe", "charge", "read", tenant="cafe"),
    an_identity("ann", "operate", "read"),
    an_identity("ben", "operate"),
    an_identity("night", "operate", tenant=""),
    an_identity("day", "operate", tenant=""),
)
EXECUTED = Resolution.RESOLUTION_EXECUTED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """A town whose people have tokens."""
    async with guarded(tmp_path_factory.mktemp("town"), POLICY, client_certificates=False) as made:
        yield made


def as_(name: str, *tenants: str) -> dict[str, Any]:
    """The options of a call by an identity, which names tenants."""
    named = [("chargeonce-tenant", tenant) for tenant in tenants]
    return {"metadata": (("authorization", f"Bearer {token_of(name)}"), *named), "timeout": 60}


def desk(town: Guarded) -> "operator_pb2_grpc.OperatorServiceAsyncStub":
    return operator_pb2_grpc.OperatorServiceStub(town.channel("charging.v1.OperatorService"))


def queries(town: Guarded) -> "query_pb2_grpc.QueryServiceAsyncStub":
    return query_pb2_grpc.QueryServiceStub(town.channel("charging.v1.QueryService"))


async def charge(town: Guarded, key: str, by: str = "shop") -> Any:
    commands = command_pb2_grpc.CommandServiceStub(town.channel("charging.v1.CommandService"))
    return await heard(lambda: commands.Charge(a_request(key), **as_(by)))


async def in_review(town: Guarded, key: str) -> str:
    """Bring a charge of the shop's into review, although its money moved; return its id."""
    folder = town.client("referee")
    trusting = ssl.create_default_context(cadata=town.authority.pem.decode())
    trusting.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    async with Referee(town.town.bank_url, trusting) as referee:
        await referee.trouble("execute", "wrong_amount")
        await referee.trouble("look_up", "wrong_amount", times=2)
    assert (await charge(town, key)).status == IN_REVIEW
    return charge_id_of("shop", key)


async def propose(town: Guarded, charge_id: str, who: dict[str, Any]) -> int:
    """Propose what the bank says."""
    asked = await desk(town).AskBank(AskBankRequest(charge_id=charge_id), **who)
    request = ProposeResolutionRequest(
        charge_id=charge_id,
        reason="ticket 77",
        resolution=EXECUTED,
        transaction_id=asked.transaction_id,
        evidence="the bank's statement",
    )
    return (await desk(town).ProposeResolution(request, **who)).proposal


async def test_a_review_needs_two_identities_whatever_tenant_they_name(town: Guarded) -> None:
    """The one who proposed it is the same person with or without a tenant's name."""
    charge_id = await in_review(town, "order-2-people")
    proposal = await propose(town, charge_id, as_("night"))
    request = ApproveResolutionRequest(charge_id=charge_id, reason="ticket 77", proposal=proposal)
    for who in (as_("night"), as_("night", "shop")):
        assert (await refused(desk(town).ApproveResolution(request, **who))).reason == "SECOND_PERSON_NEEDED"
    for who in (as_("shop"), as_("cafe")):
        assert (await refused(desk(town).ApproveResolution(request, **who))).reason == "PERMISSION_DENIED"
    assert (await refused(desk(town).ApproveResolution(request, **as_("day", "cafe")))).reason == "CHARGE_NOT_FOUND"
    approved = await desk(town).ApproveResolution(request, **as_("ben"))
    assert approved.outcome.status == CHARGED
    assert (await charge(town, "order-2-people")).status == CHARGED


async def test_an_operator_of_a_tenant_finds_that_tenants_charges_only(town: Guarded) -> None:
    theirs, never = await charge(town, "order-of-the-cafe", "cafe"), charge_id_of("cafe", "never")
    request = HoldBackRequest(charge_id=theirs.charge_id, reason="ticket 78")
    foreign = await refused(desk(town).HoldBack(request, **as_("ann")))
    unknown = await refused(desk(town).HoldBack(HoldBackRequest(charge_id=never, reason="x"), **as_("ann")))
    assert foreign.reason == "CHARGE_NOT_FOUND"
    assert foreign.everything == unknown.everything
    for who in (as_("night"), as_("night", "cafe")):
        assert (await refused(desk(town).HoldBack(request, **who))).reason == "NOT_AT_THE_DESK"


async def test_an_operator_of_no_tenant_reads_as_the_tenant_that_a_call_names(town: Guarded) -> None:
    """And never without a name: nobody's rows are everybody's."""
    made = await charge(town, "order-to-read")
    await charge(town, "order-of-the-cafe", "cafe")
    await queries(town).GetViewStatus(GetViewStatusRequest(min_position=made.position), **as_("shop"))
    request = GetChargeRequest(charge_id=made.charge_id)
    shown = await queries(town).GetCharge(request, **as_("night", "shop"))
    assert shown.charge.charge_id == made.charge_id
    assert (await refused(queries(town).GetCharge(request, **as_("night", "cafe")))).reason == "CHARGE_NOT_FOUND"
    assert (await refused(queries(town).GetCharge(request, **as_("night")))).reason == "PERMISSION_DENIED"
    listed = await queries(town).ListCharges(ListChargesRequest(), **as_("night", "cafe"))
    assert [one.idempotency_key for one in listed.charges] == ["order-of-the-cafe"]


async def test_nobody_else_names_a_tenant(town: Guarded) -> None:
    """An identity's own name is no harm. Another's, two, or a malformed one are refused, and not passed over."""
    request = ListChargesRequest()
    await queries(town).ListCharges(request, **as_("shop", "shop"))
    for who in (as_("shop", "cafe"), as_("ann", "cafe"), as_("night", "shop", "shop"), as_("night", "a shop")):
        assert (await refused(queries(town).ListCharges(request, **who))).reason == "PERMISSION_DENIED"


async def test_what_tells_of_all_tenants_needs_an_operator_of_none(town: Guarded) -> None:
    await desk(town).ListReconciliations(ListReconciliationsRequest(), **as_("night"))
    for who in (as_("ann"), as_("night", "shop")):
        told = await refused(desk(town).ListReconciliations(ListReconciliationsRequest(), **who))
        assert told.reason == "PERMISSION_DENIED"


async def test_a_tenants_operator_is_told_of_its_own_charges_and_no_figure_of_all(town: Guarded) -> None:
    """Whether the server takes charges, and whether a bank is spared, it may know: its clients learn it by their refusals."""
    await charge(town, "order-for-figures")
    everything = await desk(town).GetServerStatus(GetServerStatusRequest(), **as_("night"))
    assert everything.limits
    assert sum(answer.count for bank in everything.banks for answer in bank.answers) > 0
    for who in (as_("ann"), as_("night", "shop")):
        told = await desk(town).GetServerStatus(GetServerStatusRequest(), **who)
        assert told.journal_id == everything.journal_id
        assert [bank.name for bank in told.banks] == [bank.name for bank in everything.banks]
        assert not told.limits
        for bank in told.banks:
            assert (list(bank.answers), list(bank.duration_counts), bank.calls_at_once) == ([], [], 0)
