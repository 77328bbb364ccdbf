"""The way to the simulated bank and back: what goes wrong on it, and in the answers, as the story's chance decides.

Where an answer lies, the charge is noted, since only then may it end in review.
"""

import asyncio
import contextvars
import json
from collections.abc import AsyncIterator, Callable

import httpx

from command_service.bank.transport import target_of
from prove.simulation.bank import Asked, Bank, Chaos, Reply, as_reply
from prove.simulation.pressure import Pressure

# Longer than any pause of ours, negative, and nonsense.
RETRY_AFTERS = ("1", "1000000000", "-5", "soon", "Wed, 21 Oct 2076 07:28:00 GMT", "9" * 400)
BEFORE = (
    *("lose_request", "hang_before", "error_before", "throttled", "redirect", "refuse", "in_progress"),
    "forget_token",  # the last of them: there may be nothing to forget
)
AFTER = ("lose_answer", "hang_after", "error_after", "garbage", "half_body", "huge_body", "slow_body")
LIES = ("wrong_amount", "wrong_currency", "wrong_reference", "wrong_token", "wrong_card", "contradict", "mixed_up")
LATER_LIES = ("wrong_kind", "wrong_on")
WRONG_END = "wrong_end"
"""A wrong amount in the answer to an execute step, or to a look-up: of what has a token, and may have been executed."""
OTHERWISE = ("delay_request", "duplicate", "late_duplicate", "expire_token")


class Wire(httpx.AsyncBaseTransport):
    """The way to the bank and back: an honest bank, told of by a dishonest network.

    Everything that the bank does, it does in the world's own context, so that the caller's death does not stop it.
    """

    def __init__(
        self,
        bank: Bank,
        chaos: Chaos,
        world: contextvars.Context,
        is_durable: Callable[[str], bool],
        note: Callable[..., None],
        pressure: Pressure,
    ) -> None:
        self._pressure = pressure
        self._bank = bank
        self._chaos = chaos
        self._world = world
        self._is_durable = is_durable
        self._note = note

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; its answer comes, or does not."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply | Exception] = loop.create_future()
        bank, key = self._bank, request.headers.get("idempotency-key", "")
        asked = bank.asked(request.method, target_of(request), request.content, key)
        call = _OneCall(self, asked, answer, is_fresh=bool(request.extensions.get("fresh")))
        loop.call_later(self._chaos.uniform(0.001, 0.03), call.arrive, context=self._world)
        with self._pressure.call(bank.charge_of(asked), bank.reference_of(asked)):
            reply = await answer
        if isinstance(reply, Exception):
            raise reply
        status, headers, body = reply
        if headers.pop("x-half", ""):
            return httpx.Response(status, headers=headers, stream=_Half(body))
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


