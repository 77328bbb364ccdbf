"""The money of a tour: what the bank must have moved, and what it moved by its own statement."""

from collections import Counter

from judge.checker import check
from judge.files import read_anchor, read_journal
from judge.history import Observed, charge_id_of, operation_id_of
from rig.processes import Town
from rig.referee import Referee, bank_call

Moved = tuple[str, str, int, str]
"""A reference at the bank, the kind of the movement, minor units, a currency."""


def expected(tenant: str) -> Counter[Moved]:
    """Return every movement of money of one tour, each once, and no other."""
    charged = ("tour-1", "tour-3", "tour-7", *(f"tour-page-{number}" for number in range(1, 6)))
    hold = charge_id_of(tenant, "tour-5")
    return Counter(
        [
            *((charge_id_of(tenant, key), "charge", 1250, "EUR") for key in charged),
            (charge_id_of(tenant, "tour-4"), "charge", 999_999_999_999, "IDR"),
            (hold, "authorize", 5000, "EUR"),
            (operation_id_of(hold, "capture", "tour-capture"), "capture", 3000, "EUR"),
            (operation_id_of(hold, "void", "tour-void"), "void", 2000, "EUR"),
            (operation_id_of(hold, "refund", "tour-refund"), "refund", 1000, "EUR"),
        ]
    )


async def faults_in_the_books(town: Town, referee: Referee, tenant: str) -> list[str]:
    """Stop the town's two servers, and return what is wrong with the statement and the journal, for people."""
    found = [
        f"{server.module} ended with status {status}"
        for server in (town.query, town.command)
        if (status := await server.stop())
    ]
    movements = await referee.movements()
    moved = Counter((each.reference, each.kind, each.minor_units, each.currency_code) for each in movements)
    wanted = expected(tenant)
    found += [f"the bank did not move, or too seldom: {each}" for each in wanted - moved]
    found += [f"the bank moved, or too often: {each}" for each in moved - wanted]
    observed = Observed(
        read_journal(town.journal),
        movements=movements,
        bank_calls=[bank_call(call) for call in await referee.calls()],
        anchor=read_anchor(town.journal),
        is_at_rest=True,
    )
    return [*found, *map(str, check(observed))]
