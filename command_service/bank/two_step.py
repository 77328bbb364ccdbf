"""From a bank's replies to the answer of a step, with the look-up that settles it: the same for every bank of two steps.

A `Dialect` puts five questions to its bank and reads the replies. The meaning of a reply for the charge is decided here and
nowhere else, because this decision keeps money from moving twice. A transaction is open while the bank still waits for its
execution, or for the customer; a reply is doubtful if it must be heard again before anything rests on it. *Settling* is the
execute step, or the calling off of a token: both ask the bank to close a transaction, and read its end in one way.

    the bank replies                               the step's answer
    ---------------------------------------------  ---------------------------------------------------------
    token step: fields equal to ours               Token, even if it is closed: the execute step will hear how
    token step: a refusal, twice                   Refused
    token step: fields that differ, twice          Contradiction
    token step: a refusal and differing fields     NoAnswer
    settling: executed, fields equal to ours       Executed
    execute step: awaits the customer              NeedsAction; NoAnswer if nobody can be sent to its address
    settling: declined, expired or cancelled       the look-up's answer, else Contradiction
    settling: fields that differ from ours         the look-up's answer; if it is open, the step again, else Contradiction
    settling: a refusal                            the look-up's answer; if it is open, the step again, else Refused
    calling off without a token, after a look-up by our reference:
        fields equal to ours, closed               how it ended
        fields equal to ours, open                 what calling off its token settles
        a refusal, twice                           CalledOff: there is nothing to close; if a look-up was wanted first,
                                                   what calling off the token settles that the token step names
        fields that differ, twice                  Contradiction
        a refusal and differing fields             NoAnswer
    executed under an id that may not be stored    the answer of two look-ups; if they agree, Contradiction
    in progress, to a look-up too                  InProgress
    no answer, to a look-up too                    NoAnswer

A look-up for people (`look_up`) goes by the journal's token, and without one by our reference. It tells how the transaction
ended, or Token if it is open, and NeedsAction if it awaits the customer. A refusal that was heard twice is CalledOff without a
token, and a Contradiction with one. Without a token, an expired transaction or a refusal says nothing (NoAnswer) where a
look-up by reference may be late: a newer transaction may be open, or executed.

1. A reply that names no transaction (a refusal), or another one, may belong to another question: one surplus response of a
   bank or a proxy shifts every later response on its connection by one. No charge ends on such a reply alone. It ends its
   connection (`heard`), and the next question goes over a fresh one.
2. A look-up counts only if it equals ours in every field, the token included. A look-up by reference may bring up another
   token: then nobody may guess. A doubtful look-up by token is followed by one by our reference.
3. An end without money (declined, expired, cancelled) is believed only if a look-up says it as well. An answer that got
   mixed up on its way then costs a question, not a second charge.
4. A step is repeated only as it was put before: with the same reference or the same token, under which a bank does it once.
5. Nothing here takes a new token. The core does, after an `Expired`.
6. A restored journal may hold a token that the bank has replaced, once it had expired. So an expired one is called off by our
   reference, whose newest transaction is the only one that can be open or executed. Any other token is that newest one: it is
   looked up by itself, since a look-up by reference may be late. One that may be late and shows nothing, not even an expired
   one, is put again later. One that shows nothing while the journal has no token leaves the token step to tell: the journal may
   have lost an execution that the look-up does not show yet.
"""

import asyncio
import math
from functools import partial
from typing import assert_never

from command_service.address import is_address
from command_service.bank.dialect import Dialect, Question, Refusal, Reply, Stage, Transaction
from command_service.bank.transport import no_answer
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Execute,
    Executed,
    Expired,
    InProgress,
    NeedsAction,
    NoAnswer,
    Operation,
    Refused,
    RequestToken,
    ReviewReason,
    Token,
)

_NOT_SHOWN_YET = "a look-up that may not show the newest transaction yet"


