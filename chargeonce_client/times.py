"""Times, as the contract has them."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(time: datetime | None) -> Timestamp | None:
    """Return a time as the contract's message. Raises ValueError if it has no time zone."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone")
    made = Timestamp()
    made.FromDatetime(time)
    return made
