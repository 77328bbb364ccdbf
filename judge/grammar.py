"""The events that may follow each event in a stream: made from the table in command_service/operation.py.

Make it anew by `python -m tests.core.diagram`.
"""

from collections.abc import Mapping

FOLLOWS: Mapping[str | None, frozenset[str]] = {
    None: frozenset({"charge_requested"}),
    "charge_requested": frozenset({"token_issued", "charge_declined", "review_required", "charge_abandoned"}),
    "token_issued": frozenset({"token_expired", "charged", "charge_declined", "review_required"}),
    "charge_declined": frozenset(),
    "review_required": frozenset(),
    "charge_abandoned": frozenset(),
    "token_expired": frozenset({"token_issued", "charge_declined", "review_required", "charge_abandoned"}),
    "charged": frozenset(),
}
TOKEN_LIMIT = 8
"""The expired tokens after which a charge goes into review."""
