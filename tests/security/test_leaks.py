"""A hundred thousand card numbers come in through every door of three real servers, and none is found anywhere after."""

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from charging.v1 import command_pb2, journal_pb2, operator_pb2, query_pb2
from charging.v1.common_pb2 import Resolution
from rig.errors import Told, told
from rig.processes import Town
from rig.world import a_request
from tests.core.test_screening import with_check_digit
from tests.security.two_tenants import Client, two_tenants

NUMBERS = 100_000
SEED = 11
# A scheme's first digits, the length, and the groups in which its cards print it.
PRINTED = [
    ("4", 16, (4, 4, 4, 4)),
    ("4", 19, (4, 4, 4, 4, 3)),
    ("51", 16, (4, 4, 4, 4)),
    ("55", 16, (4, 4, 4, 4)),
    ("34", 15, (4, 6, 5)),
    ("37", 15, (4, 6, 5)),
    ("6011", 16, (4, 4, 4, 4)),
    ("36", 14, (4, 6, 4)),
    ("3530", 16, (4, 4, 4, 4)),
    ("62", 16, (4, 4, 4, 4)),
]
SEPARATORS = ("", " ", "-")
# Each call carries one number in its body, and so many in its metadata, which grpc limits to 8 KB.
IN_METADATA = 25
AT_ONCE = 24


