"""The compose file: its addresses, names and files agree with each other; and all of its services run as it starts them."""

import asyncio
import re
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from charging.v1.command_pb2 import OutcomeSource
from charging.v1.common_pb2 import ChargeStatus
from rig import composed
from tests.deploy.composed import Composed, composed_in
from tests.deploy.deployment import DEPLOY, compose
from tests.deploy.shop import charge, charge_in_view

CONDITIONS = {"service_healthy", "service_completed_successfully"}
SERVICES = compose()


def listens(name: str) -> set[str]:
    """The ports that a service listens on, by its own settings."""
    if name not in SERVICES:
        return set()
    if SERVICES[name]["image"].startswith("postgres:"):
        return {"5432"}
    values = SERVICES[name].get("environment", {}).values()
    return {port for value in values for port in re.findall(r"^0\.0\.0\.0:(\d+)$", value)}


def called() -> Iterator[tuple[str, str, str]]:
    """Each address that a service calls: who calls, whom, and where."""
    for name, service in SERVICES.items():
        for value in service.get("environment", {}).values():
            for host, port in re.findall(r"([a-z][\w.-]*):(\d+)", value):
                yield name, host, port
    for each in yaml.safe_load((DEPLOY / "observability" / "prometheus.yml").read_text())["scrape_configs"]:
        for target in each["static_configs"][0]["targets"]:
            yield "prometheus", *target.split(":")


def test_every_address_that_is_called_is_one_where_somebody_listens_under_a_certificate_for_it() -> None:
    found = list(called())
    assert len(found) >= 12
    named = {host for hosts in composed.HOSTS.values() for host in hosts}
    for caller, host, port in found:
        assert port in listens(host), (caller, host, port)
        assert host in named, host
        assert set(SERVICES[caller]["networks"]) & set(SERVICES[host]["networks"]), (caller, host)
    metrics = {
        name
        for name, each in SERVICES.items()
        for key in each.get("environment", {})
        if key.endswith("_METRICS_LISTEN")
    }
    assert {host for caller, host, _ in found if caller == "prometheus"} == metrics


def test_published_ports_and_health_checks_are_ports_where_the_service_listens() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len({port.split(":")[1] for port in published}) == len(published) == 5
    for name, service in SERVICES.items():
        if name == "prometheus":  # on its own default
            continue
        for port in service.get("ports", ()):
            assert port.split(":")[2] in listens(name), name
        test = " ".join(service["healthcheck"].get("test", ()))
        assert set(re.findall(r"localhost'?[:,] ?(\d+)", test)) <= listens(name), name


def test_what_is_waited_for_mounted_and_named_exists(tmp_path: Path) -> None:
    composed.make_all(tmp_path)
    file = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for secret in file["secrets"].values():
        assert (tmp_path / secret["file"].removeprefix("../data/deploy/")).is_file()
    for name, service in SERVICES.items():
        assert set(service.get("secrets", ())) <= file["secrets"].keys()
        assert set(service["networks"]) <= file["networks"].keys()
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES and how["condition"] in CONDITIONS, name
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("../data/deploy/"):
                assert (tmp_path / source.removeprefix("../data/deploy/")).exists(), mount
            elif source.startswith("."):
                assert (DEPLOY / source).exists(), mount
            else:
                assert source in file["volumes"], mount
    assert Path("data/deploy") == composed.FOLDER


def test_a_commit_waits_for_the_nodes_by_the_names_that_they_have() -> None:
    (names,) = re.findall(
        r"^synchronous_standby_names = 'ANY 1 \((.*)\)'$",
        (DEPLOY / "postgres" / "postgresql.conf").read_text(),
        re.MULTILINE,
    )
    nodes = {name: each for name, each in SERVICES.items() if each["image"].startswith("postgres:")}
    assert set(names.split(", ")) == {each["environment"]["NODE"] for each in nodes.values()}
    assert {each["environment"]["OTHER"] for each in nodes.values()} == nodes.keys()
    assert [each["environment"]["BEGIN"] for each in nodes.values()] == ["yes", "no"]


def test_passwords_stay_when_certificates_are_made_anew_and_the_folder_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "files"

    def content() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    composed.main([str(folder)])
    first = content()
    assert folder.stat().st_mode & 0o777 == 0o700
    composed.main([str(folder)])
    assert content() == first
    composed.main([str(folder), "--again"])
    changed = {name for name, value in content().items() if first[name] != value}
    assert changed == {name for name in first if name.startswith("certs/")}
    assert first["passwords/chargeonce-password"] in first["passwords/pgpass"]


async def test_everything_runs_as_the_file_starts_it(tmp_path: Path) -> None:
    """Two servers are one service: a key charges once whichever is asked, and one takes the other's place. So do the nodes."""
    async with composed_in(tmp_path) as town:
        shop = town.files / "certs" / "shop"
        charged = await charge(town.at("command-1", 50051), shop, "order-1")
        assert charged.status == ChargeStatus.CHARGE_STATUS_CHARGED
        again = await charge(town.at("command-2", 50051), shop, "order-1")
        assert again.outcome_source == OutcomeSource.OUTCOME_SOURCE_REPLAYED
        assert (again.charge_id, again.transaction_id) == (charged.charge_id, charged.transaction_id)
        assert (await town.services["command-1"].end()) == 0
        other = await charge(town.at("command-2", 50051), shop, "order-2")
        for query in ("query-1", "query-2"):
            for each in (charged, other):
                shown = await charge_in_view(town.at(query, 50052), shop, each)
                assert shown.charge.status == ChargeStatus.CHARGE_STATUS_CHARGED
        for caller, host, port in called():
            if caller == "prometheus" and host != "command-1":
                assert "chargeonce_calls_unauthenticated" in await scraped(town.at(host, int(port)), town.files)
        await fail_over_as_the_page_says(town)
        late = await charge(town.at("command-2", 50051), shop, "order-3")
        first = await charge(town.at("command-2", 50051), shop, "order-1")
        assert late.status == ChargeStatus.CHARGE_STATUS_CHARGED
        assert (first.outcome_source, first.position) == (OutcomeSource.OUTCOME_SOURCE_REPLAYED, charged.position)
        assert (await charge_in_view(town.at("query-1", 50052), shop, late)).charge.charge_id == late.charge_id
        ends = await asyncio.gather(
            *(town.services[name].end() for name in ("query-1", "query-2", "command-2", "bank"))
        )
        assert ends == [0, 0, 0, 0]


async def fail_over_as_the_page_says(town: Composed) -> None:
    """Kill the primary, promote the other, and make the lost one anew as its copy (docs/deployment.md)."""
    lost, other = town.nodes.values()
    await asyncio.to_thread(lost.kill)
    await other.promote_here()
    await asyncio.to_thread(shutil.rmtree, lost.data)
    await lost.start()


async def scraped(address: str, files: Path) -> str:
    """The gauges there, as Prometheus reads them."""
    folder = files / "certs" / "prometheus"
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=30) as client:
        return (await client.get(f"https://{address}/metrics")).raise_for_status().text
