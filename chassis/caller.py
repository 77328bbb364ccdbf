"""The caller of an RPC: whose keys and rows it may name, and who asks.

The guard around each method (chassis/server.py) finds out the caller, and hands the handler a `GuardedCall` in place of grpc's
context. A handler asks `caller_of` for it, which raises for anything else: without the guard there is no caller, and no
default that would open a tenant's rows to everybody.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """An actor of a tenant."""

    tenant: str
    actor: str


ANYBODY = Caller("default", "anonymous")
"""Every caller, until identities exist: there is one tenant, and nobody is known by name."""


class NoCaller(Exception):
    """A handler was called without the guard."""


class GuardedCall:
    """A call, as its handler sees it: the caller, the method's full name, and all that grpc's context offers."""

    __slots__ = ("_context", "caller", "method")

    def __init__(self, method: str, caller: Caller, context: Any) -> None:
        self.method = method
        self.caller = caller
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def caller_of(context: Any) -> Caller:
    """Return the caller of the call that a handler was given. Raises NoCaller if no guard made it."""
    if not isinstance(context, GuardedCall):
        raise NoCaller
    return context.caller
