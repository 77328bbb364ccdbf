"""How a place in PostgreSQL is written, and how it is reached: nothing is guessed, and no secret is shown."""

import asyncio
import sys
from pathlib import Path

import pytest

from chassis.settings import Address, SettingsError, read
from command_service.journal import JournalRefused
from command_service.journal.location import location
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.url import Url, parse
from command_service.parts import Parts
from command_service.settings import Settings, check_way_to
from rig.certs import HERE, Authority
from rig.postgres import Node
from rig.postgres_tls import behind_tls

CA = Path("/ca.crt")


def here(*ports: int) -> tuple[Address, ...]:
    return tuple(Address("127.0.0.1", port) for port in ports)


@pytest.mark.parametrize(
    ("text", "url", "shown"),
    [
        (
            "postgresql://me@127.0.0.1/charges",
            Url(here(5432), "me", "charges", "disable"),
            "postgresql://me@127.0.0.1:5432/charges",
        ),
        (
            "postgres://me@127.0.0.1:1,127.0.0.1:2/charges?target_session_attrs=read-write",
            Url(here(1, 2), "me", "charges", "disable"),
            "postgresql://me@127.0.0.1:1,127.0.0.1:2/charges",
        ),
        (
            "postgresql://m%40e@[::1]:77,localhost/ch%20arges",
            Url((Address("::1", 77), Address("localhost", 5432)), "m@e", "ch arges", "disable"),
            "postgresql://m%40e@[::1]:77,localhost:5432/ch%20arges",
        ),
        (
            "postgresql:///charges?host=/run/one,/run/two&port=5433&user=me",
            Url((Address("/run/one", 5433), Address("/run/two", 5433)), "me", "charges", "disable"),
            "postgresql://me@%2Frun%2Fone:5433,%2Frun%2Ftwo:5433/charges",
        ),
        (
            "postgresql://me@a.example,b.example/charges?sslrootcert=%2Fca.crt&passfile=/pass",
            Url(
                (Address("a.example", 5432), Address("b.example", 5432)),
                *("me", "charges", "verify-full"),
                passfile=Path("/pass"),
                sslrootcert=CA,
            ),
            "postgresql://me@a.example:5432,b.example:5432/charges",
        ),
        (
            "postgresql://me@a.example/charges?sslmode=disable",
            Url((Address("a.example", 5432),), "me", "charges", "disable"),
            "postgresql://me@a.example:5432/charges",
        ),
        (
            "postgresql://me@127.0.0.1/charges?sslmode=verify-ca&sslrootcert=/ca.crt&sslcert=/c.crt&sslkey=/c.key",
            Url(
                here(5432), "me", "charges", "verify-ca",
                sslrootcert=CA, sslcert=Path("/c.crt"), sslkey=Path("/c.key"),
            ),
            "postgresql://me@127.0.0.1:5432/charges",
        ),
    ],
)  # fmt: skip
def test_a_url_is_read_as_libpq_reads_it_and_shown_without_files(text: str, url: Url, shown: str) -> None:
    assert parse(text) == url
    assert str(location(text)) == shown
    again = parse(shown + ("?sslmode=disable" if "example" in shown else ""))
    assert (again.nodes, again.user, again.database) == (url.nodes, url.user, url.database)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("postgresql://me:SECRET@h/charges", r"must hold no password.* passfile=FILE, .*~/\.pgpass .*PGPASSFILE"),
        ("postgresql://me:SECR%2FET@h/charges", "must hold no password"),
        ("postgresql://me:SEC@RET@h/charges", "must hold no password"),
        ("postgresql://me%3ASECRET@h/charges", "must hold no password"),
        ("postgresql://me:SEC/RET@h/charges", "hosts must be host:port"),
        ("postgresql://me@h/charges?password=SECRET", "must hold no password"),
        ("postgresql://me@h/charges?sslpassword=SECRET", "must hold no password"),
        ("postgresql://me@127.0.0.1/charges?sslmdoe=SECRET", "not known here: is sslmode meant"),
        ("postgresql://me@127.0.0.1/charges?SSLMODE=require", "not known here: is sslmode meant"),
        ("postgresql://me@127.0.0.1/charges?application_name=x", "not known here: known are host"),
        ("postgresql://me@127.0.0.1/charges?sslmode=disable&sslmode=require", "sslmode must stand there once"),
        ("postgresql://me@127.0.0.1/charges?passfile=", "passfile must stand there once, with a value"),
        ("postgresql://me@127.0.0.1/charges?passfile=~/pass", "must be a path as it is"),
        ("postgresql://me@h/charges", "sslmode=verify-full needs sslrootcert=FILE"),
        ("postgresql://me@127.0.0.1,h/charges", "sslmode=verify-full needs sslrootcert=FILE"),
        ("postgresql://me@h/charges?sslmode=verify-ca", "sslmode=verify-ca needs sslrootcert=FILE"),
        ("postgresql://me@h/charges?sslmode=prefer", "falls back to plaintext in silence"),
        ("postgresql://me@h/charges?sslmode=allow", "falls back to plaintext in silence"),
        ("postgresql://me@h/charges?sslmode=full", "sslmode must be one of disable, require, verify-ca, verify-full"),
        ("postgresql://me@h/charges?sslmode=require&sslrootcert=/ca.crt", "of no use with sslmode=require"),
        ("postgresql://me@h/charges?sslmode=disable&sslcert=/c&sslkey=/k", "of no use without TLS"),
        ("postgresql://me@h/charges?sslrootcert=/ca.crt&sslcert=/c", "sslcert and sslkey go together"),
        ("postgresql://me@127.0.0.1/charges?target_session_attrs=any", "the journal is on the primary"),
        ("postgresql://127.0.0.1/charges", "must name user, hosts and database"),
        ("postgresql://me@127.0.0.1", "must name user, hosts and database"),
        ("postgresql:///charges?user=me", "must name user, hosts and database"),
        ("postgresql://me@127.0.0.1/charges/more", "must name user, hosts and database"),
        ("postgresql://me@127.0.0.1/charges?user=you", "the user or the hosts twice"),
        ("postgresql://me@127.0.0.1/charges?host=h", "the user or the hosts twice"),
        ("postgresql:///charges?user=me&host=/a,/b,/c&port=1,2", "port must be one for all hosts"),
        ("postgresql://me@127.0.0.1:0/charges", "a port from 1 to 65535"),
        ("postgresql://me@127.0.0.1:65536/charges", "a port from 1 to 65535"),
        ("postgresql://me@::1/charges", "an IPv6 address in brackets"),
        ("postgresql://me@127.0.0.1,/charges", "hosts must be host:port"),
        ("postgresql://me@127.0.0.1/char%zzges", "percent sign"),
        ("postgresql://me@127.0.0.1/char%00ges", "percent sign"),
        ("postgresql://me@127.0.0.1/char ges", "must be postgresql://user@host"),
    ],
)
def test_a_url_that_is_unclear_or_holds_a_secret_is_refused_and_not_repeated(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        location(text)
    assert "SEC" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("sqlite:///journal.db", False),
        ("postgresql://me@127.0.0.1,localhost,[::1]/charges", False),
        ("postgresql:///charges?user=me&host=/run", False),
        ("postgresql://me@h/charges?sslrootcert=/ca.crt", False),
        ("postgresql://me@h/charges?sslmode=disable", True),
        ("postgresql://me@127.0.0.1,h/charges?sslmode=require", True),
        ("postgresql://me@h/charges?sslmode=verify-ca&sslrootcert=/ca.crt", True),
    ],
)
def test_a_database_beyond_this_machine_must_be_verified(text: str, is_refused: bool) -> None:
    """Or the operator says that everybody on the way may read and forge the journal."""
    place = location(text)
    check_way_to(place, is_open=True)
    if is_refused:
        with pytest.raises(
            SettingsError, match=r"not verified: add sslmode=verify-full&sslrootcert=FILE .*COMMAND_OPEN=yes"
        ):
            check_way_to(place, is_open=False)
    else:
        check_way_to(place, is_open=False)


