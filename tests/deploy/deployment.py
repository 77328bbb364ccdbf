"""What the files in deploy/ say, read once for the tests: the programs that they start, and all that is configured of them."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from command_service.settings import Settings as CommandSettings
from gateway_mock.cli import Settings as BankSettings
from query_service.settings import Settings as QuerySettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
SETTINGS: Mapping[str, type] = {
    "command-server": CommandSettings,
    "migrate": CommandSettings,
    "query-server": QuerySettings,
    "mock-bank": BankSettings,
}


@dataclass(frozen=True, slots=True)
class Program:
    """A program of ours that a file starts: its whole command line, its environment, and how long it may take to stop."""

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    more: tuple[tuple[str, ...], ...] = ()
    """Command lines beside it: probes, and what runs before it starts or stops."""
    stop_seconds: float = 0.0

    @property
    def kind(self) -> str:
        """Its command's name, such as command-server."""
        return self.words[-1]


def compose() -> Mapping[str, Any]:
    """The compose file's services, by their names."""
    services: Mapping[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def manifests() -> list[Mapping[str, Any]]:
    """Every object in Kubernetes' manifests."""
    return [
        found
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        if path.name != "kustomization.yaml"
        for found in yaml.safe_load_all(path.read_text())
    ]


def pods() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every description of a pod, with its owner's name."""
    for each in manifests():
        if "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All containers of a pod, those that come first too."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions, each with its arguments in a line."""
    lines = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def entrypoint() -> tuple[str, ...]:
    """The image's entry point."""
    (words,) = [yaml.safe_load(rest) for name, rest in instructions() if name == "ENTRYPOINT"]
    return tuple(words)


def unit(*names: str) -> Mapping[str, list[str]]:
    """A unit's settings, by their names, from its file and its drop-ins, as systemd puts them together."""
    found: dict[str, list[str]] = {}
    for name in names:
        for line in (SYSTEMD / name).read_text().splitlines():
            if line and line[0] not in "#[":
                key, _, value = line.partition("=")
                found.setdefault(key, []).append(value)
    return found


UNITS = {
    "command, SQLite": ("chargeonce-command.service", "chargeonce-.service.d/hardening.conf"),
    "command, PostgreSQL": ("chargeonce-command.service", "chargeonce-.service.d/hardening.conf", "postgresql.conf"),
    "migrate": ("chargeonce-migrate.service", "chargeonce-.service.d/hardening.conf", "postgresql.conf"),
    "query": ("chargeonce-query.service", "chargeonce-.service.d/hardening.conf"),
}


def seconds(text: str) -> float:
    """A duration such as 30s."""
    return float(text.removesuffix("s"))


def programs() -> list[Program]:
    """Every program of ours that any of the files starts."""
    return [*_of_compose(), *_of_kubernetes(), *_of_systemd()]


def _of_compose() -> Iterator[Program]:
    for name, service in compose().items():
        if service["image"].startswith("chargeonce:"):
            probe = service["healthcheck"].get("test", ["CMD"])
            assert probe[0] == "CMD"
            yield Program(
                f"compose {name}",
                (*service.get("entrypoint", entrypoint()), *service["command"]),
                service["environment"],
                (tuple(probe[1:]),) if probe[1:] else (),
                seconds(service["stop_grace_period"]),
            )


def _of_kubernetes() -> Iterator[Program]:
    for name, pod in pods():
        (container,) = pod["containers"]
        first = [tuple(each["command"]) for each in pod.get("initContainers", ())]
        probes = [tuple(container[each]["exec"]["command"]) for each in container if each.endswith("Probe")]
        stop = [tuple(each["exec"]["command"]) for each in container.get("lifecycle", {}).values()]
        yield Program(
            f"kubernetes {name}",
            (*container.get("command", entrypoint()), *container.get("args", ())),
            {each["name"]: each["value"] for each in container["env"]},
            (*first, *probes, *stop),
            pod.get("terminationGracePeriodSeconds", 30) - sum(float(each[1]) for each in stop),
        )


def _of_systemd() -> Iterator[Program]:
    for name, files in UNITS.items():
        settings = unit(*files)
        environment = dict(each.split("=", 1) for each in settings.get("Environment", ()))
        for file in settings.get("EnvironmentFile", ()):
            lines = (SYSTEMD / Path(file).name).read_text().splitlines()
            environment |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        filled = {key: specified(value, files[0]) for key, value in environment.items()}
        more = tuple(tuple(shlex.split(specified(each, files[0]))) for each in settings.get("ExecStartPre", ()))
        (start,) = settings["ExecStart"]
        stop = seconds(settings.get("TimeoutStopSec", ["90"])[-1])
        yield Program(f"systemd {name}", tuple(shlex.split(start)), filled, more, stop)


def specified(text: str, file: str) -> str:
    """Fill in systemd's specifiers."""
    name = file.removesuffix(".service")
    return text.replace("%d", f"/run/credentials/{file}").replace("%t", "/run").replace("%N", name)
