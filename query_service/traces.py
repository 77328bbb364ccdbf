"""The end of a charge's trace: the moment when the view shows an event of it.

The event of a request carries the trace context of its call. The events after it in the stream are of the same trace, until the
next request. The contexts of charges that are traced are remembered, up to a number.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable

from charging.v1.journal_pb2 import Event
from chassis.observing import Work
from chassis.tracing import is_context, is_sampled
from query_service.course import Record

# Charges that come to rest within minutes, at a hundred traced calls a second.
REMEMBERED = 10_000
# A record that holds no such text is of no traced request. One that does is decoded, since a client may write such a text too.
_MAY_HOLD_CONTEXT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_REQUESTS = ("charge_requested", "capture_requested", "void_requested", "refund_requested")


class Traces:
    """The traces of charges whose events a view shows."""

    def __init__(self, shown: Work) -> None:
        """`shown` makes the spans; without a tracer nothing is looked at."""
        self._shown = shown
        self._contexts: OrderedDict[bytes, str] = OrderedDict()

    def note(self, records: Iterable[Record], *, are_news: bool) -> None:
        """Note that records are shown now. If they are no news, as while a view is built, only their traces are learned."""
        if self._shown.tracer is None:
            return
        for record in records:
            if record.charge_id not in self._contexts and not _MAY_HOLD_CONTEXT.search(record.event):
                continue
            event = Event.FromString(record.event)
            kind = event.WhichOneof("kind") or ""
            context = self._context(record.charge_id, event, kind)
            if context and are_news:
                with self._shown.below(context) as piece:
                    piece.result = (kind, str(record.position))

    def _context(self, charge_id: bytes, event: Event, kind: str) -> str:
        if kind not in _REQUESTS:
            return self._contexts.get(charge_id, "")
        context: str = getattr(event, kind).traceparent
        if not is_context(context) or not is_sampled(context):
            self._contexts.pop(charge_id, None)
            return ""
        self._contexts[charge_id] = context
        if len(self._contexts) > REMEMBERED:
            self._contexts.popitem(last=False)
        return context
