# mypy: disable-error-code="import-not-found"
# (localstripe and aiohttp are installed in build/banks-venv only)
"""localstripe on loopback: build/banks-venv/bin/python tests/banks/localstripe_server.py PORT

Its own command listens on every interface of the machine and writes its store to a file in /tmp after each request; here it
does neither. It lacks some of Stripe's API that the adapter needs. That is added, and nothing that decides about money:

* it refuses parameters that Stripe takes: `return_url` and `off_session` of confirm, `cancellation_reason` of cancel,
  `metadata` of capture. They are taken, and the two that Stripe shows are shown
* it names no address for the customer's step. Here it is a page of ours, which ends the step by localstripe's own means
* it plays an older version of the API: the rest of a partial capture is a refund there. In the version that the adapter pins it
  is none, and a charge says what was captured of it
* there is no search. The one query that the adapter makes is answered from the store, the newest intent first
* `GET /_config/books` tells all that the store holds of money
"""

import re
import sys

from aiohttp import web
from localstripe import server
from localstripe.errors import UserError
from localstripe.resources import Charge, PaymentIntent, PaymentMethod, Refund, Store, store

QUERY = re.compile(r"metadata\['reference'\]:'([^'\\]+)'")
# localstripe asks for no key below this path.
OPEN = "/_config"


async def confirm(request: web.Request) -> web.Response:
    """Confirm an intent, and name the customer's page if it wants the customer."""
    order = await server.get_post_data(request) or {}
    intent_id, return_url = request.match_info["id"], order.pop("return_url", None)
    order.pop("off_session", None)
    expand = order.pop("expand", None)
    intent = PaymentIntent._api_confirm(intent_id, **order)
    if intent.next_action and return_url:
        page = f"http://{request.host}{OPEN}/customer/{intent_id}"
        intent.next_action = {
            "type": "redirect_to_url",
            "redirect_to_url": {"url": page, "return_url": return_url},
        }
    return server.json_response(intent._export(expand=expand))


async def cancel(request: web.Request) -> web.Response:
    """Cancel an intent, for a reason that it shows from then on."""
    order = await server.get_post_data(request) or {}
    reason, expand = order.pop("cancellation_reason", None), order.pop("expand", None)
    intent = PaymentIntent._api_cancel(request.match_info["id"], **order)
    intent.cancellation_reason = reason
    return server.json_response(intent._export(expand=expand))


async def capture(request: web.Request) -> web.Response:
    """Capture an intent, and add to its metadata."""
    order = await server.get_post_data(request) or {}
    metadata, expand = order.pop("metadata", {}), order.pop("expand", None)
    intent = PaymentIntent._api_capture(request.match_info["id"], **order)
    intent.metadata.update(metadata)
    intent.amount_received = int(order.get("amount_to_capture", intent.amount))
    return server.json_response(intent._export(expand=expand))


async def refunds(request: web.Request) -> web.Response:
    """List refunds that somebody has ordered."""
    listed = Refund._api_list_all(request.path, **server.unflatten_data(request.query))
    listed._list = [refund for refund in listed._list if refund.payment_intent]
    return server.json_response(listed._export())


async def search(request: web.Request) -> web.Response:
    """Find the intents of a reference."""
    asked = QUERY.fullmatch(request.query.get("query", ""))
    if asked is None:
        raise UserError(400, "a query that this search does not know")
    found = [intent for intent in reversed(_all(PaymentIntent)) if intent.metadata.get("reference") == asked[1]]
    page = {"object": "search_result", "data": [intent._export() for intent in found], "has_more": False}
    return server.json_response({**page, "next_page": None, "url": request.path})


async def customer(request: web.Request) -> web.Response:
    """Take the customer's step; with `?fails` it fails."""
    intent = PaymentIntent._api_retrieve(request.match_info["id"])
    PaymentIntent._api_authenticate(intent.id, intent.client_secret, success="fails" not in request.query)
    return web.Response(text="done")


async def books(_: web.Request) -> web.Response:
    """Tell all intents, charges and refunds, in their order."""
    return server.json_response(
        {cls.object: [one._export() for one in _all(cls)] for cls in (PaymentIntent, Charge, Refund)}
    )


def _all(cls: type) -> list[PaymentIntent]:
    return [one for key, one in store.items() if key.startswith(f"{cls.object}:")]  # type: ignore[attr-defined]


def _captured(charge: Charge) -> int:
    rest = sum(refund.amount for refund in charge.refunds._list if not refund.payment_intent)
    return int(charge.amount - rest) if charge.captured and charge.status == "succeeded" else 0


def _refunded(charge: Charge) -> int:
    return sum(int(refund.amount) for refund in charge.refunds._list if refund.payment_intent)


def application() -> web.Application:
    """Make localstripe's application, with our routes before its own."""
    app = web.Application(middlewares=[server.error_middleware, server.auth_middleware])
    app.router.add_get(f"{OPEN}/books", books)
    app.router.add_get(f"{OPEN}/customer/{{id}}", customer)
    app.router.add_get("/v1/payment_intents/search", search)
    app.router.add_get("/v1/refunds", refunds)
    for name, handler in (("confirm", confirm), ("cancel", cancel), ("capture", capture)):
        app.router.add_post(f"/v1/payment_intents/{{id}}/{name}", handler)
    for cls in (PaymentIntent, PaymentMethod, Charge, Refund):
        url = f"/v1/{cls.object}s"
        app.router.add_post(url, server.api_create(cls, url))
        app.router.add_get(url, server.api_list_all(cls, url))
        app.router.add_get(f"{url}/{{id}}", server.api_retrieve(cls, f"{url}/{{id}}"))
        app.router.add_post(f"{url}/{{id}}", server.api_update(cls, f"{url}/{{id}}"))
    return app


if __name__ == "__main__":
    Store.dump_to_disk = lambda _: None
    Charge.amount_captured, Charge.amount_refunded = property(_captured), property(_refunded)
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
