"""Nothing is open by accident: which settings a real server refuses to start with, and what it says then; check-policy."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from contract.access import ACCESS
from rig.certs import make_all
from rig.processes import Server
from tests.security import tokens
from tests.security.guarded import METHODS, OF_JWT, READER, SHOP, a_policy, an_identity, token_of

HERE, THERE = "127.0.0.1:0", "0.0.0.0:0"
COMMAND = ("COMMAND_LISTEN", "COMMAND_FEED_LISTEN", "COMMAND_METRICS_LISTEN")
QUERY = ("QUERY_LISTEN", "QUERY_METRICS_LISTEN")
PORTS = {"COMMAND": COMMAND, "QUERY": QUERY}
MODULES = {"COMMAND": "command_service", "QUERY": "query_service", "GATEWAY_MOCK": "gateway_mock"}
OPEN = "the server is open to everybody who reaches it"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_all(folder)
    return folder


def settings(server: str, folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Settings with which a server starts: all of its ports on loopback."""
    listens = dict.fromkeys(COMMAND + QUERY, HERE) | {"GATEWAY_MOCK_LISTEN": HERE}
    files = {
        "COMMAND_JOURNAL": f"sqlite:///{folder / 'journal.db'}",
        "QUERY_VIEW": str(folder / "view.db"),
        "GATEWAY_MOCK_LEDGER": str(folder / "bank.db"),
    }
    return {name: value for name, value in (listens | files).items() if name.startswith(server)} | dict(more)


def refused(server: str, folder: Path, more: Mapping[str, str], *, status: int = 1) -> str:
    """Start a server, which must end with this status, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", MODULES[server]],
        env={**os.environ, **settings(server, folder, more)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == status, done
    return done.stdout + done.stderr


async def started(server: str, folder: Path, more: Mapping[str, str]) -> Server:
    """Start a server, which must serve, and end it."""
    made = Server(MODULES[server], settings(server, folder, more), folder / "server.log")
    try:
        return await made.start()
    finally:
        if made.is_running:
            await made.kill()


# ---------------------------------------------------------------- addresses
@pytest.mark.parametrize("listen", COMMAND + QUERY)
def test_each_port_that_other_machines_reach_needs_tls_and_a_policy(listen: str, tmp_path: Path) -> None:
    """Without them the server does not start, and says which are missing and how to override it."""
    server = listen.partition("_")[0]
    said = refused(server, tmp_path, {listen: THERE})
    assert f"{listen}={THERE} is open to other machines, without {server}_TLS and {server}_POLICY: set both" in said
    assert f"{server}_OPEN=yes" in said
    assert not any(each in said for each in {*COMMAND, *QUERY} - {listen})


@pytest.mark.parametrize("server", PORTS)
async def test_a_server_needs_both_of_them(server: str, certificates: Path, tmp_path: Path) -> None:
    protection = {f"{server}_TLS": str(certificates / "command"), f"{server}_POLICY": str(certificates / "policy.toml")}
    exposed = dict.fromkeys(PORTS[server], THERE)
    for missing in protection:
        has = {name: value for name, value in protection.items() if name != missing}
        said = await asyncio.to_thread(refused, server, tmp_path, exposed | has)
        assert f" are open to other machines, without {missing}: set it" in said and not any(
            name in said for name in has
        )
    log = (await started(server, tmp_path, exposed | protection)).text()
    assert '"serving"' in log and OPEN not in log


@pytest.mark.parametrize("server", PORTS)
async def test_the_override_opens_it_with_a_warning(server: str, tmp_path: Path) -> None:
    listens = dict.fromkeys(PORTS[server], THERE)
    said = await asyncio.to_thread(refused, server, tmp_path, {**listens, f"{server}_OPEN": "no"})
    assert " are open to other machines, without " in said and all(f"{name}={THERE}" in said for name in listens)
    running = await started(server, tmp_path, {**listens, f"{server}_OPEN": "yes"})
    [warning] = [entry for entry in running.entries() if entry["event"] == OPEN]
    assert warning["level"] == "warning" and warning["because"] == f"{server}_OPEN"
    assert warning["open"] == [f"{name}={THERE}" for name in listens]
    assert warning["missing"] == [f"{server}_TLS", f"{server}_POLICY"]


# ---------------------------------------------------------------- misspelt and unusable settings
@pytest.mark.parametrize(
    ("server", "wrong", "meant"),
    [
        ("COMMAND", "COMMAND_POLCY", "COMMAND_POLICY"),
        ("QUERY", "QUERY_TSL", "QUERY_TLS"),
        ("GATEWAY_MOCK", "GATEWAY_MOCK_TLZ", "GATEWAY_MOCK_TLS"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_nearest_right_name(
    server: str, wrong: str, meant: str, tmp_path: Path
) -> None:
    """Ignored in silence, it would leave open what it was to protect."""
    said = refused(server, tmp_path, {wrong: "data"}, status=2 if server == "GATEWAY_MOCK" else 1)
    assert f"{wrong} is no setting: is {meant} meant?" in said


FAULTY = a_policy(
    SHOP,
    an_identity("till", "chrage"),
    '[[identities]]\nname = "no credential"\ntenant = "shop"\nroles = []\n',
    f'[[identities]]\nname = "told"\ntenant = "shop"\nroles = []\ntoken_sha256 = "{token_of("told")}"',
    f'token = "{token_of("told")}"\n',
    "[tenants.shpo]\nweight = 2\n",
)
PROBLEMS = (
    "identity 2: there is no role 'chrage': is 'charge' meant?",
    "identity 3: name must be",
    "identity 3: has no credential",
    "identity 4: token_sha256 must be 64 small hexadecimal digits",
    "identity 4: nothing is meant by the key 'token'",
    "[tenants]: no identity has the tenant 'shpo': is 'shop' meant?",
    "[jwt]: keys: ",
)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A policy with several faults; one of them is a token in the place of its digest. There are no keys beside it."""
    file = tmp_path / "faulty.toml"
    file.write_text(FAULTY)
    return file


