"""The conformance suite: every adapter keeps every promise, and a bank that breaks one is seen to break it.

The broken banks are the real mock bank behind an adapter that bends effects and answers.
"""

import asyncio
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace

import httpx
import pytest

from command_service.bank import Bank
from command_service.bank.conformance.checks import (
    FOLLOWING,
    OPENINGS,
    Broken,
    CannotBeTried,
    Check,
    Finding,
    Kept,
    NotTried,
)
from command_service.bank.conformance.subject import Between, Subject
from command_service.bank.conformance.suite import CHECKS, findings
from command_service.bank.transport import target_of
from command_service.values import (
    Answer,
    CalledOff,
    CallOff,
    Contradiction,
    Declined,
    DeclineReason,
    Effect,
    Evidence,
    Execute,
    Executed,
    Expired,
    Kind,
    NeedsAction,
    Operation,
    RequestToken,
    Token,
)
from rig.around import Around
from tests.contract.bank_rigs import Rig, gateway_rig
from tests.contract.operations import answer_of

CHECK = {check.name: check for check in CHECKS}


async def found(subject: Subject, *checks: Check) -> list[Finding]:
    return [finding async for finding in findings(subject, checks or CHECKS)]


# ---------------------------------------------------------------- every adapter
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_every_adapter_keeps_every_promise(rig: Rig, check: Check) -> None:
    """But for those checks that its rig names as not possible to try."""
    for finding in await found(rig.subject(), check):
        is_not_tried = finding.kind in rig.not_tried.get(check.name, ())
        assert isinstance(finding.end, NotTried if is_not_tried else Kept), finding


# ---------------------------------------------------------------- what is not possible, and what ends the run
async def test_what_the_bank_does_not_answer_is_not_tried(rig: Rig) -> None:
    """It is no broken rule."""
    rig.trouble("cancel", "error_before", times=10_000)
    off = CHECK["what was called off is never executed"]
    for finding in await found(replace(rig.subject(), patience_seconds=0.2), off):
        assert finding.end == NotTried("the bank did not come to an answer within 0.2 s", is_silence=True)


async def test_a_bank_that_executes_nothing_cannot_be_tried(rig: Rig) -> None:
    for card, why in ((rig.unknown_card, "refused"), (next(iter(rig.declined_cards[Kind.CHARGE])), "declined")):
        with pytest.raises(CannotBeTried, match=why):
            await found(replace(rig.subject(), approved_card=card))


async def test_a_bank_that_does_not_accept_us_cannot_be_tried(rig: Rig) -> None:
    rig.trouble(rig.calls("token", "execute")[0], "refuse", status=401)
    with pytest.raises(CannotBeTried, match="it does not accept us"):
        await found(rig.subject())


# ---------------------------------------------------------------- broken banks
class Bent(Around[Bank]):
    """A bank that does otherwise than it is asked; all adapters of it share what it remembers."""

    memory: dict[str, Operation]
    opened_at: dict[str, float]

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        return await self.inner.perform(effect, look_up_first=look_up_first)

    async def newly_executed(self, operation: Operation) -> Answer:
        """Executes another transaction like this one."""
        twin = replace(operation, reference=str(uuid.uuid4()))
        token = await answer_of(self.inner, RequestToken(twin, 0))
        assert isinstance(token, Token)
        return await answer_of(self.inner, Execute(twin, token.token))


class KnowsNoReference(Bent):
    """Each token step opens another transaction."""

    def is_new(self, _: RequestToken) -> bool:
        return True

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        match effect:
            case RequestToken(operation) if self.is_new(effect):
                twin = replace(operation, reference=str(uuid.uuid4()))
                answer = await answer_of(self.inner, RequestToken(twin, 0))
                if isinstance(answer, Token):
                    self.memory[answer.token] = twin
                return answer
            case Execute(_, token) if token in self.memory:
                return await answer_of(self.inner, Execute(self.memory[token], token))
            case _:
                return await super().perform(effect, look_up_first=look_up_first)


class ManyTokensAfterExpiry(KnowsNoReference):
    def is_new(self, asked: RequestToken) -> bool:
        return asked.expired_tokens > 0


