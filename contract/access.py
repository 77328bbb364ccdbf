"""Who may call which method: one row for each method, by the roles of an identity.

A method without a row keeps its server from starting. Health and reflection have their rows in chassis/gate.py.
"""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What an identity may do: the words of a policy file."""

    CHARGE = "charge"
    REFUND = "refund"
    READ = "read"
    FEED = "feed"
    OPERATE = "operate"


WITHOUT_TENANT = frozenset({Role.FEED, Role.OPERATE})
"""The roles of an identity that may belong to no tenant: it sees the records of all."""

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
    "/charging.v1.JournalService/Subscribe": Role.FEED,
}
