"""The mock bank: two-step operations over HTTP/1.1 and JSON, a ledger that survives `kill -9`, and faults on order.

It shares no code with the services but the chassis, which knows nothing of banks: the services' assumptions about a bank are
tested against an independent one.

Running it
==========

    GATEWAY_MOCK_LISTEN=127.0.0.1:8080 GATEWAY_MOCK_LEDGER=data/gateway.db python -m gateway_mock

* `GATEWAY_MOCK_LISTEN`         host:port, default 127.0.0.1:8080; port 0 takes a free one.
* `GATEWAY_MOCK_LEDGER`         the ledger's SQLite file; its folder is made if need be. By default it is
                                chargeonce/gateway.db in $XDG_STATE_HOME, or else in ~/.local/state.
* `GATEWAY_MOCK_TOKEN_SECONDS`  how long a token can be executed, default 900, 0 to a year. With 0 each is late at once.
* `GATEWAY_MOCK_HOLD_SECONDS`   how long a hold lasts, default 604800 (a week), 0 to a year. With 0 each has lapsed at once.

* `GATEWAY_MOCK_KEY_SECONDS`    how long a key of the one-step bank is remembered, default 86400 (a day), 0 to a year.

When it serves it says so in one JSON line on stderr, with the real port: `{"event": "serving", "listen":
"127.0.0.1:43211", ...}`. SIGTERM, SIGINT and SIGHUP end it with exit status 0. In a test: `async with gateway_mock.serve(
"127.0.0.1:0", path) as address`.

The two steps
=============

*Token step.* No money moves. A known reference gives its transaction back as it is now, never a second one. Only after that one
was closed as expired does the token step open another, with another token.

    curl -s localhost:8080/transactions \\
         -d '{"reference": "charge-1", "card": "tok_visa", "amount": 1250, "currency": "EUR"}'

    {"token": "ttok_5b1f...", "state": "created", "expires_at": "2026-11-23T10:43:00.000Z", "reference": "charge-1",
     "kind": "charge", "card": "tok_visa", "amount": 1250, "currency": "EUR", "transaction_id": null, "reason": null}

`state` is created, requires_action, executed, declined, expired or cancelled. `amount` is in minor units, 1 to 2^63-1.
`reference` is 1 to 128 of `[A-Za-z0-9_.:-]`, `currency` three capital letters. Content types are not looked at.

The order of an opening may say that the customer is not there (`off_session`, default false), which this bank hears without
asking any less, and to which `return_url` (http or https) the customer is sent after a step. Neither binds the reference.

An order may say its `kind`. An opening names a `card`: "charge" (the default) or "authorize". What follows names no card:
"capture", "void" and "refund" act `on` an executed opening, by its transaction_id, and a capture may be `final` (default
false).

    curl -s localhost:8080/transactions \\
         -d '{"reference": "capture-1", "kind": "capture", "on": "txn_90ac...", "amount": 400, "currency": "EUR"}'

The answers about one that follows have `on` and the card of its opening too, those about a capture also `final`, and those
about an executed authorize `hold_expires_at`, written as `expires_at` is.

    400 {"error": "bad_request", "field": "amount"}   malformed, or not this kind's; "body": no JSON object, a key twice
                                                      or one too many
    409 {"error": "reference_reused"}                 the reference is known with another order
    422 {"error": "card_unknown"}
    422 {"error": "transaction_unknown"}              `on` names no executed charge or authorize
    422 {"error": "currency_differs"}                 that one's is another

*Execute step.* It executes the transaction, once, however often and however concurrently it is asked. The body is empty, or
says the amount and the currency, which are then compared.

    curl -s -X POST localhost:8080/transactions/ttok_5b1f.../execute
    curl -s localhost:8080/transactions/ttok_5b1f.../execute -d '{"amount": 1250, "currency": "EUR"}'

    200 {"result": "executed", "token": "ttok_5b1f...", "reference": "charge-1", "kind": "charge", "card": "tok_visa",
         "amount": 1250, "currency": "EUR", "transaction_id": "txn_90ac...", "reason": null}
    200 {"result": "already_executed", ...}           the same transaction_id as the first time
    202 {"result": "requires_action", ...}            nothing moved, and a step of the customer is wanted: see below
    200 {"result": "declined", "transaction_id": null, "reason": "insufficient_funds", ...}   closed for ever
    404 {"error": "token_unknown"}
    409 {"error": "fields_differ"}
    410 {"error": "token_expired", ...}               closed for ever before this is said; the other fields as in a 200
    410 {"error": "token_cancelled", ...}             called off before

A charge counts as captured whole. An authorize takes a hold, whose time begins when it is executed. A capture takes of what is
held; the last of it, and a final capture, release the rest, and so does a void, which names all that is still held. A refund
gives back of what was captured, whatever has become of the hold. What breaks a rule at the moment of its execution is
declined, with the first of these reasons:

    nothing_held            a capture or void of a charge
    not_captured            a refund of an authorize of which nothing was captured
    released                a capture or void when nothing is held any more
    authorization_expired   a capture or void when the hold's time is over
    more_than_authorized    a capture of more than is still held
    amount_differs          a void of another amount than is still held
    more_than_captured      a refund of more than was captured and not yet refunded

Cards: `tok_visa` and `tok_mastercard` are approved. `tok_declined` (card_declined), `tok_insufficient_funds`
(insufficient_funds) and `tok_expired_card` (expired_card) are declined by the execute step of an opening. For
`tok_capture_declined`, `tok_void_declined` and `tok_refund_declined` that kind is declined (card_declined) if no rule above is
broken, and all else approved. `tok_slow` is approved; the execute step of its opening takes two seconds, in the two-step bank
only. `tok_3ds` and `tok_3ds_declined` want the customer first. Others are unknown.

*The customer's step.* As with 3-D Secure, the cards `tok_3ds` (then approved) and `tok_3ds_declined` (then declined:
card_declined) want a step of the customer. The execute step of an opening then moves nothing, however often it is asked. All
answers about the transaction have `action_url`, the page to send the customer to, and `action_expires_at`, the end of its
token's time. On the page stand the amount and two buttons: confirming executes the transaction, as an execute step would do it
for another card, and refusing declines it (authentication_required). Then the customer is sent to the order's `return_url`, or
else to the page again. What the execute step says afterwards is how it stands.

    curl -s http://localhost:8080/customer/ttok_5b1f...                   the page, in HTML; 404 if the token is unknown
    curl -s -X POST http://localhost:8080/customer/ttok_5b1f.../confirm   its buttons: 303 with Location, whatever it changed
    curl -s -X POST http://localhost:8080/customer/ttok_5b1f.../refuse

The page is at the address at which the bank listens; if that is every address, at that of this machine.

*Calling off.* It closes an open transaction for ever, unexecuted, and changes no other. The body is empty.

    curl -s -X POST localhost:8080/transactions/ttok_5b1f.../cancel

    200 {"state": "cancelled", ...}                   as a look-up answers; or executed, declined or expired, if it was before
    404 {"error": "token_unknown"}

One step
========

The same process plays another bank too, under a path of its own: an order is executed or declined at once, and carries a key,
1 to 255 visible characters of ASCII. The members are those of a token step's order. A payment of one bank is unknown to the
other; the statement, the log of calls and the faults are common.

    curl -s localhost:8080/one-step/payments -H 'Idempotency-Key: key-1' \\
         -d '{"reference": "charge-1", "card": "tok_visa", "amount": 1250, "currency": "EUR"}'

    200 {"key": "key-1", "state": "executed", "replayed": false, "reference": "charge-1", "kind": "charge", "card": "tok_visa",
         "amount": 1250, "currency": "EUR", "transaction_id": "txn_90ac...", "reason": null}
    200 {..., "state": "declined", "reason": "insufficient_funds", ...}     with the reasons above, and two more:
                                     card_unknown, and authentication_required where the two steps ask the customer
    400 {"error": "bad_request", "field": "Idempotency-Key"}                also "amount", and so on
    410 {"error": "key_cancelled", "key": "key-1", ...}                     the key was called off before it was used
    422 {"error": "key_reused"}                                             the key is known with another order
    422 {"error": "transaction_unknown"}, {"error": "currency_differs"}     as above; nothing is kept under the key

The same key gives the saved answer of its payment, `replayed`, for `GATEWAY_MOCK_KEY_SECONDS` after its first use. Then it is
forgotten: *the same request is a new payment, and the card is charged a second time*. A reference binds nothing. Such banks are
like that, and a client must know it.

    curl -s localhost:8080/one-step/payments/key-1/cancel -d '{"reference": "charge-1", ...}'    the whole order again

    200 {"key": "key-1", "state": "cancelled", ...}   a key that is not known is closed for ever, and is never forgotten
    200 {..., "state": "executed", ...}               or declined: how its payment ended, and nothing is changed
    422 {"error": "key_reused"}

    curl -s 'localhost:8080/one-step/payments?reference=charge-1'      the newest payment of the reference, which is never
                                                                       forgotten; if there is none, a key called off
    404 {"error": "reference_unknown", "reference": "charge-1"}        which says what was not found

Faults of these calls are ordered `on` execute, cancel and look_up. Nothing is open here, so that expire_token changes nothing.
After forget_token a look-up finds nothing, and to the other calls it is refuse with status 404. In the statement and the log of
calls `token` is the key.

Looking
=======

    curl -s localhost:8080/transactions/ttok_5b1f...          as the token step answers; 404 token_unknown
    curl -s 'localhost:8080/transactions?reference=charge-1'  the newest of the reference; 404 reference_unknown
    curl -s localhost:8080/statement                          all that was executed, in that order; "on" as in the answers:

    {"movements": [{"transaction_id": "txn_90ac...", "token": "ttok_5b1f...", "reference": "charge-1", "kind": "charge",
                    "minor_units": 1250, "currency_code": "EUR", "executed_at": "2026-11-23T10:28:01.123Z"}]}

    curl -s 'localhost:8080/statement?from=2026-11-23T00:00:00.000Z&to=2026-11-24T00:00:00.000Z&after=0&limit=200'

    {"movements": [{"n": 17, ...}], "has_more": false}        a part: what was executed in a span of time, after the movement of
                                                              a number (`n`), at most 1,000, by the bank of two steps; that of
                                                              one step has the same under /one-step/statement

    curl -s 'localhost:8080/calls?after=0'                    the calls as they came in, newest 100,000, in memory:

    [{"n": 1, "method": "POST", "path": "/transactions", "reference": "charge-1", "token": "ttok_5b1f...", "kind": "charge",
      "at": "2026-11-23T10:28:00.001Z", "fault": null, "status": 200}]

`status` is null if no answer was sent, or none yet; `kind` if the transaction is not known. The tester's calls (/statement,
/calls, /faults) and the customer's are not listed.

Faults
======

A fault waits for a step (`on`: token, execute, look_up or cancel) and fires `times` times (default 1). `reference`, `card` and
`kind` narrow it down; what follows an opening has its card. A well-formed call takes the first fault that waits for it, in the
order in which they were ordered, and the fault decides how the call ends. Faults are in memory: a restarted bank has none.

    curl -s localhost:8080/faults -d '{"on": "execute", "fault": "lose_answer", "times": 2, "card": "tok_visa"}'
    200 {"id": 1}                                     400 bad_request · 409 too_many_faults · 409 runs_in_process
    curl -s localhost:8080/faults                     [{"id": 1, "on": "execute", "fault": "lose_answer", "times": 2,
                                                        "reference": null, "card": "tok_visa", "kind": null, "fired": 0}]
    curl -s -X DELETE localhost:8080/faults/1         200 {"cleared": 1}; 0 if there is no such fault
    curl -s -X DELETE localhost:8080/faults           200 {"cleared": 1}

The work is **not done**:

    lose_request    the connection is closed
    hang_before     nothing for `seconds` (30), then the connection is closed
    error_before    `status` (503; 500 to 599)
    throttled       429 with Retry-After: `retry_after` ("1"), sent as it is
    redirect        302 with Location: `location` ("/elsewhere")
    refuse          `status` (400; or 401, 403, 404, 409, 422) {"error": "refused"}
    forget_token    404 {"error": "token_unknown"}, though it exists; not on token
    in_progress     202 {"result": "in_progress"} with Retry-After: `retry_after` ("1")
    stop_before     the bank's process kills itself with SIGKILL (409 runs_in_process in the in-process form)

The work is **done** and in the ledger, then:

    lose_answer     the connection is closed
    hang_after      nothing for `seconds` (30), then the connection is closed
    reset           the connection is reset (a TCP RST)
    error_after     `status` (503; 500 to 599)
    garbage         200 with bytes that are no JSON
    half_body       half of the promised body, then the connection is closed
    slow_body       the body, one byte each `seconds` (0.1)
    huge_body       the answer, padded with blanks to `bytes` (1 MiB; 65,537 to 64 MiB): correct JSON, only too long
    wrong_amount, wrong_currency, wrong_reference, wrong_token   that field of the answer is another (if it has it)
    contradict      an execute step's answer says declined; on execute only
    extra_answer    the answer, and `seconds` (0.005) later an unrequested one over the same connection: `status`
                    (409; 200 to 599) and `body` ({"error": "refused"}), a JSON object that is sent as it is
    stop_after      the bank's process kills itself with SIGKILL

The work is done **otherwise**:

    delay           after `seconds` (1), even if the client has left
    expire_token    after the open transaction of that token or reference was closed as expired: execute answers 410
    expire_hold     after the hold that the transaction acts on was let lapse; it waits for a capture, void or refund
    odd_transaction_id  after it was executed under `transaction_id` ("4111111111111111"), which stays its id in every
                    answer; on execute only. An id is taken once: for a second transaction that is executed under it the
                    call gets no answer and nothing is done

Limits: bodies 64 KiB (413), heads 16 KiB (431), paths 512 bytes (414), 1,000 connections (more are closed at once),
60 s for a request to arrive, 1,000 faults. Unknown paths and methods: 404 {"error": "not_found"}.
"""

from gateway_mock.app import serve

__all__ = ["serve"]