class EachExecuteIsNew(Bent):
    """Whoever repeats it pays again."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        if not isinstance(effect, Execute) or not isinstance(answer, Executed):
            return answer
        if effect.token not in self.memory:
            self.memory[effect.token] = effect.operation
            return answer
        return Executed(f"txn_{uuid.uuid4()}")


class RefundsTwice(Bent):
    """Under one id: only the bank's own count shows it."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        is_first = isinstance(effect, Execute) and effect.token not in self.memory
        if isinstance(effect, Execute) and isinstance(answer, Executed) and is_first:
            self.memory[effect.token] = effect.operation
            if effect.operation.kind is Kind.REFUND:
                await self.newly_executed(effect.operation)
        return answer


class PaysTwiceUnderOneId(Bent):
    """For an opening that is executed again; then more can be refunded, or captured."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        operation = effect.operation
        if isinstance(answer, Executed) and operation.opens:
            times = "twice " if answer.transaction_id in self.memory else ""
            self.memory[times + answer.transaction_id] = operation
        is_paid_from_the_second = isinstance(answer, Declined) and f"twice {operation.on}" in self.memory
        return Executed("txn_of_the_second") if is_paid_from_the_second else answer


class FirstAnswerNamesAnother(httpx.AsyncBaseTransport):
    """The first answer to the third transaction's execution names another id than the later ones."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self._executed: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        target = target_of(request)
        if not target.endswith("/execute") or target in self._executed:
            return response
        self._executed.append(target)
        body = await response.aread()
        if len(self._executed) == 3:
            body = re.sub(rb'"txn_\w+"', b'"txn_first"', body)
        return httpx.Response(response.status_code, headers=response.headers, stream=httpx.ByteStream(body))

    async def aclose(self) -> None:
        await self._inner.aclose()


class ExecutesAfterADecline(Bent):
    """The second execute succeeds, with another card."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        if not isinstance(answer, Declined) or not isinstance(effect, Execute):
            return answer
        if effect.token not in self.memory:
            self.memory[effect.token] = effect.operation
            return answer
        return Executed("txn_late")


class ExecutesAfterAnExpiry(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        return await self.newly_executed(effect.operation) if isinstance(answer, Expired) else answer


class SaysNotThatTheHoldLapsed(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        return Declined(DeclineReason.OTHER) if answer == Declined(DeclineReason.AUTHORIZATION_EXPIRED) else answer


class ComparesNothingUnderAToken(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if isinstance(effect, Execute) and effect.token in self.memory:
            effect = Execute(self.memory[effect.token], effect.token)
        answer = await super().perform(effect, look_up_first=look_up_first)
        if isinstance(effect, RequestToken) and isinstance(answer, Token):
            self.memory.setdefault(answer.token, effect.operation)
        return answer


class ActsOnNothing(Bent):
    """What is refused is done as a charge."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        match effect:
            case RequestToken(operation):
                answer = await super().perform(effect, look_up_first=look_up_first)
                if isinstance(answer, Token):
                    return answer
                charge = replace(operation, kind=Kind.CHARGE, on="", reference=str(uuid.uuid4()))
                answer = await answer_of(self.inner, RequestToken(charge, 0))
                assert isinstance(answer, Token)
                self.memory[answer.token] = charge
                return answer
            case Execute(_, token) if token in self.memory:
                return await answer_of(self.inner, Execute(self.memory[token], token))
            case _:
                return await super().perform(effect, look_up_first=look_up_first)


