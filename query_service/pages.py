"""Page tokens: where the next page of a list begins, bound to the conditions of the list.

A token holds the position of the last charge shown, and a digest of this position and the conditions. It holds no secret and
grants no permission; by the digest a truncated token, an invented one and a token of other conditions are recognised.
"""

import base64
import hashlib
import struct

from charging.v1.query_pb2 import ListChargesRequest
from query_service.lookup import END

_POSITION = struct.Struct(">Q")
_DIGEST_BYTES = 16
_TOKEN_BYTES = _POSITION.size + _DIGEST_BYTES


def token_after(position: int, request: ListChargesRequest) -> str:
    """Make the token of the page that follows the charge requested at this position."""
    return base64.urlsafe_b64encode(_sealed(_POSITION.pack(position), request)).decode()


def position_of(request: ListChargesRequest) -> int | None:
    """Read the position from a request's token. None if the token is malformed or belongs to other conditions."""
    try:
        token = base64.b64decode(request.page_token, altchars=b"-_", validate=True)
    except ValueError:
        return None
    packed = token[: _POSITION.size]
    if len(token) != _TOKEN_BYTES or token != _sealed(packed, request):
        return None
    position: int = _POSITION.unpack(packed)[0]
    return position if position <= END else None  # SQLite has no greater integers


def _sealed(packed: bytes, request: ListChargesRequest) -> bytes:
    conditions = ListChargesRequest(
        user_id=request.user_id,
        status=request.status,
        requested_from=request.requested_from if request.HasField("requested_from") else None,
        requested_before=request.requested_before if request.HasField("requested_before") else None,
    )
    digest = hashlib.sha256(packed + conditions.SerializeToString(deterministic=True)).digest()
    return packed + digest[:_DIGEST_BYTES]
