"""The caller of an RPC: the tenant whose keys and rows it may name, and the actor who asks.

The gate (chassis/gate.py) identifies the caller, and the guard around each method (chassis/server.py) hands the handler a
`GuardedCall` in place of grpc's context. `caller_of` returns the caller of such a call, and raises for any other context:
without the guard there is no caller, and no default that would open a tenant's rows to everybody.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """An actor of a tenant. An actor that belongs to no tenant, whose `tenant` is empty, may read the feed of all."""

    tenant: str
    actor: str


ANYBODY = Caller("default", "anonymous")
"""Every caller where no policy is: there is one tenant, and actors have no names."""


class NoCaller(Exception):
    """A handler was called without the guard."""


class GuardedCall:
    """A call, for its handler: the caller, the method's full name, and every member of grpc's context."""

    __slots__ = ("_context", "caller", "method")

    def __init__(self, method: str, caller: Caller, context: Any) -> None:
        self.method = method
        self.caller = caller
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def caller_of(context: Any) -> Caller:
    """Return the caller of a handler's call. Raises NoCaller if no guard made the call."""
    if not isinstance(context, GuardedCall):
        raise NoCaller
    return context.caller
