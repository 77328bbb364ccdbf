"""The stored format: every event ever written stays readable, and an unknown one stops the reader."""

import enum
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from charging.v1 import common_pb2, journal_pb2
from command_service import values
from command_service.book import Book
from command_service.charge import Absent, Charge, State
from command_service.codec import charge_id_of, decode, encode, operation_id_of
from command_service.events import (
    ActionRequired,
    AuthorizationExpired,
    Authorized,
    Captured,
    ChargeAbandoned,
    ChargeCalledOff,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    Event,
    HeldBack,
    LetGo,
    NotAfterPassed,
    OperationAbandoned,
    OperationDeclined,
    OperationRequested,
    Refunded,
    ResolutionApproved,
    ResolutionProposed,
    ResolutionRejected,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
    TryRequested,
    Voided,
)
from command_service.failures import ImpossibleEvent, UnknownEvent
from command_service.operation import AtRest, AwaitingToken
from command_service.values import (
    AnswerKind,
    Card,
    DeclineReason,
    Evidence,
    Kind,
    Money,
    Operation,
    Request,
    Resolution,
    ReviewReason,
)
from tests.core.stories import REQUESTED_AT
from tests.core.stories import stored as stored_as

FIXTURES = Path(__file__).parent / "fixtures"


def lines(name: str) -> list[list[str]]:
    """A fixture's lines, split into words."""
    return [line.split() for line in (FIXTURES / name).read_text().splitlines() if not line.startswith("#")]


# ---------------------------------------------------------------- the charge id
@pytest.mark.parametrize(("tenant", "key", "charge_id"), lines("charge_ids.txt"))
def test_a_tenants_key_names_the_same_charge_for_ever(tenant: str, key: str, charge_id: str) -> None:
    """If one of these vectors changed, a retry would charge again."""
    assert charge_id_of(tenant, key) == charge_id


tenants_and_keys = st.tuples(st.text(max_size=8), st.text(max_size=8))


@given(tenants_and_keys)
def test_a_charge_id_is_a_uuid_of_our_own_making(tenant_and_key: tuple[str, str]) -> None:
    """RFC 9562: the bits of version 8 follow the application's own rule."""
    charge_id = charge_id_of(*tenant_and_key)
    parsed = uuid.UUID(charge_id)
    assert (parsed.version, parsed.variant, str(parsed)) == (8, uuid.RFC_4122, charge_id)


