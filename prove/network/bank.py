"""Scenarios of the bank: every row of the matrix that a bank, or the link to it, can do to one call or to all."""

import asyncio
import gzip
import ssl
import tempfile
from collections.abc import Iterator
from datetime import datetime
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from time import time
from typing import Any

from charging.v1.common_pb2 import Card
from judge.history import Request
from prove.network.faultproxy import Fault, Kind, Way
from prove.network.world import World, must, until
from rig.asking import reference_of

# No pause of ours is longer; a full breaker may add its own to it, and a busy machine a little.
LONGEST_PAUSE, LATEST_PAUSE = 20.0, 50.0
# A token step and an execute step, one of them twice, and a look-up or two.
MOST_THROTTLED_CALLS = 8
EXECUTE = b"/execute HTTP/1.1"
TOKEN_STEP = b"POST /transactions HTTP/1.1"


# ---------------------------------------------------------------- one charge, and what its bank does to it
# (what goes wrong, with what): whatever of it befalls an operation, in whatever step, it is executed all the same.
HARMLESS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lose_request", {}),
    ("lose_answer", {}),
    ("hang_before", {}),
    ("hang_after", {}),
    ("reset", {}),
    ("garbage", {}),
    ("half_body", {}),
    ("slow_body", {}),
    ("huge_body", {}),
    ("delay", {"seconds": 1.0}),
    *[(fault, {"status": status}) for fault in ("error_before", "error_after") for status in (500, 502, 503, 504)],
    *[("throttled", {"retry_after": text}) for text in ("0", "-5", "soon", "1e9", "NaN", "0.5", "Thu, 99 Foo")],
    *[("in_progress", {"retry_after": text}) for text in ("0", "-1", "later")],
)
# What may come as an answer too many.
NAMING_NOBODY: tuple[tuple[int, dict[str, Any]], ...] = (
    *[(status, {"error": "refused"}) for status in (400, 404, 409, 422)],
    (404, {"error": "token_unknown"}),
    (404, {"error": "reference_unknown"}),
    (410, {"error": "token_expired"}),
    (202, {"result": "in_progress"}),
    (200, {"result": "declined", "reason": "card_declined", "transaction_id": None}),
)
ODD_IDS = ("4111111111111111", "txn_5555-5555-5555-4444", "378282246310005", "1" * 129, "txn/1", "an id")
# An answer that is not about our charge: a look-up sets it right.
LYING = ("wrong_amount", "wrong_currency", "wrong_reference")


async def one_call_goes_wrong(world: World) -> None:
    """Every operation meets one fault or two of its own, in either step; each kind in turn."""
    for _ in range(3):
        kinds = sorted({fault for fault, _ in HARMLESS})
        requests = await world.wishes(len(kinds))
        for request, kind in zip(requests, kinds, strict=True):
            first = world.chance.choice([one for one in HARMLESS if one[0] == kind])
            more = world.chance.choices(HARMLESS, k=world.chance.randint(0, 1))
            for fault, details in (first, *more):
                await world.trouble(world.chance.choice(("token", "execute")), fault, request=request, **details)
        for asked in await world.settle_all(requests):
            must(asked.is_done, "a fault of a call changes no outcome")


async def answers_lie(world: World) -> None:
    """An answer with another amount, currency, reference or token is believed by nobody, and a look-up settles it."""
    # A false token cannot be told from a true one before it is executed: see the_bank_lies_for_good.
    lies = [*[(on, fault) for on in ("token", "execute") for fault in LYING]]
    lies += [("execute", fault) for fault in ("wrong_token", "contradict")] * 2
    requests = await world.wishes(len(lies))
    for request, (on, fault) in zip(requests, lies, strict=True):
        await world.trouble(on, fault, request=request)
        if world.chance.random() < 0.5:
            await world.trouble(
                "look_up", world.chance.choice(("lose_answer", "garbage", "error_before")), request=request
            )
    for asked in await world.settle_all(requests):
        must(asked.is_done, "a look-up that tells the truth settles it")


