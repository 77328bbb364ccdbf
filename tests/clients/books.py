"""The money of a tour: what the bank must have moved, and what it moved by its own statement."""

from collections import Counter

from judge.checker import check
from judge.files import read_anchor, read_journal
from judge.history import Observed, charge_id_of, operation_id_of
from rig.processes import Town
from rig.referee import Referee, bank_call
from tests.clients.transcript import CHARGES

Moved = tuple[str, str, int, str]
"""The key of a charge or of an operation, the kind of the movement, minor units, a currency."""

ONE_TOUR: Counter[Moved] = Counter(
    [
        *((key, "charge", 1250, "EUR") for key in ("tour-1", "tour-3", "tour-7")),
        *((f"tour-page-{number}", "charge", 1250, "EUR") for number in range(1, 6)),
        ("tour-4", "charge", 999_999_999_999, "IDR"),
        ("tour-5", "authorize", 5000, "EUR"),
        ("tour-capture", "capture", 3000, "EUR"),
        ("tour-void", "void", 2000, "EUR"),
        ("tour-refund", "refund", 1000, "EUR"),
    ]
)
"""Every movement of money of one tour, each once. There is no other."""


def _keys(tenant: str) -> dict[str, str]:
    """The keys by the bank's references."""
    hold = charge_id_of(tenant, "tour-5")
    operations = {operation_id_of(hold, kind, f"tour-{kind}"): f"tour-{kind}" for kind in ("capture", "void", "refund")}
    return {charge_id_of(tenant, key): key for key in CHARGES} | operations


async def faults_in_the_books(town: Town, referee: Referee, tenant: str) -> list[str]:
    """Stop the town's two servers, and return what is wrong with the statement and the journal, for people."""
    found = [
        f"{server.module} ended with status {status}"
        for server in (town.query, town.command)
        if (status := await server.stop())
    ]
    movements = await referee.movements()
    keys = _keys(tenant)
    moved = Counter(
        (keys.get(each.reference, each.reference), each.kind, each.minor_units, each.currency_code)
        for each in movements
    )
    found += [f"the bank did not move {each}" for each in ONE_TOUR - moved]
    found += [f"the bank moved, against the tour or once too often, {each}" for each in moved - ONE_TOUR]
    observed = Observed(
        read_journal(town.journal),
        movements=movements,
        bank_calls=[bank_call(call) for call in await referee.calls()],
        anchor=read_anchor(town.journal),
        is_at_rest=True,
    )
    return [*found, *map(str, check(observed))]
