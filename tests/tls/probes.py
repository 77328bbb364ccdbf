"""What a client of a port sees before any call: whether it is taken, and whose certificate the server shows."""

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rig.certs import DAY, Authority

NOW = datetime.datetime.now(datetime.UTC)
PATIENCE_SECONDS = 60.0
# The beginning of an HTTP/2 connection: the preface, and empty SETTINGS.
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HTTP1 = b"GET /statement HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Port:
    """A port of a server, which speaks HTTP/2 to gRPC or HTTP/1.1."""

    number: int
    http2: bool

    @classmethod
    def of(cls, address: str, *, http2: bool = True) -> "Port":
        return cls(int(address.rpartition(":")[2]), http2)

    def answers(self, context: ssl.SSLContext | None) -> bool:
        """Whether it answers a client, over TLS or in plaintext. It does not if the client, or the server, is not trusted."""
        try:
            with self.connection(context) as line:
                line.sendall(_HTTP2 if self.http2 else _HTTP1)
                got = line.recv(4096)
        except OSError:  # of TLS, or of a connection that was closed or reset
            return False
        return got[3:4] == b"\x04" if self.http2 else got.startswith(b"HTTP/1.1 200")

    def connection(self, context: ssl.SSLContext | None) -> socket.socket:
        """Connect, and make the handshake. Raises OSError."""
        line = socket.create_connection(("127.0.0.1", self.number), PATIENCE_SECONDS)
        if context is None:
            return line
        try:
            return context.wrap_socket(line, server_hostname="localhost")
        except BaseException:
            line.close()
            raise

    def certificate(self, context: ssl.SSLContext) -> bytes:
        """The certificate that the server shows to new clients."""
        with self.connection(context) as line:
            assert isinstance(line, ssl.SSLSocket)
            return line.getpeercert(binary_form=True) or b""


def context(trust: bytes, shown: Path | None = None) -> ssl.SSLContext:
    """A client that trusts an authority, and shows the certificate in a folder, if any."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata=trust.decode())
    made.set_alpn_protocols(["h2"])
    if shown is not None:
        made.load_cert_chain(shown / "tls.crt", shown / "tls.key")
    return made


def strangers(folder: Path, authority: Authority) -> dict[str, Path | None]:
    """Certificates that must not be taken where the authority's are: each in a folder, None for no certificate."""
    uris = ["spiffe://chargeonce.test/shop"]
    other = Authority()  # of the same name, with another key
    return {
        "no certificate": None,
        "self-signed": authority.issue(folder / "self-signed", uris=uris, common_name="shop", self_signed=True),
        "other authority": other.issue(folder / "other", uris=uris),
        "expired": authority.issue(folder / "expired", uris=uris, not_before=NOW - 3 * DAY, not_after=NOW - DAY),
        "not yet valid": authority.issue(folder / "early", uris=uris, not_before=NOW + DAY),
    }


class Callers:
    """Threads that make calls one after the other until they are stopped, and keep what failed."""

    def __init__(self, *works: tuple[str, Callable[[], object]]) -> None:
        self.made: dict[str, int] = {name: 0 for name, _ in works}
        self.failed: list[str] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=work, daemon=True) for work in works]

    def _call(self, name: str, work: Callable[[], object]) -> None:
        while not self._is_over.is_set():
            try:
                assert work()
            except Exception as error:
                self.failed.append(f"{name}: {error!r}")
            self.made[name] += 1

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)


def eventually(what: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with suppress(OSError):
            if what():
                return
        time.sleep(0.02)
    assert what()