async def the_bank_lies_for_good(world: World) -> None:
    """When the look-up lies as well, nobody guesses: the charge is for people to look at, and it is asked no more."""
    world.is_bank_true_in_the_end = False
    requests = await world.wishes(8)
    for request in requests:
        fault = world.chance.choice(("wrong_amount", "wrong_currency", "wrong_token"))
        if fault == "wrong_token":
            await world.trouble("token", fault, request=request)
        else:
            await world.trouble("execute", fault, request=request, times=50)
            await world.trouble("look_up", fault, request=request, times=50)
    asked = await world.settle_all(requests)
    must(all(one.is_in_review for one in asked), "a bank that contradicts us is for people")


async def the_bank_refuses(world: World) -> None:
    """A no to the token step that is said again is a decline; to the execute step, with nothing found, it is for people."""
    world.is_bank_true_in_the_end = False
    early, late = await world.wishes(5), await world.wishes(5)
    for request in early:
        status = world.chance.choice((400, 404, 409, 422))
        await world.trouble("token", "refuse", request=request, status=status, times=2)
    for request in late:
        if world.chance.random() < 0.5:
            status = world.chance.choice((400, 404, 409, 422))
            await world.trouble("execute", "refuse", request=request, status=status, times=2)
        else:
            await world.trouble("execute", "forget_token", request=request)
            await world.trouble("look_up", "forget_token", request=request, times=2)
    for asked in await world.settle_all(early):
        must(asked.is_declined, "a token step that is refused is a decline")
    for asked in await world.settle_all(late):
        must(asked.is_in_review, "an execute step that is refused is never guessed about")


async def answers_come_too_many(world: World) -> None:
    """Some ms after a right answer comes one that nobody asked for, over a connection that is kept: it decides nothing.

    The bank is true in the end: that a charge goes into review would be told by the check.
    """
    requests = await world.wishes(60)
    for request in requests[::3]:
        on = world.chance.choice(("token", "execute", "execute"))
        status, body = world.chance.choice(NAMING_NOBODY)
        seconds = world.chance.uniform(0.0, 0.006)
        await world.trouble(on, "extra_answer", request=request, seconds=seconds, status=status, body=body)
    waiting = iter(requests)

    async def charge_on() -> None:
        for request in waiting:
            asked = await world.settle(request)
            must(asked.is_done, "an answer that names nobody ends no charge")

    await asyncio.gather(*(charge_on() for _ in range(4)))


async def the_bank_has_odd_ids(world: World) -> None:
    """What it executed under an id that may not be kept is for people, and does not wait for ever; the others go on."""
    world.is_bank_true_in_the_end = False
    requests = await world.wishes(len(ODD_IDS))
    for request, odd in zip(requests, ODD_IDS, strict=True):
        await world.trouble("execute", "odd_transaction_id", request=request, transaction_id=odd)
    for asked in await world.settle_all(requests):
        must(asked.is_in_review, "an id that may not be kept is for people")
    for asked in await world.settle_all(await world.wishes(2)):
        must(asked.is_done, "a bank with odd ids can have others")


async def the_bank_declines(world: World) -> None:
    """What a card is declined for stays declined, of every kind, whatever happens to the answers."""
    cards = ("tok_declined", "tok_insufficient_funds", "tok_expired_card")
    requests: list[Request] = [world.request(card=Card(token=world.chance.choice(cards))) for _ in range(4)]
    for kind in ("capture", "void", "refund"):
        requests += await world.wishes(2, (kind,), card=Card(token=f"tok_{kind}_declined"))
    for request in requests:
        await world.trouble("execute", world.chance.choice(("lose_answer", "garbage", "reset")), request=request)
    for asked in await world.settle_all(requests):
        must(asked.is_declined, "a declined card is declined")


async def tokens_expire(world: World) -> None:
    """A token that expired unexecuted is followed by another, and a late execute with the old one finds it closed."""
    requests = await world.wishes(6)
    for request in requests:
        await world.trouble("execute", "expire_token", request=request, times=world.chance.randint(1, 2))
    world.bank_link.order(*(Fault(Kind.DUPLICATE, when=EXECUTE, seconds=0.3) for _ in range(4)))
    for asked in await world.settle_all(requests):
        must(asked.is_done, "an expired token is not the end")
    await _fired(world, Kind.DUPLICATE, 1)


