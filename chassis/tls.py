"""TLS from a folder of files in the layout of Kubernetes' TLS secrets, which may be replaced while the server runs.

    tls.crt   our certificate, and the chain to its authority
    tls.key   its private key
    ca.crt    the authorities whose certificates we trust

The files are read together, and examined before they are used: the key belongs to the certificate, which is valid now and made
for this use. New connections are made with the latest files, and connections that are open live on. gRPC takes TLS 1.2 and
later, with forward secrecy and authenticated encryption only; the contexts made here take the same.
"""

import datetime
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from chassis.watched import Files, Unusable, Watched

log = structlog.get_logger()

CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"
# A client that takes longer than this for a handshake is gone, or holds connections open on purpose.
HANDSHAKE_SECONDS = 5.0
# With fewer days left the log warns, once a day.
DAYS_TO_RENEW = 14
# Of TLS 1.2. All suites of TLS 1.3 are strong.
_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Our certificate, with its chain, and its key."""

    chain: bytes
    key: bytes = field(repr=False)
    ends: datetime.datetime


@dataclass(frozen=True, slots=True)
class _Set:
    """What a folder holds, examined, and a context made of it."""

    pair: _Pair | None
    authorities: bytes | None
    context: ssl.SSLContext


class _LatestContext(ssl.SSLContext):
    """Makes each new connection with the context of the latest files.

    asyncio and uvloop keep the context that they are given, and call its `wrap_bio` for each connection. Loading new files into
    the same context would leave authorities trusted that were taken away.
    """

    watched: Watched[_Set]

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Wrap a connection."""
        return self.watched.value.context.wrap_bio(*arguments, **named)

    @classmethod
    def of(cls, watched: Watched[_Set], protocol: int) -> "_LatestContext":
        """Make one of these files."""
        made = cls(protocol)
        made.watched = watched
        return made


class ServerTls:
    """A server's side of TLS."""

    def __init__(self, folder: Path, *, client_certificates: bool) -> None:
        """Read the folder. With `client_certificates` each client must show a certificate of an authority in ca.crt.

        Raises Unusable naming the file and the reason; so it does if ca.crt is missing where it is needed.
        """
        self._client_certificates = client_certificates

        def make(files: Files) -> _Set:
            pair = _pair(files, folder, ExtendedKeyUsageOID.SERVER_AUTH)
            authorities = _authorities(files, folder / AUTHORITIES) if client_certificates else None
            context = _context(ssl.PROTOCOL_TLS_SERVER, folder, pair, authorities)
            context.verify_mode = ssl.CERT_REQUIRED if client_certificates else ssl.CERT_NONE
            _warn_near_its_end(folder / CERTIFICATE, pair.ends)
            return _Set(pair, authorities, context)

        self.watched = Watched(make, what=f"the certificates in {folder}")
        self.context: ssl.SSLContext = _LatestContext.of(self.watched, ssl.PROTOCOL_TLS_SERVER)
        """For servers of asyncio."""

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Make the credentials of one port of gRPC, which asks for the latest files at each handshake."""
        used = self.watched.value

        def latest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            if self.watched.value is used:
                return None  # as before: gRPC parses none anew
            used = self.watched.value
            return _configuration(used)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(used),
            latest,  # type: ignore[arg-type]  # its types do not know that None stands for no change
            require_client_authentication=self._client_certificates,
        )


class ClientTls:
    """A client's side of TLS: whom it trusts, and the certificate that it shows, if it has one."""

    def __init__(self, folder: Path, *, default_authorities: Path | None = None) -> None:
        """Read the folder. ca.crt names all authorities that are trusted; without it they are those of the file given, if any.

        tls.crt and tls.key are optional. Files may be replaced and added, not removed: without them we would trust others, or
        be nobody. Raises Unusable naming the file and the reason.
        """
        needed: frozenset[str] = frozenset()

        def make(files: Files) -> _Set:
            nonlocal needed
            names = (CERTIFICATE, KEY, AUTHORITIES)
            wanted = needed.union(name for name in names if files.read_if_there(folder / name) is not None)
            if not wanted:
                raise Unusable(f"{folder}: holds none of {', '.join(names)}")
            pair = _pair(files, folder, ExtendedKeyUsageOID.CLIENT_AUTH) if wanted & {CERTIFICATE, KEY} else None
            if default_authorities is not None and AUTHORITIES not in wanted:
                authorities = _authorities(files, default_authorities)
            else:
                authorities = _authorities(files, folder / AUTHORITIES)
            context = _context(ssl.PROTOCOL_TLS_CLIENT, folder, pair, authorities)
            if pair is not None:
                _warn_near_its_end(folder / CERTIFICATE, pair.ends)
            needed = wanted
            return _Set(pair, authorities, context)

        self.watched = Watched(make, what=f"the certificates in {folder}")
        self.context: ssl.SSLContext = _LatestContext.of(self.watched, ssl.PROTOCOL_TLS_CLIENT)
        """For connections of asyncio. The host's name is verified."""

    @property
    def content(self) -> object:
        """What the latest files hold, to be compared: a connection that is open was made with what they held then."""
        return self.watched.value.pair, self.watched.value.authorities

    def grpc_credentials(self) -> grpc.ChannelCredentials:
        """Make the credentials of one channel of gRPC, with the latest files. The host's name is verified."""
        now = self.watched.value
        if now.pair is None:
            return grpc.ssl_channel_credentials(now.authorities)
        return grpc.ssl_channel_credentials(now.authorities, now.pair.key, now.pair.chain)


