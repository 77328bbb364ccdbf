"""The feed over gRPC: from several command servers of one journal, the next one after each loss; and what they are asked.

Every error of grpc is sorted here: either the journal diverged, or the feed is lost for now. A journal has diverged when
every server says so, one after the other. A single server that says so has another journal, by a mistake in QUERY_FEED, and
the view is kept.

A feed over TLS is followed only if it shows a certificate for the name in QUERY_FEED, of an authority that we were told to
trust: whoever takes its port could otherwise show money that never moved. Each connection is made with the present files, and
left at its next message, a heartbeat at the latest, once they are others.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from charging.v1.journal_pb2 import (
    GetAttemptsRequest,
    GetAttemptsResponse,
    SubscribeRequest,
    SubscribeResponse,
)
from charging.v1.journal_pb2_grpc import JournalServiceStub
from chassis.exposure import is_loopback
from chassis.server import CHANNEL_OPTIONS
from chassis.settings import Address, SettingsError
from chassis.tls import ClientTls
from chassis.watched import Files, Unusable, Watched
from query_service.situations import Asked
from query_service.subscriber import FeedLost, ForeignJournal, JournalDiverged, OpenFeed

if TYPE_CHECKING:
    from charging.v1.journal_pb2_grpc import JournalServiceAsyncStub  # of the typed stubs only

# Without it a new channel inherits the back-off of the last one to the same address, up to two minutes. Pauses are the
# subscriber's task.
_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
_DETAILS_KEY = "grpc-status-details-bin"
# A person waits, and most of an answer does not depend on it.
ASK_SECONDS = 1.0
_REASON = re.compile("[A-Z0-9_]{1,63}")  # no other text is logged
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # of RFC 6750
# What grpc says of a connection that it could not make: what is wrong with the certificate, in our words.
_DISTRUST = {
    "CERTIFICATE_VERIFY_FAILED: certificate has expired": "shows a certificate that has expired",
    "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid": "shows a certificate that is not valid yet",
    "CERTIFICATE_VERIFY_FAILED": "shows a certificate of no authority in QUERY_FEED_TLS",
    "Hostname Verification Check failed": "shows a certificate for another name",
    "WRONG_VERSION_NUMBER": "does not speak TLS",
    # Of a server's refusal grpc says no more.
    "Socket closed": "closed the connection: it may want another certificate than ours, or none, or plaintext",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the feed is read with: TLS, or plaintext without it, and the bearer token that is shown, if any."""

    tls: ClientTls | None = None
    token: Watched[str] | None = None

    def channel(self, server: Address) -> grpc.aio.Channel:
        """Make a channel, with the present files."""
        if self.tls is None:
            return grpc.aio.insecure_channel(str(server), options=_OPTIONS)
        return grpc.aio.secure_channel(str(server), self.tls.grpc_credentials(), options=_OPTIONS)

    @property
    def trust(self) -> object:
        """What the present files of TLS hold, to be compared."""
        return self.tls and self.tls.content

    def metadata(self) -> grpc.aio.Metadata:
        """Make the metadata of a call, with the present token."""
        return grpc.aio.Metadata(*([] if self.token is None else [("authorization", f"Bearer {self.token.value}")]))


PLAINTEXT = Credentials()


def token_in(file: Path) -> Watched[str]:
    """Read a bearer token. Raises Unusable if the file does not hold one."""

    def make(files: Files) -> str:
        token = files.read(file).strip()
        if not _TOKEN.fullmatch(token):
            raise Unusable(f"{file}: holds no bearer token, which is one word of letters, digits and - . _ ~ + / =")
        return token.decode("ascii")

    return Watched(make, what=f"the token in {file}")