class _Half(httpx.AsyncByteStream):
    """A body of which half comes."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body[: len(self._body) // 2]
        raise httpx.ReadError("the connection was closed")

    async def aclose(self) -> None:
        """There is nothing to close."""


class _OneCall:
    """One request on its way. Its faults are drawn when it arrives, so that they are about what it meets there."""

    def __init__(
        self, wire: Wire, asked: Asked, answer: "asyncio.Future[Reply | Exception]", *, is_fresh: bool
    ) -> None:
        self._wire = wire
        self._bank, self._chaos, self._note = wire._bank, wire._chaos, wire._note
        self._asked = asked
        self._step = asked.step
        self._is_fresh = is_fresh
        self._answer = answer
        self._life = wire._bank.lives
        # Asked when the request leaves: later the journal may have caught up.
        self._durable = wire._is_durable(asked.token) if self._step in ("execute", "cancel") else None

    def _later(self, seconds: float, what: Callable[..., None], *args: object) -> None:
        asyncio.get_running_loop().call_later(seconds, what, *args, context=self._wire._world)

    def _late(self, seconds: float, what: Callable[..., None], *args: object) -> None:
        """Later, so much later that the story must not end before."""
        self._bank.expects_until = max(self._bank.expects_until, self._bank.clock() + seconds)
        self._later(seconds, what, *args)

    def arrive(self, is_again: bool = False) -> None:
        """The request reaches the bank, if it does."""
        bank, chaos = self._bank, self._chaos
        if is_again:
            self._do("done late")
            return None
        if bank.is_down:
            chaos.met("bank_down")
            self._note("bank", self._step, "nobody is there")
            return self._end(httpx.ConnectError("refused"))
        if bank.is_silent:
            chaos.met("bank_silent")
            return self._note("bank", self._step, "hears, and is silent")
        if bank.is_unauthorized:
            chaos.met("unauthorized")
            return self._reply((401, {}, b'{"error": "unauthorized"}'), "401")
        forgotten = bank.oblivion(self._asked)
        possible = BEFORE[:-1] if forgotten is None else BEFORE
        fault = next((kind for kind in possible if chaos.fires(kind)), None)
        match fault:
            case "lose_request":
                return self._end(httpx.ReadError("closed"), fault)
            case "hang_before":
                self._note("bank", self._step, fault)
                return None  # until the caller's own deadline
            case "error_before":
                return self._reply((chaos.pick((500, 502, 503, 504)), {}, b"<html>sorry</html>"), fault)
            case "throttled":
                return self._reply((429, {"retry-after": chaos.pick(RETRY_AFTERS)}, b"{}"), fault)
            case "redirect":
                return self._reply((302, {"location": "http://elsewhere/"}, b""), fault)
            case "refuse":
                self._lie()
                status = 404 if self._step == "look_up" else chaos.pick((400, 404, 409, 422))
                return self._reply(as_reply(status, bank.refusal(self._asked)), fault)
            case "forget_token":
                self._lie()
                return self._reply(as_reply(404, forgotten or {}), fault)
            case "in_progress":
                if chaos.uniform(0.0, 1.0) < 0.5:  # it really is at it
                    self._late(chaos.uniform(0.05, 3.0), self.arrive, True)
                status, headers, body = as_reply(*bank.at_it)
                return self._reply((status, {**headers, "retry-after": chaos.pick(RETRY_AFTERS)}, body), fault)
        if not self._is_fresh and chaos.fires("stray"):  # No lie: it is not about us. What we asked for is done later.
            self._late(chaos.uniform(0.0, 1.0), self.arrive, True)
            return self._reply(as_reply(*chaos.pick(bank.strays)), "stray")
        if self._step == "cancel" and self._durable and chaos.fires("late_execute"):
            for _ in range(2):  # of ours, from before: so late, and doubled on its way
                self._late(chaos.uniform(0.0, 5.0), self._execute_late, bank.execute_of(self._asked))
        if self._step != "look_up" and chaos.fires("late_duplicate"):
            self._late(chaos.uniform(1.0, 40.0) * bank.late_factor, self.arrive, True)
        if self._step != "look_up" and chaos.fires("duplicate"):
            self._do("a copy arrives first")
        if chaos.fires("delay_request"):
            return self._late(chaos.uniform(0.1, 15.0), self._process)
        return self._process()

    def _process(self) -> None:
        bank, chaos = self._bank, self._chaos
        if bank.lives != self._life or bank.is_down:  # it restarted, and forgot who was connected
            chaos.met("bank_down" if bank.is_down else "bank_restart")
            return self._end(httpx.ReadError("reset"), "cut by the bank's restart")
        if bank.has_open(self._asked) and chaos.fires("expire_token"):
            bank.expire(self._asked)
            self._note("bank", self._step, "the token expires")
        if bank.has_hold(self._asked) and chaos.fires("expire_hold"):
            bank.expire_hold(self._asked)
            self._note("bank", self._step, "the hold lapses")
        if self._step != "look_up" and chaos.fires("saved_error"):
            bank.breaks_down()
        before = bank.executed
        reply = self._do("done")
        if bank.executed > before and bank.may_leave(self._asked) and chaos.fires("away_after"):
            away_seconds = bank.leave()
            self._later(away_seconds, bank.come_back)
            return self._end(httpx.ReadError("closed"), f"is away for {away_seconds:.0f} s")
        if (again := bank.again(self._asked, reply)) is not None and chaos.fires("late_confirm"):
            self._late(chaos.uniform(0.0, 8.0), self._execute_late, again)
        fault = next((kind for kind in AFTER if chaos.fires(kind)), None)
        match fault:
            case "lose_answer":
                return self._end(httpx.ReadError("closed"), fault)
            case "hang_after":
                return self._note("bank", self._step, fault)
            case "error_after":
                reply = (chaos.pick((500, 502, 503, 504)), {}, b"oops")
            case "garbage":
                bodies = (b'{"token": ', b"\xff\xfe", b"[]", b'{"amount": 1e3}', b'{"token": "a", "token": "b"}', b"")
                reply = (200, reply[1], chaos.pick(bodies))
            case "half_body":
                reply = (reply[0], {**reply[1], "x-half": "1"}, reply[2])
            case "huge_body":
                reply = (reply[0], reply[1], reply[2] + b" " * 70_000)
            case "slow_body":
                return self._later(chaos.uniform(1.0, 20.0), self._reply, reply, fault)
            case None:
                reply, fault = self._bent(reply)
        return self._reply(reply, fault or "")

    def _bent(self, reply: Reply) -> tuple[Reply, str]:
        """An answer that lies, if the story wants one."""
        said, asked, bank = json.loads(reply[2]), self._asked, self._bank
        possible = (kind for kind in (*LIES, *LATER_LIES) if bank.can_lie(kind, asked, said))
        fault = next((kind for kind in possible if self._chaos.fires(kind)), "")
        is_of_end = self._step != "token" and bank.can_lie("wrong_amount", asked, said)
        if not fault and is_of_end and self._chaos.fires(WRONG_END):
            fault = "wrong_amount"
        if not fault:
            return reply, ""
        said = bank.lie(fault, asked, said, self._chaos)
        self._lie()
        return as_reply(reply[0], said), fault

    def _do(self, how: str) -> Reply:
        """The bank does what it is asked, answer or no answer."""
        before = self._bank.executed
        reply = self._bank.answer(self._asked, token_was_durable=self._durable)
        moved = "the money moves" if self._bank.executed > before else ""
        self._note("bank", self._step, how, self._asked.shown, reply[0], moved)
        return reply

    def _execute_late(self, order: Asked) -> None:
        """An execute of a token that is to be closed: only of one that the journal holds, since only that was ever sent."""
        reply = self._bank.answer(order, token_was_durable=None)
        self._note("bank", "execute", "comes late", order.shown, reply[0])

    def _lie(self) -> None:
        self._bank.lied_about.add(self._bank.charge_of(self._asked))

    def _reply(self, reply: Reply, fault: str = "") -> None:
        if fault:
            self._note("bank", self._step, "answers", fault)
        self._later(self._chaos.uniform(0.001, 0.03), self._end, reply)

    def _end(self, reply: Reply | Exception, fault: str = "") -> None:
        if fault:
            self._note("bank", self._step, fault)
        if not self._answer.done():
            self._answer.set_result(reply)
