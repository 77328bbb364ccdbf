"""How a database is reached: the password, and what authenticates the server, from the files that a URL names."""

import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from command_service.journal import JournalRefused
from command_service.journal.postgres.url import SYSTEM, VERIFYING, Url


def arguments_of(url: Url) -> Mapping[str, Any]:
    """Return those of asyncpg.connect, beside host and port. Raises JournalRefused if a file cannot be used.

    It takes nothing from its environment then but a password, if no file is named (PGPASSFILE, ~/.pgpass, PGPASSWORD).
    """
    if url.passfile is not None:
        _check_passfile(url.passfile)
    return {
        "user": url.user,
        "database": url.database,
        "passfile": url.passfile,
        "ssl": _tls(url),
        "direct_tls": False,
        "target_session_attrs": "any",
    }


def _tls(url: Url) -> ssl.SSLContext | bool:
    if url.sslmode == "disable":
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = url.sslmode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if url.sslmode in VERIFYING else ssl.CERT_NONE
    context.set_alpn_protocols(["postgresql"])
    try:
        if url.sslrootcert == SYSTEM:
            context.load_default_certs()
        elif url.sslrootcert is not None:
            context.load_verify_locations(url.sslrootcert)
        if url.sslcert is not None:
            context.load_cert_chain(url.sslcert, url.sslkey, password=_refuse_encrypted)
    except OSError as error:  # an ssl.SSLError too
        files = ", ".join(str(file) for file in (url.sslrootcert, url.sslcert, url.sslkey) if file)
        raise JournalRefused(f"the files for TLS to the database cannot be used ({files}): {error}") from error
    return context


def _check_passfile(path: Path) -> None:
    """See that a file of passwords can be used: asyncpg would pass over it in silence. Raises JournalRefused."""
    try:
        found = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise JournalRefused(f"the file of passwords {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise JournalRefused(f"the file of passwords {path} is no file")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise JournalRefused(f"the file of passwords {path} is open to other users: chmod 0600 {path}")


def _refuse_encrypted() -> str:
    raise JournalRefused("sslkey must be a file without a password, which only its owner can read")
