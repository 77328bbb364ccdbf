"""The page to which the customer is sent: it shows what is to be paid, and takes the customer's step.

It loads nothing and runs no script. Its two buttons are forms, so that a test takes the step by two plain requests.
"""

import html

from gateway_mock.model import REQUIRES_ACTION, State, Transaction
from gateway_mock.wire import Answer

_HEADERS = (
    ("content-security-policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"),
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
)
_SAYS = {
    State.CREATED: "There is nothing to confirm.",
    State.EXECUTED: "Confirmed: the payment is made.",
    State.DECLINED: "The payment was declined.",
    State.EXPIRED: "It is too late: the payment was not made.",
    State.CANCELLED: "The payment was called off.",
}


def shown(known: Transaction | None) -> Answer:
    """Make the page of a transaction as it stands; None: there is none of this token."""
    if known is None:
        return _page(404, "<p>This payment is not known.</p>")
    amount = f"{known.amount_minor:,} {html.escape(known.currency)}"
    what = f"<p>Payment of <strong>{amount}</strong>, in minor units, by {html.escape(known.card)}.</p>"
    if known.state is not REQUIRES_ACTION:
        back = f'<p><a href="{html.escape(known.return_url)}">Back to the shop</a></p>' if known.return_url else ""
        return _page(200, f"{what}<p>{_SAYS[known.state]}</p>{back}")
    buttons = "".join(
        f'<form method="post" action="/customer/{html.escape(known.token)}/{action}"><button>{word}</button></form>'
        for action, word in (("confirm", "Confirm"), ("refuse", "Refuse"))
    )
    return _page(200, f"{what}<p>Is it you who pays?</p>{buttons}")


def sent_on(known: Transaction) -> Answer:
    """After the step: send the customer back to where the order says, else to the page."""
    return Answer(303, b"", (*_HEADERS, ("location", known.return_url or f"/customer/{known.token}")), "text/plain")


def _page(status: int, content: str) -> Answer:
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Mock bank</title><h1>Mock bank</h1>{content}</html>'
    return Answer(status, page.encode(), _HEADERS, "text/html; charset=utf-8")
