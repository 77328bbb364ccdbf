"""Where work belongs: the trace context of W3C, as it comes with a call, goes to the bank, and is stored with a charge.

`current()` is the context of the work that is under way in this task. It is empty if the work is not traced: only work whose
trace is recorded has one. What records it is behind `Tracer`. Without one, which is the default, nothing here costs anything.
"""

import random
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

from chassis.settings import SettingsError

HEADER = "traceparent"
_CURRENT: ContextVar[str] = ContextVar(HEADER, default="")
# Version 00 of W3C's Trace Context; a later version begins with the same fields.
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[ -~]*)?")
LENGTH = 55
"""The length of a context of version 00."""

current = _CURRENT.get
"""Return the trace context of the work under way; empty if it is not traced."""


def leave_trace() -> None:
    """Be in no trace from now on, in this context."""
    _CURRENT.set("")


def is_context(text: str) -> bool:
    """Whether a text is a trace context, sampled or not."""
    return len(text) <= 4 * LENGTH and _FORM.fullmatch(text) is not None


def is_sampled(context: str) -> bool:
    """Whether the trace of a context is recorded, by the one who began it."""
    return bool(int(context[53:LENGTH], 16) & 1)


class Span(Protocol):
    """Some work of a trace, under way."""

    @property
    def context(self) -> str:
        """The trace context of what is done within."""
        ...

    def end(self, attributes: Mapping[str, str], *, has_failed: bool) -> None:
        """Note its end."""
        ...


class Tracer(Protocol):
    """What records traces."""

    def of_call(self, name: str, sent: str) -> Span | None:
        """Begin the span of a call; None if it is not recorded. `sent` is the trace context that came with it, if any."""
        ...

    def within(self, name: str, context: str) -> Span:
        """Begin a span below another one, of this process or of another."""
        ...

    def after(self, name: str, context: str) -> Span:
        """Begin a trace that goes on with what another one began, and links to it."""
        ...

    def close(self) -> None:
        """Send what is recorded, and end."""
        ...


def open_tracer(variable: str, service: str, collector: str, sampled: float) -> Tracer:
    """Make what records traces. Raises SettingsError, which names the `variable` of the collector, if a package is missing.

    `service` is the name under which spans are shown, `sampled` the share of calls without a context that are traced.
    """
    try:
        from chassis.otel import OpenTelemetry  # noqa: PLC0415  # an extra, which takes a third of a second to load
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{variable} is set, and the package {error.name} is not installed: pip install 'chargeonce[otel]', or unset it"
        ) from None
    return OpenTelemetry(service, collector, sampled=sampled, chance=random.Random())


class Inside:
    """Makes a span's context the current one, until it is left."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = _CURRENT.set(span.context)

    def leave(self, attributes: Mapping[str, str], *, has_failed: bool) -> None:
        """End the span."""
        _CURRENT.reset(self._token)
        self._span.end(attributes, has_failed=has_failed)
