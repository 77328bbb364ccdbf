"""How the place of a journal in PostgreSQL is written: libpq's URI, without a password and without guesses."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from chassis.exposure import is_loopback
from chassis.settings import Address, file_path

SCHEMES = ("postgresql://", "postgres://")
FORM = "postgresql://user@host:port,host:port/database?sslmode=verify-full&sslrootcert=FILE&passfile=FILE"
MODES = ("disable", "require", "verify-ca", "verify-full")
VERIFYING = ("verify-ca", "verify-full")
FILES = ("passfile", "sslrootcert", "sslcert", "sslkey")
PARAMETERS = ("host", "port", "user", "sslmode", "target_session_attrs", *FILES)
SYSTEM = Path("system")
"""In the place of a file: the authorities that this machine trusts."""

_NOT_IN_HERE = (
    "must hold no password, for settings are shown and logged: name a file with passfile=FILE, or put it into ~/.pgpass or the "
    "file that PGPASSFILE names (lines of host:port:database:user:password, mode 0600)"
)


@dataclass(frozen=True, slots=True)
class Url:
    """A database, the nodes that may have its primary, and how to come to know that they are the right ones."""

    nodes: tuple[Address, ...]
    """A host that begins with a slash is a folder with a socket."""
    user: str
    database: str
    sslmode: str
    passfile: Path | None = None
    sslrootcert: Path | None = None
    sslcert: Path | None = None
    sslkey: Path | None = None

    def __str__(self) -> str:
        """Nodes, user and database, as a URL: it names the place, and no file with a secret."""
        nodes = ",".join(quote(str(node), safe="[]:") for node in self.nodes)
        return f"postgresql://{quote(self.user, safe='')}@{nodes}/{quote(self.database, safe='')}"


def parse(value: str) -> Url:
    """Read a URL. Raises ValueError, with a text of our own: the value may hold a password."""
    scheme = next((each for each in SCHEMES if value.startswith(each)), None)
    if scheme is None or re.search(r"[\x00-\x20\x7f#]", value):
        raise ValueError(f"must be {FORM}")
    before, _, query = value.removeprefix(scheme).partition("?")
    authority, _, path = before.partition("/")
    login, at, hosts = authority.rpartition("@")
    if ":" in unquote(login):  # also if the user was quoted together with it
        raise ValueError(_NOT_IN_HERE)
    chosen = _parameters(query)
    user, database = _decoded(login), _decoded(path)
    if (at and "user" in chosen) or (hosts and ("host" in chosen or "port" in chosen)):
        raise ValueError("names the user or the hosts twice")
    nodes = _nodes(hosts) if hosts else _listed(chosen.get("host", ""), chosen.get("port", ""))
    user = user or chosen.get("user", "")
    if not nodes or not user or not database or "/" in path:
        raise ValueError(f"must name user, hosts and database: {FORM}")
    if chosen.get("target_session_attrs", "primary") not in ("primary", "read-write"):
        raise ValueError("target_session_attrs: the journal is on the primary: leave it out")
    mode = chosen.get("sslmode", "verify-full" if any(map(leaves_machine, nodes)) else "disable")
    files = {name: file_path(chosen[name]) for name in FILES if name in chosen}
    _check_security(mode, files.keys())
    return Url(nodes, user, database, mode, **files)


def leaves_machine(node: Address) -> bool:
    """Whether the way to a node is a network that others use too."""
    return not node.host.startswith("/") and not is_loopback(node.host)


def _check_security(mode: str, files: Collection[str]) -> None:
    if mode in ("allow", "prefer"):
        raise ValueError(f"sslmode={mode} falls back to plaintext in silence: choose one of {', '.join(MODES)}")
    if mode not in MODES:
        raise ValueError(f"sslmode must be one of {', '.join(MODES)}")
    if mode in VERIFYING and "sslrootcert" not in files:
        raise ValueError(
            f"sslmode={mode} needs sslrootcert=FILE, the authorities that the server's certificate may come from, or "
            "sslrootcert=system for those that this machine trusts"
        )
    if mode not in VERIFYING and "sslrootcert" in files:
        raise ValueError(f"sslrootcert is of no use with sslmode={mode}: choose sslmode=verify-full")
    if mode == "disable" and ("sslcert" in files or "sslkey" in files):
        raise ValueError("sslcert and sslkey are of no use without TLS: choose sslmode=verify-full")
    if ("sslcert" in files) != ("sslkey" in files):
        raise ValueError("sslcert and sslkey go together")


def _parameters(query: str) -> Mapping[str, str]:
    chosen: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, text = part.partition("=")
        if "password" in name:
            raise ValueError(_NOT_IN_HERE)
        if name not in PARAMETERS:
            near = difflib.get_close_matches(name.lower(), PARAMETERS, n=1)
            raise ValueError(
                "has a parameter that is not known here: "
                + (f"is {near[0]} meant?" if near else f"known are {', '.join(PARAMETERS)}")
            )
        if name in chosen or not equals or not text:
            raise ValueError(f"{name} must stand there once, with a value")
        chosen[name] = _decoded(text)
    return chosen


def _nodes(hosts: str) -> tuple[Address, ...]:
    """Read host:port,host:port; an IPv6 address stands in brackets."""
    found = []
    for each in hosts.split(","):
        parts = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]+))?", each)
        if parts is None:
            raise ValueError("hosts must be host:port, separated by commas, an IPv6 address in brackets")
        found.append(_node(_decoded(parts[1]).strip("[]"), parts[2] or ""))
    return tuple(found)


def _listed(hosts: str, ports: str) -> tuple[Address, ...]:
    """Read the parameters `host` and `port`: a list each, the ports one for each host, or one for all."""
    names, numbers = hosts.split(",") if hosts else [], ports.split(",")
    if len(numbers) == 1:
        numbers *= len(names)
    if len(numbers) != len(names):
        raise ValueError("port must be one for all hosts, or one for each")
    return tuple(map(_node, names, numbers))


def _node(host: str, port: str) -> Address:
    if not host or not re.fullmatch("[0-9]{0,5}", port) or not 0 < int(port or 5432) < 65536:
        raise ValueError("each host must have a name, and a port from 1 to 65535 if not 5432")
    return Address(host, int(port or 5432))


def _decoded(text: str) -> str:
    """Undo the percent signs. Raises ValueError if what they stand for is no text."""
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        decoded = "\0"
    if re.search(r"[\x00-\x1f\x7f]", decoded) or re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("has a percent sign that stands for no character of a name")
    return decoded
