"""Whether a file has room to grow: what SQLite calls a disk I/O error may be a full disk, and the file itself can say so.

SQLite takes only ENOSPC for a full disk. A quota (EDQUOT) and a limit on a file's size (EFBIG) come out as the same
SQLITE_IOERR_WRITE as a broken disk's EIO, and Python does not tell the errno. So the file is asked again.
"""

import errno
import os
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# More than a block of most file systems, so that it cannot fit into what the last one has left.
GROWTH_BYTES = 1 << 16


def has_room(wal: Path) -> bool:
    """Tell whether a WAL can grow, by having it grow, and cutting it back. Raises OSError for what is no lack of room.

    The caller holds the write lock, so nobody else appends meanwhile. What is written are zeros past the last frame, which are
    harmless even if the cutting back fails: readers go no further than the wal-index says, the next commit writes over
    them, and after a crash a frame of page 0 and of other salts than the header's ends the WAL.
    """
    descriptor = os.open(wal, os.O_RDWR)
    try:
        end = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < GROWTH_BYTES:  # what fits only in part is written in part, and the rest says why
                written += os.pwrite(descriptor, bytes(GROWTH_BYTES - written), end + written)
        finally:
            os.ftruncate(descriptor, end)  # even this takes room where a file's blocks are never written over
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False
    finally:
        os.close(descriptor)
    return True
