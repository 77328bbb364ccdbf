"""Who calls, and whether it may: pure decisions over what a call presents and what the policy says.

A presented token is the identity: if it proves nothing, the certificate is not asked instead. A certificate names an identity
by exactly one of its alternative names, never by its common name, and never by a prefix.

An identity that belongs to no tenant, and has the role for it (`Naming`), may name one for a call, in a header. Then it is that
tenant's caller in this call. The header of any other identity is refused, unless it names the identity's own tenant: to ignore
it would show or move something of another tenant than was asked for.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple

from chassis.caller import Caller
from chassis.tokens import TokenRefused, TokenRules, verified

# Verified tokens that are remembered until they end: to verify one takes longer than the rest of the way through the guard.
TOKENS_KEPT = 10_000
_SCHEME = "bearer"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
"""The names of identities and tenants."""
TENANT_HEADER = "chargeonce-tenant"
"""The header, or gRPC metadata, in which a call names a tenant."""


class Need(Enum):
    """What a method needs where it needs no role."""

    NOTHING = auto()
    IDENTITY = auto()
    """Any identity; on a port that listens on loopback, none."""
    NO_TENANT = auto()
    """An identity that belongs to no tenant, since it sees what all do together; on a port that listens on loopback, none."""


ON_LOOPBACK_NONE = frozenset({Need.IDENTITY, Need.NO_TENANT})


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """A caller that the policy names. `tenant` is empty for one that belongs to none, and sees all."""

    name: str
    tenant: str
    roles: frozenset[str]

    @property
    def caller(self) -> Caller:
        """The two words of it that handlers know."""
        return Caller(self.tenant, self.name)


class Credential(Enum):
    """The kinds of credentials by which the policy knows identities."""

    CERTIFICATE_URI = "certificate_uri"
    CERTIFICATE_DNS = "certificate_dns"
    JWT_SUBJECT = "jwt_subject"
    TOKEN_SHA256 = "token_sha256"  # noqa: S105  # a word of the policy's


@dataclass(frozen=True, slots=True)
class Naming:
    """Who may name a tenant: identities of no tenant with the role `by`. In such a call they also have the roles `gives`."""

    by: str = ""
    gives: frozenset[str] = frozenset()


NOBODY_NAMES = Naming()


class Presented(NamedTuple):
    """What a call presents: the alternative names of its verified certificate, and its headers."""

    uris: Sequence[str] = ()
    dns_names: Sequence[str] = ()
    certificate_ends_at: float = float("inf")
    """In seconds since 1970. The certificate was valid when its connection was made, which may be long ago."""
    authorization: Sequence[str] = ()
    is_private: bool = False
    """Whether nobody between could have read it: TLS, or loopback."""
    tenants: Sequence[str] = ()
    """The tenants that its headers name; none but for callers that may act for any."""


class Proven(NamedTuple):
    """An identity that is proven until a time, in seconds since 1970."""

    identity: Identity
    ends_at: float = float("inf")


class Unproven(Exception):
    """A call that proves no identity. `why` is for the log and never for the caller; `shown` is what is proven nevertheless."""

    def __init__(self, why: str, shown: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.shown = shown


class Known:
    """The identities of one policy, and the tokens that were verified under it."""

    def __init__(
        self,
        identities: Mapping[tuple[Credential, str], Identity],
        rules: TokenRules | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._by: dict[Credential, dict[str, Identity]] = {kind: {} for kind in Credential}
        for (kind, value), identity in identities.items():
            self._by[kind][value] = identity
        self._uris, self._dns_names = self._by[Credential.CERTIFICATE_URI], self._by[Credential.CERTIFICATE_DNS]
        self._rules = rules
        self._now = now
        self._tokens: dict[bytes, Proven] = {}  # by digest: a token itself is kept nowhere

    def prove(self, presented: Presented) -> Proven:
        """Find the identity of a call. Raises Unproven."""
        if presented.authorization:
            return self._by_token(presented)
        names = (*presented.uris, *presented.dns_names)
        if not names:
            raise Unproven("it presents no token, and no certificate with a name that can be read")
        if presented.certificate_ends_at <= self._now():
            raise Unproven("its certificate has expired since it connected", names)
        found = {self._uris.get(uri) for uri in presented.uris}
        found.update(self._dns_names.get(name) for name in presented.dns_names)
        found.discard(None)
        if len(found) > 1:
            raise Unproven("its certificate has the names of several identities", names)
        identity = found.pop() if found else None
        if identity is None:
            raise Unproven("the policy knows no name of its certificate", names)
        return Proven(identity, presented.certificate_ends_at)

    def _by_token(self, presented: Presented) -> Proven:
        if not presented.is_private:
            raise Unproven("its token came over a plaintext connection, and is known to others now: replace it")
        if len(presented.authorization) > 1:
            raise Unproven("it has several headers of authorization")
        scheme, _, token = presented.authorization[0].partition(" ")
        if scheme.lower() != _SCHEME or not token:
            raise Unproven("its header of authorization holds no bearer token")
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        static = self._by[Credential.TOKEN_SHA256].get(digest.hex())
        if static is not None:
            return Proven(static)
        known = self._tokens.get(digest)
        if known is not None:
            if known.ends_at > self._now():
                return known
            del self._tokens[digest]
        proven = self._by_claims(token)
        if len(self._tokens) >= TOKENS_KEPT:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[digest] = proven
        return proven

    def _by_claims(self, token: str) -> Proven:
        if self._rules is None:
            raise Unproven("its token is not known")
        try:
            claims = verified(token, self._rules)
        except TokenRefused as error:
            raise Unproven(str(error)) from None
        identity = self._by[Credential.JWT_SUBJECT].get(claims.subject)
        if identity is None:
            raise Unproven("the policy does not know the subject of its token", [claims.subject])
        return Proven(identity, claims.ends_at)


def acting(identity: Identity, tenants: Sequence[str], naming: Naming) -> tuple[Identity, str]:
    """Return the identity as which a call is made whose headers name these tenants, and why it may not be made, if so."""
    if not tenants:
        return identity, ""
    if len(tenants) > 1:
        return identity, "it names several tenants"
    (tenant,) = tenants
    if not NAME.fullmatch(tenant):
        return identity, "the name of the tenant that it names is malformed"
    if identity.tenant == tenant:
        return identity, ""
    if identity.tenant or naming.by not in identity.roles:
        return identity, f"it names a tenant, which needs an identity of no tenant with the role {naming.by!r}"
    return replace(identity, tenant=tenant, roles=identity.roles | naming.gives), ""


def may(identity: Identity, need: Need | str) -> bool:
    """Whether an identity may call a method that needs this."""
    if need is Need.NO_TENANT:
        return not identity.tenant
    return isinstance(need, Need) or need in identity.roles