class Holder(NamedTuple):
    """The holder of a certificate: the URIs and host names of its alternative names, and its end in seconds since 1970."""

    uris: Sequence[str]
    dns_names: Sequence[str]
    ends_at: float


NOBODY = Holder((), (), 0.0)
"""The holder of no certificate, or of one that cannot be read."""


@lru_cache(maxsize=1024)
def holder_in(certificate: bytes) -> Holder:
    """Read a certificate in PEM.

    gRPC tells the names too, but each only up to a zero byte: a stranger's name that begins with a caller's, and goes on
    after a zero, would be the caller's. And it looks at the end only when a client connects.
    """
    try:
        read = x509.load_pem_x509_certificate(certificate)
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return Holder(uris, names.get_values_for_type(x509.DNSName), read.not_valid_after_utc.timestamp())
    except Exception:  # of whatever kind: the certificate is a stranger's, whatever authority has signed it
        return NOBODY


def _configuration(used: _Set) -> grpc.ServerCertificateConfiguration:
    assert used.pair is not None
    return grpc.ssl_server_certificate_configuration([(used.pair.key, used.pair.chain)], used.authorities)


def _pair(files: Files, folder: Path, purpose: x509.ObjectIdentifier) -> _Pair:
    chain, key = files.read(folder / CERTIFICATE), files.read(folder / KEY)
    try:
        own = x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable(f"{folder / CERTIFICATE}: holds no certificate that can be read") from None
    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        raise Unusable(f"{folder / KEY}: is encrypted, and there is nobody to ask for a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable(f"{folder / KEY}: holds no private key that can be read") from None
    if private.public_key() != own.public_key():
        raise Unusable(f"{folder / KEY}: is not the key of the certificate in {CERTIFICATE}")
    _examine(folder / CERTIFICATE, own, purpose)
    return _Pair(chain, key, own.not_valid_after_utc)


def _examine(file: Path, own: x509.Certificate, purpose: x509.ObjectIdentifier) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = own.not_valid_before_utc, own.not_valid_after_utc
    if now < begins:
        raise Unusable(f"{file}: is not valid before {begins.isoformat()}")
    if now > ends:
        raise Unusable(f"{file}: expired on {ends.isoformat()}")
    try:
        uses = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        uses = None
    except (ValueError, x509.DuplicateExtension):
        raise Unusable(f"{file}: holds no certificate that can be read") from None
    if uses is not None and purpose not in uses:
        for_whom = "servers" if purpose == ExtendedKeyUsageOID.SERVER_AUTH else "clients"
        raise Unusable(f"{file}: is no certificate for {for_whom}, by its extended key usage")


def _warn_near_its_end(file: Path, ends: datetime.datetime) -> None:
    """Call it last: while another file cannot be used, all are examined again every second."""
    left = ends - datetime.datetime.now(datetime.UTC)
    if left < datetime.timedelta(days=DAYS_TO_RENEW):
        log.warning("a certificate expires soon", file=str(file), days=left.days, expires=ends.isoformat())


def _authorities(files: Files, file: Path) -> bytes:
    """Read authorities, without the remarks between them. OpenSSL judges them: of public ones not all keep to the standard."""
    found = _PEM.findall(files.read(file))
    if not found:
        raise Unusable(f"{file}: holds no certificate that can be read")
    return b"\n".join(found) + b"\n"


def _context(protocol: int, folder: Path, pair: _Pair | None, authorities: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        if pair is not None:
            # OpenSSL takes a key from a file only. If the files were replaced just now, the next look makes all anew.
            context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except OSError as error:  # an ssl.SSLError is one
        why = getattr(error, "reason", None) or type(error).__name__
        raise Unusable(f"{folder / CERTIFICATE}: cannot be used ({why})") from None
    if authorities is not None:
        try:
            context.load_verify_locations(cadata=authorities.decode("latin-1"))
        except (ssl.SSLError, TypeError):  # a TypeError: the text is not ASCII
            raise Unusable(f"{folder / AUTHORITIES}: holds no certificate that can be read") from None
        ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
        if ends and max(ends) < time.time():
            raise Unusable(f"{folder / AUTHORITIES}: every authority in it has expired")
    return context