class CommandServers:
    """The command servers of one journal: their feed, and what they are asked about a charge."""

    def __init__(self, servers: Sequence[Address], credentials: Credentials = PLAINTEXT) -> None:
        """Raises SettingsError if a token would be sent in plaintext to another machine."""
        if credentials.token and not credentials.tls and not all(is_loopback(each.host) for each in servers):
            raise SettingsError(
                "QUERY_FEED_TOKEN_FILE is set, and not QUERY_FEED_TLS: others could read the token on its way"
            )
        self._servers = servers
        self._credentials = credentials
        self._turns = itertools.cycle(servers)
        self._denials = 0  # the servers in a row that have another journal than the view's, by their word
        self._followed: tuple[Address, JournalServiceAsyncStub] | None = None

    async def open_feed(
        self, after_position: int, journal_id: str, chain: bytes
    ) -> AsyncGenerator[SubscribeResponse, None]:
        """Open the feed, for the subscriber (`OpenFeed`)."""
        server, credentials = next(self._turns), self._credentials
        request = SubscribeRequest(after_position=after_position, journal_id=journal_id, chain=chain)
        trust = credentials.trust
        try:
            async with credentials.channel(server) as channel:
                stub = JournalServiceStub(channel)
                async for response in stub.Subscribe(request, metadata=credentials.metadata()):
                    if credentials.trust != trust:
                        raise FeedLost(f"{server} was trusted by files of QUERY_FEED_TLS that have been replaced")
                    self._denials, self._followed = 0, (server, stub)
                    yield response
        except grpc.aio.AioRpcError as error:
            reason = _reason(error)
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and reason == "JOURNAL_DIVERGED":
                self._denials += 1
                if self._denials < len(self._servers):
                    raise ForeignJournal(
                        f"{server} has another journal than the view: remove it from QUERY_FEED, or the view to follow it"
                    ) from None
                self._denials = 0
                raise JournalDiverged from None
            self._denials = 0
            if credentials.tls and not reason and (distrust := _distrust(error)):
                raise FeedLost(f"{server} {distrust}") from None
            raise FeedLost(f"{server} says {error.code().name} {reason}".rstrip()) from None
        finally:
            self._followed = None

    async def attempts(self, charge_id: str) -> Asked:
        """Ask about the attempts at a charge's step, all servers at once and each for ASK_SECONDS. Never raises."""
        return _told(await asyncio.gather(*(self._ask(server, charge_id) for server in self._servers)))

    async def _ask(self, server: Address, charge_id: str) -> GetAttemptsResponse | grpc.StatusCode:
        """Ask one server, over the feed's own connection if that is to it; return its answer, or the status of its error."""
        request, metadata = GetAttemptsRequest(charge_id=charge_id), self._credentials.metadata()
        try:
            if self._followed is not None and self._followed[0] == server:
                return await self._followed[1].GetAttempts(request, timeout=ASK_SECONDS, metadata=metadata)
            async with self._credentials.channel(server) as channel:
                stub = JournalServiceStub(channel)
                return await stub.GetAttempts(request, timeout=ASK_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code()
        except asyncio.CancelledError:
            # The connection of the feed was closed under the call: that is no cancel of the one who asks.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return grpc.StatusCode.UNAVAILABLE


def feed_of(servers: Sequence[Address], credentials: Credentials = PLAINTEXT) -> OpenFeed:
    """Make the function that opens the feed, for the subscriber. Raises SettingsError as `CommandServers`."""
    return CommandServers(servers, credentials).open_feed


def _told(answers: Sequence[GetAttemptsResponse | grpc.StatusCode]) -> Asked:
    """Make one answer of those of a journal's servers. A server knows the attempts of the charges that it drives."""
    told = [answer for answer in answers if isinstance(answer, GetAttemptsResponse)]
    if grpc.StatusCode.DATA_LOSS in answers:
        return Asked(unknown_because="The command server cannot read the charge's records.", is_stopped=True)
    if not told:
        if all(answer is grpc.StatusCode.UNAVAILABLE for answer in answers):
            return Asked(unknown_because="Attempts are not known: no command server can be reached.", is_away=True)
        names = ", ".join(sorted({answer.name for answer in answers if isinstance(answer, grpc.StatusCode)}))
        return Asked(unknown_because=f"Attempts are not known: the command server did not tell them ({names}).")
    newest = max(told, key=lambda answer: (answer.version, answer.attempts.is_driven_here))
    version = newest.version
    # The server that drives the charge calls its bank, whatever banks the others have.
    driving = [answer for answer in told if answer.attempts.is_driven_here]
    is_configured = all(it.attempts.bank_is_configured for it in driving or told if it.HasField("attempts"))
    if newest.attempts.is_driven_here:
        return Asked(newest.attempts, is_bank_configured=is_configured, version=version)
    if not newest.is_unfinished:
        why = "The command server knows no such charge under way."
        return Asked(unknown_because=why, version=version)
    if any(answer.is_unfinished and not answer.HasField("attempts") for answer in told):
        why = "The command server has stopped at the charge."
        return Asked(unknown_because=why, is_stopped=True, version=version)
    why = "Attempts are not known: another command server drives the charge, or takes it over now."
    return Asked(unknown_because=why, is_bank_configured=is_configured, version=version)


def _distrust(error: grpc.aio.AioRpcError) -> str:
    """Say why no connection over TLS was made, if grpc lets us know."""
    details = error.details() or ""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return ""
    return next((ours for theirs, ours in _DISTRUST.items() if theirs in details), "")


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
