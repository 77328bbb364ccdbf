"""Differences that are planted in a statement: what each is, and which finding must name it."""

import csv
import random
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

Movement = dict[str, Any]
"""A movement of the mock bank's statement."""

ZONE = "Europe/Berlin"
MAPPING = f"""
delimiter = ";"
encoding = "cp1252"
time_zone = "{ZONE}"
kinds = ["charge", "authorize", "capture", "void", "refund"]

[columns]
reference = "Kundenreferenz"
transaction_id = "Transaktion"
type = "Vorgang"
amount = "Betrag"
currency = "Währung"
time = "Buchung"
fee = "Entgelt"

[amounts]
decimal = ","
thousands = "."
sign = "type"

[times]
format = "%d.%m.%Y %H:%M:%S.%f"

[types]
Zahlung = "charge"
Reservierung = "authorize"
Einzug = "capture"
Freigabe = "void"
Gutschrift = "refund"
Auszahlung = "payout"
"Rückbelastung" = "chargeback"
"""
"""A mapping as a German bank's file needs it."""
_WORDS = {
    "charge": "Zahlung",
    "authorize": "Reservierung",
    "capture": "Einzug",
    "void": "Freigabe",
    "refund": "Gutschrift",
    "payout": "Auszahlung",
    "chargeback": "Rückbelastung",
}
_HEADER = ("Kundenreferenz", "Transaktion", "Vorgang", "Betrag", "Währung", "Buchung", "Entgelt")


class Planted(NamedTuple):
    """A difference: the kind of the finding that names it, and the reference in it."""

    kind: str
    reference: str


def written(file: Path, movements: Iterable[Movement]) -> None:
    """Write movements as a bank's CSV: decimal commas, no signs, local times, fees, payouts and chargebacks."""
    zone = ZoneInfo(ZONE)
    with file.open("w", encoding="cp1252", newline="") as out:
        rows = csv.writer(out, delimiter=";")
        rows.writerow(_HEADER)
        for number, it in enumerate(movements):
            at = datetime.fromisoformat(it["executed_at"]).astimezone(zone)
            booked = f"{at:%d.%m.%Y %H:%M:%S.%f}"
            if number % 1_000 == 0:
                rows.writerow(("", "", "Auszahlung", "1.234,50", "EUR", booked, ""))
                rows.writerow(("", f"cb_{number}", "Rückbelastung", "12,50", "EUR", booked, "15,00"))
            whole, part = divmod(it["minor_units"], 100)
            amount = f"{whole:,}".replace(",", ".") + f",{part:02}"
            fee = "0,25" if it["kind"] in ("charge", "capture") else ""
            rows.writerow(
                (it["reference"], it["transaction_id"], _WORDS[it["kind"]], amount, it["currency_code"], booked, fee)
            )


# ---------------------------------------------------------------- in a statement
def _drop(lines: list[Movement], at: int, _: str) -> Planted:
    return Planted("missing_at_bank", lines.pop(at)["reference"])


def _stranger(lines: list[Movement], at: int, _: str) -> Planted:
    reference = f"order-{secrets.token_hex(6)}"
    lines.insert(at, {**lines[at], "reference": reference, "transaction_id": f"txn_{secrets.token_hex(16)}"})
    return Planted("missing_here", reference)


def _more(lines: list[Movement], at: int, _: str) -> Planted:
    lines[at] = {**lines[at], "minor_units": lines[at]["minor_units"] + 1}
    return Planted("amount_differs", lines[at]["reference"])


def _dollars(lines: list[Movement], at: int, _: str) -> Planted:
    lines[at] = {**lines[at], "currency_code": "USD"}
    return Planted("amount_differs", lines[at]["reference"])


def _again(lines: list[Movement], at: int, _: str) -> Planted:
    lines.insert(len(lines) - 1, dict(lines[at]))
    return Planted("twice", lines[at]["reference"])


def _executed_again(lines: list[Movement], at: int, _: str) -> Planted:
    lines.insert(at + 1, {**lines[at], "transaction_id": f"txn_{secrets.token_hex(16)}"})
    return Planted("twice", lines[at]["reference"])


