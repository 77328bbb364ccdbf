"""The laws of the decisions at the gate, over modules that are given: the real ones, or some with a condition negated."""

import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest

from chassis import exposure, gate, identity, policy, tokens
from chassis.caller import Caller
from chassis.refusals import Refusal
from chassis.settings import Address, SettingsError
from chassis.watched import Files, Unusable
from contract.access import ACCESS, NAMING, ROLES
from rig.certs import Authority
from tests.security import tokens as provider

# In the order in which they import each other.
MODULES = (tokens, identity, policy, gate, exposure)
UNAUTHENTICATED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "unknown", "DO_NOT_RETRY")
NOT_PERMITTED = Refusal(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", "denied", "DO_NOT_RETRY")

SECRET = "correct-horse-battery-staple"
POLICY = f"""
[jwt]
issuer = "{provider.ISSUER}"
audience = "{provider.AUDIENCE}"
keys = "jwks.json"
algorithms = ["ES256", "RS256"]

[tenants.shop]
weight = 3
rate = 50

[[identities]]
name = "shop"
tenant = "shop"
roles = ["charge", "read"]
certificate_uri = "spiffe://example/shop"
certificate_dns = "checkout.shop.example"

[[identities]]
name = "shop-jwt"
tenant = "shop"
roles = ["read"]
jwt_subject = "shop-jwt"

[[identities]]
name = "till"
tenant = "till"
roles = ["charge", "refund"]
token_sha256 = "{hashlib.sha256(SECRET.encode()).hexdigest()}"

[[identities]]
name = "query-server"
roles = ["feed"]
certificate_uri = "spiffe://example/query"

[[identities]]
name = "nobody"
tenant = "shop"
roles = []
certificate_uri = "spiffe://example/nobody"
"""


class World:
    """The modules of the gate, loaded anew, from other sources where these are given."""

    def __init__(self, sources: Mapping[str, Any] | None = None) -> None:
        # A mutant, of which what must come may never come, is not worth a long wait.
        self.patience_seconds, self.token_seconds = (30.0, 2) if sources is None else (0.3, 1)
        former = {module.__name__: module for module in MODULES}
        self.modules: dict[str, Any] = {}
        try:
            for name, module in former.items():
                assert module.__file__
                code = (sources or {}).get(name) or Path(module.__file__).read_text()
                made = ModuleType(name)
                self.modules[name] = sys.modules[name] = made
                exec(compile(code, module.__file__, "exec"), made.__dict__)
        finally:
            sys.modules.update(former)

    def __getattr__(self, name: str) -> Any:
        return self.modules[f"chassis.{name}"]

    def read(self, folder: Path, text: str = POLICY, keys: bytes | None = None) -> Any:
        """Read a policy that is written to a folder."""
        (folder / "jwks.json").write_bytes(provider.key_set() if keys is None else keys)
        (folder / "policy.toml").write_text(text)
        return self.policy.read_policy(folder / "policy.toml", ROLES, Files())

    def gate_of(self, policy: Any, **more: Any) -> Any:
        """A gate of a policy."""
        refused = self.gate.Refused(UNAUTHENTICATED, NOT_PERMITTED)
        return self.gate.Gate(ACCESS, refused, (lambda: policy) if policy is not None else None, **more)


@cache
def _certificate(uris: Sequence[str], names: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return (Authority().issue(Path(folder), uris=uris, dns=names) / "tls.crt").read_bytes()


class Call:
    """A call as grpc hands it over: its metadata, its connection and its peer."""

    def __init__(
        self,
        *authorization: str | bytes,
        uris: Sequence[str] = (),
        names: Sequence[str] = (),
        tls: bool = True,
        peer: str = "ipv4:192.0.2.7:4711",
        tenants: Sequence[str | bytes] = (),
    ) -> None:
        self._metadata = [("user-agent", "test"), *(("authorization", value) for value in authorization)]
        self._metadata += [("chargeonce-tenant", tenant) for tenant in tenants]
        self._connection = {
            "transport_security_type": [b"ssl" if tls else b"insecure"],
            # What grpc itself tells of the names, which is not asked: it ends each at a zero.
            "peer_uri": [uri.partition("\0")[0].encode() for uri in uris],
            "peer_dns": [name.partition("\0")[0].encode() for name in names],
            "x509_pem_cert": [_certificate(tuple(uris), tuple(names))] if uris or names else [],
        }
        self._peer = peer

    def invocation_metadata(self) -> Any:
        return self._metadata

    def auth_context(self) -> Any:
        return self._connection

    def peer(self) -> str:
        return self._peer


CHARGE, REFUND = "/charging.v1.CommandService/Charge", "/charging.v1.CommandService/Refund"
SUBSCRIBE, GET = "/charging.v1.JournalService/Subscribe", "/charging.v1.QueryService/GetCharge"
HOLD_BACK = "/charging.v1.OperatorService/HoldBack"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SHOP = Caller("shop", "shop")


@contextmanager
def refused(refusal: Refusal) -> Iterator[None]:
    """The body must be refused so."""
    with pytest.raises(Refusal) as caught:
        yield
    assert (caught.value.code, caught.value.text) == (refusal.code, refusal.text)
    assert caught.value is not refusal


def by_certificate(world: World, folder: Path) -> None:
    """An alternative name of the certificate is the identity, if it is exactly one that the policy names."""
    door = world.gate_of(world.read(folder)).door(CHARGE, on_loopback=False)
    assert door.admit_call(Call(uris=["spiffe://example/shop"])).caller == SHOP
    assert door.admit_call(Call(names=["checkout.shop.example"])).caller == SHOP
    both = Call(uris=["spiffe://example/other", "spiffe://example/shop"], names=["checkout.shop.example"])
    assert door.admit_call(both).caller == SHOP
    for stranger in (
        Call(),
        Call(uris=["spiffe://example/shop2"]),
        Call(uris=["spiffe://example/shop/a"]),
        Call(uris=["spiffe://example/sho"]),
        Call(uris=["spiffe://example/shop\0.evil"]),
        Call(names=["checkout.shop.example\0.evil"]),
        Call(uris=["checkout.shop.example"], names=["spiffe://example/shop"]),
        Call(names=["*.shop.example"]),
        Call(uris=["spiffe://example/shop", "spiffe://example/query"]),
        Call(uris=["spiffe://example/shop"], names=["checkout.shop.example"], tls=False),
    ):
        with refused(UNAUTHENTICATED):
            door.admit_call(stranger)


def a_certificate_ends(world: World, folder: Path) -> None:
    """Its connection lives on, and calls on it are refused; until then they and their streams are admitted up to that time."""
    clock = [time.time()]
    door = world.gate_of(world.read(folder), now=lambda: clock[0]).door(CHARGE, on_loopback=False)
    call = Call(uris=["spiffe://example/shop"])
    admitted = door.admit_call(call)
    assert 89 < (admitted.ends_at - clock[0]) / 86_400 < 91
    clock[0] = admitted.ends_at - 1
    assert door.admit_call(call).caller == SHOP
    clock[0] = admitted.ends_at
    with refused(UNAUTHENTICATED):
        door.admit_call(call)


def by_static_token(world: World, folder: Path) -> None:
    """A static token is taken over TLS and over loopback, in one header only, and beats the certificate."""
    door = world.gate_of(world.read(folder)).door(CHARGE, on_loopback=False)
    till = Caller("till", "till")
    for good in (
        Call(f"Bearer {SECRET}"),
        Call(f"bearer {SECRET}"),
        Call(f"Bearer {SECRET}".encode()),
        Call(f"Bearer {SECRET}", uris=["spiffe://example/shop"]),
        Call(f"Bearer {SECRET}", tls=False, peer="ipv4:127.0.0.1:4711"),
        Call(f"Bearer {SECRET}", tls=False, peer="ipv6:%5B::1%5D:4711"),
        Call(f"Bearer {SECRET}", tls=False, peer="unix:"),
    ):
        assert door.admit_call(good).caller == till
    for bad in (
        Call(f"Bearer {SECRET}", tls=False),
        Call(f"Bearer {SECRET}", tls=False, peer="ipv6:%5B2001:db8::127%5D:1"),
        Call(f"Bearer {SECRET}", f"Bearer {SECRET}"),
        Call(f"Bearer {SECRET}x"),
        Call(f"Basic {SECRET}"),
        Call(SECRET),
        Call("Bearer "),
        Call("Bearer"),
        Call(""),
        Call(f"Bearer {hashlib.sha256(SECRET.encode()).hexdigest()}"),
        Call("Bearer wrong", uris=["spiffe://example/shop"]),  # never the certificate instead
        Call("", uris=["spiffe://example/shop"]),
        Call(b"Bearer \xff\xfe", uris=["spiffe://example/shop"]),
    ):
        with refused(UNAUTHENTICATED):
            door.admit_call(bad)


def by_jwt(world: World, folder: Path) -> None:
    """A token of the identity provider is taken while its time lasts; each forged one is refused."""
    door = world.gate_of(world.read(folder)).door(GET, on_loopback=False)
    now = int(time.time())
    for good in (
        provider.signed(),
        provider.signed(key=provider.RSA_KEY, kid="rsa-1"),
        provider.signed(provider.claims(aud=["another", provider.AUDIENCE])),
        provider.signed(provider.claims(nbf=None)),
        provider.signed(provider.claims(exp=now - 20, nbf=now + 20)),  # within the leeway
    ):
        assert door.admit_call(Call(f"Bearer {good}")).caller == Caller("shop", "shop-jwt")
        assert door.admit_call(Call(f"Bearer {good}")).caller == Caller("shop", "shop-jwt")  # from memory
    for name, token in provider.forged().items():
        with refused(UNAUTHENTICATED):
            door.admit_call(Call(f"Bearer {token}"))
            raise AssertionError(name)
    only_ec = world.read(folder, POLICY.replace('["ES256", "RS256"]', '["ES256"]'))
    with refused(UNAUTHENTICATED):
        world.gate_of(only_ec).door(GET, on_loopback=False).admit_call(
            Call(f"Bearer {provider.signed(key=provider.RSA_KEY, kid='rsa-1')}")
        )
    no_jwt = POLICY[POLICY.index("[tenants.shop]") :].replace('jwt_subject = "shop-jwt"', 'certificate_uri = "x:y"')
    with refused(UNAUTHENTICATED):
        world.gate_of(world.read(folder, no_jwt)).door(GET, on_loopback=False).admit_call(
            Call(f"Bearer {provider.signed()}")
        )


def a_token_ends(world: World, folder: Path) -> None:
    """A token that was good is refused once its time has passed, though it was remembered; others are remembered still."""
    policy, clock = world.read(folder), [time.time()]
    door = world.gate_of(policy, now=lambda: clock[0]).door(GET, on_loopback=False)
    ends = int(time.time()) - 28
    token = provider.signed(provider.claims(exp=ends))
    admitted = door.admit_call(Call(f"Bearer {token}"))
    assert admitted.ends_at == ends + 30
    clock[0] = ends + 31
    while time.time() < ends + 31:  # the library reads the machine's own clock
        time.sleep(0.05)
    with refused(UNAUTHENTICATED):
        door.admit_call(Call(f"Bearer {token}"))


def many_tokens(world: World, folder: Path) -> None:
    """A limited number of tokens is remembered, and each is known for what it is."""
    world.identity.TOKENS_KEPT = 2
    known = world.identity.Known(
        {(world.identity.Credential.JWT_SUBJECT, "shop-jwt"): "shop"}, world.read(folder).tokens
    )
    presented = [
        world.identity.Presented(
            authorization=[f"Bearer {provider.signed(provider.claims(note=number))}"], is_private=True
        )
        for number in range(4)
    ]
    for each in (*presented, *presented):
        assert known.prove(each).identity == "shop"
        assert len(known._tokens) <= 2
    assert len(known._tokens) == 2


def roles(world: World, folder: Path) -> None:
    """Each method asks for its role; what is not given is denied."""
    policy = world.read(folder)
    gate = world.gate_of(policy)
    for name, allowed in (("shop", {"charge", "read"}), ("query", {"feed"}), ("nobody", set[str]())):
        for method, role in ACCESS.items():
            door = gate.door(method, on_loopback=True)
            call = Call(uris=[f"spiffe://example/{name}"])
            if role in allowed:
                assert door.admit_call(call).caller.tenant == ("" if name == "query" else "shop")
            else:
                with refused(NOT_PERMITTED):
                    door.admit_call(call)
    told = "\n".join(world.policy.described(policy, ACCESS))
    assert told.count("yes  ") == (3 + 7) + 7 + (3 + 1) + 2 + 0  # of the five identities, by the methods of their roles
    shop = told[told.index("shop, of the tenant shop") : told.index("shop-jwt, of")]
    assert "known by certificate_uri and certificate_dns" in shop
    assert "yes  charging.v1.CommandService/Charge  (charge)" in shop
    assert "no   charging.v1.CommandService/Refund  (refund)" in shop
    assert "query-server, of no tenant" in told


OPERATORS = """
[[identities]]
name = "operator"
roles = ["operate"]
certificate_uri = "spiffe://example/operator"

[[identities]]
name = "feeder"
roles = ["operate", "feed"]
certificate_uri = "spiffe://example/feeder"

[[identities]]
name = "reader"
roles = ["feed"]
certificate_uri = "spiffe://example/reader"

[[identities]]
name = "shop-operator"
tenant = "shop"
roles = ["operate"]
certificate_uri = "spiffe://example/shop-operator"
"""


def tenants_are_named(world: World, folder: Path) -> None:
    """An operator of no tenant is the caller of the tenant that a call names, and reads as such. Nobody else names any."""
    policy = world.read(folder, OPERATORS)
    gate = world.gate_of(policy, naming=world.identity.Naming(NAMING.by, NAMING.gives))
    get, hold, subscribe = (gate.door(method, on_loopback=False) for method in (GET, HOLD_BACK, SUBSCRIBE))
    charge, gauges = (gate.door(method, on_loopback=False) for method in (CHARGE, world.gate.METRICS))

    def by(name: str, *tenants: str | bytes) -> Call:
        return Call(uris=[f"spiffe://example/{name}"], tenants=tenants)

    assert hold.admit_call(by("operator")).caller == Caller("", "operator")
    for door in (get, hold):
        assert door.admit_call(by("operator", "shop")).caller == Caller("shop", "operator")
    assert subscribe.admit_call(by("feeder", "shop")).caller == Caller("shop", "feeder")
    assert subscribe.admit_call(by("feeder")).caller == Caller("", "feeder")
    assert hold.admit_call(by("shop-operator", "shop")).caller == Caller("shop", "shop-operator")
    for door, call in (
        (get, by("operator")),  # a tenant must be named: else whose charges?
        (charge, by("operator", "shop")),
        (subscribe, by("operator", "shop")),
        (gauges, by("operator", "shop")),
        (hold, by("operator", "shop", "shop")),
        (hold, by("operator", "shop", "till")),
        (hold, by("operator", "")),
        (hold, by("operator", "a shop")),
        (hold, by("operator", b"caf\xe9")),
        (hold, by("shop-operator", "till")),
        (subscribe, by("reader", "shop")),
        (get, by("shop-operator", "shop")),
    ):
        with refused(NOT_PERMITTED):
            door.admit_call(call)
    nobody_names = world.gate_of(policy).door(HOLD_BACK, on_loopback=False)
    assert nobody_names.admit_call(by("operator")).caller == Caller("", "operator")
    with refused(NOT_PERMITTED):
        nobody_names.admit_call(by("operator", "shop"))
    told = "\n".join(world.policy.described(policy, ACCESS, NAMING))
    of = {lines.split(",")[0]: lines for lines in told.replace("\n  ", "  ").split("\n")}
    may_read = "yes  charging.v1.QueryService/GetCharge  (read, for a tenant that it names in chargeonce-tenant)"
    assert [name for name, lines in of.items() if may_read in lines] == ["operator", "feeder"]
    assert all("no   charging.v1.CommandService/Charge  (charge)" in lines for lines in of.values())
    assert "yes  charging.v1.OperatorService/HoldBack  (operate)" in of["operator"]


def open_doors(world: World, folder: Path) -> None:
    """Health needs nothing, reflection nothing on loopback; without a policy nothing is asked for; a row is needed ever."""
    gate, anybody = world.gate_of(world.read(folder)), Caller("t", "a")
    stranger, shop = Call(tls=False), Call(uris=["spiffe://example/nobody"])
    for on_loopback in (True, False):
        assert gate.door(HEALTH, on_loopback=on_loopback, anybody=anybody).admit_call(stranger).caller == anybody
        with refused(UNAUTHENTICATED):
            gate.door(CHARGE, on_loopback=on_loopback).admit_call(stranger)
    assert gate.door(REFLECTION, on_loopback=True).admit_call(stranger).presented is None
    assert gate.door(world.gate.METRICS, on_loopback=True).admit_call(stranger).presented is None
    with refused(UNAUTHENTICATED):
        gate.door(REFLECTION, on_loopback=False).admit_call(stranger)
    gauges = gate.door(world.gate.METRICS, on_loopback=False)
    with refused(NOT_PERMITTED):
        gauges.admit_call(shop)
    assert gauges.admit_call(Call(uris=["spiffe://example/query"])).caller == Caller("", "query-server")
    assert gate.door(REFLECTION, on_loopback=False).admit_call(shop).caller.actor == "nobody"
    no_policy = world.gate_of(None).door(CHARGE, on_loopback=False, anybody=anybody)
    assert no_policy.admit_call(stranger).caller == no_policy.admit(None, "").caller == anybody
    for each in (gate, world.gate_of(None)):
        with pytest.raises(world.gate.NoRow):
            each.door("/charging.v1.CommandService/New", on_loopback=True)


def refusals_are_told(world: World, folder: Path) -> None:
    """Refusals are counted by kind; the log has a limited number a second, then the number that was left out."""
    clock = [1000.5]
    gate = world.gate_of(world.read(folder), now=lambda: clock[0])
    lines: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def warning(self, event: str, **fields: Any) -> None:
            lines.append((event, fields))

    world.gate.log = Log()
    door = gate.door(REFUND, on_loopback=False)
    long = "spiffe://example/" + "x" * 500
    for call in [Call(uris=[long]), Call(uris=["spiffe://example/shop"]), *[Call()] * 18]:
        with pytest.raises(Refusal):
            door.admit_call(call)
    assert gate.figures() == {"calls_unauthenticated": 19, "calls_not_permitted": 1}
    assert len(lines) == 10
    event, fields = lines[0]
    assert (event, fields["method"], fields["identity"]) == ("a call was refused", REFUND, None)
    assert fields["shown"] == [long[:256]] and fields["peer"] == "ipv4:192.0.2.7:4711"
    assert lines[1][1]["identity"] == "shop" and "role refund" in lines[1][1]["why"]
    clock[0] = 1001.5
    with pytest.raises(Refusal):
        door.admit_call(Call())
    assert lines[10:][0] == ("more calls were refused than were logged", {"left_out": 10})
    clock[0] = 1002.5
    with pytest.raises(Refusal):
        door.admit_call(Call())
    assert [event for event, _ in lines[11:]] == ["a call was refused"] * 2


async def _until_any(seen: list[int]) -> None:
    for _ in range(1_000_000):
        if seen:
            return
        await asyncio.sleep(0)


async def _until_so_many(seen: Sized, number: int, world: World) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(world.patience_seconds):
            while len(seen) < number:  # noqa: ASYNC110  # what ends a stream tells nobody else
                await asyncio.sleep(0.01)


def streams_end(world: World, folder: Path) -> None:
    """An open stream is cut when its token ends, when a new policy denies it, and when its caller has another tenant.

    Another goes on.
    """
    assert world.gate.LOOK_AGAIN_SECONDS == 1.0
    world.gate.LOOK_AGAIN_SECONDS = 0.01
    policies, clock = [world.read(folder)], [time.time()]
    gate = world.gate.Gate(
        ACCESS,
        world.gate.Refused(UNAUTHENTICATED, NOT_PERMITTED),
        lambda: policies[-1],
        now=lambda: clock[0],
    )
    get, health = gate.door(GET, on_loopback=False), gate.door(HEALTH, on_loopback=False)
    # Within the leeway: real time ends it, a second or two from now, in the library too.
    ends_at = int(time.time()) + world.token_seconds
    ending = get.admit_call(Call(f"Bearer {provider.signed(provider.claims(exp=ends_at - 30))}"))
    by_name, by_token, by_uri = (
        get.admit_call(Call(names=["checkout.shop.example"])),
        get.admit_call(Call(f"Bearer {provider.signed()}")),
        get.admit_call(Call(uris=["spiffe://example/shop"])),
    )
    cut: dict[str, Refusal] = {}

    async def story() -> None:
        looking = asyncio.create_task(gate.keep_looking())
        with (
            gate.keeping(ending, lambda refusal: cut.update(token=refusal)),
            gate.keeping(by_name, lambda refusal: cut.update(name=refusal)),
            gate.keeping(by_token, lambda refusal: cut.update(tenant=refusal)),
            gate.keeping(by_uri, lambda refusal: cut.update(uri=refusal)),
            gate.keeping(health.admit_call(Call()), lambda refusal: cut.update(health=refusal)),
        ):
            assert len(gate._streams) == 4
            await asyncio.sleep(0.05)
            assert not cut
            clock[0] = ending.ends_at + 0.1
            await asyncio.sleep(max(0.0, ending.ends_at - time.time()))
            await _until_so_many(cut, 1, world)
            assert list(cut) == ["token"] and cut["token"].code is UNAUTHENTICATED.code
            policies.append(world.read(folder, POLICY.replace('certificate_dns = "checkout.shop.example"', "")))
            await _until_so_many(cut, 2, world)
            assert list(cut) == ["token", "name"] and cut["name"].code is UNAUTHENTICATED.code
            policies.append(world.read(folder, POLICY.replace('-jwt"\ntenant = "shop"', '-jwt"\ntenant = "till"')))
            await _until_so_many(cut, 3, world)
            assert list(cut) == ["token", "name", "tenant"] and cut["tenant"].code is NOT_PERMITTED.code
            policies.append(world.read(folder, POLICY.replace('["charge", "read"]', '["charge"]')))
            await _until_so_many(cut, 4, world)
            assert list(cut) == ["token", "name", "tenant", "uri"] and cut["uri"].code is NOT_PERMITTED.code
        assert not gate._streams
        looking.cancel()
        await asyncio.wait_for(world.gate_of(None).keep_looking(), world.patience_seconds)

    asyncio.run(story())


def looks_let_others_go_on(world: World, folder: Path) -> None:
    """A look at many streams stops no call for longer than one of them takes, and leaves alone those that end meanwhile."""
    world.gate.LOOK_AGAIN_SECONDS = 0.01
    policies, seen = [world.read(folder)], list[int]()
    refused = world.gate.Refused(UNAUTHENTICATED, NOT_PERMITTED)
    gate = world.gate.Gate(ACCESS, refused, lambda: policies[-1])
    door = gate.door(GET, on_loopback=False)

    async def story() -> None:
        looking = asyncio.create_task(gate.keep_looking())
        with ExitStack() as first, ExitStack() as last:
            for number in range(20):
                admitted = door.admit_call(Call(uris=["spiffe://example/shop"]))
                stack = first if number < 10 else last
                stack.enter_context(gate.keeping(admitted, lambda _, number=number: seen.append(number)))
            await asyncio.sleep(0.05)
            policies.append(world.read(folder, POLICY.replace('["charge", "read"]', '["charge"]')))
            async with asyncio.timeout(world.patience_seconds):
                await _until_any(seen)
            assert seen == [0]
            last.close()
            await _until_so_many(seen, 10, world)
            assert seen == list(range(10))
        looking.cancel()

    asyncio.run(story())


FAULTS: Mapping[str, tuple[str, str]] = {
    "no TOML": ("[jwt]", "[jwt"),
    "a foreign key": ("weight = 3", "wieght = 3"),
    "a foreign table": ("[tenants.shop]", "[tenant.shop]"),
    "a role that does not exist": ('roles = ["charge", "refund"]', 'roles = ["charge", "refunds"]'),
    "roles that are no list": ('roles = ["feed"]', 'roles = "feed"'),
    "roles that are no texts": ('roles = ["feed"]', "roles = [1]"),
    "a role that needs a tenant": ('roles = ["feed"]', 'roles = ["feed", "read"]'),
    "a name twice": ('name = "till"', 'name = "shop"'),
    "a name with a space": ('name = "till"', 'name = "the till"'),
    "no name": ('name = "till"\n', ""),
    "an empty tenant": ('tenant = "till"', 'tenant = ""'),
    "a credential twice": ("spiffe://example/nobody", "spiffe://example/shop"),
    "no credential": ('jwt_subject = "shop-jwt"', ""),
    "a wildcard": ("checkout.shop.example", "*.shop.example"),
    "capitals": ("checkout.shop.example", "Checkout.shop.example"),
    "no URI": ("spiffe://example/nobody", "nobody"),
    "a credential that is no text": ('jwt_subject = "shop-jwt"', "jwt_subject = 1"),
    "an empty subject": ('jwt_subject = "shop-jwt"', 'jwt_subject = ""'),
    "no digest": ('token_sha256 = "', 'token_sha256 = "F'),
    "an algorithm that shares its secret": ('"RS256"', '"HS256"'),
    "no algorithm": ('["ES256", "RS256"]', "[]"),
    "algorithms that are no list": ('["ES256", "RS256"]', '"ES256"'),
    "no issuer": (f'issuer = "{provider.ISSUER}"', ""),
    "an empty audience": (f'audience = "{provider.AUDIENCE}"', 'audience = ""'),
    "no keys": ('keys = "jwks.json"', ""),
    "keys that are not there": ('keys = "jwks.json"', 'keys = "none.json"'),
    "a tenant of nobody": ("[tenants.shop]", "[tenants.shops]"),
    "a weight of zero": ("weight = 3", "weight = 0"),
    "a weight that is true": ("weight = 3", "weight = true"),
    "a rate that is too large": ("rate = 50", "rate = 1e9"),
    "a rate that is no number": ("rate = 50", 'rate = "50"'),
    "a share that is no table": ("[tenants.shop]\nweight = 3\nrate = 50", "[tenants]\nshop = 3"),
}


NO_TABLE = "tenants = 3\n" + POLICY.replace("[tenants.shop]\nweight = 3\nrate = 50\n", "")


def faulty_policies(world: World, folder: Path) -> None:
    """A policy with a fault is refused; the good one says exactly what it says."""
    policy = world.read(folder)
    assert [each.name for each in policy.identities] == ["shop", "shop-jwt", "till", "query-server", "nobody"]
    assert len(policy.by_credential) == 6
    assert (policy.weights, policy.rates) == ({"shop": 3.0, "till": 1.0}, {"shop": 50.0})
    usual = world.read(folder, POLICY.replace('algorithms = ["ES256", "RS256"]\n', "").replace("weight = 3", ""))
    assert usual.tokens.algorithms == ["ES256", "EdDSA", "RS256"] and usual.weights["shop"] == 1.0
    no_tenants = world.read(folder, POLICY.replace("[tenants.shop]\nweight = 3\nrate = 50\n", ""))
    assert no_tenants.rates == {}
    for name, (good, bad) in FAULTS.items():
        text = POLICY.replace(good, bad)
        assert text != POLICY, name
        with pytest.raises(Unusable) as caught:
            world.read(folder, text)
        assert SECRET not in str(caught.value) and "policy.toml" in str(caught.value), name
    for text in ("", "identities = 3", "identities = [3]", "jwt = 3\n" + POLICY[POLICY.index("[tenants") :], NO_TABLE):
        with pytest.raises(Unusable):
            world.read(folder, text)
    no_jwt = POLICY[POLICY.index("[tenants.shop]") :]
    with pytest.raises(Unusable, match="needs a table"):
        world.read(folder, no_jwt)
    misspelt = POLICY.replace('"refund"]', '"refunds"]')
    with pytest.raises(Unusable, match="is 'refund' meant"):
        world.read(folder, misspelt)
    with pytest.raises(Unusable, match="the key 'wieght': is 'weight' meant"):
        world.read(folder, POLICY.replace("weight", "wieght"))
    with pytest.raises(Unusable, match=r"the key 'purpose'$"):
        world.read(folder, POLICY.replace("weight", "purpose"))
    with pytest.raises(Unusable, match=f"the key of {len(SECRET)} characters") as caught:
        world.read(folder, POLICY.replace("weight", SECRET))
    assert SECRET not in str(caught.value)
    with pytest.raises(Unusable, match=r"is no TOML \(at line 2, column 8\)$"):
        world.read(folder, f"\n{SECRET[:7]}\n")
    with pytest.raises(Unusable, match=r"is no TOML$"):
        world.read(folder, f"n = {'9' * 5000}")
    (folder / "policy.toml").write_bytes(b"\xff")
    with pytest.raises(Unusable, match="UTF-8"):
        world.policy.read_policy(folder / "policy.toml", ROLES, Files())


def faulty_keys(world: World, folder: Path) -> None:
    """A set of keys with a private, symmetric, nameless or repeated key is refused, and its content is not told."""
    good = provider.public(provider.EC_KEY, "ec-1")
    private = {**good, "d": "c2VjcmV0LXNjYWxhcg"}
    symmetric = {"kty": "oct", "k": "c2VjcmV0LXNjYWxhcg", "kid": "s"}
    for keys in (
        b"",
        b"[]",
        b'{"keys": 3}',
        b'{"keys": [3]}',
        b'{"keys": []}',
        provider.key_set(private),
        provider.key_set(symmetric),
        provider.key_set(good, good),
        provider.key_set({**good, "kid": ""}),
        provider.key_set({**good, "kid": 3}),
        provider.key_set({**good, "crv": "P-999"}),
        provider.key_set({**good, "x": "c2VjcmV0LXNjYWxhcg"}),
        provider.key_set({**good, "use": "enc"}),
    ):
        with pytest.raises(Unusable) as caught:
            world.read(folder, keys=keys)
        assert "c2VjcmV0" not in str(caught.value)
    kept = world.read(folder, keys=provider.key_set({**good, "use": "sig"}, {**symmetric, "use": "enc"}))
    assert list(kept.tokens.keys) == ["ec-1"]


def exposed(world: World, _: Path) -> None:
    """Beyond loopback both protections are needed, or the override; on loopback none."""
    check = world.exposure.check_exposure
    here, there = Address("127.0.0.1", 1), Address("0.0.0.0", 2)
    for host, is_here in (
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("127.evil.example", False), ("localhost.", False)),
    ):
        assert world.exposure.is_loopback(host) is is_here, host
    safe = {"X_TLS": True, "X_POLICY": True}
    for missing in ({"X_TLS": False}, {"X_POLICY": False}, {"X_TLS": False, "X_POLICY": False}):
        needed = {**safe, **missing}
        check({"X_LISTEN": here, "X_METRICS_LISTEN": None}, needed, override="X_OPEN", is_open=False)
        check({"X_LISTEN": there}, needed, override="X_OPEN", is_open=True)
        for listens in ({"X_LISTEN": there}, {"X_LISTEN": here, "X_METRICS_LISTEN": there}):
            with pytest.raises(SettingsError) as caught:
                check(listens, needed, override="X_OPEN", is_open=False)
            text = str(caught.value)
            assert all(name in text for name in missing) and "0.0.0.0:2" in text and "X_OPEN=yes" in text
            assert "127.0.0.1:1" not in text and all(name not in text for name in safe.keys() - missing.keys())
            assert ("set both" in text) == (len(missing) == 2) and " is open to" in text
    check({"X_LISTEN": there}, safe, override="X_OPEN", is_open=False)
    with pytest.raises(SettingsError, match="are open to"):
        check({"A": there, "B": there}, {"X_TLS": False}, override="X_OPEN", is_open=False)


LAWS: Sequence[Callable[[World, Path], None]] = (
    by_certificate,
    a_certificate_ends,
    by_static_token,
    roles,
    tenants_are_named,
    open_doors,
    refusals_are_told,
    exposed,
    by_jwt,
    many_tokens,
    faulty_policies,
    faulty_keys,
    streams_end,
    looks_let_others_go_on,
    a_token_ends,
)
