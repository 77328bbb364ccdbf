"""What the files in deploy/ promise of each program that they start, read from them: settings, commands, hardening, secrets."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from chassis import settings
from tests.deploy.deployment import (
    DEPLOY,
    FILES,
    SETTINGS,
    SYSTEMD,
    Program,
    compose,
    containers,
    manifests,
    pods,
    programs,
)

PROGRAMS = programs()
OURS = re.compile(r"(COMMAND|QUERY|GATEWAY_MOCK)_\w+")
BIN = Path(sys.executable).parent
# The server lets readers of the feed get the rest after the drain.
REST_SECONDS = 2.0


def _name(program: Program) -> str:
    return program.name


def images() -> list[str]:
    of_pods = [container["image"] for _, pod in pods() for container in containers(pod)]
    return [*(service["image"] for service in compose().values()), *of_pods]


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix in {".yaml", ".yml"}], ids=str)
def test_every_yaml_file_can_be_read(path: Path) -> None:
    assert all(isinstance(each, dict) for each in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("program", PROGRAMS, ids=_name)
def test_its_settings_are_those_that_its_server_takes(program: Program) -> None:
    """Each is one that exists, with a value that the server's own parser accepts; and nothing else is set."""
    settings.read(SETTINGS[program.kind], program.environment)
    assert [name for name in program.environment if not OURS.fullmatch(name)] == []


@pytest.mark.parametrize("program", PROGRAMS, ids=_name)
def test_its_command_is_one_that_there_is(program: Program) -> None:
    words = [*program.words, "--help"]
    if "--" in words:  # what comes before puts a file in its place first
        words = words[words.index("--") + 1 :]
    done = subprocess.run(
        [BIN / Path(words[0]).name, *words[1:]], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert program.kind in done.stdout.splitlines()[0]


@pytest.mark.parametrize("program", [each for each in PROGRAMS if each.kind != "migrate"], ids=_name)
def test_it_is_stopped_after_its_drain_and_speaks_tls_to_whom_its_policy_names(program: Program) -> None:
    prefix = OURS.match(next(iter(program.environment)))
    assert prefix is not None
    server = prefix[1]
    assert f"{server}_TLS" in program.environment
    assert not any(name.endswith(("_OPEN", "_CLIENT_CERTIFICATES")) for name in program.environment)
    if server == "GATEWAY_MOCK":
        return
    assert f"{server}_POLICY" in program.environment
    assert program.stop_seconds > float(program.environment[f"{server}_DRAIN_SECONDS"]) + REST_SECONDS


def test_every_container_of_compose_is_nobodys_root_and_cannot_write_but_where_it_must() -> None:
    for name, service in compose().items():
        user, _, group = service["user"].partition(":")
        assert int(user) > 0 and int(group) > 0, name
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys(), name
        assert "healthcheck" in service, name
        assert all(each.startswith("127.0.0.1:") for each in service.get("ports", ())), name
        for mount in service.get("volumes", ()):
            source, _, options = mount.partition(":")
            assert options.endswith(":ro") or not source.startswith("."), (name, mount)


def test_every_container_of_kubernetes_keeps_the_restricted_standard_and_a_read_only_root() -> None:
    found = list(pods())
    assert len(found) == 3
    for name, pod in found:
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert container["resources"]["limits"].keys() == {"memory"}


def test_no_image_names_a_registry_or_moves() -> None:
    """A host would have a dot or a port before the first slash; and each image has a version."""
    assert len(images()) >= 10
    for image in images():
        assert re.fullmatch(r"(?:[a-z0-9-]+/)?[a-z0-9-]+:v?\d[\w.-]*", image), image


def test_there_are_no_secrets_in_the_files() -> None:
    """Neither as such, nor a password in an address, nor a long word of chance; Kubernetes' Secrets are only named."""
    assert {each["kind"] for each in manifests()} & {"Secret", "ConfigMap"} == set()
    for path in FILES:
        text = path.read_text()
        assert "PRIVATE KEY" not in text and "BEGIN CERTIFICATE" not in text, path
        if path.name == "requirements.txt":
            continue
        assert not re.search(r"\b(?=\w*\d)(?=\w*[a-zA-Z])[A-Za-z0-9]{24,}\b", text), path
        for address in re.findall(r"\w+://[^\s\"]+", text):
            assert urlsplit(address.replace("%", "")).password is None, path
        for value in re.findall(r"(?i)^\s*-?\s*\w*(?:password|secret|token)\w*\s*[:=]\s*(\S+)", text, re.MULTILINE):
            assert value.startswith(("/run/secrets/", "{", "[", "#", "false", "'scram-sha-256'")), (path, value)


def test_the_example_of_a_policy_is_one_that_a_server_takes() -> None:
    done = subprocess.run(
        [BIN / "chargeonce", "check-policy", DEPLOY / "policy.toml"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    names = [line.partition(",")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert names == ["shop", "query-server", "prometheus"]


def test_every_file_for_systemd_says_where_it_belongs() -> None:
    for path in SYSTEMD.rglob("*"):
        if path.is_file():
            assert re.match(r"# /etc/(systemd/system|sysusers\.d|chargeonce)/[\w./-]+", path.read_text()), path