async def requests_come_twice(world: World) -> None:
    """The network delivers token and execute requests a second time, much later, and nothing comes of it."""
    requests = await world.wishes(6)
    world.bank_link.order(
        *(Fault(Kind.DUPLICATE, when=EXECUTE, seconds=world.chance.uniform(0.05, 1.0)) for _ in range(3))
    )
    world.bank_link.order(
        *(Fault(Kind.DUPLICATE, when=TOKEN_STEP, seconds=world.chance.uniform(0.05, 1.0)) for _ in range(3))
    )
    for asked in await world.settle_all(requests):
        must(asked.is_done, "a repeated request changes no outcome")
    await _fired(world, Kind.DUPLICATE, 3)


async def the_link_breaks(world: World) -> None:
    """The link to the bank is cut, reset, held up or goes silent after any number of bytes, either way."""
    rounds = [await world.wishes(8) for _ in range(2)]
    kinds = [Kind.CUT, Kind.RESET, Kind.DELAY, Kind.BLACK_HOLE, Kind.THROTTLE] * 3
    world.chance.shuffle(kinds)
    for kind in kinds:
        way = world.chance.choice(list(Way))
        when = world.chance.choice((b"", EXECUTE, TOKEN_STEP)) if way is Way.UP else b""
        world.bank_link.order(
            Fault(kind, way, when, world.chance.randrange(500), seconds=world.chance.uniform(0.05, 0.5))
        )
    for requests in rounds:
        for asked in await world.settle_all(requests):
            must(asked.is_done, "a broken link changes no outcome")


async def answers_are_monstrous(world: World) -> None:
    """Instead of the bank's answer comes something endless, compressed, or meant to be misread."""
    monsters, requests = list(_monsters()), await world.wishes(8)
    for _ in range(8):
        forged, seconds = world.chance.choice(monsters)()
        world.bank_link.order(Fault(Kind.FORGE, Way.DOWN, when=b"HTTP/1.1 200", forged=forged, seconds=seconds))
    for asked in await world.settle_all(requests):
        must(asked.is_done, "an answer that cannot be read is no answer")