@given(tenants_and_keys, tenants_and_keys)
def test_two_keys_or_tenants_never_share_a_charge(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Not even if the end of a tenant could be the beginning of a key."""
    assert (charge_id_of(*one) == charge_id_of(*other)) == (one == other)
    assert one == ("", "") or charge_id_of("".join(one), "") != charge_id_of("", "".join(one))


# ---------------------------------------------------------------- the id of an operation that follows
@pytest.mark.parametrize(("charge_id", "kind", "key", "operation_id"), lines("operation_ids.txt"))
def test_a_key_names_the_same_operation_of_its_charge_for_ever(
    charge_id: str, kind: str, key: str, operation_id: str
) -> None:
    """If one of these vectors changed, the bank would not know the operation again, and do it twice."""
    assert operation_id_of(charge_id, Kind(kind), key) == operation_id


def test_the_ids_of_operations_and_charges_are_frozen_for_every_kind_that_follows() -> None:
    """Meta: the vectors leave none out, and no two ids are the same."""
    frozen = lines("operation_ids.txt")
    assert {kind for _, kind, _, _ in frozen} == {kind.value for kind in Kind} - {"charge", "authorize"}
    ids = [line[-1] for line in (*frozen, *lines("charge_ids.txt"))]
    assert len(set(ids)) == len(ids)


operations = st.tuples(st.text(max_size=8), st.sampled_from(Kind), st.text(max_size=8))


@given(operations, operations, tenants_and_keys)
def test_two_operations_never_share_an_id_nor_one_with_a_charge(
    one: tuple[str, Kind, str], other: tuple[str, Kind, str], of_charge: tuple[str, str]
) -> None:
    """Not under the same key in another charge, and not of another kind."""
    assert (operation_id_of(*one) == operation_id_of(*other)) == (one == other)
    assert operation_id_of(*one) != charge_id_of(*of_charge)
    parsed = uuid.UUID(operation_id_of(*one))
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)


# ---------------------------------------------------------------- every past format
REQUEST = Request(
    charge_id="dc3b52b7-0b46-84f1-a286-10d98bcde820",
    tenant="default",
    idempotency_key="order-1001",
    actor="shop",
    user_id="user-7",
    card=Card("tok_visa", "visa", "4242"),
    amount=Money(1250, "EUR"),
    description="Ein Stück Seife",
    metadata=(("order", "1001"),),
)
EVIDENCE = Evidence(("amount", "currency"), 409, 65_536, bytes(range(32)))
CHARGED = Charged("user-7", Card("tok_visa", "visa", "4242"), Money(1250, "EUR"), "bank-77")
FINGERPRINTED = Card("tok_visa", "visa", "4242", "fp_1c7")
PART = Money(400, "EUR")
OPERATION_ID = "dbce8f68-32df-8005-ae02-7bcdab2bf48f"
FIRST_REASONS = [reason for reason in DeclineReason if reason is not DeclineReason.FOUND_NOT_EXECUTED]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROPOSED = ResolutionProposed(
    "ann", "Ticket 77", Resolution.REFUNDED, "bank-77", "bank-81", "statement of 30 Nov, line 12"
)
STORED: dict[str, Event] = {
    "charge_requested": ChargeRequested(REQUEST),
    "charge_requested.bare": ChargeRequested(
        Request(REQUEST.charge_id, "default", "order-1001", "shop", "user-7", Card("tok_visa"), Money(-1, "JPY"))
    ),
    "charge_requested.largest": ChargeRequested(
        Request(REQUEST.charge_id, "default", "order-1001", "shop", "user-7", Card("tok_visa"), Money(2**63 - 1, "KWD"))
    ),
    "charge_requested.held": ChargeRequested(
        replace(REQUEST, card=FINGERPRINTED, is_held=True, not_after=1_800_000_000_000_001)
    ),
    "token_issued": TokenIssued("tx_5f1c"),
    "token_expired": TokenExpired("tx_5f1c"),
    "charged": CHARGED,
    "charged.fingerprint": replace(CHARGED, card=FINGERPRINTED),
    **{f"charge_declined.{reason.value}": ChargeDeclined(reason) for reason in FIRST_REASONS},
    **{f"review_required.{reason.value}": ReviewRequired(reason, EVIDENCE) for reason in ReviewReason},
    "review_required.without_evidence": ReviewRequired(ReviewReason.CONTRADICTION),
    "charge_abandoned": ChargeAbandoned(5),
    "capture_requested": OperationRequested(Kind.CAPTURE, OPERATION_ID, "capture-1", "shop", PART),
    "capture_requested.final": OperationRequested(Kind.CAPTURE, OPERATION_ID, "capture-1", "shop", PART, is_final=True),
    "void_requested": OperationRequested(Kind.VOID, OPERATION_ID, "void-1", "shop", PART, reason="zurück"),
    "void_requested.bare": OperationRequested(Kind.VOID, OPERATION_ID, "void-1", "shop", PART),
    "refund_requested": OperationRequested(Kind.REFUND, OPERATION_ID, "refund-1", "shop", PART, reason="broken"),
    "refund_requested.bare": OperationRequested(Kind.REFUND, OPERATION_ID, "refund-1", "shop", PART),
    "not_after_passed": NotAfterPassed(),
    "authorized": Authorized("user-7", FINGERPRINTED, Money(1250, "EUR"), "bank-77", 1_800_000_000_000_001),
    "authorized.without_end": Authorized("user-7", Card("tok_visa", "visa", "4242"), Money(1250, "EUR"), "bank-77"),
    "captured": Captured(PART, "bank-78"),
    "voided": Voided(PART, "bank-79"),
    "refunded": Refunded(PART, "bank-80"),
    "charge_called_off": ChargeCalledOff(),
    "authorization_expired": AuthorizationExpired(),
    **{f"operation_declined.{reason.value}": OperationDeclined(reason) for reason in FIRST_REASONS},
    "operation_abandoned": OperationAbandoned(5),
    "charge_requested.of_a_bank": ChargeRequested(
        replace(
            REQUEST,
            card=FINGERPRINTED,
            is_held=True,
            not_after=1_800_000_000_000_001,
            is_off_session=True,
            return_url="https://shop.example/back?order=1001",
            bank="north",
        )
    ),
    "action_required": ActionRequired("https://bank.example/customer/tx_5f1c", 1_800_000_000_000_001),
    "action_required.without_end": ActionRequired("https://bank.example/customer/tx_5f1c"),
    "charge_requested.traced": ChargeRequested(
        replace(
            REQUEST,
            card=FINGERPRINTED,
            is_held=True,
            not_after=1_800_000_000_000_001,
            is_off_session=True,
            return_url="https://shop.example/back?order=1001",
            bank="north",
            traceparent=TRACE,
        )
    ),
    "capture_requested.traced": OperationRequested(
        Kind.CAPTURE, OPERATION_ID, "capture-1", "shop", PART, is_final=True, traceparent=TRACE
    ),
    "void_requested.traced": OperationRequested(
        Kind.VOID, OPERATION_ID, "void-1", "shop", PART, reason="zurück", traceparent=TRACE
    ),
    "refund_requested.traced": OperationRequested(
        Kind.REFUND, OPERATION_ID, "refund-1", "shop", PART, reason="broken", traceparent=TRACE
    ),
    "charge_declined.found_not_executed": ChargeDeclined(DeclineReason.FOUND_NOT_EXECUTED),
    "operation_declined.found_not_executed": OperationDeclined(DeclineReason.FOUND_NOT_EXECUTED),
    "try_requested": TryRequested("ann", "the bank is back"),
    "held_back": HeldBack("ann", "the shop asked for it"),
    "let_go": LetGo("ben", "the shop has looked"),
    "resolution_proposed": PROPOSED,
    **{
        f"resolution_proposed.{resolution.value}": ResolutionProposed(
            "ann", "Ticket 77", resolution, "", "", "a letter"
        )
        for resolution in Resolution
    },
    "resolution_rejected": ResolutionRejected("ben", "another amount", 77),
    **{
        f"resolution_approved.{said.value}": ResolutionApproved("ben", "I saw it too", 77, said, contradicts_bank=True)
        for said in AnswerKind
    },
    "resolution_approved": ResolutionApproved("ben", "I saw it too", 77, AnswerKind.EXECUTED, contradicts_bank=False),
}
"""The events of the fixtures' names. Lines are added to a fixture, never changed; other bytes need another fixture."""
FORMATS = sorted(path.name for path in FIXTURES.glob("events_*.txt"))
VECTORS = [
    pytest.param(name, bytes.fromhex(stored), id=f"{file}-{name}") for file in FORMATS for name, stored in lines(file)
]


@pytest.mark.parametrize(("name", "stored"), VECTORS)
def test_every_event_that_was_ever_stored_can_be_read(name: str, stored: bytes) -> None:
    """Vectors of every format that this program has written are kept for ever."""
    assert decode(stored) == STORED[name]


@pytest.mark.parametrize(("name", "stored"), lines(FORMATS[-1]))
def test_events_are_stored_in_the_newest_format(name: str, stored: str) -> None:
    """A change of the bytes needs a new fixture."""
    assert encode(STORED[name]).hex() == stored


def test_there_is_a_vector_of_every_kind_of_event_and_every_reason() -> None:
    """Meta: every stored kind has a frozen vector."""
    assert [name for name, _ in lines(FORMATS[-1])] == list(STORED)
    assert {type(event) for event in STORED.values()} == set(get_args(Event))


# ---------------------------------------------------------------- there and back
text = st.text(max_size=20)
cards = st.builds(Card, text, text, text, text)
amounts = st.builds(Money, st.integers(-(2**63), 2**63 - 1), text)
evidence = st.builds(
    Evidence,
    st.lists(text, max_size=3).map(tuple),
    st.integers(0, 999),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=32),
)
metadata = st.dictionaries(text, text, max_size=5).map(lambda pairs: tuple(sorted(pairs.items())))
times = st.just(0) | st.integers(1, 253_402_300_799_999_999)  # microseconds, to the end of the year 9999
requests = st.builds(
    Request,
    text,
    text,
    text,
    text,
    text,
    cards,
    amounts,
    text,
    metadata=metadata,
    is_held=st.booleans(),
    not_after=times,
    is_off_session=st.booleans(),
    return_url=text,
    bank=text,
)
positions = st.integers(1, 2**63 - 1)
events = st.one_of(
    st.builds(ChargeRequested, requests),
    st.builds(OperationRequested, st.just(Kind.CAPTURE), text, text, text, amounts, is_final=st.booleans()),
    st.builds(OperationRequested, st.sampled_from([Kind.VOID, Kind.REFUND]), text, text, text, amounts, reason=text),
    st.just(NotAfterPassed()),
    st.builds(ActionRequired, text, times),
    st.builds(TokenIssued, text),
    st.builds(TokenExpired, text),
    st.builds(Charged, text, cards, amounts, text),
    st.builds(Authorized, text, cards, amounts, text, times),
    st.builds(Captured, amounts, text),
    st.builds(Voided, amounts, text),
    st.builds(Refunded, amounts, text),
    st.just(ChargeCalledOff()),
    st.just(AuthorizationExpired()),
    st.builds(OperationDeclined, st.sampled_from(DeclineReason)),
    st.builds(OperationAbandoned, st.integers(0, 2**31 - 1)),
    st.builds(ChargeDeclined, st.sampled_from(DeclineReason)),
    st.builds(ReviewRequired, st.sampled_from(ReviewReason), evidence),
    st.builds(ChargeAbandoned, st.integers(0, 2**31 - 1)),
    *(st.builds(step, text, text) for step in (TryRequested, HeldBack, LetGo)),
    st.builds(ResolutionProposed, text, text, st.sampled_from(Resolution), text, text, text),
    st.builds(ResolutionRejected, text, text, positions),
    st.builds(ResolutionApproved, text, text, positions, st.sampled_from(AnswerKind), st.booleans()),
)


