"""The gate of a server: for each call the caller that it is from, or a refusal with one text whatever was wrong.

Without a policy everybody is the caller `anybody`; the settings allow that on loopback only (chassis/exposure.py). The log
tells the operator why a call was refused, a limited number of times a second.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import unquote

import structlog

from chassis.caller import ANYBODY, Caller
from chassis.identity import (
    NOBODY_NAMES,
    ON_LOOPBACK_NONE,
    TENANT_HEADER,
    Identity,
    Known,
    Naming,
    Need,
    Presented,
    Proven,
    Unproven,
    acting,
    may,
)
from chassis.instruments import Gauge
from chassis.policy import Policy
from chassis.refusals import Refusal
from chassis.telemetry import log_unexpected
from chassis.tls import NOBODY, holder_in

log = structlog.get_logger()

REFUSALS_LOGGED_A_SECOND = 10
# The longest time that a stream lives on after its credential has ended, or after a policy came that does not allow it.
LOOK_AGAIN_SECONDS = 1.0
# A certificate may hold many names, and long ones.
_NAMES_LOGGED, _NAME_LOGGED = 8, 256

METRICS = "/metrics"
_COMMON: Mapping[str, Need] = {
    "/grpc.health.v1.Health/Check": Need.NOTHING,
    "/grpc.health.v1.Health/List": Need.NOTHING,
    "/grpc.health.v1.Health/Watch": Need.NOTHING,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Need.IDENTITY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Need.IDENTITY,
    METRICS: Need.NO_TENANT,
}


GAUGES: Mapping[str, Gauge] = {
    "calls_unauthenticated": Gauge("Calls refused since their caller was not known"),
    "calls_not_permitted": Gauge("Calls refused since their caller may not make them"),
}


class NoRow(Exception):
    """A method of which no table says who may call it."""


class Refused(NamedTuple):
    """The two refusals of a gate, in the words of its server's contract."""

    unauthenticated: Refusal
    not_permitted: Refusal


@dataclass(slots=True, eq=False)
class _Stream:
    """A stream that is open, and how it is ended from outside."""

    admitted: "Admitted"
    cut: Callable[[Refusal], None]


