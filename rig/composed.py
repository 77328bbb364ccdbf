"""What deploy/compose.yaml mounts: certificates and passwords, made anew for each checkout: python -m rig.composed FOLDER

    certs/NAME/              tls.crt, tls.key and ca.crt of bank, command, query, postgres, prometheus and shop, a client
    passwords/               a random password in each file: of the roles chargeonce and replicator, and of the superuser
    passwords/pgpass         the one of chargeonce again, as COMMAND_JOURNAL's passfile

The containers run as users of their own, which are not the owner of these files, so the files are readable for everybody who
reaches them; the folder around them is not.
"""

import argparse
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from rig.certs import HERE, TRUST, Authority

FOLDER = Path("data/deploy")
# A certificate's names are the hosts by which compose.yaml calls the service, and localhost, for its health check.
HOSTS = {
    "bank": ["bank"],
    "command": ["command-1", "command-2"],
    "query": ["query-1", "query-2"],
    "postgres": ["postgres-1", "postgres-2"],
}
CLIENTS = ("prometheus", "shop")
PASSWORDS = ("chargeonce-password", "replicator-password", "postgres-password")


def make_all(folder: Path) -> None:
    """Write certificates of a new authority, and the passwords that are not there yet: a database keeps its first ones."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = Authority()
    for name, hosts in HOSTS.items():
        authority.issue(folder / "certs" / name, dns=[*hosts, "localhost"], ips=HERE, uris=[f"{TRUST}/{name}"])
    for name in CLIENTS:
        authority.issue(folder / "certs" / name, uris=[f"{TRUST}/{name}"], client_only=True)
    passwords = folder / "passwords"
    passwords.mkdir(exist_ok=True)
    for name in PASSWORDS:
        if not (passwords / name).exists():
            (passwords / name).write_text(secrets.token_urlsafe(32))
    password = (passwords / "chargeonce-password").read_text()
    (passwords / "pgpass").write_text(f"*:*:*:chargeonce:{password}\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make them."""
    parser = argparse.ArgumentParser(
        prog="python -m rig.composed",
        description="Makes the certificates and passwords that deploy/compose.yaml mounts.",
    )
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"where (default: {FOLDER})")
    parser.add_argument("--again", action="store_true", help="replace the certificates that are there; passwords stay")
    chosen = parser.parse_args(arguments)
    if (chosen.folder / "certs").exists() and not chosen.again:
        print(f"{chosen.folder} holds certificates already; --again replaces them")
        return
    os.umask(0o022)
    make_all(chosen.folder)
    print(f"made certificates, valid for ninety days, in {chosen.folder}")


if __name__ == "__main__":
    main()
