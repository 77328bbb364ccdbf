"""The one gate to a bank over HTTP: a request goes out, an `Exchange` comes back, or `NoAnswer`.

1. Everything foreign that can fail (connection, TLS, HTTP, the library) fails here, and it fails into a value.
2. Nothing is inferred from an exception's class, least of all that a request was not sent: one popular transport reports
   a lost answer as a connect timeout (measured). Only an untrusted certificate is told apart, as a fault of our own set-up.
3. Redirects are not followed, nothing is decompressed, nothing is sent twice, and a body is read up to a limit.
4. The deadline is the caller's, around all its exchanges: only cancelling passes through the gate.
5. An answer that came over a connection in use may be the answer to another question. So a question can be asked over a fresh
   connection, and the connection of an answer that is not trusted can be ended.

A transport is any `httpx.AsyncBaseTransport` that limits what it reads, or hands over its response before it has read the
body. It is called directly: `httpx.AsyncClient` on top of it costs three times the CPU of the call (measured).
"""

import hashlib
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Never, cast

import httpx
import structlog

from command_service.bank.http11 import Http11Transport
from command_service.values import Evidence, NoAnswer

MAX_BODY_BYTES = 64 * 1024  # An honest answer has 300 bytes; this is what a dishonest one may cost us in memory.
MAX_RETRY_AFTER_SECONDS = 20.0  # A pause of the runner is never longer, whatever a bank wishes.
MAX_ANSWER_BYTES = 2 * MAX_BODY_BYTES  # This is on the wire. An honest head has 1 KiB; the rest is for chunks.
# Shorter than servers keep idle connections (60 s and more), so that we seldom send into one that is being closed.
IDLE_SECONDS = 20.0
# So many causes of an exception are searched for an untrusted certificate: chains have about five, and can be circles.
MAX_CAUSES = 16

_HEADERS = [
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"identity"),  # A decompressed body has no limit that could be kept.
]
JSON_CONTENT = (b"Content-Type", b"application/json")
"""The header of a body that is JSON."""

_WANTED = frozenset({b"content-encoding", b"content-type", b"retry-after"})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer that has arrived whole. What it means, and whether it is believed, is for the adapter to say."""

    status: int
    content_type: str
    retry_after_seconds: float | None
    body: bytes
    end_connection: Callable[[], None]
    """Ends the connection that brought it. It is called before anything else is awaited, or not at all."""

    def json_object(self) -> Mapping[str, object] | None:
        """The body, if it says that it is JSON and is one strict object: no key twice, no float, no NaN, no deep nest."""
        if self.content_type.partition(";")[0].strip().lower() != "application/json":
            return None
        try:
            said = _JSON.decode(self.body.decode())  # UTF-8 and nothing else: given bytes, json guesses.
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) else None

    def evidence(self, *fields: str) -> Evidence:
        """What may be kept of it, with the names of the fields that differ."""
        return Evidence(fields, self.status, len(self.body), hashlib.sha256(self.body).digest())


def open_transport(*, max_connections: int, verify: ssl.SSLContext | bool = True) -> httpx.AsyncBaseTransport:
    """Make the transport that talks to real banks. A call that finds `max_connections` busy waits, within its deadline.

    It resends nothing by itself. `verify` names the authorities that it trusts (True: those of the certifi package); variables
    of the environment, which nobody sees, do not.
    """
    return Http11Transport(
        tls=httpx.create_ssl_context(verify, trust_env=False),
        max_connections=max_connections,
        idle_seconds=IDLE_SECONDS,
        max_answer_bytes=MAX_ANSWER_BYTES,
    )


async def exchange(
    transport: httpx.AsyncBaseTransport,
    method: str,
    url: httpx.URL,
    path: str = "",
    *,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes = b"",
    fresh: bool = False,
) -> Exchange | NoAnswer:
    """Send a request and read its answer. Never raises, whatever comes back or does not; only cancelling passes.

    With `fresh` the transport of `open_transport` uses a new connection. A body goes with its content type among the headers.
    `path` is added to the URL's own, in the request's extension `target`: parsing a URL costs more than the rest of the
    request, so the one that is always the same is parsed once.
    """
    try:
        request = _request(method, url, path, headers, body, fresh)
        response = await transport.handle_async_request(request)
        async with aclosing(response):
            return await _read(response)
    except Exception as error:
        return no_answer(type(error).__name__, our_setup=_is_about_certificate(error))


def target_of(request: httpx.Request) -> str:
    """Tell the path and query of a request as they are sent."""
    target: bytes = request.extensions.get("target", request.url.raw_path)
    return target.decode("ascii")


def _request(
    method: str, url: httpx.URL, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes, fresh: bool
) -> httpx.Request:
    """Make the request that httpx would make, in a quarter of the time."""
    lengths = [(b"Content-Length", b"%d" % len(body))] if body else []
    parts = [(b"Host", url.netloc), *_HEADERS, *headers, *lengths]
    target = url.raw_path + path.encode("ascii")
    extensions = {"target": target, "fresh": fresh}
    request = httpx.Request(method, url, headers=parts, stream=httpx.ByteStream(body), extensions=extensions)
    request.read()  # Now it has its `content`, as one that httpx made.
    return request


async def _read(response: httpx.Response) -> Exchange | NoAnswer:
    headers = _wanted(response.headers.raw)
    if headers.get(b"content-encoding", "identity") != "identity":
        return no_answer("compressed")
    body = bytearray()
    async for part in cast(httpx.AsyncByteStream, response.stream):  # The raw stream: httpx would decompress.
        body += part
        if len(body) > MAX_BODY_BYTES:
            return no_answer("too large")
    return Exchange(
        response.status_code,
        headers.get(b"content-type", ""),
        _seconds(headers.get(b"retry-after", "")),
        bytes(body),
        response.extensions.get("end_connection", _nothing),
    )


def _nothing() -> None:
    """End no connection: the transport keeps none."""


def _wanted(lines: Sequence[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Pick the lines of a head that mean something to us, by their names in lower case. Lines of one name are joined."""
    head: dict[bytes, str] = {}
    for name, value in lines:
        lower = name.lower()
        if lower in _WANTED:
            text = value.decode("latin-1")
            head[lower] = f"{head[lower]}, {text}" if lower in head else text
    return head


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


def _is_about_certificate(error: BaseException | None) -> bool:
    for _ in range(MAX_CAUSES):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, ssl.SSLCertVerificationError)


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