async def test_neither_a_server_nor_a_command_goes_over_such_a_network() -> None:
    environment = {"COMMAND_JOURNAL": "postgresql://me@db.invalid/charges?sslmode=require"}
    with pytest.raises(SettingsError, match="not verified"):
        await Parts(read(Settings, environment)).store()
    for arguments in (
        ["verify-journal"],
        ["migrate"],
        ["copy-journal", environment["COMMAND_JOURNAL"], "sqlite:///x.db"],
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "command_service", *arguments),
            env=environment,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        assert (process.returncode, b"what answers there is not verified" in said) == (1, True)


def test_a_password_comes_from_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    passfile = tmp_path / "passwords"

    async def opened() -> Node:
        return await node.start()

    node = Node(password="a pass:word")
    try:
        asyncio.run(opened())
        place = PostgresPlace.of(f"{node.dsn()}?passfile={passfile}")
        with pytest.raises(JournalRefused, match=f"{passfile} cannot be read: No such file"):
            place.migrate()
        passfile.write_text(f"127.0.0.1:{node.port}:postgres:postgres:a pass:word\n")
        passfile.chmod(0o640)
        with pytest.raises(JournalRefused, match=f"open to other users: chmod 0600 {passfile}"):
            place.migrate()
        passfile.chmod(0o600)
        assert place.migrate().startswith("made the journal")
        passfile.write_text("*:*:*:*:another\n")
        with pytest.raises(JournalRefused, match="password authentication failed") as refused:
            place.migrate()
        assert "another" not in str(refused.value)
    finally:
        node.close()


