"""The owners of records: a stream belongs to the tenant that its first event names."""

from collections import OrderedDict
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from charging.v1 import journal_pb2
from command_service.failures import UnknownEvent, Unreadable
from command_service.journal import Journal, Record

# Most events follow soon upon the first of their charge. An owner that is not remembered costs a read of its stream; all that
# are take some 5 MB.
OWNERS_REMEMBERED = 16_384


class Owners:
    """Finds the owners of a journal's records, and remembers the streams that were last asked for."""

    def __init__(self, journal: Journal, *, remembered: int = OWNERS_REMEMBERED) -> None:
        self._journal = journal
        self._limit = remembered
        self._known: OrderedDict[str, str] = OrderedDict()  # by charge, the one asked for last at the end

    async def of(self, records: Sequence[Record]) -> Sequence[str]:
        """Return the tenants of records, in their order, up to the first record whose tenant cannot be read.

        If that is the first of all, it raises Unreadable.
        """
        owners: list[str] = []
        for record in records:
            try:
                owners.append(await self._owner(record))
            except Unreadable:
                if not owners:
                    raise
                break
        return owners

    async def _owner(self, record: Record) -> str:
        charge_id = record.charge_id
        owner = self._known.get(charge_id)
        if owner is None:
            first = record if record.version == 1 else (await self._journal.read(charge_id))[0]
            owner = self._known[charge_id] = _named_in(first)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(charge_id)
        return owner


def _named_in(first: Record) -> str:
    """Read the tenant in a stream's first event. Raises UnknownEvent if it names none."""
    try:
        tenant = journal_pb2.Event.FromString(first.event).charge_requested.tenant
    except DecodeError:
        tenant = ""
    if not tenant:
        raise UnknownEvent(f"the first event of a charge, at position {first.position}, names no tenant")
    return tenant
