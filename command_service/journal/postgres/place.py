"""A PostgreSQL database as the place of a journal: what can be done with a journal there."""

import os
import random
import socket
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.disk import LOCAL_DISK, Disk
from command_service.journal import JournalRefused
from command_service.journal.postgres.statements import PostgresNode
from command_service.journal.postgres.store import PostgresStore
from command_service.journal.postgres.url import SYSTEM, VERIFYING, Url, leaves_machine, parse
from command_service.journal.store import random_id


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """A journal's database. See `command_service.journal.store.Location`."""

    url: Url

    @classmethod
    def of(cls, value: str) -> "PostgresPlace":
        """Read a URL. Raises ValueError."""
        return cls(parse(value))

    def __str__(self) -> str:
        return str(self.url)

    @property
    def lies_in_memory(self) -> bool:
        """Not that we could know."""
        return False

    @property
    def crosses_network_unverified(self) -> bool:
        """Whether somebody on the way could read the journal, or answer in the database's place.

        verify-ca is not enough: it takes any machine with a certificate of the authority for the database.
        """
        return self.url.sslmode != "verify-full" and any(map(leaves_machine, self.url.nodes))

    def nodes(self) -> Sequence[PostgresNode]:
        """Return the nodes, each to be connected to by itself. Raises JournalRefused if a file of the URL cannot be used."""
        arguments = self._arguments()
        return [PostgresNode(node.host, node.port, arguments) for node in self.url.nodes]

    async def open(
        self,
        *,
        new_id: Callable[[], str] = random_id,
        free_bytes: int = 0,  # noqa: ARG002  # of a file, as what follows is
        must_exist: bool = False,  # noqa: ARG002  # it must in any case: a server makes none
        any_file_system: bool = False,  # noqa: ARG002
        disk: Disk = LOCAL_DISK,  # noqa: ARG002
    ) -> PostgresStore:
        """Open the store for a server, which operators know by its host and process id; see the port."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        return await PostgresStore.open(self.nodes(), name=name, new_id=new_id, chance=random.Random())

    def _arguments(self) -> Mapping[str, Any]:
        """Those of asyncpg.connect, all that it would else take from its own environment and defaults."""
        passfile = self.url.passfile or _passfile_of_environment()
        if passfile is not None:
            _check_passfile(passfile)
        return {
            "user": self.url.user,
            "database": self.url.database,
            "passfile": passfile,
            "ssl": self._tls(),
            "direct_tls": False,
            "target_session_attrs": "any",
        }

    def _tls(self) -> ssl.SSLContext | bool:
        if self.url.sslmode == "disable":
            return False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.url.sslmode == "verify-full"
        context.verify_mode = ssl.CERT_REQUIRED if self.url.sslmode in VERIFYING else ssl.CERT_NONE
        context.set_alpn_protocols(["postgresql"])
        try:
            if self.url.sslrootcert == SYSTEM:
                context.load_default_certs()
            elif self.url.sslrootcert is not None:
                context.load_verify_locations(self.url.sslrootcert)
            if self.url.sslcert is not None:
                context.load_cert_chain(self.url.sslcert, self.url.sslkey, password=_refuse_encrypted)
        except OSError as error:  # an ssl.SSLError too
            files = ", ".join(str(file) for file in (self.url.sslrootcert, self.url.sslcert, self.url.sslkey) if file)
            raise JournalRefused(f"the files for TLS to the database cannot be used ({files}): {error}") from error
        return context


def _passfile_of_environment() -> Path | None:
    """The file that PostgreSQL's own programs take passwords from, if there is one."""
    if named := os.environ.get("PGPASSFILE"):
        return Path(named)
    try:
        usual = Path.home() / ".pgpass"
        return usual if usual.is_file() else None
    except (RuntimeError, OSError):
        return None


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