class CallsOffInNameOnly(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if isinstance(effect, CallOff):
            return CalledOff()
        return await super().perform(effect, look_up_first=look_up_first)


class CallsOffNothingUnknown(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if effect == CallOff(effect.operation, None):
            return Contradiction(Evidence())
        return await super().perform(effect, look_up_first=look_up_first)


class NamesAnotherPageEachTime(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        return replace(answer, url=f"{answer.url}?{uuid.uuid4()}") if isinstance(answer, NeedsAction) else answer


class PaysAgainWhenTheCustomerCame(EachExecuteIsNew):
    """For a card with the customer's step alone."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        if effect.operation.request.card.token != "tok_3ds":
            return await self.inner.perform(effect, look_up_first=look_up_first)
        return await super().perform(effect, look_up_first=look_up_first)


class ExecutesThoughNobodyCame(Bent):
    """Whatever the customer does, and whether one is there, a second execute is told as executed."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        if isinstance(effect, Execute) and isinstance(answer, NeedsAction | Declined | Expired | CalledOff):
            if effect.token in self.memory:
                return Executed("txn_of_nobody")
            self.memory[effect.token] = effect.operation
        return answer


class LooksUpLate(Bent):
    """Without its token it finds nothing that was opened less than this time ago."""

    seconds = 0.3

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        now, reference = asyncio.get_running_loop().time(), effect.operation.reference
        if isinstance(effect, RequestToken):
            self.opened_at.setdefault(reference, now)
        looks_up = isinstance(effect, CallOff) and (effect.token is None or look_up_first)
        if looks_up and now < self.opened_at.get(reference, now) + self.seconds:
            return CalledOff()
        return await super().perform(effect, look_up_first=look_up_first)


class LooksUpNextDay(LooksUpLate):
    seconds = 86_400.0


class Raises(Bent):
    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        if isinstance(answer, Declined):
            raise KeyError("a word that the adapter does not know")
        return answer


class CountsNothing(Bent):
    """What follows is executed, whatever is left."""

    async def perform(self, effect: Effect, *, look_up_first: bool) -> Answer:
        answer = await super().perform(effect, look_up_first=look_up_first)
        is_followed = isinstance(answer, Declined) and not effect.operation.opens
        return Executed(f"txn_{uuid.uuid4()}") if is_followed else answer


class OrdersToLookUp(Bent):
    """Its look-up is an order."""

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        said = await answer_of(self.inner, RequestToken(operation, 0))
        return await answer_of(self.inner, Execute(operation, token or said.token)) if isinstance(said, Token) else said


class DeniesWithoutAToken(Bent):
    """What it does not find by our reference it takes for closed."""

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        return CalledOff() if token is None else await self.inner.look_up(operation, token)


class ForgetsWhatWasCalledOff(Bent):
    """And says that it is open."""

    async def look_up(self, operation: Operation, token: str | None) -> Answer:
        answer = await self.inner.look_up(operation, token)
        return Token("t1") if isinstance(answer, CalledOff) else answer


def bent(subject: Subject, bug: type[Bent]) -> Subject:
    """The subject with a bug that all of its adapters share."""
    memory: dict[str, Operation] = {}
    opened_at: dict[str, float] = {}

    def opened(between: Between) -> Bank:
        made = bug(subject.open_bank(between))
        made.memory, made.opened_at = memory, opened_at
        return made.as_one()

    return replace(subject, open_bank=opened)


BUGS: Mapping[str, type[Bent]] = {
    "a repeated token step gives the same transaction": KnowsNoReference,
    "what was called off is given no other token": KnowsNoReference,
    "a repeated execute step is done once": EachExecuteIsNew,
    "a step is done once though its answers were thrown away": EachExecuteIsNew,
    "looked up first, a step ends as it would have": KnowsNoReference,
    "what was declined is never executed": ExecutesAfterADecline,
    "what has expired is never executed": ExecutesAfterAnExpiry,
    "when the hold has lapsed, it is declined for that reason": SaysNotThatTheHoldLapsed,
    "after an expiry one more token is given": ManyTokensAfterExpiry,
    **{check.name: KnowsNoReference for check in CHECKS if check.promise == 4},
    "another amount or currency under a known token moves nothing": ComparesNothingUnderAToken,
    "what acts on nothing is refused": ActsOnNothing,
    **{check.name: CallsOffInNameOnly for check in CHECKS if check.promise == 6},
    "what the bank does not know can be called off": CallsOffNothingUnknown,
    "the customer's step is awaited, at one address": NamesAnotherPageEachTime,
    "when the customer has taken the step, it is executed once": PaysAgainWhenTheCustomerCame,
    "when the customer has failed, it is closed": ExecutesThoughNobodyCame,
    "with nobody there for the step, it is closed": ExecutesThoughNobodyCame,
    **{check.name: CountsNothing for check in CHECKS if check.promise == 8},
    "a look-up tells how it stands, and changes nothing": OrdersToLookUp,
    "a look-up tells no end of what is open or executed": DeniesWithoutAToken,
    "a look-up tells what was called off": ForgetsWhatWasCalledOff,
}


REFUSED_BY_THE_BOOKS = {
    "another amount under a known reference is refused": (Kind.VOID,),
    "another currency under a known reference is refused": FOLLOWING,
    "another kind under a known reference is refused": (Kind.REFUND,),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with gateway_rig(tmp_path_factory.mktemp("honest")) as rig:
        yield rig.subject()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_each_check_finds_a_bank_that_breaks_its_rule(honest: Subject, check: Check) -> None:
    """For each kind of operation, unless the mock bank's books refuse it already."""
    kinds = [kind for kind in check.kinds if kind not in REFUSED_BY_THE_BOOKS.get(check.name, ())]
    check = replace(check, kinds=tuple(kinds))
    for finding in await found(bent(honest, BUGS[check.name]), check):
        assert isinstance(finding.end, Broken), finding


async def test_a_look_up_that_lags_is_waited_for_if_that_is_known(honest: Subject) -> None:
    """Else it is as good as none."""
    checks = [check for check in CHECKS if check.promise in (2, 6)]
    waiting = replace(bent(honest, LooksUpLate), lag_seconds=2 * LooksUpLate.seconds)
    assert {finding.end for finding in await found(waiting, *checks)} == {Kept()}
    (without,) = [
        check for check in checks if check.name == "without its token, the bank finds what is to be called off"
    ]
    for finding in await found(bent(honest, LooksUpNextDay), without):
        assert isinstance(finding.end, Broken)


async def test_an_adapter_that_raises_breaks_the_rule_that_is_tried(honest: Subject) -> None:
    for finding in await found(bent(honest, Raises), CHECK["what was declined is never executed"]):
        assert finding.end == Broken("the adapter raised KeyError instead of an answer")


async def test_an_adapter_that_always_raises_cannot_be_tried(honest: Subject) -> None:
    declined = next(iter(honest.declined_cards[Kind.CHARGE]))
    with pytest.raises(CannotBeTried, match="the adapter raised KeyError"):
        await found(replace(bent(honest, Raises), approved_card=declined))


async def test_a_refund_that_is_done_twice_under_one_id_is_found_by_what_is_left(honest: Subject) -> None:
    once = CHECK["a repeated execute step is done once"]
    ends = {finding.kind: finding.end for finding in await found(bent(honest, RefundsTwice), once)}
    assert ends.pop(Kind.REFUND) == Broken(
        "a refund of what is left after one execution was not executed: declined (other)"
    )
    assert set(ends.values()) == {Kept()}


async def test_an_opening_that_is_done_twice_under_one_id_is_found_by_what_is_left(honest: Subject) -> None:
    once = replace(CHECK["a repeated execute step is done once"], kinds=OPENINGS)
    for finding in await found(bent(honest, PaysTwiceUnderOneId), once):
        assert finding.end == Broken("more was left to move than after one execution: executed as txn_of_the_second")


async def test_what_is_left_at_a_bank_that_does_not_count_shows_nothing(honest: Subject) -> None:
    """It breaks promise 8, and may well keep promise 2."""
    once = CHECK["a repeated execute step is done once"]
    assert {finding.end for finding in await found(bent(honest, CountsNothing), once)} == {Kept()}


async def test_what_was_thrown_away_is_compared_with_its_repeat(honest: Subject) -> None:
    """All answers that anybody hears are the same."""

    opened: list[Bank] = []

    def open_bank(between: Between) -> Bank:
        is_losing = len(opened) == 2
        opened.append(honest.open_bank(lambda wire: between(FirstAnswerNamesAnother(wire) if is_losing else wire)))
        return opened[-1]

    once = replace(CHECK["a step is done once though its answers were thrown away"], kinds=(Kind.CHARGE,))
    for finding in await found(replace(honest, open_bank=open_bank), once):
        assert isinstance(finding.end, Broken)
        assert finding.end.seen.startswith(
            "the answer to call 2 and its repeat are not the same: executed as txn_first, "
        )