@settings(max_examples=400)
@given(events)
def test_an_event_that_is_stored_and_read_is_the_same_event(event: Event) -> None:
    """Field by field, for any content."""
    assert decode(encode(event)) == event


def test_metadata_is_read_in_one_order_for_every_stored_order() -> None:
    """A protobuf map has no order, so equal requests must not differ by it."""
    stored = journal_pb2.Event()
    for key in ("b", "c", "a"):
        stored.charge_requested.metadata[key] = key.upper()
    event = decode(stored.SerializeToString())
    assert isinstance(event, ChargeRequested)
    assert event.request.metadata == (("a", "A"), ("b", "B"), ("c", "C"))


# ---------------------------------------------------------------- the core's values and the contract's
ENUMS = [found for found in vars(values).values() if isinstance(found, enum.EnumMeta) and found is not enum.Enum]


@pytest.mark.parametrize("core", ENUMS)
def test_the_members_of_every_enum_are_the_same_in_the_core_and_in_the_contract(core: enum.EnumMeta) -> None:
    """The contract's zero stands for no member."""
    name = {"Kind": "OperationKind"}.get(core.__name__, core.__name__)
    contract = common_pb2.DESCRIPTOR.enum_types_by_name[name]
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() + "_"
    assert set(contract.values_by_name) == {prefix + name for name in ["UNSPECIFIED", *core.__members__]}
    assert contract.values_by_name[prefix + "UNSPECIFIED"].number == 0


