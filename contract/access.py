"""Who may call which method: one row for each method, by the roles of an identity.

A method without a row keeps its server from starting. Health and reflection have their rows in chassis/gate.py.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

from chassis.gate import Gate, Refused
from chassis.identity import Naming
from chassis.policy import Policy, Roles
from chassis.refusals import Refusals
from contract.errors import Reason


class Role(StrEnum):
    """What an identity may do: the words of a policy file."""

    CHARGE = "charge"
    REFUND = "refund"
    READ = "read"
    FEED = "feed"
    OPERATE = "operate"


# An identity that feeds or operates may belong to no tenant: then it sees the records of all.
ROLES = Roles([role.value for role in Role], without_tenant=[Role.FEED.value, Role.OPERATE.value])
"""The roles that a policy may give."""
NAMING = Naming(by=Role.OPERATE.value, gives=frozenset({Role.READ.value}))
"""An operator of no tenant may name one for a call, and then read as that tenant's caller too."""

ACCESS: Mapping[str, str] = {
    "/charging.v1.CommandService/Charge": Role.CHARGE,
    "/charging.v1.CommandService/Capture": Role.CHARGE,
    "/charging.v1.CommandService/Void": Role.CHARGE,
    "/charging.v1.CommandService/Refund": Role.REFUND,
    "/charging.v1.QueryService/GetCharge": Role.READ,
    "/charging.v1.QueryService/ListCharges": Role.READ,
    "/charging.v1.QueryService/WatchCharge": Role.READ,
    "/charging.v1.QueryService/GetChargeHistory": Role.READ,
    "/charging.v1.QueryService/GetUserSummary": Role.READ,
    "/charging.v1.QueryService/GetViewStatus": Role.READ,
    "/charging.v1.QueryService/ExplainCharge": Role.READ,
    "/charging.v1.JournalService/Subscribe": Role.FEED,
    "/charging.v1.JournalService/GetAttempts": Role.FEED,
    "/charging.v1.OperatorService/TryNow": Role.OPERATE,
    "/charging.v1.OperatorService/HoldBack": Role.OPERATE,
    "/charging.v1.OperatorService/LetGo": Role.OPERATE,
    "/charging.v1.OperatorService/AskBank": Role.OPERATE,
    "/charging.v1.OperatorService/ProposeResolution": Role.OPERATE,
    "/charging.v1.OperatorService/RejectResolution": Role.OPERATE,
    "/charging.v1.OperatorService/ApproveResolution": Role.OPERATE,
    "/charging.v1.OperatorService/GetServerStatus": Role.OPERATE,
    "/charging.v1.OperatorService/Reconcile": Role.OPERATE,
    "/charging.v1.OperatorService/ListReconciliations": Role.OPERATE,
}


def gate_of(refusal: Refusals[Reason], policy: Callable[[], Policy] | None = None) -> Gate:
    """Make a server's gate, which refuses in the words of its table of errors. Without a policy it is open to everybody."""
    refused = Refused(refusal(Reason.UNAUTHENTICATED), refusal(Reason.PERMISSION_DENIED))
    return Gate(ACCESS, refused, policy, naming=NAMING)
