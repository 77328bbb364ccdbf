"""A journal that the version before operations wrote is read as it is, byte for byte.

`fixtures/journal_1.db` was written by the command server of commit 3a11da7, with the mock bank of that commit, and copied by
its `backup`. `fixtures/journal_1.txt` is what its `print-journal` printed. Neither is ever changed.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from charging.v1.common_pb2 import ChargeStatus
from command_service.charge import Absent, Charge, State, evolve, next_step
from command_service.codec import charge_id_of, decode, encode
from command_service.events import (
    ChargeAbandoned,
    Charged,
    ChargeDeclined,
    ChargeRequested,
    Event,
    Recorded,
    ReviewRequired,
    TokenExpired,
    TokenIssued,
)
from command_service.journal import Record
from command_service.journal.sqlite.file import SqliteFile
from command_service.operate import print_journal, verify_journal
from command_service.statuses import status_of
from command_service.values import Card, DeclineReason, Evidence, Execute, Money, Request, RequestToken, ReviewReason

FIXTURES = Path(__file__).parent / "fixtures"
CARD = Card("tok_visa", "visa", "4242")
EUR = Money(1250, "EUR")
YEN = Money(1250, "JPY")
DINARS = Money(12_340, "KWD")
EVIDENCE = Evidence(
    ("amount",), 200, 239, bytes.fromhex("d49fdcfced21e04cde1927a6bb960153d5da669ed9330ec583cb0909cfb768ba")
)


def requested(key: str, amount: Money = EUR, card: Card = CARD, description: str = "") -> ChargeRequested:
    metadata = (("order", "1001"),) if description else ()
    return ChargeRequested(
        Request(charge_id_of("default", key), "default", key, "anonymous", "alice", card, amount, description, metadata)
    )


STREAMS: dict[str, tuple[Event, ...]] = {
    "charged": (
        requested("charged", description="Zwei Plätze, Reihe 12"),
        TokenIssued("ttok_d5fc582851474c25d4e4371edaf00d90"),
        Charged("alice", CARD, EUR, "txn_f56db1f6e289fa229d8d3f0d8a34df69"),
    ),
    "charged-yen": (
        requested("charged-yen", YEN),
        TokenIssued("ttok_3ded7979390004147bb4568a42cbc56a"),
        Charged("alice", CARD, YEN, "txn_23a71aa863ee57beb2bce8652fd899ac"),
    ),
    "declined": (
        requested("declined", card=Card("tok_insufficient_funds", "visa", "4242")),
        TokenIssued("ttok_ab2f423ff595381c7cffc57799dc5da5"),
        ChargeDeclined(DeclineReason.INSUFFICIENT_FUNDS),
    ),
    "review": (
        requested("review", Money(4200, "EUR")),
        TokenIssued("ttok_a125b2b2be21e45488308b58cecc346b"),
        ReviewRequired(ReviewReason.FIELDS_DIFFER, EVIDENCE),
    ),
    "token-expired": (
        requested("token-expired", DINARS),
        TokenIssued("ttok_85680e0ae1a3e1a06d6e190fb004b808"),
        TokenExpired("ttok_85680e0ae1a3e1a06d6e190fb004b808"),
        TokenIssued("ttok_c2a1edd787d85f78a0c53de5903cc094"),
        Charged("alice", CARD, DINARS, "txn_12910a1da22a301af54449eb80fd132a"),
    ),
    "abandoned": (requested("abandoned"), ChargeAbandoned(5)),
    "awaiting-execution": (requested("awaiting-execution"), TokenIssued("ttok_34745adda6e23cd0eddbe37bcb918f4d")),
    "awaiting-token": (requested("awaiting-token"),),
}
"""The events of each charge, by its idempotency key, in the order of the journal."""
STATUSES = {
    "charged": ChargeStatus.CHARGE_STATUS_CHARGED,
    "charged-yen": ChargeStatus.CHARGE_STATUS_CHARGED,
    "declined": ChargeStatus.CHARGE_STATUS_DECLINED,
    "review": ChargeStatus.CHARGE_STATUS_IN_REVIEW,
    "token-expired": ChargeStatus.CHARGE_STATUS_CHARGED,
    "abandoned": ChargeStatus.CHARGE_STATUS_ABANDONED,
    "awaiting-execution": ChargeStatus.CHARGE_STATUS_PENDING,
    "awaiting-token": ChargeStatus.CHARGE_STATUS_PENDING,
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteFile]:
    """The old journal, in a place of its own. No test may change a byte of it."""
    old = tmp_path / "journal.db"
    shutil.copyfile(FIXTURES / "journal_1.db", old)
    yield SqliteFile(old)
    assert old.read_bytes() == (FIXTURES / "journal_1.db").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["journal.db"]


def records(journal: SqliteFile) -> list[Record]:
    with journal.read() as opened:
        return list(opened.records())


def test_it_is_printed_as_the_old_version_printed_it(journal: SqliteFile) -> None:
    """Line for line."""
    assert list(print_journal(journal, None)) == (FIXTURES / "journal_1.txt").read_text().splitlines()


def test_it_is_verified(journal: SqliteFile) -> None:
    """Chain, indexes, and the table of what is unfinished, which is computed anew by today's fold."""
    told = verify_journal(journal)
    assert told.startswith("ok: 22 records of 8 charges, 2 unfinished, journal 59a298e9-e51b-4a92-9555-baa38dbfe61d, ")
    assert "chain e7a06b3ba8c8ec07188203fbf673f2f4f20e909690e5ab81703460ccddf9ba2f" in told


def test_every_event_has_its_old_meaning_and_its_old_bytes(journal: SqliteFile) -> None:
    """A record of a plain charge costs not a byte more today."""
    stored = records(journal)
    assert [decode(record.event) for record in stored] == [event for stream in STREAMS.values() for event in stream]
    for record in stored:
        assert encode(decode(record.event)) == record.event, record.position


def test_every_charge_stands_where_it_stood(journal: SqliteFile) -> None:
    """The unfinished ones go on with the step that was next."""
    states: dict[str, State] = {}
    for record in records(journal):
        recorded = Recorded(decode(record.event), record.position, record.recorded_at)
        states[record.charge_id] = evolve(states.get(record.charge_id, Absent()), recorded)
    charges = {state.request.idempotency_key: state for state in states.values() if isinstance(state, Charge)}
    assert {key: status_of(charge) for key, charge in charges.items()} == STATUSES
    steps = {key: step for key, charge in charges.items() if (step := next_step(charge)) is not None}
    assert steps == {
        "awaiting-execution": Execute(
            charges["awaiting-execution"].opening.operation, "ttok_34745adda6e23cd0eddbe37bcb918f4d"
        ),
        "awaiting-token": RequestToken(charges["awaiting-token"].opening.operation, 0),
    }
    assert charges["charged"].opening.requested_at == 1_795_941_965_373_747
