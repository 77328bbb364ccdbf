"""Policy and keys that are replaced while the servers run, and what then happens to calls and to open streams."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from charging.v1.command_pb2 import ChargeResponse
from charging.v1.query_pb2 import GetChargeRequest, WatchChargeRequest
from rig.world import a_request
from tests.security import tokens
from tests.security.guarded import (
    CHARGE,
    GET,
    NOTHING,
    ONE_OF_EACH,
    READER,
    SHOP,
    SUBSCRIBE,
    TAKES_EFFECT_SECONDS,
    WATCH,
    Guarded,
    Shown,
    a_policy,
    an_identity,
    as_identity,
    bearing,
    becomes,
    end_of,
    guarded,
    in_time,
    token_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL = ("charge", "refund", "read", "feed")
GUEST = an_identity("guest", *ALL)
SHOP_JWT, TILL_JWT = (an_identity(name, *ALL, jwt_subject=name) for name in ("shop-jwt", "till-jwt"))
POLICY = a_policy(SHOP, READER, SHOP_JWT, TILL_JWT)
REFUSED = "files cannot be used: the former ones stay in use"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    async with guarded(tmp_path_factory.mktemp("town"), POLICY, client_certificates=False) as made:
        yield made


NUMBERS = itertools.count()


@pytest_asyncio.fixture(loop_scope="module")
async def town(one_town: Guarded) -> Guarded:
    """The town, with the policy and the keys that it began with, and one identity more, by which this is seen."""
    marker = f"marker-{next(NUMBERS)}"
    one_town.replace(one_town.certificates / "jwks.json", tokens.key_set())
    one_town.replace(one_town.policy, POLICY + an_identity(marker, *ALL))
    await becomes(lambda: permitted(one_town, as_identity(marker)))
    return one_town


async def permitted(town: Guarded, shown: Shown) -> bool:
    """Whether both servers let it through, on all ports; they must agree within the time that a change may take."""
    answers = [await town.is_permitted(method, shown) for method in ONE_OF_EACH]
    return all(answers)


async def denied(town: Guarded, shown: Shown) -> bool:
    return not any([await town.is_permitted(method, shown) for method in ONE_OF_EACH])


def refused_policies(town: Guarded) -> list[str]:
    """What both servers have said of policies that they did not take, in the order of time."""
    entries = sorted((*town.town.command.entries(), *town.town.query.entries()), key=lambda entry: entry["timestamp"])
    return [str(entry["why"]) for entry in entries if entry["event"] == REFUSED and "policy" in str(entry["what"])]


# ---------------------------------------------------------------- calls
async def test_a_replaced_policy_is_in_use_within_seconds(town: Guarded) -> None:
    """Who was added is known, a role that was taken is missing, and who was removed is nobody."""
    assert await denied(town, as_identity("guest"))
    town.replace(town.policy, a_policy(SHOP, READER, SHOP_JWT, GUEST))
    await becomes(lambda: permitted(town, as_identity("guest")))
    town.replace(town.policy, a_policy(SHOP, READER, SHOP_JWT, an_identity("guest", "read")))
    await becomes(lambda: denied_charge(town))
    error = await town.error(CHARGE, as_identity("guest"))
    assert error and error.reason == "PERMISSION_DENIED"
    assert await town.is_permitted(GET, as_identity("guest"))
    town.replace(town.policy, a_policy(SHOP, READER, SHOP_JWT))
    await becomes(lambda: denied(town, as_identity("guest")))
    assert await permitted(town, bearing(tokens.signed()))


async def denied_charge(town: Guarded) -> bool:
    return not await town.is_permitted(CHARGE, as_identity("guest"))


BROKEN = {
    "": "it names no identity",
    a_policy(SHOP, an_identity("guest", "chrage")): "is 'charge' meant?",
    a_policy(SHOP, GUEST, GUEST): "another identity has the same token_sha256",
    POLICY + '[[identities]]\nname = "cut': "is no TOML",
}


async def test_a_broken_new_policy_is_told_once_and_the_former_one_stays(town: Guarded) -> None:
    """By each server, with the file and the problem, and without a secret."""
    before = len(refused_policies(town))
    for number, (text, problem) in enumerate(BROKEN.items(), 1):
        town.replace(town.policy, text)
        await becomes(partial(_have_refused, town, before + 2 * number))
        assert all(problem in why and str(town.policy) in why for why in refused_policies(town)[-2:])
        assert await permitted(town, bearing(tokens.signed())) and await denied(town, as_identity("guest"))
    await asyncio.sleep(1.2)  # they look again each second
    told = refused_policies(town)[before:]
    assert len(told) == 2 * len(BROKEN)
    town.policy.unlink()
    await becomes(partial(_have_refused, town, before + 2 * len(BROKEN) + 2))
    assert await denied(town, NOTHING) and await permitted(town, bearing(tokens.signed()))
    assert hashlib.sha256(token_of("guest").encode()).hexdigest() not in "".join(told)
    town.replace(town.policy, a_policy(SHOP, READER, SHOP_JWT, GUEST))
    await becomes(lambda: permitted(town, as_identity("guest")))


def _have_refused(town: Guarded, count: int) -> bool:
    return len(refused_policies(town)) == count


async def test_replaced_keys_are_in_use_within_seconds(town: Guarded) -> None:
    """A token of the key that was taken away is refused, although it was verified and remembered before."""
    old, new = bearing(tokens.signed()), bearing(tokens.signed(key=tokens.OTHER_KEY, kid="ec-2"))
    assert await permitted(town, old) and await denied(town, new)
    town.replace(town.certificates / "jwks.json", tokens.key_set(tokens.public(tokens.OTHER_KEY, "ec-2")))
    await becomes(lambda: permitted(town, new))
    await becomes(lambda: denied(town, old))
    private = {**tokens.public(tokens.EC_KEY, "ec-1"), "d": "c2VjcmV0LXNjYWxhcg"}
    before = len(refused_policies(town))
    town.replace(town.certificates / "jwks.json", tokens.key_set(private))
    await becomes(lambda: len(refused_policies(town)) == before + 2)
    assert await permitted(town, new) and await denied(town, old)
    assert "c2VjcmV0" not in town.town.command.text() + town.town.query.text()


# ---------------------------------------------------------------- open streams
class Streams:
    """Open streams of one identity."""

    def __init__(self, calls: Mapping[str, Any]) -> None:
        self.calls = calls
        self.ends: dict[str, asyncio.Task[object]] = {}

    async def open(self) -> "Streams":
        for name, call in self.calls.items():
            assert await call.read()
            self.ends[name] = asyncio.create_task(end_of(call))
        return self

    async def end(self) -> set[str]:
        """The reasons with which they end, within the time that a change may take."""
        ended = await asyncio.wait_for(asyncio.gather(*self.ends.values()), TAKES_EFFECT_SECONDS)
        return {each.reason for each in ended}  # type: ignore[attr-defined]

    @property
    def are_open(self) -> bool:
        return not any(end.done() for end in self.ends.values())

    def cancel(self) -> None:
        for name, call in self.calls.items():
            self.ends[name].cancel()
            call.cancel()


async def streams_of(town: Guarded, shown: Shown) -> Streams:
    """Open a watch of a charge, and the feed."""
    charged = ChargeResponse.FromString(await town.ask(CHARGE, bearing(tokens.signed()), a_request("order-watched")))
    found = GetChargeRequest(charge_id=charged.charge_id, min_position=charged.position)
    await town.ask(GET, bearing(tokens.signed()), found)
    watch = WatchChargeRequest(charge_id=charged.charge_id, min_position=charged.position)
    return await Streams({"watch": town.call(WATCH, shown, watch), "feed": town.call(SUBSCRIBE, shown)}).open()


def till() -> Shown:
    return bearing(tokens.signed(tokens.claims(sub="till-jwt")))


async def test_open_streams_end_when_a_new_policy_takes_what_they_stand_on(town: Guarded) -> None:
    """With the refusal that a new call would hear, whether it is their identity, their role or their credential that is gone.

    Those of others go on.
    """
    town.replace(town.policy, a_policy(SHOP, READER, SHOP_JWT, TILL_JWT, GUEST, an_identity("clerk", *ALL)))
    await becomes(lambda: permitted(town, as_identity("clerk")))
    removed = await streams_of(town, as_identity("guest"))
    of_no_role = await streams_of(town, as_identity("clerk"))
    of_another_credential = await streams_of(town, till())
    others = await streams_of(town, bearing(tokens.signed()))
    town.replace(town.policy, a_policy(SHOP, READER, SHOP_JWT, an_identity("till-jwt", *ALL), an_identity("clerk")))
    assert await removed.end() == {"UNAUTHENTICATED"}
    assert await of_no_role.end() == {"PERMISSION_DENIED"}
    assert await of_another_credential.end() == {"UNAUTHENTICATED"}
    assert others.are_open
    others.cancel()


async def test_open_streams_end_when_a_new_policy_gives_their_identity_another_tenant(town: Guarded) -> None:
    """They were opened for the former tenant, or for all, and would go on to show its records."""
    town.replace(town.policy, POLICY + an_identity("auditor", "feed", tenant="") + GUEST)
    await becomes(lambda: town.is_permitted(SUBSCRIBE, as_identity("auditor")))
    await becomes(lambda: permitted(town, as_identity("guest")))
    its = await streams_of(town, as_identity("guest"))
    of_all = await Streams({"feed": town.call(SUBSCRIBE, as_identity("auditor"))}).open()
    others = await streams_of(town, till())
    moved = an_identity("auditor", "feed") + an_identity("guest", *ALL, tenant="other")
    town.replace(town.policy, POLICY + moved)
    assert await its.end() == {"PERMISSION_DENIED"}
    assert await of_all.end() == {"PERMISSION_DENIED"}
    assert others.are_open
    others.cancel()


async def test_open_streams_end_when_the_keys_of_their_tokens_are_taken_away(town: Guarded) -> None:
    its = await streams_of(town, till())
    by_static_token = await streams_of(town, as_identity("shop-jwt"))
    town.replace(town.certificates / "jwks.json", tokens.key_set(tokens.public(tokens.OTHER_KEY, "ec-2")))
    assert await its.end() == {"UNAUTHENTICATED"}
    assert by_static_token.are_open
    by_static_token.cancel()


async def test_open_streams_end_when_their_token_does(town: Guarded) -> None:
    """Thirty seconds after its expiry, for the clocks' difference; not before, and no other stream ends."""
    anothers = await streams_of(town, bearing(tokens.signed()))

    async def opened(ends_at: int) -> tuple[Streams, int]:
        token = tokens.signed(tokens.claims(sub="till-jwt", exp=ends_at - 30))
        return await streams_of(town, bearing(token)), ends_at

    its, ends_at = await in_time(opened)
    await asyncio.wait(its.ends.values(), return_when=asyncio.FIRST_COMPLETED)
    assert time.time() >= ends_at
    assert await its.end() == {"UNAUTHENTICATED"}
    assert anothers.are_open
    anothers.cancel()


async def test_the_query_server_goes_on_following_when_its_role_is_given_back(town: Guarded) -> None:
    """Without the role it tells why, and shows what it has; the view lags until the role is back."""
    town.replace(town.policy, a_policy(SHOP, an_identity("query-server", tenant="shop"), SHOP_JWT, TILL_JWT))
    shown = bearing(tokens.signed())

    def losses() -> list[str]:
        return [
            str(e["why"]) for e in town.town.query.entries() if e["event"] == "the feed is lost and will be tried again"
        ]

    await becomes(lambda: any("PERMISSION_DENIED" in why for why in losses()))
    charged = ChargeResponse.FromString(await town.ask(CHARGE, shown, a_request("order-unseen")))
    asked = GetChargeRequest(charge_id=charged.charge_id)
    error = await town.error(GET, shown, asked)
    assert error and error.reason == "CHARGE_NOT_FOUND"
    town.replace(town.policy, POLICY)

    async def is_shown() -> bool:
        return await town.error(GET, shown, asked) is None

    await becomes(is_shown)
