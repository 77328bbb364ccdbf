"""A small authority, and the certificates it issues, for trying and for tests: python -m rig.certs FOLDER

It makes, in the layout that the settings ask for, what three servers and a client need to speak TLS to each other:

    bank/ command/ query/   a certificate and key for localhost, 127.0.0.1 and ::1, for servers and for clients
    clients/shop/           a client's certificate, with the URI spiffe://chargeonce.test/shop
    clients/till.token      a token, of which policy.toml holds the SHA-256; so have two operators, ann.token and ben.token
    policy.toml             who may do what

Each folder has tls.crt, tls.key and ca.crt. The authority's own key is not kept: to issue another certificate, make all anew.
"""

import argparse
import datetime
import hashlib
import ipaddress
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOLDER = Path("data/certs")
TRUST = "spiffe://chargeonce.test"
HERE = ("127.0.0.1", "::1")
DAY = datetime.timedelta(days=1)
POLICY = """\
# Made by `make certs`, for trying. Who may do what:

[[identities]]
name = "shop"
certificate_uri = "{trust}/shop"
tenant = "shop"
roles = ["charge", "refund", "read"]

[[identities]]
name = "query-server"
certificate_uri = "{trust}/query"
roles = ["feed"]

[[identities]]
name = "till"
token_sha256 = "{till}"
tenant = "shop"
roles = ["charge", "read"]

# Two operators, since a charge in review needs two.
[[identities]]
name = "ann"
token_sha256 = "{ann}"
roles = ["operate"]

[[identities]]
name = "ben"
token_sha256 = "{ben}"
roles = ["operate"]
"""


class Authority:
    """Issues certificates. Its own is valid from a day ago for a year, unless another end is given."""

    def __init__(self, name: str = "chargeonce.test", *, not_after: datetime.datetime | None = None) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(not_after or now + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_uses_of_an_authority(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        folder: Path,
        *,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        uris: Sequence[str] = (),
        common_name: str = "",
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        client_only: bool = False,
        self_signed: bool = False,
        trusting: bytes | None = None,
    ) -> Path:
        """Write tls.crt, tls.key and ca.crt into a folder, which is made if need be, and return it.

        It is valid from an hour ago for ninety days, unless other times are given. `trusting` is the content of ca.crt, this
        authority's certificate by default. With `self_signed` it is not this authority that signs.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([] if client_only else [ExtendedKeyUsageOID.SERVER_AUTH])]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        issuer, signer = (subject, key) if self_signed else (self._name, self._key)
        names = [
            *map(x509.DNSName, dns),
            *(x509.IPAddress(ipaddress.ip_address(each)) for each in ips),
            *map(x509.UniformResourceIdentifier, uris),
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - DAY / 24)
            .not_valid_after(not_after or now + 90 * DAY)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
        certificate = builder.sign(signer, hashes.SHA256())
        folder.mkdir(parents=True, exist_ok=True)
        write_secret(folder / "tls.key", _pem(key))
        (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "ca.crt").write_bytes(self.pem if trusting is None else trusting)
        return folder


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _uses_of_an_authority() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def write_secret(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)


def make_all(folder: Path) -> None:
    """Write everything for three servers and a client on this machine."""
    authority = Authority()
    for server in ("bank", "command", "query"):
        authority.issue(folder / server, dns=["localhost"], ips=HERE, uris=[f"{TRUST}/{server}"], common_name=server)
    authority.issue(shop(folder), uris=[f"{TRUST}/shop"], common_name="shop", client_only=True)
    digests = {}
    for name in ("till", "ann", "ben"):
        token = secrets.token_urlsafe(32)
        write_secret(token_file(folder, name), f"{token}\n".encode())
        digests[name] = hashlib.sha256(token.encode()).hexdigest()
    (folder / "policy.toml").write_text(POLICY.format(trust=TRUST, **digests))


def environment(folder: Path) -> Mapping[str, str]:
    """Return the settings by which all three servers use what `make_all` wrote into a folder; a policy, if it has one."""
    policy = folder / "policy.toml"
    return {
        **({"COMMAND_POLICY": str(policy), "QUERY_POLICY": str(policy)} if policy.exists() else {}),
        "GATEWAY_MOCK_TLS": str(folder / "bank"),
        "COMMAND_TLS": str(folder / "command"),
        "COMMAND_BANK_TLS": str(folder / "command"),
        "QUERY_TLS": str(folder / "query"),
        "QUERY_FEED_TLS": str(folder / "query"),
    }


def shop(folder: Path) -> Path:
    """Return the folder of the shop's certificate, in a folder that `make_all` wrote."""
    return folder / "clients" / "shop"


def token_file(folder: Path, name: str) -> Path:
    """Return the file of somebody's token, in a folder that `make_all` wrote."""
    return folder / "clients" / f"{name}.token"


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(prog="python -m rig.certs", description="Makes certificates for trying.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"where (default: {FOLDER})")
    parser.add_argument("--again", action="store_true", help="replace those that are there")
    chosen = parser.parse_args()
    if (chosen.folder / "policy.toml").exists() and not chosen.again:
        print(f"{chosen.folder} holds certificates already; --again replaces them")
        return
    os.umask(0o077)  # who may write into a folder of authorities decides who is trusted
    make_all(chosen.folder)
    print(f"made an authority's certificates in {chosen.folder}, valid for ninety days")


if __name__ == "__main__":
    main()
