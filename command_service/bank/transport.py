"""The one gate to a bank over HTTP: a request goes out, an `Exchange` comes back, or `NoAnswer`.

1. Everything foreign that can fail (connection, TLS, HTTP, the library) fails here, and it fails into a value.
2. Nothing is inferred from an exception's class, least of all that a request was not sent: one popular transport reports
   a lost answer as a connect timeout (measured). Only a certificate that one side does not trust is told apart, as a fault of
   our own set-up.
3. Redirects are not followed, nothing is decompressed, nothing is sent twice, and a body is read up to a limit.
4. The deadline is the caller's, around all its exchanges: only cancelling passes through the gate.
5. An answer that came over a connection in use may be the answer to another question. So a question can be asked over a fresh
   connection, and the connection of an answer that is not trusted can be ended.

A transport is any `httpx.AsyncBaseTransport` that limits what it reads, or hands over its response before it has read the
body. It is called directly: `httpx.AsyncClient` on top of it costs three times the CPU of the call (measured). Ours is asked
in bytes, without the objects of httpx.
"""

import hashlib
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Never, cast

import httpx
import structlog

from chassis import tracing
from command_service.bank.http11 import Arrived, Http11Transport, Origin, lines, written
from command_service.bank.tunnel import NoTunnel, Proxy
from command_service.values import Evidence, NoAnswer, value

MAX_BODY_BYTES = 64 * 1024  # An honest answer has 300 bytes; this is what a dishonest one may cost us in memory.
MAX_RETRY_AFTER_SECONDS = 20.0  # A pause of the runner is never longer, whatever a bank wishes.
MAX_ANSWER_BYTES = 2 * MAX_BODY_BYTES  # This is on the wire. An honest head has 1 KiB; the rest is for chunks.
# Shorter than servers keep idle connections (60 s and more), so that we seldom send into one that is being closed.
IDLE_SECONDS = 20.0
# So many causes of an exception are searched for an untrusted certificate: chains have about five, and can be circles.
MAX_CAUSES = 16

# What is wrong with the bank's certificate, by OpenSSL's verification codes.
_DISTRUST = {9: "is not valid yet", 10: "has expired", 62: "is for another name", 64: "is for another address"}
# What the bank's alerts say of our certificate, in OpenSSL's words. Over TLS 1.3 they come after our handshake has ended.
_OUR_CERTIFICATE_REFUSED = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    }
)

_HEADERS = [
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"identity"),  # A decompressed body has no limit that could be kept.
]
JSON_CONTENT = (b"Content-Type", b"application/json")
"""The header of a body that is JSON."""
FORM_CONTENT = (b"Content-Type", b"application/x-www-form-urlencoded")
"""The header of a body that is a form."""

_WANTED = frozenset({b"content-encoding", b"content-type", b"retry-after"})

log = structlog.get_logger()


@value
class Exchange:
    """An answer that has arrived whole. What it means, and whether it is believed, is for the adapter to say."""

    status: int
    content_type: str
    retry_after_seconds: float | None
    body: bytes
    end_connection: Callable[[], None]
    """Ends the connection that brought it. It is called before anything else is awaited, or not at all."""

    def json_object(self, *, takes_fractions: bool = False) -> Mapping[str, object] | None:
        """The body, if it says that it is JSON and is one strict object: no key twice, no float, no NaN, no deep nest.

        A bank may have fractions where no amount stands: `takes_fractions` makes each a Decimal, never equal to an int's type.
        """
        if self.content_type.partition(";")[0].strip().lower() != "application/json":
            return None
        decoder = _JSON_WITH_FRACTIONS if takes_fractions else _JSON
        try:
            said = decoder.decode(self.body.decode())  # UTF-8 and nothing else: given bytes, json guesses.
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) else None

    def evidence(self, *fields: str) -> Evidence:
        """What may be kept of it, with the names of the fields that differ."""
        return Evidence(fields, self.status, len(self.body), hashlib.sha256(self.body).digest())


def open_transport(
    *, max_connections: int, verify: ssl.SSLContext | bool = True, proxy: str = ""
) -> httpx.AsyncBaseTransport:
    """Make the transport that talks to real banks. A call that finds `max_connections` busy waits, within its deadline.

    It resends nothing by itself. `verify` names the authorities that it trusts (True: those of the certifi package); variables
    of the environment, which nobody sees, do not. `proxy` is the URL of a proxy, with a port, that leads to https banks.
    """
    url = httpx.URL(proxy)
    return Http11Transport(
        tls=httpx.create_ssl_context(verify, trust_env=False),
        max_connections=max_connections,
        idle_seconds=IDLE_SECONDS,
        max_answer_bytes=MAX_ANSWER_BYTES,
        proxy=Proxy(url.host, url.port) if url.port is not None else None,
    )


