"""The systemd units: systemd's own judgement of them, and that the servers can do their work within their bounds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rig import certs
from rig.processes import Town
from tests.deploy.deployment import SYSTEMD, UNITS, unit
from tests.deploy.shop import charge, charge_in_view

ANALYZE = shutil.which("systemd-analyze")
STRACE = shutil.which("strace")
NAMES = sorted(path.name for path in SYSTEMD.glob("*.service"))
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed here")
# systemd's own scale: 0 is a service that can do nothing, 10 one that can do everything. What is left is the network, which the
# servers are for, and the host's root folder, which holds Python.
EXPOSURE = 1.2
# SQLite gives its files to the journal's owner if it runs as root, as this test may; the units run nothing as root.
ONLY_ROOT = {"fchown"}
# Files that are not there for a unit (ProcSubset=pid): glibc and gRPC then take their defaults.
NOT_MISSED = {"/proc/stat", "/proc/sys/net/core/somaxconn"}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they are installed, with the programs of this environment in the place of the installed ones."""
    folder = tmp_path / "system"
    shutil.copytree(SYSTEMD, folder)
    for name in NAMES:
        file = folder / name
        file.write_text(file.read_text().replace("/opt/chargeonce/bin", str(Path(sys.executable).parent)))
    for name in ("command", "migrate"):
        (folder / f"chargeonce-{name}.service.d").mkdir()
        shutil.copy(SYSTEMD / "postgresql.conf", folder / f"chargeonce-{name}.service.d")
    return folder


def analyze(*words: str | Path) -> str:
    assert ANALYZE is not None
    done = subprocess.run([ANALYZE, *words], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_no_fault_in_a_unit(name: str, installed: Path) -> None:
    analyze("verify", "--man=no", installed / name)


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_a_unit_can_do_little(name: str, installed: Path) -> None:
    said = analyze("security", "--offline=true", installed / name)
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(level) <= EXPOSURE, said


@pytest.mark.parametrize("name", [name for name in UNITS if name != "migrate"])
def test_a_server_that_ends_is_started_again_and_keeps_its_state_for_itself(name: str) -> None:
    settings = unit(*UNITS[name])
    assert settings["Restart"] == ["always"] and settings["StartLimitIntervalSec"] == ["0"]
    assert settings["ProtectSystem"] == ["strict"] and settings["UMask"] == ["0077"]
    assert settings["StateDirectoryMode"] == ["0700"]
    (state,) = settings["StateDirectory"]
    files = [each for each in settings["Environment"] if "/var/lib/" in each]
    assert files and all(f"/var/lib/{state}/" in each for each in files)
    loaded = {each.partition(":")[0] for each in settings["LoadCredential"]}
    assert {"tls.crt", "tls.key", "ca.crt"} <= loaded


def allowed_calls() -> set[str]:
    """The system calls that the units allow, by systemd's own lists."""
    allowed: set[str] = set()
    for line in unit("chargeonce-.service.d/hardening.conf")["SystemCallFilter"]:
        calls = {call for word in line.removeprefix("~").split() for call in _calls(word)}
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    lines = [line.strip() for line in analyze("syscall-filter", "--no-pager", word).splitlines()[1:]]
    return {call for line in lines if line and not line.startswith("#") for call in _calls(line)}


@needs_systemd
@pytest.mark.skipif(STRACE is None, reason="strace is not installed here")
async def test_the_servers_make_no_system_call_and_read_no_file_that_the_units_forbid(tmp_path: Path) -> None:
    """Over TLS, from the start through a charge and a query to the end; and no memory is writable and executable at once."""
    folder = tmp_path / "certs"
    certs.make_all(folder)
    town = Town(tmp_path, folder)
    traces = [tmp_path / "command.trace", tmp_path / "query.trace"]
    for server, trace in zip((town.command, town.query), traces, strict=True):
        server.prefix = ("strace", "-f", "-qq", "-o", str(trace))
    async with town:
        await town.start_query()
        charged = await charge(town.command.listen, certs.shop(folder), "order-1")
        shown = await charge_in_view(town.query.listen, certs.shop(folder), charged)
        assert shown.charge.charge_id == charged.charge_id
        assert await town.query.stop() == 0
        assert await town.command.stop() == 0
    allowed = allowed_calls()
    assert len(allowed) > 200
    for trace in traces:
        text = trace.read_text()
        made = set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
        assert {"accept4", "sendmsg"} <= made
        assert made - allowed - ONLY_ROOT == set()
        assert not re.search(r"PROT_WRITE\|PROT_EXEC", text)
        opened = set(re.findall(r'open(?:at)?\([^"]*"(/proc/[^"]+)", [^)]*\) = \d', text))
        assert {path for path in opened if not re.match(r"/proc/(self|\d+)/", path)} <= NOT_MISSED
