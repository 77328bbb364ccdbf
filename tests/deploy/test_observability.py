"""The rules, their tests, the dashboard and the tables of docs/operating.md: one is in all of them, or in none.

tests/deploy/test_alerts.py has the alerts fire at real servers.
"""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from charging.v1.query_pb2 import Situation
from contract.situations import SITUATIONS
from rig import observability
from rig.alerts import ALERTS, CHARGES, Alert, metrics_in
from rig.dashboard import expressions
from tests.deploy.deployment import DEPLOY, ROOT, compose
from tests.deploy.tools import needs_prometheus

FOLDER = DEPLOY / "observability"
PAGE = (ROOT / "docs" / "operating.md").read_text()
# What Prometheus makes itself, and what its library for Python tells of each process.
NOT_OURS = {
    "up",
    *("process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"),
}


def _name(alert: Alert) -> str:
    return alert.name


def rules() -> list[dict[str, Any]]:
    """The rules in the file that Prometheus reads."""
    found = yaml.safe_load((FOLDER / "chargeonce.rules.yaml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def promtool(*words: str | Path, stdin: str | None = None) -> str:
    """What promtool says; an error in it fails the test."""
    done = subprocess.run(
        ["promtool", *words], input=stdin, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(observability.files(PAGE)), ids=str)
def test_each_file_is_the_one_that_the_alerts_make(path: Path) -> None:
    assert (ROOT / path).read_text() == observability.files(PAGE)[path], "run: python -m rig.observability"


def test_every_situation_with_an_alert_has_one_rule_and_one_row_and_there_are_no_others() -> None:
    """By the files themselves, as Prometheus and people read them."""
    named = {Situation.Name(it).removeprefix("SITUATION_"): row.alert for it, row in SITUATIONS.items() if row.alert}
    section = PAGE.split("### Each way a charge can be stuck")[1].split("\n### ")[0]
    rows = re.findall(r"^\| <a id=\"(\w+)\"></a>`(\w+)` \| [^|]+ \| `[^|]+` \| `(\w+)`, ", section, re.MULTILINE)
    assert {situation: alert for _, situation, alert in rows} == named
    assert all(anchor == alert.lower() for anchor, _, alert in rows)
    (group,) = [
        each
        for each in yaml.safe_load((FOLDER / "chargeonce.rules.yaml").read_text())["groups"]
        if each["name"] == "chargeonce-charges"
    ]
    assert Counter(rule["alert"] for rule in group["rules"]) == Counter(named.values())
    assert len(rows) == len(named)


def test_every_rule_has_a_row_with_its_sentence_its_metrics_and_its_action() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) == len(ALERTS)
    for rule in rules():
        notes = rule["annotations"]
        page, _, anchor = notes["runbook"].partition("#")
        assert page == "docs/operating.md"
        (row,) = [line for line in PAGE.splitlines() if f'<a id="{anchor}"></a>' in line]
        assert notes["summary"] in row and notes["description"] in row and rule["alert"] in row, rule["alert"]
        assert all(metric in row for metric in metrics_in(rule["expr"])), rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket", "note"}


def test_every_alert_about_a_charge_says_what_the_explanation_of_that_charge_says() -> None:
    by_alert = {row.alert: row for row in SITUATIONS.values()}
    for alert in CHARGES:
        assert (alert.sentence, alert.action) == by_alert[alert.name][:2]


@pytest.mark.parametrize("page", ["docs/operating.md", "README.md"])
def test_every_alert_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"\bChargeonce[A-Z]\w+", (ROOT / page).read_text()))
    assert named <= {alert.name for alert in ALERTS}


def known() -> set[str]:
    """Every series that the servers tell, by the page of the metrics; a histogram has three."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = set()
    for name, kind in re.findall(r"^\| `(chargeonce_\w+)` \| (\w+) \|", page, re.MULTILINE):
        names |= {f"{name}_{end}" for end in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return names | NOT_OURS


@pytest.mark.parametrize("alert", ALERTS, ids=_name)
def test_an_alert_looks_at_metrics_that_there_are(alert: Alert) -> None:
    assert alert.metrics
    assert set(alert.metrics) <= known()


def test_every_panel_looks_at_metrics_that_there_are() -> None:
    for expression in expressions():
        assert set(metrics_in(expression)) <= known(), expression
        assert metrics_in(expression) or expression.startswith("ALERTS{")  # Prometheus' own


def test_the_dashboard_shows_every_metric_of_ours_but_few() -> None:
    """Who adds a metric decides where it is seen. Sums of histograms are not read: quantiles are."""
    seen = {metric for expression in expressions() for metric in metrics_in(expression)}
    told = {name.removesuffix("_bucket") for name in known() - NOT_OURS if not name.endswith(("_sum", "_count"))}
    unseen = {name for name in told if name not in seen and f"{name}_bucket" not in seen}
    assert unseen == {"chargeonce_view_position", "chargeonce_view_holds_ending"}  # as lag, and as a situation


def test_the_dashboards_panels_have_each_a_place_of_their_own() -> None:
    panels = json.loads((FOLDER / "chargeonce.dashboard.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@needs_prometheus
def test_prometheus_can_read_the_rules_and_every_panels_expression(tmp_path: Path) -> None:
    promtool("check", "rules", FOLDER / "chargeonce.rules.yaml")
    panels = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    (tmp_path / "panels.yaml").write_text(json.dumps({"groups": [{"name": "panels", "rules": panels}]}))
    promtool("check", "rules", tmp_path / "panels.yaml")
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")


@needs_prometheus
@pytest.mark.parametrize("path", sorted((FOLDER / "tests").glob("*.yaml")), ids=lambda path: path.name)
def test_every_alert_fires_and_clears_in_its_story(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_has_such_a_story() -> None:
    stories = yaml.safe_load((FOLDER / "tests" / "chargeonce.test.yaml").read_text())["tests"]
    assert [story["name"] for story in stories] == [rule["alert"] for rule in rules()]
    for story in stories:
        moments = story["alert_rule_test"]
        assert [bool(moment.get("exp_alerts")) for moment in moments][-2:] == [True, False]
        assert not moments[0].get("exp_alerts")


def test_composes_prometheus_has_the_rules_that_its_configuration_names() -> None:
    named = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"]
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in compose()["prometheus"]["volumes"]}
    assert named
    for name in named:
        assert (DEPLOY / mounts[f"/etc/prometheus/{name}"]).resolve() == FOLDER / name


def test_the_rules_ask_for_the_jobs_that_the_configuration_has() -> None:
    jobs = {each["job_name"] for each in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]}
    asked = {
        job
        for rule in rules()
        for jobs_of_rule in re.findall(r'job=~?"([^"]+)"', rule["expr"])
        for job in jobs_of_rule.split("|")
    }
    assert asked == jobs


def test_the_rules_as_an_object_of_kubernetes_are_made_as_the_page_says() -> None:
    """All of the page's command but kubectl."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    (block,) = [each for each in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "PrometheusRule" in each]
    command, _, applied = block.rpartition(" | ")
    assert applied == "kubectl apply -f -\n"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "PrometheusRule"
    assert made["spec"] == yaml.safe_load((FOLDER / "chargeonce.rules.yaml").read_text())
