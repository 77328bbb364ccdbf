"""The dialect of Stripe: PaymentIntents over plain HTTPS, form-encoded, without Stripe's library.

The API's version is pinned to 2026-08-26.dahlia: that of the OpenAPI in stripe-mock 0.203.0, which has every path, parameter
and member that is used here. An account's own default version does not matter.

A charge or an authorize takes two steps. Its token is the id of an intent, which also is the id of the transaction:

    request_token   POST /payment_intents, unconfirmed: no money can move. Key: our reference and the number of expired tokens
    execute         GET the intent; if it is to be confirmed, POST /payment_intents/{token}/confirm; what is no end is looked up
    cancel          GET the intent; unless it is executed or closed, POST /payment_intents/{token}/cancel; see 4

A capture, void or refund takes one. Its token is our own reference, and no call is made for it. `execute` sends the order under
the token as key, and our reference in the metadata, by which a look-up finds it: POST /payment_intents/{on}/capture, .../cancel
(after our reference was left in the metadata, since a cancel takes none) or POST /refunds.

What Stripe does, and what is done about it (https://docs.stripe.com/api/idempotent_requests and /error-low-level):

1. *Keys are forgotten* after 24 hours at the earliest. From `REMEMBERS_SECONDS` on an operation is looked up before each step:
   that leaves four hours to a request that is still on its way, and to clocks that differ. A request that is sent after a
   look-up bears the same key again, so that of two that were on their way only one is done. An intent of our reference is
   looked up by search, which may lag by a minute, "up to an hour behind during outages": intents that young are covered by
   their key. Where search is not offered (India), a token step that old comes to no answer and is given up in the end. A charge
   whose token a restored journal has lost is called off by the key of its first token step, if the search shows nothing.
2. *Saved answers are replayed*, a 500 too, whatever has happened since. Only an end is taken from an answer to an order; else
   the transaction is looked up within the question. No answer at all is not looked up: the step is repeated under its key. If
   a 500 was saved of an order that was not done, the order waits until its key is forgotten.
3. *A declined intent can be confirmed again*: it goes back to `requires_payment_method`. The execute step cancels it, and
   `two_step` looks it up before it says Declined. If a confirmation wins against the cancel, that look-up says so. A look-up
   changes nothing: to it the intent is open, and the next execute step closes it. So is one whose customer has not taken the
   step within `customer_seconds` of the intent's creation, or cannot, since Stripe names no address for it.
4. *A cancel lets a hold go.* So a calling off looks first, and an intent that is authorized is told as executed. One that may
   still be authorized, a declined one too, is disarmed before it is cancelled: its payment method is taken away, which Stripe
   does only while it is open ("You may only update the payment_method of a PaymentIntent with one of the following statuses:
   requires_payment_method, requires_confirmation, requires_action").
5. *Lists name nothing of ours if they are empty.* So they come over connections of their own. For a refund the intent is read
   first: if it has no room although the list, read later, does not have the refund, then it was not our refund that took the
   room. A look-up whose answer does not name our intent decides nothing.
6. *A hold is captured once*, and let go whole. A capture that is neither final nor of the whole hold, and a void of a part, are
   refused in the token step, where nothing is sent. The core's book asks for no refund beyond what was captured; if refunds
   were made elsewhere, such a refund is declined, and would be done if one of those failed later and it was sent once more.
7. *A confirmation may be refused for ever*, as with a payment method that was used once without a customer: "It may not be used
   again", in an `invalid_request_error` without a code. (No page of Stripe's says so, nor whether the creation is refused as
   well; then the token step hears it.) Refused over a fresh connection too, while its intent still waits, it is declined: the
   intent is marked and disarmed by one order, then closed as in 3. If an answer is lost on the way, the next execute step finds
   the intent unmarked, and confirms it under its key as before; or marked, and cancels it; or cancelled. A late confirmation
   that comes before the mark may pay: then Stripe refuses the mark, and a look-up tells what was paid. After the mark Stripe
   refuses the confirmation. A late mark is refused unless the intent is open. What is refused for its key goes to people.
8. *Amounts* are converted (`units`); one that Stripe has no unit for is refused in the token step.

An order is the same whenever it is sent, since other parameters under a known key are an `idempotency_error`, a refusal. The
confirmation's key has a digest of its parameters: `return_url` may be configured anew, and an intent is charged once anyway.
"""

import time
from collections.abc import Callable

import httpx

from chassis.secret import Secret
from command_service.bank.stripe.dialect import Stripe
from command_service.bank.two_step import TwoStepBank

REMEMBERS_SECONDS = 20 * 3600.0
"""For how long keys are trusted: Stripe keeps them for 24 hours at least."""
CUSTOMER_SECONDS = 3600.0
"""How long the customer's step is awaited unless the settings say otherwise. Stripe itself waits for ever.

Most take it within minutes. Each that is awaited takes a place among the unfinished charges.
"""


def stripe_bank(
    url: str,
    transport: httpx.AsyncBaseTransport,
    call_timeout_seconds: float,
    *,
    key: Callable[[], Secret],
    return_url: str,
    customer_seconds: float = CUSTOMER_SECONDS,
    now: Callable[[], float] = time.time,
) -> TwoStepBank:
    """Make the `Bank` of Stripe at `url`, https://api.stripe.com. The timeout is for a whole `perform`, look-ups included.

    `key` is asked for the secret key at each request. Customers come back to `return_url` if a charge names no address; their
    step is awaited for `customer_seconds` from the intent's creation. `now` gives seconds since 1970.
    """
    dialect = Stripe(url, transport, key=key, return_url=return_url, customer_seconds=customer_seconds, now=now)
    return TwoStepBank(dialect, call_timeout_seconds, remembers_seconds=REMEMBERS_SECONDS)
