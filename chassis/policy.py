"""The policy: the identities, the credentials by which they are known, their tenants and roles. One TOML file.

```toml
[jwt]                             # only if tokens of an identity provider are taken
issuer = "https://id.example"
audience = "chargeonce"
keys = "jwks.json"                # a JWK Set; a relative path begins at the policy's folder
algorithms = ["ES256"]            # default: ES256, EdDSA, RS256

[tenants.shop]                    # only if its share is not the usual one
weight = 2.0                      # of what is reserved for tenants; default 1.0
rate = 50.0                       # commands a second; default: no limit

[[identities]]
name = "shop-checkout"            # the actor in the history
tenant = "shop"
roles = ["charge", "read"]
certificate_uri = "spiffe://example/shop/checkout"    # one or more of these four
certificate_dns = "checkout.shop.example"
jwt_subject = "shop-checkout"
token_sha256 = "..."              # 64 hexadecimal digits
```

What is not named is denied. A file with any fault is refused as a whole.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.documents import Reading, listed, read_toml, shown
from chassis.identity import NAME, NOBODY_NAMES, TENANT_HEADER, Credential, Identity, Naming, Need, may
from chassis.tokens import ALGORITHMS, USUAL_ALGORITHMS, KeysUnusable, TokenRules, read_keys
from chassis.watched import Files, Unusable

_NAME_RULE = "must be 1 to 128 letters, digits and . _ : @ / -, and begin with a letter or digit"
_WEIGHTS, _RATES = (0.001, 1000.0), (0.001, 1_000_000.0)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy without a fault. Every tenant has a weight; a tenant without a rate may send any number of commands a second."""

    identities: Sequence[Identity]
    by_credential: Mapping[tuple[Credential, str], Identity]
    tokens: TokenRules | None
    weights: Mapping[str, float]
    rates: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles that a policy may give, and those of them that an identity without a tenant may have."""

    known: Collection[str]
    without_tenant: Collection[str]


def read_policy(path: Path, roles: Roles, files: Files) -> Policy:
    """Read a policy, and the keys that it names. Raises Unusable, whose text lists every problem."""
    reading = _Reading(roles, path.parent, files)
    policy = reading.policy(read_toml(path, files))
    reading.end(path)
    return policy


def described(policy: Policy, access: Mapping[str, Need | str], naming: Naming = NOBODY_NAMES) -> Iterator[str]:
    """Tell what each identity may do, method by method, in lines for people."""
    for identity in policy.identities:
        credentials = [kind.value for (kind, _), known in policy.by_credential.items() if known is identity]
        tenant = f"of the tenant {identity.tenant}" if identity.tenant else "of no tenant"
        yield f"{identity.name}, {tenant}, known by {' and '.join(credentials)}"
        for method, need in access.items():
            answer, of = "yes" if may(identity, need) else "no ", ""
            if not identity.tenant and naming.by in identity.roles and need in naming.gives - identity.roles:
                answer, of = "yes", f", for a tenant that it names in {TENANT_HEADER}"
            yield f"  {answer}  {method.removeprefix('/')}" + ("" if isinstance(need, Need) else f"  ({need}{of})")


class _Reading(Reading):
    def __init__(self, roles: Roles, folder: Path, files: Files) -> None:
        super().__init__()
        self._roles = roles
        self._folder = folder
        self._files = files

    def policy(self, document: Mapping[str, Any]) -> Policy:
        self.only("the file", document, ("jwt", "tenants", "identities"))
        tokens = self._tokens(document["jwt"]) if "jwt" in document else None
        listed = document.get("identities", [])
        if not isinstance(listed, list) or not listed:
            self.problems.append("it names no identity: [[identities]]")
            listed = []
        identities: list[Identity] = []
        by_credential: dict[tuple[Credential, str], Identity] = {}
        for number, entry in enumerate(listed, 1):
            where = f"identity {number}"
            if not isinstance(entry, dict):
                self.problems.append(f"{where}: must be a table")
                continue
            identity = self._identity(where, entry)
            if identity.name in {other.name for other in identities}:
                self.problems.append(f"{where}: another identity has the same name")
            identities.append(identity)
            for credential in self._credentials(where, entry, has_tokens="jwt" in document):
                if credential in by_credential:
                    self.problems.append(f"{where}: another identity has the same {credential[0].value}")
                by_credential[credential] = identity
        tenants = {identity.tenant for identity in identities if identity.tenant}
        weights, rates = self._shares(document.get("tenants", {}), tenants)
        return Policy(identities, by_credential, tokens, weights, rates)

    def _identity(self, where: str, entry: Mapping[str, Any]) -> Identity:
        self.only(where, entry, ("name", "tenant", "roles", *(kind.value for kind in Credential)))
        name, tenant = self._name(where, entry, "name"), ""
        if "tenant" in entry:
            tenant = self._name(where, entry, "tenant")
        roles = entry.get("roles")
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            self.problems.append(f"{where}: roles must be a list of {listed(self._roles.known)}")
            roles = []
        for role in roles:
            if role not in self._roles.known:
                self.problems.append(f"{where}: there is no role {shown(role, self._roles.known)}")
            elif "tenant" not in entry and role not in self._roles.without_tenant:
                self.problems.append(f"{where}: the role {role} needs a tenant")
        return Identity(name, tenant, frozenset(roles))

    def _credentials(
        self, where: str, entry: Mapping[str, Any], *, has_tokens: bool
    ) -> Sequence[tuple[Credential, str]]:
        found: list[tuple[Credential, str]] = []
        for kind in Credential:
            if kind.value not in entry:
                continue
            value = entry[kind.value]
            if not isinstance(value, str) or (fault := _fault(kind, value, has_tokens)):
                self.problems.append(f"{where}: {kind.value} {fault if isinstance(value, str) else 'must be a text'}")
            else:
                found.append((kind, value))
        if not any(kind.value in entry for kind in Credential):
            self.problems.append(f"{where}: has no credential: {listed(kind.value for kind in Credential)}")
        return found

    def _tokens(self, entry: Any) -> TokenRules | None:
        where = "[jwt]"
        if not isinstance(entry, dict):
            self.problems.append(f"{where}: must be a table")
            return None
        self.only(where, entry, ("issuer", "audience", "keys", "algorithms"))
        texts = []
        for key in ("issuer", "audience", "keys"):
            value = entry.get(key)
            if not isinstance(value, str) or not value:
                self.problems.append(f"{where}: {key} must be a text that is not empty")
                value = ""
            texts.append(value)
        issuer, audience, keys = texts
        algorithms = entry.get("algorithms", list(USUAL_ALGORITHMS))
        if not isinstance(algorithms, list) or not algorithms or not all(each in ALGORITHMS for each in algorithms):
            self.problems.append(f"{where}: algorithms must be a list of {listed(ALGORITHMS)}")
        if not keys:
            return None
        file = self._folder / keys
        try:
            return TokenRules(issuer, audience, algorithms, read_keys(self._files.read(file)))
        except Unusable as error:
            self.problems.append(f"{where}: keys: {error}")
        except KeysUnusable as error:
            self.problems.append(f"{where}: keys: {file}: {error}")
        return None

    def _shares(self, entry: Any, tenants: Collection[str]) -> tuple[Mapping[str, float], Mapping[str, float]]:
        weights, rates = dict.fromkeys(tenants, 1.0), dict[str, float]()
        if not isinstance(entry, dict):
            self.problems.append("[tenants]: must be a table")
            return weights, rates
        for tenant, values in entry.items():
            where = f"[tenants.{tenant}]"
            if tenant not in tenants:
                self.problems.append(f"[tenants]: no identity has the tenant {shown(tenant, tenants)}")
            elif not isinstance(values, dict):
                self.problems.append(f"{where}: must be a table")
            else:
                self.only(where, values, ("weight", "rate"))
                if (weight := self.number(where, values, "weight", *_WEIGHTS)) is not None:
                    weights[tenant] = weight
                if (rate := self.number(where, values, "rate", *_RATES)) is not None:
                    rates[tenant] = rate
        return weights, rates

    def _name(self, where: str, entry: Mapping[str, Any], key: str) -> str:
        value = entry.get(key)
        if isinstance(value, str) and NAME.fullmatch(value):
            return value
        self.problems.append(f"{where}: {key} {_NAME_RULE}")
        return f"{where}'s {key}"


def _fault(kind: Credential, value: str, has_tokens: bool) -> str:
    """Say what is wrong with a credential; empty if nothing is."""
    match kind:
        case Credential.CERTIFICATE_URI:
            return (
                ""
                if re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-~]+", value)
                else "must be a URI, such as spiffe://example/shop"
            )
        case Credential.CERTIFICATE_DNS:
            # A wildcard in a certificate is no name of a caller.
            is_name = re.fullmatch(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", value)
            return "" if is_name else "must be a host name in small letters, without a wildcard"
        case Credential.JWT_SUBJECT:
            if not has_tokens:
                return "needs a table [jwt]"
            return "" if 0 < len(value) <= 255 else "must have 1 to 255 characters"
        case Credential.TOKEN_SHA256:
            return (
                ""
                if re.fullmatch("[0-9a-f]{64}", value)
                else "must be 64 small hexadecimal digits: the token's SHA-256"
            )
