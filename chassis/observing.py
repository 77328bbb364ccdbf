"""The one shape in which work is observed: each piece's duration and result, and its span, if its call is traced.

    with self._observed.bank_calls.piece("execute") as piece:
        answer = await bank.perform(effect)
        piece.result = (name, "execute", answer_kind)

The result names the labels of the durations, and the attributes of the span. A piece that ends without a result (its task was
cancelled, say) is not counted.
"""

from collections.abc import Callable
from typing import Any

from chassis.instruments import Histogram
from chassis.tracing import HEADER, Inside, Span, Tracer, current, is_context

# From an answer out of memory to the longest wait that a client may have.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Work:
    """A kind of work that is observed. Without `durations` it is seen in traces only."""

    __slots__ = ("attributes", "clock", "durations", "name", "tracer")

    def __init__(
        self,
        name: str,
        durations: Histogram | None,
        clock: Callable[[], float],
        tracer: Tracer | None = None,
        *,
        attributes: tuple[str, ...] = (),
    ) -> None:
        """`name` is that of its spans. `clock` gives seconds from any start. `attributes` stand for the labels of durations."""
        self.name = name
        self.durations = durations
        self.attributes = durations.description.labels if durations is not None else attributes
        self.clock = clock
        self.tracer = tracer

    def piece(self) -> "Piece":
        """Return a piece of it, which begins when it is entered, within what is under way."""
        return Piece(self)

    def of_call(self, name: str, context: Any) -> "Piece":
        """Return a piece that is a call of grpc's: where its trace begins here, or goes on from the client's."""
        if self.tracer is None:
            return Piece(self)
        sent = next((str(value) for key, value in context.invocation_metadata() if key == HEADER), "")
        return Piece(self, self.tracer.of_call(name, sent))

    def after(self, context: str) -> "Piece":
        """Return a piece in a trace of its own, which links to the one of a stored context; in none if it is none."""
        if self.tracer is None or not is_context(context):
            return Piece(self)
        return Piece(self, self.tracer.after(self.name, context))

    def below(self, context: str) -> "Piece":
        """Return a piece in the trace of a stored context; in none if it is none."""
        if self.tracer is None or not is_context(context):
            return Piece(self)
        return Piece(self, self.tracer.within(self.name, context))


def calls_observed(clock: Callable[[], float], tracer: Tracer | None = None) -> Work:
    """Make the observation of a server's calls."""
    text = "Duration of a call, by its method and the code of its status; of a stream, from its begin to its end"
    return Work("call", Histogram("rpc_duration_seconds", text, CALL_SECONDS, ("method", "code")), clock, tracer)


class Piece:
    """A piece of work."""

    __slots__ = ("_began", "_inside", "_span", "_work", "result")

    def __init__(self, work: Work, span: Span | None = None) -> None:
        """`span`: its own, if it is not below the current one."""
        self._work = work
        self._span = span
        self._inside: Inside | None = None
        self._began = 0.0
        self.result: tuple[str, ...] | None = None

    def __enter__(self) -> "Piece":
        work = self._work
        if work.tracer is not None:
            if self._span is None and (context := current()):
                self._span = work.tracer.within(work.name, context)
            if self._span is not None:
                self._inside = Inside(self._span)
        if work.durations is not None:
            self._began = work.clock()
        return self

    def __exit__(self, kind: Any, error: object, traceback: object) -> None:
        durations, result = self._work.durations, self.result
        if durations is not None and result is not None:
            durations.note(self._work.clock() - self._began, result)
        if self._inside is not None:
            told = zip(self._work.attributes, result or (), strict=False)
            attributes = {name: value for name, value in told if value}
            self._inside.leave(attributes, has_failed=error is not None)
