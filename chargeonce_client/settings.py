"""Where the servers are, and how they are called."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

_CHANNEL_OPTIONS = [
    # A request is repeated by us: gRPC's own repeats know no RetryInfo, and hide the reason behind a passed deadline.
    ("grpc.enable_retries", 0),
    # A server that is back is found within seconds; gRPC's own longest pause is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A dead link is detected within 22.5 s. The servers permit pings at most every 5 s.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 7_500),
    ("grpc.http2.ping_timeout_ms", 7_500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A web proxy that the environment names is not on the way to these servers.
    ("grpc.enable_http_proxy", 0),
]

_OF_ENVIRONMENT: dict[str, Callable[[str], Any]] = {
    "command": str,
    "query": str,
    "feed": str,
    "tls": Path,
    "token_file": Path,
    "tenant": str,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the servers are, as host:port, who calls, and how long a call may take."""

    command: str = "127.0.0.1:50051"
    """The command server."""
    query: str = "127.0.0.1:50052"
    """The query server."""
    feed: str = "127.0.0.1:50053"
    """The command server's feed."""
    tls: Path | None = None
    """A folder with ca.crt, the authorities to trust, and, if a certificate is shown, tls.crt and tls.key. None: plaintext."""
    token_file: Path | None = None
    """A file with a bearer token, which is read anew for each call. It is sent over TLS, or in plaintext to this machine."""
    tenant: str = ""
    """The tenant for which an operator speaks who belongs to none. Empty: no tenant is named."""
    patience: float = 60.0
    """The seconds for which a request is repeated, unless a call says otherwise."""
    deadline: float = 15.0
    """The longest time of one call, in seconds: one try of a request."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read CHARGEONCE_COMMAND, _QUERY, _FEED, _TLS, _TOKEN_FILE and _TENANT. What is missing or empty is as above."""
        given = {
            name: make(value)
            for name, make in _OF_ENVIRONMENT.items()
            if (value := environment.get(f"CHARGEONCE_{name.upper()}"))
        }
        return cls(**given)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what is sent with each command, query and step of the desk."""
        return (("chargeonce-tenant", self.tenant),) if self.tenant else ()

    def channel(self, address: str) -> grpc.aio.Channel:
        """Open a channel to a server. The certificates are those that the folder has now. Raises OSError."""
        if self.tls is None and self.token_file is None:
            return grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS)
        credentials = grpc.local_channel_credentials() if self.tls is None else _tls_of(self.tls)
        if self.token_file is not None:
            token = grpc.metadata_call_credentials(_Bearer(self.token_file))
            credentials = grpc.composite_channel_credentials(credentials, token)
        return grpc.aio.secure_channel(address, credentials, _CHANNEL_OPTIONS)


def _tls_of(folder: Path) -> grpc.ChannelCredentials:
    authorities = (folder / "ca.crt").read_bytes()
    if not (folder / "tls.crt").exists():
        return grpc.ssl_channel_credentials(authorities)
    return grpc.ssl_channel_credentials(
        authorities, (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
    )


class _Bearer(grpc.AuthMetadataPlugin):
    """Shows the token that a file holds now. gRPC asks in a thread of its own."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, _: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Hand over the header. A file that cannot be read fails the call, which may be repeated."""
        try:
            callback((("authorization", f"Bearer {self._file.read_text().strip()}"),), None)
        except OSError as error:
            callback((), error)
