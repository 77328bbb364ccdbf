"""`chargeonce health`, against real servers: in plaintext, and over TLS with certificates required and a policy."""

import shutil
import subprocess
from pathlib import Path

from rig import certs
from rig.processes import Town, free_address
from tests.e2e.test_cli import run


def health(*arguments: str) -> tuple[int, str]:
    """Run it; it prints one line and nothing on standard error."""
    done: subprocess.CompletedProcess[str] = run("health", *arguments)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return done.returncode, line


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


async def test_a_server_that_serves_and_one_that_does_not_and_none(tmp_path: Path) -> None:
    """Not serving is alive: a query server whose feed is away answers, and starting it again would mend nothing."""
    async with Town(tmp_path) as town:
        assert health(town.command.listen) == (0, f"{town.command.listen} says SERVING")
        assert health(str(town.command.serving["feed"]))[0] == 0
        await town.start_query(QUERY_FEED=free_address())
        not_serving = f"{town.query.listen} says NOT_SERVING"
        assert health(town.query.listen) == (1, not_serving)
        assert health(town.query.listen, "--alive") == (0, not_serving)
        await town.query.kill()
        for more in ([], ["--alive"]):
            status, line = health(town.query.listen, *more)
            assert status == 1 and line.startswith(f"{town.query.listen} does not answer: UNAVAILABLE, ")


async def test_over_tls_it_takes_a_certificate_of_the_authority_and_no_identity(tmp_path: Path) -> None:
    """A certificate of nobody in the policy will do, since health asks for no identity; without one there is no answer."""
    folder = tmp_path / "certs"
    certs.make_all(folder)
    strangers = certs.Authority()
    unknown = strangers.issue(tmp_path / "unknown", dns=["localhost"], client_only=True)
    anybody = tmp_path / "anybody"
    shutil.copytree(folder / "bank", anybody)
    trusting = tmp_path / "trusting"
    trusting.mkdir()
    shutil.copy(folder / "query" / "ca.crt", trusting)
    async with Town(tmp_path, folder) as town:
        here = f"localhost:{port_of(town.command.listen)}"
        for shown in (folder / "command", certs.shop(folder), anybody):
            assert health(here, "--tls", str(shown)) == (0, f"{here} says SERVING")
        for shown in (unknown, trusting):
            status, line = health(here, "--tls", str(shown))
            assert status == 1 and "does not answer" in line
        assert health(here)[0] == 1
        assert health(here, "--tls", str(folder / "command"), "--name", "localhost")[0] == 0
        assert health(here, "--tls", str(folder / "command"), "--name", "elsewhere.example")[0] == 1
        await town.start_query(QUERY_CLIENT_CERTIFICATES="no")
        there = f"localhost:{port_of(town.query.listen)}"
        assert health(there, "--tls", str(trusting))[1].startswith(f"{there} says ")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    status, line = health("localhost:1", "--tls", str(tmp_path / "none"))
    assert status == 1
    assert line == f"error: {tmp_path / 'none'}: holds none of tls.crt, tls.key, ca.crt"
