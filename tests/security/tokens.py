"""An identity provider for tests: its keys, and tokens that it or somebody else signs."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://id.example", "chargeonce"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # to be refused


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    """A key's public half as a JWK."""
    algorithm: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def key_set(*keys: Mapping[str, Any]) -> bytes:
    """A JWK Set; without keys that of the usual provider."""
    usual = (public(EC_KEY, "ec-1"), public(RSA_KEY, "rsa-1"), public(SHORT_RSA_KEY, "short-1"))
    return json.dumps({"keys": list(keys or usual)}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a good token, some of them changed; None leaves one out."""
    now = int(time.time())
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop-jwt", "exp": now + 300, "nbf": now - 5, **changed}
    return {name: value for name, value in whole.items() if value is not None}


def signed(
    said: Mapping[str, Any] | None = None, *, key: Any = EC_KEY, kid: str | None = "ec-1", **headers: Any
) -> str:
    """A signed token."""
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    named = {} if kid is None else {"kid": kid}
    return jwt.encode(dict(said or claims()), key, algorithm=algorithm, headers={**named, **headers})


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def by_hand(header: Mapping[str, Any], said: Mapping[str, Any], signature: bytes = b"") -> str:
    """A token that no library would make."""
    return f"{_part(json.dumps(header).encode())}.{_part(json.dumps(said).encode())}.{_part(signature)}"


def unsigned(said: Mapping[str, Any] | None = None) -> str:
    """A token of the algorithm none."""
    return by_hand({"alg": "none", "typ": "JWT", "kid": "ec-1"}, said or claims())


def signed_by_the_public_key() -> str:
    """A token of a symmetric algorithm, whose secret is a public key's own text."""
    secret = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    start = by_hand({"alg": "HS256", "typ": "JWT", "kid": "rsa-1"}, claims()).rpartition(".")[0]
    return f"{start}.{_part(hmac.new(secret, start.encode(), hashlib.sha256).digest())}"


def signed_by_the_short_key() -> str:
    """A token with a true signature of a key that is too short to be trusted."""
    start = by_hand({"alg": "RS256", "typ": "JWT", "kid": "short-1"}, claims()).rpartition(".")[0]
    return f"{start}.{_part(SHORT_RSA_KEY.sign(start.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def forged() -> dict[str, str]:
    """Tokens that prove nothing, by what is wrong with them."""
    now = int(time.time())
    return {
        "alg none": unsigned(),
        "alg none, in capitals": by_hand({"alg": "NONE", "kid": "ec-1"}, claims()),
        "HS256 signed by the public key": signed_by_the_public_key(),
        "another algorithm than its key's": by_hand({"alg": "RS256", "kid": "ec-1"}, claims(), b"x" * 64),
        "a key too short": signed_by_the_short_key(),
        "signed by another key": signed(key=OTHER_KEY),
        "wrong audience": signed(claims(aud="another")),
        "no audience": signed(claims(aud=None)),
        "wrong issuer": signed(claims(iss="https://id.example.evil")),
        "no issuer": signed(claims(iss=None)),
        "expired": signed(claims(exp=now - 31)),
        "no expiry": signed(claims(exp=None)),
        "an expiry that is no number": by_hand({"alg": "ES256", "kid": "ec-1"}, claims(exp="soon"), b"x" * 64),
        "not valid yet": signed(claims(nbf=now + 60)),
        "no subject": signed(claims(sub=None)),
        "an unknown subject": signed(claims(sub="nobody")),
        "a subject that has ours as prefix": signed(claims(sub="shop-jwt2")),
        "no kid": signed(kid=None),
        "an unknown kid": signed(kid="ec-2"),
        "kid with ../": signed(kid="../../../../../../etc/passwd"),
        "kid that is a list": by_hand({"alg": "ES256", "kid": ["ec-1"]}, claims(), b"x" * 64),
        "jku": signed(key=OTHER_KEY, jku="http://127.0.0.1:1/keys"),
        "jwk of its own": signed(key=OTHER_KEY, jwk=public(OTHER_KEY, "ec-1")),
        "crit": signed(crit=["exp"]),
        "claims changed after signing": _with_claims(signed(), claims(sub="till-jwt")),
        "1 MB long": signed(claims(note="x" * (1 << 20))),
        "9 KB long": signed(claims(note="x" * 7_000)),
        "no JWT": "letmein",
        "dots only": "..",
        "claims that are no object": by_hand({"alg": "ES256", "kid": "ec-1"}, {}, b"")[:-1],
    }


def _with_claims(token: str, said: Mapping[str, Any]) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{_part(json.dumps(said).encode())}.{signature}"