class Gate:
    """The gate of a process: one policy for all its ports."""

    def __init__(
        self,
        access: Mapping[str, str],
        refused: Refused,
        policy: Callable[[], Policy] | None = None,
        *,
        naming: Naming = NOBODY_NAMES,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`access` has a row for each method; `policy` returns the present one, and None opens everything to everybody.

        `naming` says who may name a tenant for a call. Where everything is open, there is one tenant, and its name is not read.
        """
        self.naming = naming
        self._access: Mapping[str, Need | str] = {**_COMMON, **access}
        self._policy = policy
        self._now = now
        self._refused = refused
        self._known: tuple[Policy, Known] | None = None
        self._streams: dict[_Stream, None] = {}
        self._logged: Counter[int] = Counter()
        self._counted: dict[str, int] = dict.fromkeys(GAUGES, 0)

    def door(self, method: str, *, on_loopback: bool, anybody: Caller = ANYBODY) -> "Door":
        """Make the door of a method on a port. `anybody` is the caller where none is asked for. Raises NoRow."""
        need = self._access.get(method)
        if need is None:
            raise NoRow(f"no row says who may call {method}")
        is_open = self._policy is None or need is Need.NOTHING or (need in ON_LOOPBACK_NONE and on_loopback)
        return Door(self, method, need, None if not is_open else anybody)

    def prove(self, presented: Presented) -> Proven:
        """Find the identity of a call by the present policy. Raises Unproven."""
        assert self._policy is not None, "an open gate asks for no identity"
        policy = self._policy()
        if self._known is None or self._known[0] is not policy:
            self._known = policy, Known(policy.by_credential, policy.tokens, self._now)
        return self._known[1].prove(presented)

    def refusal(self, method: str, why: str, *, identity: Identity | None, shown: Any, peer: str) -> Refusal:
        """Count and log a refused call, and return its refusal."""
        self._counted["calls_unauthenticated" if identity is None else "calls_not_permitted"] += 1
        second = int(self._now())
        if second not in self._logged:
            left_out = sum(self._logged.values()) - REFUSALS_LOGGED_A_SECOND
            self._logged.clear()
            if left_out > 0:
                log.warning("more calls were refused than were logged", left_out=left_out)
        self._logged[second] += 1
        if self._logged[second] <= REFUSALS_LOGGED_A_SECOND:
            log.warning(
                "a call was refused",
                method=method,
                why=why,
                identity=identity.name if identity else None,
                shown=[str(name)[:_NAME_LOGGED] for name in shown[:_NAMES_LOGGED]],
                peer=peer,
            )
        # A copy: an exception that is raised repeatedly keeps every frame that it passed.
        return replace(self._refused.unauthenticated if identity is None else self._refused.not_permitted)

    def figures(self) -> Mapping[str, int]:
        """Return the numbers of refused calls, described in GAUGES."""
        return dict(self._counted)

    @contextlib.contextmanager
    def keeping(self, admitted: "Admitted", cut: Callable[[Refusal], None]) -> Iterator[None]:
        """Look again at a stream while it is open. `cut` ends it, once its caller may no longer have it."""
        if admitted.presented is None:
            yield
            return
        stream = _Stream(admitted, cut)
        self._streams[stream] = None
        try:
            yield
        finally:
            self._streams.pop(stream, None)

    async def keep_looking(self) -> None:
        """End streams whose credential has ended, or which a new policy does not allow to this caller. Runs until cancelled."""
        under = self._policy() if self._policy is not None else None
        while self._policy is not None:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            former, under, now = under, self._policy(), self._now()
            for stream in [each for each in self._streams if under is not former or each.admitted.ends_at <= now]:
                await asyncio.sleep(0)  # calls go on: to verify the tokens of ten thousand streams anew takes seconds
                if stream not in self._streams:
                    continue
                try:
                    stream.admitted = stream.admitted.again()
                except Refusal as refusal:
                    self._streams.pop(stream, None)
                    stream.cut(refusal)
                except Exception as error:  # a fault of ours: the other streams are looked at still
                    log_unexpected("an open stream could not be looked at again", error)


class Admitted(NamedTuple):
    """A call that may go on: its caller, and what it rests on if it must be looked at again."""

    caller: Caller
    door: "Door"
    presented: Presented | None = None
    ends_at: float = float("inf")

    def again(self) -> "Admitted":
        """Admit it again, by the present policy. Raises Refusal, also if it would be from another caller now."""
        assert self.presented is not None, "it rests on nothing that could have changed"
        return self.door.admit(self.presented, "an open stream", self.caller)


class Door:
    """The way through the gate to one method of one port."""

    def __init__(self, gate: Gate, method: str, need: Need | str, anybody: Caller | None) -> None:
        self._gate = gate
        self._method = method
        self._need = need
        self._open = None if anybody is None else Admitted(anybody, self)

    def admit_call(self, context: Any) -> Admitted:
        """Admit a call of grpc's. Raises Refusal."""
        return self._open or self.admit(presented_by(context), context.peer())

    def admit(self, presented: Presented, peer: str, former: Caller | None = None) -> Admitted:
        """Admit a call by what it presents; `peer` is for the log. Raises Refusal, also if its `former` caller was another."""
        if self._open is not None:
            return self._open
        try:
            proven = self._gate.prove(presented)
        except Unproven as error:
            raise self._gate.refusal(self._method, error.why, identity=None, shown=error.shown, peer=peer) from None
        identity, why = acting(proven.identity, presented.tenants, self._gate.naming)
        if not why and not may(identity, self._need):
            why = "it has a tenant" if self._need is Need.NO_TENANT else f"it needs the role {self._need}"
        if not why and former is not None and former != identity.caller:
            why = f"it shows what {former.actor} of the tenant {former.tenant!r} could see, who opened it"
        if why:
            raise self._gate.refusal(self._method, why, identity=identity, shown=(), peer=peer)
        return Admitted(identity.caller, self, presented, proven.ends_at)


def presented_by(context: Any) -> Presented:
    """Read what a call of grpc's presents. grpc has verified the certificate's chain, and its times at the handshake."""
    headers = context.invocation_metadata()
    authorization = [_text(value) for key, value in headers if key == "authorization"]
    tenants = [_text(value) for key, value in headers if key == TENANT_HEADER]
    connection: Mapping[str, Any] = context.auth_context()
    if b"ssl" not in connection.get("transport_security_type", ()):
        is_private = bool(authorization) and _is_loopback(context.peer())
        return Presented(authorization=authorization, is_private=is_private, tenants=tenants)
    certificates = connection.get("x509_pem_cert", ())
    holder = holder_in(certificates[0]) if certificates else NOBODY
    return Presented(
        uris=holder.uris,
        dns_names=holder.dns_names,
        certificate_ends_at=holder.ends_at,
        authorization=authorization,
        is_private=True,
        tenants=tenants,
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _is_loopback(peer: str) -> bool:
    return unquote(peer).startswith(("ipv4:127.", "ipv6:[::1]:", "unix:"))
