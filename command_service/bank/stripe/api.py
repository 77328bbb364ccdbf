"""Stripe's API as HTTP: the headers, the forms, and what an answer that is no success comes to."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, assert_never
from urllib.parse import urlencode

import httpx

from chassis.secret import Secret
from command_service.bank.dialect import Refusal, Reply
from command_service.bank.stripe.errors import Verdict, verdict_of
from command_service.bank.stripe.objects import page_in
from command_service.bank.transport import FORM_CONTENT, Endpoint, Exchange, no_answer
from command_service.values import InProgress, NoAnswer

VERSION = b"2026-08-26.dahlia"

Form = Sequence[tuple[str, str]]


class Page(NamedTuple):
    """A page of a list or of a search."""

    got: Exchange
    data: Sequence[Mapping[str, object]]
    has_more: bool


class Unsettled(NamedTuple):
    """An error in answer to an order that is no end. `reply` is what it comes to if a look-up finds the transaction open."""

    reply: Reply

    @property
    def is_unknown(self) -> bool:
        """Whether it is no error that we know: the order may have been done."""
        return isinstance(self.reply, NoAnswer)


class Api:
    """Stripe, as our account's key is shown it."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, key: Callable[[], Secret]) -> None:
        """Stripe at `url`. `key` is asked at each request: the file may have been replaced."""
        self._endpoint = Endpoint(transport, url.rstrip("/") + "/v1")
        self._key = key

    async def get(self, path: str, form: Form, *, fresh: bool) -> Exchange | NoAnswer:
        """Look something up."""
        return await self._endpoint.ask("GET", f"{path}?{urlencode(form)}", headers=self._headers(), fresh=fresh)

    async def post(self, path: str, form: Form, *, key: str = "", fresh: bool) -> Exchange | NoAnswer:
        """Order something; without a key, if a repeated order does no harm."""
        headers = [*self._headers(), FORM_CONTENT]
        if key:
            headers.append((b"Idempotency-Key", key.encode("ascii")))
        return await self._endpoint.ask(
            "POST", path, headers=headers, body=urlencode(form).encode("ascii"), fresh=fresh
        )

    async def page(self, path: str, form: Form) -> Page | Reply:
        """Read a page, over a connection of its own: an empty one names nothing by which it could be told from another's."""
        got = await self.get(path, form, fresh=True)
        if isinstance(got, NoAnswer):
            return got
        got.end_connection()
        page = page_in(said_in(got)) if got.status == 200 else None
        if page is None:
            failed = look_up_failed(got)
            return no_answer("a list that cannot be read") if isinstance(failed, Refusal) else failed
        return Page(got, *page)

    async def close(self) -> None:
        """Let go of connections."""
        await self._endpoint.close()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        bearer = f"Bearer {self._key().reveal()}".encode("ascii")
        return [(b"Authorization", bearer), (b"Stripe-Version", VERSION)]


def said_in(got: Exchange) -> Mapping[str, object]:
    """Return what an answer says; nothing if it is not JSON. Stripe has fractions where no amount stands."""
    return got.json_object(takes_fractions=True) or {}


def look_up_failed(got: Exchange) -> Refusal | InProgress | NoAnswer:
    """Judge an answer to a look-up that shows nothing: a refusal if Stripe has no such object."""
    if (unheard := _unheard(got)) is not None:
        return unheard
    verdict = verdict_of(said_in(got))
    if verdict is Verdict.BUSY:
        return InProgress(got.retry_after_seconds)
    if got.status == 404 and verdict is Verdict.REFUSED:
        return Refusal(got)
    return no_answer(f"status {got.status}", retry_after_seconds=got.retry_after_seconds)


def order_failed(got: Exchange) -> Unsettled | Refusal | InProgress | NoAnswer:
    """Judge an answer to an order that shows nothing of what was ordered."""
    if (unheard := _unheard(got)) is not None:
        return unheard
    match verdict_of(said_in(got)) if got.status >= 400 else None:
        case None:
            return no_answer(f"status {got.status}", retry_after_seconds=got.retry_after_seconds)
        case Verdict.REFUSED | Verdict.CLASHES if got.status < 500:
            return Refusal(got)
        case Verdict.BUSY:
            return InProgress(got.retry_after_seconds)
        case Verdict.ENDED if got.status < 500:
            return Unsettled(Refusal(got))
        case Verdict.LAPSING:
            return Unsettled(InProgress(got.retry_after_seconds))
        case Verdict.UNKNOWN | Verdict.REFUSED | Verdict.CLASHES | Verdict.ENDED:
            return Unsettled(NoAnswer(got.retry_after_seconds))
        case verdict:
            assert_never(verdict)


def is_denied(refusal: Refusal) -> bool:
    """Whether Stripe denies the order itself, and not the use of its key."""
    return refusal.exchange is not None and verdict_of(said_in(refusal.exchange)) is Verdict.REFUSED


def _unheard(got: Exchange) -> NoAnswer | None:
    """An answer whose status alone says that the request was not looked at."""
    if got.status in (401, 403):
        return no_answer(f"status {got.status}", our_setup=True)
    if got.status == 429:
        return no_answer("status 429", retry_after_seconds=got.retry_after_seconds)
    return None
