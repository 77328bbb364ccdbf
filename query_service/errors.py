"""The errors of a query."""

from chassis.refusals import Refusal, Violation
from contract.errors import Reason
from contract.errors import query_refusal as refusal


def invalid(field: str, text: str) -> Refusal:
    """Make the error of a field with an unacceptable value."""
    return refusal(Reason.INVALID_REQUEST, violations=[Violation(field, text)])