class TwoStepBank:
    """A bank of two steps as a `Bank`, whatever its dialect."""

    def __init__(self, dialect: Dialect, call_timeout_seconds: float, *, remembers_seconds: float = math.inf) -> None:
        """The timeout is for a whole `perform`, look-ups included."""
        self._dialect = dialect
        self._call_timeout_seconds = call_timeout_seconds
        self.remembers_seconds = remembers_seconds
        self.can_look_up = True

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        """Do one step at the bank and say what came back. Never raises; see the port."""
        try:
            async with asyncio.timeout(self._call_timeout_seconds):
                match effect:
                    case RequestToken():
                        return await self._token_step(effect, look_up_first)
                    case Execute():
                        return await self._execute_step(effect, look_up_first)
                    case CallOff():
                        return await self._calling_off(effect, look_up_first)
                    case _:
                        assert_never(effect)
        except TimeoutError:
            return no_answer("deadline")

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        """Ask what the bank knows of our token, or else of our reference. Never raises; see the port."""
        try:
            async with asyncio.timeout(self._call_timeout_seconds):
                # The look-ups that calling off begins with; nothing is called off.
                return await self._looked_up(CallOff(operation, token))
        except TimeoutError:
            return no_answer("deadline")

    async def close(self) -> None:
        """Let go of connections."""
        await self._dialect.close()

    async def _token_step(self, effect: RequestToken, look_up_first: bool) -> Answer:
        dialect = self._dialect
        if look_up_first:
            known = await dialect.find_by_reference(effect, fresh=False)
            if isinstance(known, Transaction) and known.differences(effect):
                known = await dialect.find_by_reference(effect, fresh=True)
            match known:
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case Transaction() if known.differences(effect):
                    return _contradiction(known, effect)
                case Transaction(stage=Stage.EXPIRED) | Refusal():
                    pass  # There is no token, or one that would only expire again: the bank is asked for one.
                case Transaction():
                    return _token(known)
        match await _heard_twice(partial(dialect.request_token, effect), effect):
            case Transaction() as known:
                return _token(known)
            case Refusal() as refusal:
                return Refused(refusal.evidence())
            case Contradiction() | InProgress() | NoAnswer() as answer:
                return answer

    async def _execute_step(self, effect: Execute, look_up_first: bool) -> Answer:
        if look_up_first:
            match await self._find(effect, effect.token, fresh=False):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case Transaction(stage=Stage.CREATED) as known if not known.differences(effect):
                    pass  # The bank waits for this step, as we thought.
                case Transaction() as known if _awaits_customer(known, effect):
                    return _needs_action(known)
                case Transaction() | Refusal() as known:
                    return _end(known, effect) or _contradiction(known, effect)
        return await self._settled(partial(self._dialect.execute, effect), effect, effect.token)

    async def _calling_off(self, effect: CallOff, look_up_first: bool) -> Answer:
        has_expired = False
        if effect.token is not None:
            if not look_up_first:
                return await self._settled(partial(self._dialect.cancel, effect, effect.token), effect, effect.token)
            match await _heard_twice(partial(self._dialect.find_by_token, effect, effect.token), effect):
                case Transaction(stage=Stage.EXPIRED):
                    has_expired = True  # The bank may have replaced it.
                case Refusal():
                    pass
                case Transaction() as known:
                    return await self._closed(known, effect, effect.token)
                case Contradiction() | InProgress() | NoAnswer() as answer:
                    return answer
        unnamed = CallOff(effect.operation, None)
        match await _heard_twice(partial(self._dialect.find_by_reference, unnamed), unnamed):
            case Transaction(token=token) as known:
                return await self._closed(known, CallOff(effect.operation, token), token)
            case Refusal() if has_expired and not self._dialect.finds_at_once(effect.operation):
                return no_answer(_NOT_SHOWN_YET)
            case Refusal() as refusal if effect.token is not None:  # The bank has forgotten a token that it gave us.
                return _contradiction(refusal, effect)
            case Refusal() if look_up_first:
                return await self._called_off_by_token(effect.operation)
            case Refusal():  # Nothing is open: our journal has lost nothing, and holds no token.
                return CalledOff()
            case Contradiction() | InProgress() | NoAnswer() as answer:
                return answer

    async def _called_off_by_token(self, operation: Operation) -> Answer:
        """Call off what a look-up by reference has not shown, and may only be late to show: executed, for all we know.

        The token step is idempotent all the same, so its transaction is the one.
        """
        match await self._token_step(RequestToken(operation, 0), look_up_first=False):
            case Token(token):
                named = CallOff(operation, token)
                return await self._settled(partial(self._dialect.cancel, named, token), named, token)
            case Refused():
                return CalledOff()
            case answer:
                return answer

    async def _looked_up(self, effect: CallOff) -> Answer:
        dialect, token, said = self._dialect, effect.token, None
        if token is not None:
            said = await _heard_twice(partial(dialect.find_by_token, effect, token), effect)
        if said is None or isinstance(said, Refusal):
            said = await _heard_twice(partial(dialect.find_by_reference, effect), effect)
        is_newest = token is not None or dialect.finds_at_once(effect.operation)
        match said:
            case Transaction(stage=Stage.EXPIRED) | Refusal() if not is_newest:
                return no_answer(_NOT_SHOWN_YET)
            case Transaction() as known:
                return _standing(known, effect)
            case Refusal() as refusal if token is not None:  # The bank has forgotten a token that it gave us.
                return _contradiction(refusal, effect)
            case Refusal():
                return CalledOff()
            case answer:
                return answer

    async def _closed(self, known: Transaction, effect: CallOff, token: str) -> Answer:
        """Call off what a look-up has shown. Of a closed one nothing is asked: a bank may have forgotten that it was used."""
        if not _is_doubtful(known, effect) and (end := _end(known, effect)) is not None:
            return end
        # Fresh: if a bank mixes up its answers on the connection of the look-up, no repetition would get any further.
        return await self._settled(partial(self._dialect.cancel, effect, token), effect, token, fresh=True)

    async def _settled(
        self, question: Question, effect: Execute | CallOff, token: str, *, fresh: bool = False
    ) -> Answer:
        """Put the question that closes the token's transaction, and read how it ended; look-ups settle what is doubtful."""
        for is_again in (False, True):  # the second time only after a doubtful reply, and if the transaction is open
            match await question(fresh=fresh or is_again):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case Transaction(stage=Stage.EXECUTED) as said if not _is_doubtful(said, effect):
                    return Executed(said.transaction_id, said.hold_expires_at)
                case Transaction() as said if _awaits_customer(said, effect):
                    return _needs_action(said)
                case Transaction() | Refusal() as said:
                    pass
            match await self._find(effect, token, fresh=True):
                case InProgress() | NoAnswer() as unsettled:
                    return unsettled
                case Transaction() | Refusal() as known:
                    if (end := _end(known, effect)) is not None:
                        return end
                    if isinstance(known, Transaction) and _awaits_customer(known, effect):
                        return _needs_action(known)
            if _is_doubtful(known, effect) or not _is_doubtful(said, effect):
                break
            # The bank still waits for this step, and its reply may not have been about it.
        return Refused(said.evidence()) if isinstance(said, Refusal) else _contradiction(said, effect)

    async def _find(self, effect: Execute | CallOff, token: str, *, fresh: bool) -> Reply:
        """Look up by a token; if the reply is doubtful, by our reference."""
        known = await self._dialect.find_by_token(effect, token, fresh=fresh)
        return await self._dialect.find_by_reference(effect, fresh=True) if _is_doubtful(known, effect) else known