def _moved_after_all(lines: list[Movement], at: int, unmoved: str) -> Planted:
    moved = {**lines[at], "kind": "charge", "reference": unmoved, "transaction_id": f"txn_{secrets.token_hex(16)}"}
    lines.insert(at, moved)
    return Planted("status_differs", unmoved)


def _other_transaction(lines: list[Movement], at: int, _: str) -> Planted:
    lines[at] = {**lines[at], "transaction_id": f"txn_{secrets.token_hex(16)}"}
    return Planted("status_differs", lines[at]["reference"])


_WAYS: Sequence[Callable[[list[Movement], int, str], Planted]] = (
    _drop,
    _stranger,
    _more,
    _dollars,
    _again,
    _executed_again,
    _moved_after_all,
    _other_transaction,
)


def in_movements(
    chance: random.Random, movements: Sequence[Movement], unmoved: Sequence[str], count: int
) -> tuple[list[Movement], Sequence[Planted]]:
    """Plant so many differences, each in a movement of its own. Returns the statement, and what must be found."""
    lines = list(movements)
    untouched = chance.sample(sorted({it["reference"] for it in movements}), count)
    strangers = chance.sample(list(unmoved), count)
    planted = []
    for number, reference in enumerate(untouched):
        at = next(n for n, it in enumerate(lines) if it["reference"] == reference)
        planted.append(_WAYS[number % len(_WAYS)](lines, at, strangers[number]))
    return lines, planted


# ---------------------------------------------------------------- in the bank's ledger
_COPY = """
INSERT INTO transactions (token, reference, kind, card, amount, currency, state, opened_at, expires_at, closed_at,
                          transaction_id, movement, acts_on, final, hold_expires_at)
SELECT 'ttok_' || hex(randomblob(16)), :reference, {kind}, card, amount, currency, 'executed', opened_at, expires_at, closed_at,
       'txn_' || lower(hex(randomblob(16))), (SELECT max(movement) FROM transactions) + 1, {acts_on}, {final}, {hold}
FROM transactions WHERE number = :number
"""
_AS_IT_IS = _COPY.format(kind="kind", acts_on="acts_on", final="final", hold="hold_expires_at")
_AS_A_CHARGE = _COPY.format(kind="'charge'", acts_on="NULL", final="0", hold="NULL")
_LEDGER_WAYS: Mapping[str, tuple[str, str]] = {
    "dropped": ("missing_at_bank", "DELETE FROM transactions WHERE number = :number"),
    "a stranger's": ("missing_here", _AS_IT_IS),
    "more": ("amount_differs", "UPDATE transactions SET amount = amount + 1 WHERE number = :number"),
    "in dollars": ("amount_differs", "UPDATE transactions SET currency = 'USD' WHERE number = :number"),
    "executed again": ("twice", _AS_IT_IS),
    "moved after all": ("status_differs", _AS_A_CHARGE),
    "under another id": (
        "status_differs",
        "UPDATE transactions SET transaction_id = 'txn_' || lower(hex(randomblob(16))) WHERE number = :number",
    ),
}


def in_ledger(
    chance: random.Random, ledger: sqlite3.Connection, unmoved: Sequence[str], count: int
) -> Sequence[Planted]:
    """Plant so many differences in the ledger of a bank that is not running. Returns what must be found."""
    ledger.execute("DROP INDEX one_lives")  # the bank's own promise, which a broken one does not keep
    executed = ledger.execute(
        "SELECT number, reference FROM transactions WHERE movement IS NOT NULL ORDER BY number"
    ).fetchall()
    planted = []
    for each, ((number, reference), unmoved_one) in enumerate(
        zip(chance.sample(executed, count), chance.sample(list(unmoved), count), strict=True)
    ):
        way = list(_LEDGER_WAYS)[each % len(_LEDGER_WAYS)]
        kind, statement = _LEDGER_WAYS[way]
        named = {"a stranger's": f"order-{secrets.token_hex(6)}", "moved after all": unmoved_one}.get(way, reference)
        ledger.execute(statement, {"number": number, "reference": named})
        planted.append(Planted(kind, named))
    return planted
