"""The feed over gRPC: from several command servers of one journal, the next one after each loss.

One gate for what grpc may raise: a journal that diverged is told from everything else, and everything else is a feed that is
lost for now.
"""

import itertools
from collections.abc import AsyncGenerator, Sequence

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from charging.v1.journal_pb2 import SubscribeRequest, SubscribeResponse
from charging.v1.journal_pb2_grpc import JournalServiceStub
from chassis.server import CHANNEL_OPTIONS
from chassis.settings import Address
from query_service.subscriber import FeedLost, JournalDiverged, OpenFeed

# Without it a new channel inherits the back-off of the last one to the same address, up to two minutes; the pauses are
# the subscriber's to make.
_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
_DETAILS_KEY = "grpc-status-details-bin"


def feed_of(servers: Sequence[Address]) -> OpenFeed:
    """Make what the subscriber opens the feed with."""
    turns = itertools.cycle(servers)

    async def open_feed(after_position: int, journal_id: str, chain: bytes) -> AsyncGenerator[SubscribeResponse, None]:
        server = next(turns)
        request = SubscribeRequest(after_position=after_position, journal_id=journal_id, chain=chain)
        try:
            async with grpc.aio.insecure_channel(str(server), options=_OPTIONS) as channel:
                async for response in JournalServiceStub(channel).Subscribe(request):
                    yield response
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and reason == "JOURNAL_DIVERGED":
                raise JournalDiverged from None
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
            return str(info.reason)
    return ""