async def _heard_twice(question: Question, effect: Effect) -> Reply | Contradiction:
    """Put a question, and again over a fresh connection if the reply is doubtful: a refusal that is returned was heard twice.

    The fields of a transaction that is returned equal ours.
    """
    said = await question(fresh=False)
    if not _is_doubtful(said, effect):
        return said
    again = await question(fresh=True)
    match said, again:
        case _, Transaction() if not again.differences(effect):
            return again
        case (Refusal(), Transaction()) | (Transaction(), Refusal()):
            return no_answer("two answers that do not agree")
        case _, Transaction():
            return _contradiction(again, effect)
        case _:
            return again


def _token(known: Transaction) -> Token:
    return Token(known.token, is_heard=known.exchange is not None)


def _awaits_customer(known: Transaction, effect: Execute | CallOff) -> bool:
    """Whether it is our transaction, and it is to be executed but for a step of the customer."""
    is_wanted = isinstance(effect, Execute) and known.stage is Stage.AWAITS_CUSTOMER
    return is_wanted and not known.differences(effect)


def _needs_action(known: Transaction) -> NeedsAction | NoAnswer:
    """Nobody is sent to a text that is no address, and it is not stored: the bank is asked again."""
    return NeedsAction(known.url, known.action_expires_at) if is_address(known.url) else no_answer("no address")


def _is_doubtful(reply: Reply, effect: Effect) -> bool:
    """Whether a reply must be heard again before anything rests on it."""
    match reply:
        case Transaction():
            ends_here = not isinstance(effect, RequestToken) and effect.token is not None
            return bool(reply.differences(effect)) or (reply.has_unusable_id and ends_here)
        case Refusal():
            return True
        case InProgress() | NoAnswer():
            return False
        case _:
            assert_never(reply)


def _end(known: Transaction | Refusal, effect: Execute | CallOff) -> Answer | None:
    """How our transaction ended. None: it has not, or this is not ours, or there is none."""
    if isinstance(known, Refusal) or known.differences(effect):
        return None
    match known.stage:
        case Stage.EXECUTED if known.has_unusable_id:
            return Contradiction(known.evidence("transaction_id"), ReviewReason.TRANSACTION_ID_UNUSABLE)
        case Stage.EXECUTED:
            return Executed(known.transaction_id, known.hold_expires_at)
        case Stage.DECLINED:
            return Declined(known.reason or DeclineReason.OTHER)
        case Stage.EXPIRED:
            return Expired()
        case Stage.CANCELLED:
            return CalledOff()
        case Stage.CREATED | Stage.AWAITS_CUSTOMER:
            return None
        case _:
            assert_never(known.stage)


def _standing(known: Transaction, effect: CallOff) -> Answer:
    """How our transaction stands, by a look-up whose fields are ours."""
    if known.stage is Stage.AWAITS_CUSTOMER:
        return _needs_action(known)
    return _end(known, effect) or _token(known)


def _contradiction(said: Transaction | Refusal, effect: Effect) -> Contradiction:
    if isinstance(said, Refusal):
        return Contradiction(said.evidence())
    names = said.differences(effect)
    return Contradiction(
        said.evidence(*names),
        ReviewReason.FIELDS_DIFFER if names else ReviewReason.CONTRADICTION,
        "" if {"token", "reference"} & {*names} else said.transaction_id,
    )
