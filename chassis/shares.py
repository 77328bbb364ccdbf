"""The tenants' shares of a server's limits: what is held at once (`Shares`), and calls a second (`Rates`).

Half of a limit is reserved and split among the known tenants by their weights; the other half is for whoever comes first. So no
tenant can take what is reserved for another, and a tenant that is busy alone can hold more than its part. Without weights
every tenant may have the whole limit.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType

Weights = Callable[[], Mapping[str, float]]
"""Gives the present weights by tenant, each positive: a new mapping whenever they have changed."""

NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})
"""No tenant is known, so nothing is reserved."""

# The longest time until a refused call may come again, in seconds.
LATEST_RETURN_SECONDS = 60.0
# Clocks count in floats: without this a call that comes exactly when its turn is may be refused.
_ROUNDING_SECONDS = 1e-6


class Excess(Enum):
    """Whose limit leaves no room: the server's as a whole, or the tenant's share of it."""

    SERVER = auto()
    TENANT = auto()


class Shares:
    """Places, so many in all, that tenants take and give back.

    A tenant gets a place if it has fewer than are reserved for it, or if the common part has room. If the limit is no smaller
    than the number of known tenants, at least one place is reserved for each. After a change of weights the reserved parts
    hold as soon as the places that were taken before allow it.
    """

    __slots__ = ("_common", "_common_used", "_reserved", "_total", "_used", "_weighed", "_weights", "limit")

    def __init__(self, limit: int, weights: Weights = lambda: NO_WEIGHTS) -> None:
        self.limit = limit
        self._weights = weights
        self._weighed = NO_WEIGHTS  # those by which the limit is split
        self._reserved: dict[str, int] = {}
        self._common = limit
        self._used: dict[str, int] = {}
        self._total = 0
        self._common_used = 0

    @property
    def used(self) -> int:
        """The number of places that are taken."""
        return self._total

    def take(self, tenant: str) -> Excess | None:
        """Take a place for a tenant, to be given back; or say which limit leaves no room."""
        if self._total >= self.limit:
            return Excess.SERVER
        if (weights := self._weights()) is not self._weighed:
            self._split(weights)
        if self._common_used >= self._common and self._used.get(tenant, 0) >= self._reserved.get(tenant, 0):
            return Excess.TENANT
        self.force(tenant)
        return None

    def force(self, tenant: str) -> None:
        """Take a place whatever the limits: for what is there already, and counts."""
        used = self._used.get(tenant, 0)
        self._used[tenant] = used + 1
        self._total += 1
        if used >= self._reserved.get(tenant, 0):
            self._common_used += 1

    def give_back(self, tenant: str) -> None:
        """Give back one of a tenant's places."""
        used = self._used[tenant] - 1
        if used:
            self._used[tenant] = used
        else:
            del self._used[tenant]
        self._total -= 1
        if used >= self._reserved.get(tenant, 0):
            self._common_used -= 1

    def _split(self, weights: Mapping[str, float]) -> None:
        self._weighed = weights
        self._reserved = {}
        if 0 < len(weights) <= self.limit:
            beyond_one_each = max(self.limit // 2, len(weights)) - len(weights)
            sum_of_weights = sum(weights.values())
            self._reserved = {
                tenant: 1 + int(beyond_one_each * weight / sum_of_weights) for tenant, weight in weights.items()
            }
        self._common = self.limit - sum(self._reserved.values())
        self._common_used = sum(max(0, used - self._reserved.get(tenant, 0)) for tenant, used in self._used.items())


class Rates:
    """Calls a second, by tenant. After a pause as many as one second allows may come at once, and one at least."""

    def __init__(self, rate_of: Callable[[str], float | None], clock: Callable[[], float]) -> None:
        """`rate_of` gives a tenant's present rate, which is positive; None: it has none. `clock` gives seconds."""
        self._rate_of = rate_of
        self._clock = clock
        self._next: dict[str, float] = {}  # when each tenant's next call would come if its calls came evenly
        self._return: dict[str, float] = {}  # the time that was given to the newest refused call

    def take(self, tenant: str) -> float | None:
        """Let a call pass: None. Or return the seconds after which it may come again, behind those that were refused before."""
        if (rate := self._rate_of(tenant)) is None:
            return None
        now, between = self._clock(), 1 / rate
        turn = max(now, self._next.get(tenant, now))
        early = turn - now - max(0.0, 1.0 - between)
        if early <= _ROUNDING_SECONDS:
            self._next[tenant] = turn + between
            return None
        wished = max(now + early, self._return.get(tenant, 0.0) + between)
        if wished > now + LATEST_RETURN_SECONDS:
            wished = max(
                now + early, now + LATEST_RETURN_SECONDS / 2
            )  # among earlier ones, so that the last are spread
        self._return[tenant] = wished
        return min(wished - now, LATEST_RETURN_SECONDS)