def _monsters() -> Iterator[Any]:
    """Makers of (parts, seconds between them)."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

    def whole(body: bytes, more: bytes = b"") -> Any:
        return lambda: ([head + more + b"Content-Length: %d\r\n\r\n" % len(body) + body], 0.0)

    def endless(begin: bytes, part: bytes, seconds: float) -> Any:
        def parts() -> Iterator[bytes]:
            yield begin
            for _ in range(1 << 14):  # 1 GiB of the largest parts: nobody may want that much
                yield part

        return lambda: (parts(), seconds)

    yield endless(head + b"Content-Length: 1073741824\r\n\r\n", bytes(65_536), 0.0)
    yield endless(head + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n", 0.0)
    yield endless(head, b"X-Endless: yes\r\n" * 100, 0.0)
    yield endless(head + b"Content-Length: 300\r\n\r\n", b" ", 0.1)
    yield endless(b"H", b"T", 0.05)
    yield endless(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001)
    yield whole(gzip.compress(bytes(8 << 20)), b"Content-Encoding: gzip\r\n")
    yield whole(b'{"token": ' + b"[" * 30_000 + b"]" * 30_000 + b"}")
    # Each says what would be believed if it were read loosely.
    told = b'"reference": "x", "card": "tok_visa", "currency": "EUR", "transaction_id": "t", "reason": null'
    yield whole(b'{"result": "executed", "token": "x", "amount": NaN, ' + told + b"}")
    yield whole(b'{"result": "executed", "token": "x", "amount": 1e3, ' + told + b"}")
    yield whole(b'{"result": "executed", "result": "declined", "token": "x", "amount": 1, ' + told + b"}")
    yield whole(b"\xff\xfe" + b'{"result": "executed"}')
    yield whole(b"")
    yield lambda: ([b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nfine"], 0.0)
    yield lambda: ([b"HTTP/9.9 999 \x00\x01\r\n\r\n"], 0.0)
    yield lambda: ([b"SSH-2.0-OpenSSH_9.2\r\n"], 0.0)
    yield lambda: ([head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}    "], 0.0)
    yield lambda: ([head + b"Content-Length: 999999999999999999999999\r\n\r\n{}"], 0.0)


# ---------------------------------------------------------------- the bank as a whole
async def the_bank_goes_away(world: World) -> None:
    """The bank goes down amid its work and comes back: charges wait or are not begun, and none is told what is not so."""
    early, late = await world.wishes(5), await world.wishes(5)
    asking = [asyncio.create_task(world.ask(request, 1.5)) for request in early]
    await world.bank_link.has_moved(world.bank_link.moved_bytes + world.chance.randrange(1, 2_500))
    world.bank_link.end_all(reset=True)
    await world.servers.bank_down()
    asking += [asyncio.create_task(world.ask(request, 1.5)) for request in late]
    for asked in await asyncio.gather(*asking):
        must(asked.outcome is None or asked.is_done, "what a bank has not said, nobody says")
        world.faults["bank: down"] += asked.outcome is None
    await world.servers.bank_up()


async def the_bank_is_away_for_long(world: World) -> None:
    """The breaker opens: new keys are refused before anything is stored, known ones are answered, and it closes again."""
    (known,) = await world.settle_all(await world.wishes(1))
    await world.servers.bank_down()
    stuck = await asyncio.gather(*(world.ask(request, 2.0) for request in world.requests(30)))
    world.faults["bank: down for long"] += sum(asked.outcome is None for asked in stuck)
    for _ in range(100):
        refused = await world.ask(world.request(), 1.0)
        world.faults["bank: breaker open"] += refused.reason == "BANK_UNREACHABLE"
        if world.faults["bank: breaker open"] == 5:
            break
    must(refused.reason == "BANK_UNREACHABLE", "with the bank away for long, new keys are refused at once")
    again = await world.ask(known.request, 2.0)
    must(again.is_done, "known keys are answered whatever the bank does")
    await world.servers.bank_up()


async def the_bank_does_not_know_us(world: World) -> None:
    """401 and 403: nothing is declined for a fault of our set-up, and once it is mended the charges go on."""
    requests = await world.wishes(4)
    for request in requests:
        on = world.chance.choice(("token", "execute"))
        await world.trouble(on, "refuse", request=request, status=world.chance.choice((401, 403)))
    for asked in await asyncio.gather(*(world.ask(request, 1.5) for request in requests)):
        must(asked.outcome is None or asked.is_done, "a wrong set-up declines nothing")
    await world.no_more_trouble()
    await world.command_again()  # as whoever mends a set-up does


async def throttled_in_a_storm(world: World) -> None:
    """Everything is answered 429, with sensible and with absurd wishes: each is honoured up to 20 s, and no storm comes."""
    date = formatdate(time() + 5, usegmt=True)
    # (the wish, how soon again at the soonest): what no number or date says is nobody's wish.
    wishes = (
        ("1000000000", LONGEST_PAUSE),
        ("9" * 20, LONGEST_PAUSE),
        ("3", 3.0),
        ("1e9", 0.0),
        (date, 0.0),
        ("-1", 0.0),
    )
    throttled = list(zip(await world.wishes(2 * len(wishes)), wishes * 2, strict=True))
    for request, (wish, _) in throttled:
        on = world.chance.choice(("token", "execute"))
        await world.trouble(on, "throttled", request=request, retry_after=wish)
    for asked in await world.settle_all([request for request, _ in throttled]):
        must(asked.is_done, "a throttled charge is charged in the end")
    calls = await world.referee.calls()
    for request, (wish, soonest) in throttled:
        about = [call for call in calls if call["reference"] == reference_of(request)]
        must(len(about) <= MOST_THROTTLED_CALLS, f"no storm comes, but {len(about)} calls about one charge did")
        for call, following in pairwise(about):
            if call["fault"] == "throttled":
                pause = (datetime.fromisoformat(following["at"]) - datetime.fromisoformat(call["at"])).total_seconds()
                must(pause >= soonest, f"the wish {wish} is honoured, not {pause:.1f} s")
                must(pause <= LATEST_PAUSE, f"the wish {wish} is honoured up to {LONGEST_PAUSE:g} s, not {pause:.1f} s")


async def redirected(world: World) -> None:
    """A redirect is no answer, and nobody goes where it leads."""
    visits = []

    async def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(1)
        writer.close()

    trap = await asyncio.start_server(visited, "127.0.0.1", 0)
    async with trap:
        port = trap.sockets[0].getsockname()[1]
        requests = await world.wishes(8)
        for request in requests:
            on = world.chance.choice(("token", "execute"))
            where = world.chance.choice(
                (f"http://127.0.0.1:{port}/steal", f"//127.0.0.1:{port}/", "file:///etc/passwd", "/x")
            )
            await world.trouble(on, "redirect", request=request, location=where)
        for asked in await world.settle_all(requests):
            must(asked.is_done, "a redirect changes no outcome")
    must(not visits, "redirects are not followed")


async def slow_and_full(world: World) -> None:
    """A slow bank and small limits: what is too much is refused before it is stored, and known keys are answered."""
    await world.command_again(COMMAND_MAX_UNFINISHED="6", COMMAND_MAX_CALLS="40", COMMAND_BANK_CALLS="3")
    (known,) = await world.settle_all(world.requests(1))
    await world.trouble("token", "delay", seconds=0.3, times=40)
    crowd = [asyncio.create_task(world.ask(request, 10.0)) for request in world.requests(60)]
    await until(lambda: sum(task.done() for task in crowd) >= 40, 20.0, "a full server refuses, it does not queue")
    again = await world.ask(known.request, 5.0)
    must(again.is_done, "a full server answers for known keys")
    refused = [task.result() for task in crowd if task.done() and task.result().reason]
    reasons = {asked.reason for asked in refused}
    must(reasons <= {"TOO_MANY_UNFINISHED", "TOO_MANY_CALLS"}, f"a full server says that it is full, not {reasons}")
    world.faults["bank: slow, server full"] += len(refused)
    await asyncio.gather(*crowd)
    for asked in refused:
        calls = await world.referee.calls()
        must(
            all(call["reference"] != reference_of(asked.request) for call in calls),
            "what was refused was not begun",
        )


async def certificates_are_wrong(world: World) -> None:
    """A bank whose certificate nobody vouches for is told nothing, and its charges wait until that is mended."""
    heard = []

    async def listening(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        tls = await _own_certificate(Path(folder))
        bank = await asyncio.start_server(listening, "127.0.0.1", 0, ssl=tls)
        # A failed handshake is what is wanted, and asyncio tells each in its log.
        async with bank:
            await world.command_again(COMMAND_BANK_URL=f"https://127.0.0.1:{bank.sockets[0].getsockname()[1]}")
            asked = await asyncio.gather(*(world.ask(request, 1.5) for request in world.requests(10)))
            world.faults["bank: wrong certificate"] += len(asked)
            must(all(a.outcome is None for a in asked), "a bank that proves nothing decides nothing")
    must(not heard, "nothing is sent to a bank with a wrong certificate")
    await world.command_again()


async def names_do_not_resolve(world: World) -> None:
    """A bank whose name nobody knows: charges wait until that is mended."""
    await world.command_again(COMMAND_BANK_URL="http://bank.invalid:80")
    asked = await asyncio.gather(*(world.ask(request, 1.0) for request in world.requests(10)))
    world.faults["bank: name unknown"] += len(asked)
    must(all(a.outcome is None for a in asked), "a bank that is not found decides nothing")
    await world.command_again()


async def _own_certificate(folder: Path) -> ssl.SSLContext:
    """A certificate that nobody has signed but itself. Raises FileNotFoundError if openssl is missing."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    making = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    must(await making.wait() == 0, "openssl makes a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def _fired(world: World, kind: Kind, times: int) -> None:
    await until(lambda: world.bank_link.fired[kind] >= times, 10.0, f"the harness's own fault fires: {kind}")
