"""The port to a bank: three effects in, an answer out. The charge does not know its bank's ways.

The token step, the execute step and calling off are the same for every kind of operation. "Our reference" is the operation's
(`Operation.reference`). An operation that follows says in `on` which transaction of the bank opened its charge: that is the one
that it captures, voids or refunds.

An adapter promises these, since nothing else keeps a customer from being charged twice:

1. The token step is idempotent by our reference: a known reference gives back its transaction in its present state. Only if
   that one has expired, unexecuted, is another opened, so that a reference never has two that can be executed. An adapter
   whose bank cannot do that looks up first.
2. The execute step is idempotent by token, under concurrent repeats and across the bank's own restart.
3. `Declined` and `Expired` mean that the bank has closed the token for ever: a late execute cannot succeed. If the bank does
   not close it by itself, the adapter cancels and looks up before it answers. `Declined(AUTHORIZATION_EXPIRED)` says why a
   capture or a void was not done: the bank has let the hold lapse.
4. Another kind, transaction to act on, amount, currency or card under a known reference or token is refused, and so is
   another word on whether a capture is final.
5. Only a definite "expired, not executed" leads to a new token.
6. `CalledOff` means that the bank has closed the token for ever, unexecuted: a late execute cannot succeed. To a `CallOff`
   without a token it may also mean that the bank has no transaction of our reference. A late token step may still open one:
   it moves no money, and nobody will execute it. If the bank has executed the transaction, the answer is `Executed`.
7. `NeedsAction` means that no money has moved, and that the bank waits for a step of the customer. Its address is one to which
   people can be sent (`is_address`), and the same as long as that step is wanted. The execute step is then repeated every few
   seconds: it asks how things stand, and begins no new step of the customer. If the bank gives up waiting, or the step fails,
   the answer is `Expired` or `Declined`, and promise 3 holds.
8. The bank counts by itself: it declines a refund of more than was captured and not refunded, and a capture or void of what is
   not held. The core counts too; but the journal of a restored server may have forgotten what was captured and refunded.

9. `look_up` is a question only: it moves no money, opens no transaction and closes none, however often it is put. It never says
   of a transaction that is open or executed that it ended without money, however late a look-up by reference is.

A bank of one step executes an order at once, and knows a repeated order by its key. Promises 1 and 2 then rest on three of its
own: for a stated time a key brings back what its first order came to, under concurrent repeats too, and another order under it
is refused; the newest order of a reference is found, at the latest before its key is forgotten; and a key can be closed before
it was used. Past that time such an adapter looks up first and sends nothing blindly. `one_step` is one; without a look-up it
leaves the rest to people.

And no charge ends on one answer that does not name it, since that may be the answer to another question. The question is put
again in a way that excludes this, or the answer is `NoAnswer`.

`conformance` holds any bank to them, for every kind; tests/contract/test_bank.py and its neighbours hold every adapter to more.
"""

from typing import Protocol

from command_service.values import Answer, Effect, Operation


def trusted_seconds(promised_seconds: float) -> float:
    """For how long a bank is relied upon to know a key that it promises to keep for so long: for five sixths of the time.

    So 20 hours of 24. The rest is for requests that are still on their way, and for clocks that differ.
    """
    return promised_seconds * 5 / 6


class Bank(Protocol):
    """A bank behind its adapter."""

    @property
    def remembers_seconds(self) -> float:
        """For how long after the first request the bank knows a repeated one for what it is; infinity: for ever.

        A step of an operation older than that is performed with `look_up_first`. A bank that forgets keys is trusted
        for less than it promises (`trusted_seconds`).
        """
        ...

    @property
    def can_look_up(self) -> bool:
        """Whether the bank can be asked what it knows. Then a step that another process may have begun is looked up first too,
        unless the bank remembers for ever: nobody can say how long ago that was, since clocks are set back.
        """
        ...

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do one step at the bank and say what came back; what cannot be known is NoAnswer, never an exception.

        It takes no longer than the adapter's total deadline. With `look_up_first` the bank is asked what it knows of
        the charge before anything is done: a restored journal may have forgotten steps that the bank has not, and the bank
        may have forgotten that a request is a repeated one. Without a look-up the answer is a `Contradiction`.
        """
        ...

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        """Ask what the bank knows of the operation's newest transaction, for people. It changes nothing, and never raises.

        `token` names that transaction. None: the journal holds no token that is open, or was restored and may have forgotten
        one; then the bank is asked by our reference.

        Executed, Declined or Expired: how it ended. CalledOff: it was closed unexecuted, or the bank knows none. Token: it is
        open. NeedsAction: it awaits the customer. Contradiction: it is not as we asked for it, its id may not be stored, or the
        bank denies the token. InProgress and NoAnswer as ever; NoAnswer too if the bank cannot be asked, or may know of a newer
        transaction than it shows. A bank that would still take a late order says Token, also where it knows of none yet. It
        takes no longer than the adapter's total deadline.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
