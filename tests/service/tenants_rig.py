"""Two tenants at one real server: until identities exist, a client of these tests names its tenant in the call's metadata."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from chassis.caller import Caller, GuardedCall
from command_service.api import CommandService
from command_service.parts import Parts
from command_service.reception import Reception
from command_service.settings import Settings
from rig.around import Around

T = TypeVar("T")


def as_tenant(tenant: str) -> dict[str, Any]:
    """The options of a call by a tenant's client."""
    return {"metadata": (("tenant", tenant),)}


class Believing(Around[T]):
    """A service whose methods believe their caller's metadata."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        return (lambda request, context: method(request, _named(context))) if name[0].isupper() else method


def _named(context: GuardedCall) -> GuardedCall:
    tenant = dict(context.invocation_metadata()).get("tenant", "default")
    return GuardedCall(context.method, Caller(tenant, f"{tenant}'s clerk"), context)


def shared_by(weights: Mapping[str, float]) -> Callable[[Settings], "SharedParts"]:
    """Make the maker of a command server's parts with these weights, and no rates."""
    return lambda chosen: SharedParts(chosen, weights, {})


class SharedParts(Parts):
    """The product's own parts, for several tenants."""

    def __init__(self, chosen: Settings, weights: Mapping[str, float], rates: Mapping[str, float]) -> None:
        super().__init__(chosen)
        self._weights = weights
        self._rates = rates

    def weights(self) -> Mapping[str, float]:
        return self._weights

    def rate_of(self, tenant: str) -> float | None:
        return self._rates.get(tenant)

    def commands(self, reception: Reception) -> CommandService:
        return Believing(super().commands(reception)).as_one()