async def test_a_server_that_cannot_show_a_certificate_of_the_authority_is_not_talked_to(
    postgres_url: str, tmp_path: Path
) -> None:
    folder = Authority().issue(tmp_path / "postgres", ips=HERE)
    another = Authority().issue(tmp_path / "another", ips=HERE)
    async with behind_tls(postgres_url, folder) as url:
        base = url.partition("?")[0]
        verified = PostgresPlace.of(f"{base}?sslmode=verify-full&sslrootcert={folder / 'ca.crt'}")
        assert (await asyncio.to_thread(verified.migrate)).startswith("made the journal")
        (node,) = verified.nodes()
        (await node.connect()).end()
        for options, why in (
            (f"sslmode=verify-full&sslrootcert={another / 'ca.crt'}", "CERTIFICATE_VERIFY_FAILED"),
            (f"sslmode=verify-ca&sslrootcert={another / 'ca.crt'}", "CERTIFICATE_VERIFY_FAILED"),
            ("sslmode=verify-full&sslrootcert=system", "CERTIFICATE_VERIFY_FAILED"),
            ("sslmode=disable", "no encryption"),
            (f"sslmode=verify-full&sslrootcert={tmp_path / 'none'}", "the files for TLS .* cannot be used"),
        ):
            with pytest.raises(JournalRefused, match=why):
                await asyncio.to_thread(PostgresPlace.of(f"{base}?{options}").migrate)
        unverified = PostgresPlace.of(f"{base}?sslmode=require")
        assert (await asyncio.to_thread(unverified.migrate)).startswith("nothing to do")


async def test_a_certificate_for_another_name_is_refused_by_verify_full_only(postgres_url: str, tmp_path: Path) -> None:
    folder = Authority().issue(tmp_path / "postgres", ips=("127.0.0.2",))
    async with behind_tls(postgres_url, folder) as url:
        base = url.partition("?")[0]
        with pytest.raises(JournalRefused, match="IP address mismatch"):
            await asyncio.to_thread(
                PostgresPlace.of(f"{base}?sslmode=verify-full&sslrootcert={folder / 'ca.crt'}").migrate
            )
        of_the_authority = PostgresPlace.of(f"{base}?sslmode=verify-ca&sslrootcert={folder / 'ca.crt'}")
        assert (await asyncio.to_thread(of_the_authority.migrate)).startswith("made the journal")