def _card_numbers(count: int) -> Iterator[str]:
    """Valid numbers of several schemes, by turns bare, with spaces and with dashes."""
    rng = random.Random(SEED)
    for n in range(count):
        first, length, groups = PRINTED[n // len(SEPARATORS) % len(PRINTED)]
        digits = with_check_digit(first + "".join(rng.choices("0123456789", k=length - 1 - len(first))))
        ends = list(itertools.accumulate(groups))
        parts = (digits[end - size : end] for size, end in zip(groups, ends, strict=True))
        yield SEPARATORS[n % len(SEPARATORS)].join(parts)


# ---------------------------------------------------------------- the search
_RUN = re.compile(rb"[0-9](?:[ -]?[0-9]){13,}")


def _found_in(content: bytes, numbers: frozenset[bytes]) -> list[bytes]:
    """The numbers that stand anywhere in these bytes, bare or with spaces and dashes, inside longer runs too."""
    runs = (re.sub(rb"[ -]", b"", run[0]) for run in _RUN.finditer(content))
    windows = (run[at : at + size] for run in runs for size in (14, 15, 16, 19) for at in range(len(run) - size + 1))
    return [window for window in windows if window in numbers]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


# ---------------------------------------------------------------- the doors
class Place(NamedTuple):
    """A text field of a method's request, and how a request is made with a text in it."""

    method: str
    name: str
    request: Callable[[str], Message]


def _texts(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all texts of a message, keys and values of maps included."""
    for each in kind.fields:
        here = (*path, each.name)
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            yield (*here, "key")
            yield (*here, "value")
        elif each.message_type is not None:
            yield from _texts(each.message_type, here)
        elif each.type in (each.TYPE_STRING, each.TYPE_BYTES):
            yield here


def _filled(base: Message, path: Sequence[str], text: str) -> Message:
    made: Any = type(base)()
    made.CopyFrom(base)
    target = made
    for name in path[:-1]:
        target = getattr(target, name)
    if path[-1] in ("key", "value") and len(path) > 1:
        target[text if path[-1] == "key" else "note"] = "1" if path[-1] == "key" else text
    else:
        is_bytes = target.DESCRIPTOR.fields_by_name[path[-1]].type == 12
        setattr(target, path[-1], text.encode() if is_bytes else text)
    return made  # type: ignore[no-any-return]


def _bases() -> dict[str, Message]:
    """A good request for each method of the contract."""
    known, key = "00000000-0000-5000-8000-000000000000", "order-none"
    return {
        "Charge": a_request("order-of-a-leak"),
        "Capture": command_pb2.CaptureRequest(idempotency_key=key, charge_id=known),
        "Void": command_pb2.VoidRequest(idempotency_key=key, charge_id=known),
        "Refund": command_pb2.RefundRequest(idempotency_key=key, charge_id=known),
        "GetCharge": query_pb2.GetChargeRequest(),
        "WatchCharge": query_pb2.WatchChargeRequest(),
        "GetChargeHistory": query_pb2.GetChargeHistoryRequest(),
        "ListCharges": query_pb2.ListChargesRequest(),
        "GetUserSummary": query_pb2.GetUserSummaryRequest(),
        "GetViewStatus": query_pb2.GetViewStatusRequest(),
        "ExplainCharge": query_pb2.ExplainChargeRequest(),
        "Subscribe": journal_pb2.SubscribeRequest(),
        "GetAttempts": journal_pb2.GetAttemptsRequest(),
        "TryNow": operator_pb2.TryNowRequest(charge_id=known, reason="ticket 7"),
        "HoldBack": operator_pb2.HoldBackRequest(charge_id=known, reason="ticket 7"),
        "LetGo": operator_pb2.LetGoRequest(charge_id=known, reason="ticket 7"),
        "AskBank": operator_pb2.AskBankRequest(charge_id=known),
        "ProposeResolution": operator_pb2.ProposeResolutionRequest(
            charge_id=known,
            reason="ticket 7",
            resolution=Resolution.RESOLUTION_REFUNDED,
            transaction_id="tx-1",
            refund_transaction_id="tx-2",
            evidence="statement 7",
        ),
        "RejectResolution": operator_pb2.RejectResolutionRequest(charge_id=known, reason="ticket 7", proposal=1),
        "ApproveResolution": operator_pb2.ApproveResolutionRequest(charge_id=known, reason="ticket 7", proposal=1),
        "GetServerStatus": operator_pb2.GetServerStatusRequest(),
        "Reconcile": operator_pb2.ReconcileRequest(begin=_an_hour()),
        "ListReconciliations": operator_pb2.ListReconciliationsRequest(),
    }


def _an_hour() -> operator_pb2.ReconcileBegin:
    begin = operator_pb2.ReconcileBegin()
    getattr(begin, "from").FromSeconds(int(time.time()) - 3600)
    begin.to.FromSeconds(int(time.time()))
    return begin


def _places() -> list[Place]:
    return [
        Place(method, ".".join(path), lambda text, base=base, path=path: _filled(base, path, text))  # type: ignore[misc]
        for method, base in _bases().items()
        for path in _texts(base.DESCRIPTOR)
    ]


COMMANDS = frozenset({"Charge", "Capture", "Void", "Refund"})
STEPS = frozenset(
    {"TryNow", "HoldBack", "LetGo", "AskBank", "ProposeResolution", "RejectResolution", "ApproveResolution"}
)
OF_THE_DESK = STEPS | {"Reconcile"}


def test_a_place_is_tried_for_every_text_of_the_contract() -> None:
    """Every method has a request here, and every request has places: there is none without a text."""
    files = (command_pb2, query_pb2, journal_pb2, operator_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {method.name: method.input_type for service in services for method in service.methods}
    assert _bases().keys() == methods.keys()
    assert {place.name for place in _places() if place.method == "Charge"} >= {"card.last4", "metadata.key"}
    assert {place.method for place in _places()} == {name for name, request in methods.items() if request.fields}


# ---------------------------------------------------------------- the calls
@dataclass(frozen=True)
class Strewn:
    """The town after all calls, the numbers that they held, and the errors that they ended with."""

    town: Town
    numbers: frozenset[bytes]
    errors: list[Told] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """By place, the requests for money and for steps of the desk, by a caller who may make them."""


async def _errors(call: Any) -> Told | None:
    """Read a call, or the beginning of a stream, and return its error."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                call.cancel()
                break
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return told(error)
    return None


def _stub(client: Client, method: str) -> Any:
    in_turn = (client.commands, client.queries, client.feed, client.desk)
    return next(getattr(service, method) for service in in_turn if hasattr(service, method))


def _metadata(numbers: Iterator[str]) -> list[tuple[str, str]]:
    """Metadata with card numbers as keys and as values, and one in the client's own name."""
    taken = list(itertools.islice(numbers, IN_METADATA))
    named = [(f"x-{number.replace(' ', '-')}", "1") for number in taken[:6]]
    return named + [(f"x-note-{n}", number) for n, number in enumerate(taken[6:])]


def _unusual(client: Client, number: str) -> Iterator[Any]:
    """Calls by which grpc itself, or a service that is no part of the contract, is told a number."""
    health: Any
    for channel in client.channels:
        for method, body in ((number.replace(" ", ""), number.encode()), ("Charge", b"\xff" + number.encode())):
            send: Any = channel.unary_unary(f"/charging.v1.CommandService/{method}")
            yield send(body, timeout=20)
        health = health_pb2_grpc.HealthStub(channel)
        yield health.Check(health_pb2.HealthCheckRequest(service=number), timeout=20)
        yield health.Watch(health_pb2.HealthCheckRequest(service=number), timeout=20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strewn(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Strewn]:
    """Strew all numbers. The callers are of a tenant, without the role, without a name in the policy, and with a bad token."""
    numbers = list(_card_numbers(NUMBERS))
    digits = frozenset(re.sub("[ -]", "", number).encode() for number in numbers)
    left, places, folder = iter(numbers), itertools.cycle(_places()), tmp_path_factory.mktemp("leaks")
    async with two_tenants(folder) as two:
        result = Strewn(two.town, digits)
        agent = [("grpc.primary_user_agent", numbers[0])]
        callers = [await two.client(name, options=agent) for name in ("a", "a", "a", "a", "reader", "nobody")]
        desk, people = await two.client("desk", options=agent), await two.client("operator", options=agent)
        of_the_desk = [desk, desk, desk, people, callers[-1]]
        assert await callers[0].commands.Charge(a_request("a-good-one"))
        free, rng = asyncio.Semaphore(AT_ONCE), random.Random(SEED)

        async def tell(
            number: str, metadata: list[tuple[str, str]], place: Place, client: Client, *, in_token: bool
        ) -> None:
            if in_token:
                metadata.append(("authorization", f"Bearer {number}"))
            async with free:
                request: Any = place.request(number)
                if place.method == "Reconcile":
                    request = iter([request])
                error = await _errors(_stub(client, place.method)(request, metadata=metadata, timeout=20))
            if error is not None:
                result.errors.append(error)
            may = client in callers[:4] if place.method in COMMANDS else place.method in STEPS and client is desk
            if may and not in_token:
                assert error is not None and error.reason == "INVALID_REQUEST", (place, error)
                result.refused[f"{place.method}.{place.name}"] += 1

        async with asyncio.TaskGroup() as calls:
            for number in left:  # each call takes many more for its metadata
                place, in_token = next(places), rng.random() < 0.15
                client = rng.choice(of_the_desk if place.method in OF_THE_DESK else callers)
                calls.create_task(tell(number, _metadata(left), place, client, in_token=in_token))
        for number in numbers[:60]:
            for call in _unusual(callers[0], number):
                if (error := await _errors(call)) is not None:
                    result.errors.append(error)
        yield result


@pytest.mark.asyncio(loop_scope="module")
async def test_no_card_number_is_in_a_file_or_an_output(strewn: Strewn) -> None:
    """Journal, its siblings, anchor, view, the bank's ledger, and whatever the servers wrote out."""
    found = {path: _found_in(path.read_bytes(), strewn.numbers) for path in _files(strewn.town.folder)}
    names = {path.name for path in found}
    assert {"journal.db", "journal.db-wal", "view.db", "bank.db", "command.log", "query.log", "bank.log"} <= names
    assert {path: numbers for path, numbers in found.items() if numbers} == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_no_card_number_is_in_an_error(strewn: Strewn) -> None:
    """In its text, its details, or any of its trailers; and errors of every kind have come."""
    assert [error for error in strewn.errors if _found_in(error.everything, strewn.numbers)] == []
    kinds = {error.code.name for error in strewn.errors}
    needed = {"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED"}
    assert needed <= kinds, kinds
    assert {error.reason for error in strewn.errors} >= {"INVALID_REQUEST", "CHARGE_NOT_FOUND"}


@pytest.mark.asyncio(loop_scope="module")
async def test_every_request_for_money_or_a_step_with_a_card_number_is_refused(strewn: Strewn) -> None:
    """In whichever text it stands, alone and as a card prints it."""
    names = {f"{place.method}.{place.name}" for place in _places() if place.method in COMMANDS | STEPS}
    assert {name for name, count in strewn.refused.items() if count >= 10} == names


@pytest.mark.asyncio(loop_scope="module")
async def test_the_journal_as_it_is_printed_and_the_statement_hold_none(strewn: Strewn) -> None:
    """The operator's commands read the same records, and print them."""
    assert await strewn.town.operate("print-journal") == 0
    said = strewn.town.command.log.read_bytes()
    assert b"a-good-one" in said
    assert _found_in(said, strewn.numbers) == []


@pytest.mark.parametrize("separator", SEPARATORS)
def test_the_search_finds_a_number_that_was_planted(tmp_path: Path, separator: str) -> None:
    """Alone, among other digits, and in a binary file."""
    number = next(_card_numbers(1))
    (tmp_path / "planted").write_bytes(
        b"\0\xff20261129 " + separator.join(re.findall("....", number)).encode() + b"77\0"
    )
    (path,) = _files(tmp_path)
    assert _found_in(path.read_bytes(), frozenset([number.encode()])) == [number.encode()]