def test_the_core_has_enums() -> None:
    """Meta: the test above has cases."""
    assert set(ENUMS) == {Kind, DeclineReason, ReviewReason, Resolution, AnswerKind}


OPENED_BY_ITS_KIND = (Kind.CAPTURE, Kind.VOID, Kind.REFUND)  # the core has one event, and the contract one for each


def test_the_events_are_the_same_in_the_core_and_in_the_contract() -> None:
    """Neither side has an event that the other lacks."""
    kinds = [field.message_type for field in journal_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields]
    in_contract = {kind.name for kind in kinds if kind is not None}
    in_core = {event.__name__ for event in get_args(Event)} - {OperationRequested.__name__}
    assert in_contract == in_core | {f"{kind.value.capitalize()}Requested" for kind in OPENED_BY_ITS_KIND}
    assert len(journal_pb2.Event.DESCRIPTOR.fields) == len(in_contract), "an event is nothing but its kind"


WHOLE = [
    *(
        "charge_requested.traced",
        "token_issued",
        "token_expired",
        "charged.fingerprint",
        "charge_declined.card_declined",
    ),
    *("review_required.fields_differ", "charge_abandoned", "capture_requested.traced", "void_requested.traced"),
    *(
        "refund_requested.traced",
        "not_after_passed",
        "authorized",
        "captured",
        "voided",
        "refunded",
        "charge_called_off",
    ),
    *("authorization_expired", "operation_declined.other", "operation_abandoned", "action_required"),
    *("try_requested", "held_back", "let_go", "resolution_proposed", "resolution_rejected"),
    "resolution_approved.executed",
]


