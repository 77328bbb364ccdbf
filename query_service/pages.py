"""Page tokens: where the next page of a list begins in each journal, bound to the conditions of the list.

A token holds a position for each journal, in the order of the journals' ids, and a digest of these positions, the ids and the
conditions; a single journal's id is left out. It holds no secret and grants no permission; by the digest a truncated token, an
invented one, and a token of other conditions or journals are recognised.
"""

import base64
import hashlib
import struct
from collections.abc import Mapping, Sequence

from charging.v1.query_pb2 import ListChargesRequest
from query_service.lookup import END

_DIGEST_BYTES = 16


def token_after(places: Mapping[str, int], request: ListChargesRequest) -> str:
    """Make the token of the page that shows the charges below these positions, each in the journal of this id."""
    ids = sorted(places)
    packed = _positions(ids).pack(*(places[journal_id] for journal_id in ids))
    return base64.urlsafe_b64encode(_sealed(packed, ids, request)).decode()


def places_of(request: ListChargesRequest, journal_ids: Sequence[str]) -> dict[str, int] | None:
    """Read the positions from a request's token. None if it is malformed, or belongs to other conditions or journals."""
    try:
        token = base64.b64decode(request.page_token, altchars=b"-_", validate=True)
    except ValueError:
        return None
    ids = sorted(set(journal_ids))
    positions = _positions(ids)
    packed = token[: positions.size]
    if len(packed) != positions.size or token != _sealed(packed, ids, request):
        return None
    found = dict(zip(ids, positions.unpack(packed), strict=True))
    return found if max(found.values()) <= END else None  # SQLite has no greater integers


def _positions(journal_ids: Sequence[str]) -> struct.Struct:
    return struct.Struct(f">{len(journal_ids)}Q")


def _sealed(packed: bytes, journal_ids: Sequence[str], request: ListChargesRequest) -> bytes:
    conditions = ListChargesRequest(
        user_id=request.user_id,
        status=request.status,
        requested_from=request.requested_from if request.HasField("requested_from") else None,
        requested_before=request.requested_before if request.HasField("requested_before") else None,
        stage=request.stage,
        stage_since_before=request.stage_since_before if request.HasField("stage_since_before") else None,
        hold_expires_before=request.hold_expires_before if request.HasField("hold_expires_before") else None,
    )
    bound = conditions.SerializeToString(deterministic=True)
    if len(journal_ids) > 1:
        bound += "\n".join(journal_ids).encode()
    digest = hashlib.sha256(packed + bound).digest()
    return packed + digest[:_DIGEST_BYTES]
