"""Kubernetes' manifests agree with themselves, with the servers' settings, and with what a pod needs to come and go."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.deploy.deployment import KUBERNETES, containers, manifests, pods, programs

KUBECTL = shutil.which("kubectl")
PODS = dict(pods())
SERVERS = ("command", "query")


def of_kind(kind: str) -> dict[str, Mapping[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] == kind}


def environment(pod: str) -> Mapping[str, str]:
    return next(each.environment for each in programs() if each.name == f"kubernetes {pod}")


def ports(pod: str) -> dict[str, int]:
    (container,) = PODS[pod]["containers"]
    return {each["name"]: each["containerPort"] for each in container["ports"]}


@pytest.mark.parametrize("pod", SERVERS)
def test_a_pods_ports_are_those_where_its_server_listens(pod: str) -> None:
    listens = [int(value.rpartition(":")[2]) for name, value in environment(pod).items() if name.endswith("LISTEN")]
    assert sorted(ports(pod).values()) == sorted(listens)


def test_every_service_leads_to_a_port_of_a_pod_and_every_policy_names_one() -> None:
    services = of_kind("Service")
    assert services.keys() == {"command", "feed", "query"}
    for service in services.values():
        pod = service["spec"]["selector"]["app.kubernetes.io/name"]
        for each in service["spec"]["ports"]:
            assert ports(pod)[each["targetPort"]] == each["port"]
    for name, policy in of_kind("NetworkPolicy").items():
        for rule in policy["spec"].get("ingress", ()):
            assert {each["port"] for each in rule["ports"]} <= ports(name).keys()


def test_the_feed_is_followed_where_its_service_is() -> None:
    host, _, port = environment("query")["QUERY_FEED"].partition(":")
    name, namespace, _ = host.split(".")
    assert namespace in of_kind("Namespace")
    assert [each["port"] for each in of_kind("Service")[name]["spec"]["ports"]] == [int(port)]


def test_clients_reach_every_pod_and_the_feeds_readers_one() -> None:
    headless = {name for name, each in of_kind("Service").items() if each["spec"].get("clusterIP") == "None"}
    assert headless == {"command", "query"}


@pytest.mark.parametrize("pod", SERVERS)
def test_a_pod_is_asked_for_its_health_by_our_own_probe_and_leaves_in_order(pod: str) -> None:
    """Alive is asked of its start and of its life, serving only of its readiness: a restart mends nobody else's loss."""
    (container,) = PODS[pod]["containers"]
    own = f"localhost:{ports(pod)['grpc']}"
    asked = ["chargeonce", "health", own, "--tls", environment(pod)[f"{pod.upper()}_TLS"]]
    probes = {name: each["exec"]["command"] for name, each in container.items() if name.endswith("Probe")}
    assert probes == {
        "startupProbe": [*asked, "--alive"],
        "readinessProbe": asked,
        "livenessProbe": [*asked, "--alive"],
    }
    assert all(container[name]["timeoutSeconds"] > 3 for name in probes)
    wait, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert wait == "sleep" and int(seconds) >= 5
    assert of_kind("PodDisruptionBudget")[pod]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("pod", PODS)
def test_every_path_in_a_pods_settings_is_mounted_and_every_mount_is_a_volume(pod: str) -> None:
    described = PODS[pod]
    templates = [
        each["metadata"]["name"]
        for workload in manifests()
        if workload["metadata"]["name"] == pod
        for each in workload["spec"].get("volumeClaimTemplates", ())
    ]
    volumes = {*templates, *(each["name"] for each in described["volumes"])}
    for container in containers(described):
        mounted = {each["mountPath"] for each in container["volumeMounts"]}
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
        texts = [each["value"] for each in container.get("env", ())] + container.get("command", [])[3:]
        paths = [path for text in texts for path in re.findall(r"(?:^|=)(/[\w/.-]+)", text)]
        assert [path for path in paths if not any(f"{path}/".startswith(f"{each}/") for each in mounted)] == []


def test_the_migration_opens_the_journal_that_the_servers_open() -> None:
    assert environment("migrate")["COMMAND_JOURNAL"] == environment("command")["COMMAND_JOURNAL"]


def test_every_manifest_is_part_of_a_kustomization() -> None:
    for file in KUBERNETES.rglob("kustomization.yaml"):
        named = set(yaml.safe_load(file.read_text())["resources"])
        assert named == {path.name for path in file.parent.glob("*.yaml")} - {file.name}


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed here")
@pytest.mark.parametrize("folder", [KUBERNETES, KUBERNETES / "migrate"], ids=lambda path: str(path.name))
def test_kustomize_builds_it(folder: Any) -> None:
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {each["metadata"].get("namespace", "chargeonce") for each in yaml.safe_load_all(done.stdout)} == {
        "chargeonce"
    }
