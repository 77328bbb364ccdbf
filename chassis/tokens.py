"""Bearer tokens of an identity provider: signed JWTs (RFC 7519), checked as RFC 8725 advises.

The algorithms are the policy's, never the token's; a key is looked up by its exact id in a local set; what a token says of
other keys (`jku`, `x5u`, `jwk`) is not read. Symmetric algorithms are not known at all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jwt

# The signatures that a policy may allow. With a symmetric one, whoever verifies could also sign.
ALGORITHMS = ("ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
USUAL_ALGORITHMS = ("ES256", "EdDSA", "RS256")
# The clocks of two machines of one operator differ by less.
LEEWAY_SECONDS = 30
# grpc itself refuses metadata of some 16 KB; a token has one or two.
LONGEST_TOKEN = 8 << 10
_REQUIRED = ("iss", "aud", "sub", "exp")


class TokenRefused(Exception):
    """A token that proves nothing. The text is ours, and holds nothing of the token."""


class KeysUnusable(Exception):
    """A set of keys that cannot be used. The text is ours, and holds nothing of a key."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must satisfy: the issuer, the audience, the allowed algorithms, and the provider's keys by their ids."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    keys: Mapping[str, jwt.PyJWK]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says: whom it names, and the time in seconds since 1970 at which it ends, leeway included."""

    subject: str
    ends_at: float


def read_keys(content: bytes) -> Mapping[str, jwt.PyJWK]:
    """Read a JWK Set (RFC 7517). Keys for other uses than signatures are left out. Raises KeysUnusable."""
    try:
        listed = json.loads(content)["keys"]
        entries = [dict(entry) for entry in listed if entry.get("use", "sig") == "sig"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeysUnusable('it is not a JWK Set: {"keys": [...]}') from None
    keys: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        kid = entry.get("kid")
        if not isinstance(kid, str) or not kid:
            raise KeysUnusable("a key has no kid: tokens name their key by it")
        if kid in keys:
            raise KeysUnusable("two keys have the same kid")
        if "d" in entry or "k" in entry:
            raise KeysUnusable("it holds a private or symmetric key: only public ones belong here")
        try:
            keys[kid] = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):  # their texts quote the key
            raise KeysUnusable("a key cannot be read") from None
    if not keys:
        raise KeysUnusable("it holds no key for signatures")
    return keys


def verified(token: str, rules: TokenRules) -> Claims:
    """Verify a token. Raises TokenRefused."""
    if len(token) > LONGEST_TOKEN:
        raise TokenRefused("the token is too long")
    try:
        header = jwt.get_unverified_header(token)
    except Exception:  # of whatever kind: it is a stranger's text
        raise TokenRefused("the token cannot be read") from None
    kid = header.get("kid")
    key = rules.keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise TokenRefused("the token's key is not known")
    if "crit" in header:
        raise TokenRefused("the token asks for an extension")
    if key.algorithm_name not in rules.algorithms or header.get("alg") != key.algorithm_name:
        raise TokenRefused("the token's algorithm is not allowed")
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=rules.issuer,
            audience=rules.audience,
            leeway=LEEWAY_SECONDS,
            options={"require": list(_REQUIRED), "enforce_minimum_key_length": True},
        )
        return Claims(str(claims["sub"]), float(claims["exp"]) + LEEWAY_SECONDS)
    except jwt.ExpiredSignatureError:
        raise TokenRefused("the token has expired") from None
    except jwt.ImmatureSignatureError:
        raise TokenRefused("the token is not valid yet") from None
    except jwt.InvalidSignatureError:
        raise TokenRefused("the token's signature is wrong") from None
    except jwt.InvalidAudienceError:
        raise TokenRefused("the token is for another audience") from None
    except jwt.InvalidIssuerError:
        raise TokenRefused("the token is of another issuer") from None
    except Exception:  # a claim that is missing or no claim at all: libraries raise more than they document
        raise TokenRefused("the token's claims are incomplete") from None
