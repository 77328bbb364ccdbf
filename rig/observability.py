"""What watches the service, made of the alerts: python -m rig.observability writes all of it.

* deploy/observability/chargeonce.rules.yaml: the rules, for Prometheus
* deploy/observability/tests/chargeonce.test.yaml: their tests, for promtool
* deploy/observability/chargeonce.dashboard.json: the dashboard, for Grafana (rig/dashboard.py)
* docs/operating.md: the tables of all ways in which a charge or a server can be stuck
"""

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from charging.v1.query_pb2 import Situation
from rig.alerts import ALERTS, CHARGES, SERVERS, Alert
from rig.dashboard import dashboard

FOLDER = Path("deploy/observability")
RULES = FOLDER / "chargeonce.rules.yaml"
TESTS = FOLDER / "tests" / "chargeonce.test.yaml"
DASHBOARD = FOLDER / "chargeonce.dashboard.json"
PAGE = Path("docs/operating.md")

# ---------------------------------------------------------------- the rules
RULES_HEAD = """\
# The alerts, for Prometheus. This file is made by `python -m rig.observability`, of contract/situations.py and rig/alerts.py.
#
# The jobs of the servers are named command and query, as in prometheus.yml. The label severity says what is done: page
# (somebody is woken), ticket (somebody looks in working hours), note (it shows on the dashboard). docs/operating.md has a row
# for each alert; the annotation runbook is its place there.
groups:
"""


def rules() -> str:
    """Return the file of the rules."""
    groups = (("chargeonce-charges", CHARGES), ("chargeonce-servers", SERVERS))
    made = (f"  - name: {name}\n    rules:\n" + "\n".join(map(_rule, rows)) for name, rows in groups)
    return RULES_HEAD + "\n".join(made)


def _rule(alert: Alert) -> str:
    return (
        f"      - alert: {alert.name}\n        expr: {_folded(alert.when, 10)}        for: {alert.lasts}\n"
        f"        labels: {{ severity: {alert.severity} }}\n        annotations:\n{_annotations(alert, 10)}"
    )


def _annotations(alert: Alert, indent: int) -> str:
    texts = {"summary": alert.sentence, "description": alert.action, "runbook": f"{PAGE}#{alert.anchor}"}
    return "".join(f"{' ' * indent}{name}: {_folded(text, indent + 2)}" for name, text in texts.items())


def _folded(text: str, indent: int) -> str:
    """Write a text without breaks for YAML, over as many lines as it needs."""
    return ">-\n" + textwrap.indent(textwrap.fill(text, 118 - indent, break_on_hyphens=False), " " * indent) + "\n"


# ---------------------------------------------------------------- their tests
TESTS_HEAD = """\
# Each alert fires in its story, not before it has lasted long enough, and clears. This file is made by
# `python -m rig.observability`, of rig/alerts.py.
#
#     promtool test rules deploy/observability/tests/chargeonce.test.yaml
rule_files: [../chargeonce.rules.yaml]
evaluation_interval: 1m
tests:
"""
# In minutes, longer than what is looked back at: a quarter of an hour at most.
LONG = 18


def rule_tests() -> str:
    """Return promtool's tests."""
    return TESTS_HEAD + "\n".join(map(_test, ALERTS))


def _test(alert: Alert) -> str:
    waits = minutes(alert.lasts)
    series = "".join(
        f"      - series: {_quoted(name)}\n        values: {_quoted(_values(*values, waits))}\n"
        for name, values in alert.story.series.items()
    )
    labels = json.dumps({"severity": alert.severity, **alert.story.labels})
    fires = f"        exp_alerts:\n          - exp_labels: {labels}\n            exp_annotations:\n{_annotations(alert, 14)}"
    too_early = [(LONG + waits - 1, "")] if waits else []
    moments = [(LONG - 1, ""), *too_early, (2 * LONG + waits - 1, fires), (3 * LONG + waits - 1, "")]
    return f"  - name: {alert.name}\n    interval: 1m\n    input_series:\n{series}    alert_rule_test:\n" + "".join(
        f"      - eval_time: {at}m\n        alertname: {alert.name}\n{expected}" for at, expected in moments
    )


def _quoted(text: str) -> str:
    return f"'{text}'"


def minutes(duration: str) -> int:
    """Return the whole minutes of a duration as Prometheus writes it.

    >>> minutes("1h"), minutes("5m"), minutes("0s")
    (60, 5, 0)
    """
    return int(duration[:-1]) * {"h": 60, "m": 1, "s": 0}[duration[-1]]


def _values(well: float | str | None, stuck: float | str | None, waits: int) -> str:
    """Write a series of samples, one a minute, as promtool reads them. It is stuck for so long that an alert may wait.

    >>> _values(0, 2, 5), _values("+0", "+6", 0), _values(1, None, 0)
    ('0x17 2x22 0x17', '0+0x17 0+6x17 102+0x17', '1x17 _x18 1x17')
    """
    parts, total = [], 0
    for value, lasts in ((well, LONG), (stuck, LONG + waits), (well, LONG)):
        if value is None:
            parts.append(f"_x{lasts}")  # of numbers there is one more than it says
        elif isinstance(value, str):
            parts.append(f"{total}{value}x{lasts - 1}")
            total += int(value) * (lasts - 1)
        else:
            parts.append(f"{value:g}x{lasts - 1}")
    return " ".join(parts)


# ---------------------------------------------------------------- the tables for people
MARKS = ("<!-- alerts: python -m rig.observability -->\n", "<!-- end of alerts -->\n")
TABLE_HEAD = "| {what} | what it means | metric | alert | what to do | who |\n|---|---|---|---|---|---|\n"


def tables() -> str:
    """Return the part of docs/operating.md between its two marks."""
    of_charges = TABLE_HEAD.format(what="situation") + "".join(map(_row, CHARGES))
    of_servers = TABLE_HEAD.format(what="alert") + "".join(map(_row, SERVERS))
    return f"### Each way a charge can be stuck\n\n{of_charges}\n### Each way a server can be stuck\n\n{of_servers}"


def _row(alert: Alert) -> str:
    is_of_charges = alert.situation != Situation.SITUATION_UNSPECIFIED
    selector = re.search(r'\{situation="\w+"\}', alert.when)
    lasts = f", after {alert.lasts}" if minutes(alert.lasts) else ""
    cells = [
        f'<a id="{alert.anchor}"></a>`{Situation.Name(alert.situation) if is_of_charges else alert.name}`',
        alert.sentence,
        ", ".join(f"`{name}{selector[0] if selector else ''}`" for name in alert.metrics),
        f"`{alert.name}`, {alert.severity}{lasts}" if is_of_charges else f"{alert.severity}{lasts}",
        alert.action,
        alert.who,
    ]
    return f"| {' | '.join(cells)} |\n".replace("SITUATION_", "")


def page(before: str) -> str:
    """Return docs/operating.md with these tables. Raises ValueError if it has not the two marks."""
    begin, end = (before.index(mark) for mark in MARKS)
    return before[: begin + len(MARKS[0])] + "\n" + tables() + "\n" + before[end:]


# ---------------------------------------------------------------- all of it
def files(operating: str) -> Mapping[Path, str]:
    """Return what each file must hold, given the page docs/operating.md as it is."""
    return {RULES: rules(), TESTS: rule_tests(), DASHBOARD: dashboard(), PAGE: page(operating)}


def main() -> None:
    """Write all files."""
    for path, text in files(PAGE.read_text()).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