@pytest.mark.parametrize("server", PORTS)
def test_a_server_does_not_start_with_a_faulty_policy_and_tells_every_problem(
    server: str, faulty: Path, tmp_path: Path
) -> None:
    said = refused(server, tmp_path, {f"{server}_POLICY": str(faulty)})
    assert f"error: {faulty}: cannot be used:" in said
    assert [problem for problem in PROBLEMS if problem not in said] == []
    assert token_of("told") not in said


# ---------------------------------------------------------------- check-policy
def check_policy(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", program, "check-policy", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("program", ["command_service", "chargeonce"])
def test_check_policy_tells_what_each_identity_may_do_method_by_method(program: str, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(tokens.key_set())
    (tmp_path / "policy.toml").write_text(a_policy(SHOP, READER, OF_JWT))
    done = check_policy(program, str(tmp_path / "policy.toml"))
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, dict[str, str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        if line.startswith(" "):
            answer, method, *_ = line.split()
            told[name][f"/{method}"] = answer
        else:
            name = line.partition(",")[0]
            told[name] = {}
    assert list(told) == ["shop", "query-server", "shop-jwt"]

    def permitted(*roles: str) -> dict[str, str]:
        return {method: "yes" if ACCESS[method] in roles else "no" for method in METHODS}

    assert told["shop"] == permitted("charge", "refund", "read")
    assert told["query-server"] == permitted("feed")
    assert told["shop-jwt"] == permitted("charge", "refund", "read", "feed")
    assert "shop, of the tenant shop, known by certificate_uri and token_sha256" in done.stdout
    assert "query-server, of no tenant" in done.stdout


def test_check_policy_tells_every_problem_of_a_faulty_file_and_no_secret(faulty: Path) -> None:
    keys = faulty.with_name("jwks.json")
    keys.write_bytes(tokens.key_set({**tokens.public(tokens.EC_KEY, "ec-1"), "d": "c2VjcmV0LXNjYWxhcg"}))
    done = check_policy("command_service", str(faulty))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {faulty}: cannot be used:")
    assert [problem for problem in PROBLEMS if problem not in done.stderr] == []
    assert "it holds a private or symmetric key" in done.stderr
    assert "c2VjcmV0" not in done.stderr and token_of("told") not in done.stderr


def test_check_policy_quotes_nothing_of_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(f'[[identities]]\nname = "{token_of("told")}\n')
    done = check_policy("command_service", str(file))
    assert (done.returncode, done.stdout) == (1, "") and f"{file}: is no TOML" in done.stderr
    assert token_of("told") not in done.stderr