def test_every_kind_has_an_event_with_all_its_fields() -> None:
    """Meta: the test below leaves none out."""
    kinds = journal_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert {name.partition(".")[0] for name in WHOLE} == {field.name for field in kinds}


@pytest.mark.parametrize("name", WHOLE)
def test_every_field_of_the_contract_is_stored(name: str) -> None:
    """A field that the codec omits would stay empty for ever."""

    def empty_fields(message: Message) -> set[str]:
        filled = {field.name: value for field, value in message.ListFields()}
        missing = {field.full_name for field in message.DESCRIPTOR.fields if field.name not in filled}
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE and isinstance(value, Message):
                missing |= empty_fields(value)
        return missing

    stored = journal_pb2.Event.FromString(encode(STORED[name]))
    assert empty_fields(getattr(stored, name.partition(".")[0])) == set()


# ---------------------------------------------------------------- a loud stop
def _declined(number: int) -> bytes:
    return bytes([5 << 3 | 2, 2, 1 << 3, number])


def _in_review(number: int) -> bytes:
    return bytes([6 << 3 | 2, 2, 1 << 3, number])


def _moving(number: int) -> bytes:
    return bytes([1 << 3 | 2, 2, 10 << 3, number])


def fold(stream: Sequence[bytes]) -> State:
    """Read a stored stream into its state, as the runner does."""
    return stored_as(Absent(), *map(decode, stream))


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes([0xA2, 0x06, 0]), id="a kind that a newer program knows"),
        pytest.param(_declined(99), id="a decline for a newer reason"),
        pytest.param(_declined(0), id="a decline without a reason"),
        pytest.param(_in_review(99), id="a review for a newer reason"),
        pytest.param(_in_review(0), id="a review without a reason"),
        pytest.param(_moving(3), id="a charge whose money is to move in a newer way"),
        pytest.param(b"\xff\xff\xff", id="no protobuf at all"),
        pytest.param(encode(STORED["charged"])[:-1], id="half an event"),
    ],
)
def test_an_unknown_event_is_a_loud_stop(stored: bytes) -> None:
    """It raises, read alone and read within its stream."""
    with pytest.raises(UnknownEvent):
        decode(stored)
    with pytest.raises(UnknownEvent):
        fold([encode(STORED["charge_requested"]), stored])


def test_a_decline_for_a_known_reason_is_no_stop() -> None:
    """Meta: the unknown reason is the cause of the stop above."""
    assert decode(_declined(1)) == ChargeDeclined(DeclineReason.CARD_DECLINED)
    assert decode(_in_review(1)) == ReviewRequired(ReviewReason.FIELDS_DIFFER)
    for number, is_held in ((0, False), (1, False), (2, True)):
        event = decode(_moving(number))
        assert isinstance(event, ChargeRequested)
        assert event.request.is_held == is_held


def test_a_stream_folds_into_its_state() -> None:
    """From nothing to rest."""
    assert fold([]) == Absent()
    opening = Operation(Kind.CHARGE, REQUEST.idempotency_key, REQUEST.charge_id, REQUEST.amount, REQUEST)
    assert fold([encode(STORED["charge_requested"])]) == Charge(REQUEST, AwaitingToken(opening, REQUESTED_AT), 1)
    whole = [STORED[name] for name in ("charge_requested", "token_issued", "charged")]
    rest = AtRest(opening, REQUESTED_AT, CHARGED, 3, decided_at=REQUESTED_AT + 2_000_000, token="tx_5f1c")
    assert fold([encode(event) for event in whole]) == Charge(REQUEST, rest, 3, Book(1250, 1250))


def test_an_impossible_stream_is_a_loud_stop() -> None:
    """Each event is known, but their order is impossible."""
    with pytest.raises(ImpossibleEvent):
        fold([encode(STORED["token_issued"])])
