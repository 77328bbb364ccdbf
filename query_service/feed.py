"""The feed over gRPC: from several command servers of one journal, the next one after each loss.

Every error of grpc is sorted here: either the journal diverged, or the feed is lost for now. A journal has diverged when
every server says so, one after the other. A single server that says so has another journal, by a mistake in QUERY_FEED, and
the view is kept.
"""

import itertools
import re
from collections.abc import AsyncGenerator, Sequence

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from charging.v1.journal_pb2 import SubscribeRequest, SubscribeResponse
from charging.v1.journal_pb2_grpc import JournalServiceStub
from chassis.server import CHANNEL_OPTIONS
from chassis.settings import Address
from query_service.subscriber import FeedLost, ForeignJournal, JournalDiverged, OpenFeed

# Without it a new channel inherits the back-off of the last one to the same address, up to two minutes. Pauses are the
# subscriber's task.
_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
_DETAILS_KEY = "grpc-status-details-bin"
_REASON = re.compile("[A-Z0-9_]{1,63}")  # no other text is logged


def feed_of(servers: Sequence[Address]) -> OpenFeed:
    """Make the function that opens the feed, for the subscriber."""
    turns = itertools.cycle(servers)
    denials = 0  # the servers in a row that have another journal than the view's, by their word

    async def open_feed(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        nonlocal denials
        server = next(turns)
        request = SubscribeRequest(after_position=after_position, journal_id=journal_id, chain=chain)
        try:
            async with grpc.aio.insecure_channel(str(server), options=_OPTIONS) as channel:
                async for response in JournalServiceStub(channel).Subscribe(request):
                    denials = 0
                    yield response
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and reason == "JOURNAL_DIVERGED":
                denials += 1
                if denials < len(servers):
                    raise ForeignJournal(
                        f"{server} has another journal than the view: remove it from QUERY_FEED, or the view to follow it"
                    ) from None
                denials = 0
                raise JournalDiverged from None
            denials = 0
            raise FeedLost(f"{server} says {error.code().name} {reason}".rstrip()) from None

    return open_feed


def _reason(error: grpc.aio.AioRpcError) -> str:
    """Find the reason in google.rpc.ErrorInfo; empty if there is none."""
    trailers = error.trailing_metadata()
    packed = trailers.get(_DETAILS_KEY) if trailers is not None else None
    if not isinstance(packed, bytes):
        return ""
    try:
        details = status_pb2.Status.FromString(packed).details
    except DecodeError:
        return ""
    info = error_details_pb2.ErrorInfo()
    for detail in details:
        if detail.Unpack(info):
            return str(info.reason) if _REASON.fullmatch(info.reason) else ""
    return ""