class Endpoint:
    """A bank's URL. What all requests to it share is parsed and written once: it would cost more than the rest of a request."""

    def __init__(self, transport: httpx.AsyncBaseTransport, url: str) -> None:
        """Use a transport, which is closed with the endpoint, for `url`. Raises httpx.InvalidURL."""
        self._transport = transport
        self._url = httpx.URL(url)
        self._origin = Origin.of(self._url)
        self._headers = [(b"Host", self._url.netloc), *_HEADERS]
        self._prepared = lines(self._headers)

    async def ask(
        self,
        method: str,
        path: str = "",
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        fresh: bool = False,
    ) -> Exchange | NoAnswer:
        """Send a request and read its answer. Never raises, whatever comes back or does not; only cancelling passes.

        `path` is added to the URL's own. A body goes with its content type among the headers. With `fresh` the transport of
        `open_transport` uses a new connection.
        """
        try:
            target = self._url.raw_path + path.encode("ascii")
            if context := tracing.current():
                headers = [*headers, (b"traceparent", context.encode())]
            if body:
                headers = [*headers, (b"Content-Length", b"%d" % len(body))]
            if isinstance(self._transport, Http11Transport):
                message = written(b"%b %b HTTP/1.1" % (method.encode("ascii"), target), self._prepared, headers, body)
                return _read(await self._transport.ask(self._origin, message, fresh=fresh))
            return _read(await self._through_httpx(method, target, headers, body, fresh))
        except Exception as error:
            return _failed(error)

    async def _through_httpx(
        self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes, fresh: bool
    ) -> Arrived:
        """Ask over any other transport of httpx. Its body is read as it came, since httpx would decompress, up to a limit."""
        request = httpx.Request(
            method,
            self._url,
            headers=[*self._headers, *headers],
            stream=httpx.ByteStream(body),
            extensions={"target": target, "fresh": fresh},
        )
        request.read()  # Now it has its `content`, as one that httpx made.
        response = await self._transport.handle_async_request(request)
        got = bytearray()
        async with aclosing(response):
            async for part in cast(httpx.AsyncByteStream, response.stream):
                got += part
                if len(got) > MAX_BODY_BYTES:
                    break
        end_connection = response.extensions.get("end_connection", _nothing)
        return Arrived(response.status_code, response.headers.raw, bytes(got), end_connection)

    async def close(self) -> None:
        """Let go of connections."""
        await self._transport.aclose()


def target_of(request: httpx.Request) -> str:
    """Tell the path and query of a request as they are sent."""
    target: bytes = request.extensions.get("target", request.url.raw_path)
    return target.decode("ascii")


def _read(got: Arrived) -> Exchange | NoAnswer:
    headers = _wanted(got.headers)
    if headers.get(b"content-encoding", "identity") != "identity":
        return no_answer("compressed")
    if len(got.body) > MAX_BODY_BYTES:
        return no_answer("too large")
    retry_after_seconds = _seconds(headers.get(b"retry-after", ""))
    return Exchange(got.status, headers.get(b"content-type", ""), retry_after_seconds, got.body, got.end_connection)


def _nothing() -> None:
    """End no connection: the transport keeps none."""


def _wanted(head: Sequence[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Pick the lines of a head that mean something to us, by their names in lower case. Lines of one name are joined."""
    wanted: dict[bytes, str] = {}
    for name, content in head:
        lower = name.lower()
        if lower in _WANTED:
            text = content.decode("latin-1")
            wanted[lower] = f"{wanted[lower]}, {text}" if lower in wanted else text
    return wanted


def no_answer(why: str, *, retry_after_seconds: float | None = None, our_setup: bool = False) -> NoAnswer:
    """Make a `NoAnswer` whose reason goes to the log and nowhere else. `why` is our own word, never the bank's text."""
    tell = log.error if our_setup else log.warning  # People have to mend our set-up; of the rest a bank recovers.
    tell("the bank gave no answer", why=why, our_setup=our_setup)
    return NoAnswer(retry_after_seconds, our_setup)


def _seconds(retry_after: str) -> float | None:
    """Read the pause that RFC 9110, 10.2.3 lets a server ask for, within our limits. None for garbage, and for no text."""
    if not retry_after:
        return None  # As nearly always; looking for a date in it would cost as much as the call.
    if retry_after.isascii() and retry_after.isdigit():
        wanted = float(retry_after)  # Not int(), which raises for thousands of digits.
    else:
        try:
            until = parsedate_to_datetime(retry_after)  # In any of the three forms of RFC 9110, 5.6.7.
        except Exception:  # Of garbage. It is no reason to lose the answer that it stands in.
            return None
        # The oldest form names no zone: all dates of HTTP are in GMT.
        wanted = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(wanted, 0.0), MAX_RETRY_AFTER_SECONDS)


def _failed(error: Exception) -> NoAnswer:
    """Say why there is no answer: by the exception's name, or OpenSSL's constant where a certificate is not trusted."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        match cause:
            case None:
                break
            case ssl.SSLCertVerificationError():
                distrust = _DISTRUST.get(getattr(cause, "verify_code", 0), "is of no authority that we trust")
                return no_answer(f"its certificate {distrust}", our_setup=True)
            case ssl.SSLError(reason=reason) if reason in _OUR_CERTIFICATE_REFUSED:
                return no_answer(f"it does not accept our certificate ({reason})", our_setup=True)
            case NoTunnel(our_setup=our_setup):
                return no_answer(str(cause), our_setup=our_setup)
        cause = cause.__cause__ or cause.__context__
    return no_answer(type(error).__name__)


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    said = dict(pairs)
    if len(said) != len(pairs):
        raise ValueError("a key twice")
    return said


def _refuse(_: str) -> Never:
    raise ValueError("not a number we take")


_JSON = json.JSONDecoder(
    object_pairs_hook=_each_key_once,
    parse_float=_refuse,  # 1e3 is an amount to some and garbage to others.
    parse_constant=_refuse,
)
_JSON_WITH_FRACTIONS = json.JSONDecoder(object_pairs_hook=_each_key_once, parse_float=Decimal, parse_constant=_refuse)
