"""The dashboard, for Grafana: what is stuck, then rate, errors and duration of each part, from the caller to the view.

A panel is a title, its unit, and expressions with their legends. Import the file, and choose the Prometheus that it reads.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """One panel: a plot over time, or a table of what is true now if `is_now`."""

    title: str
    unit: str
    expressions: Mapping[str, str]
    """PromQL by its legend."""
    tells: str = ""
    is_now: bool = False


def _quantiles(metric: str, *by: str) -> Mapping[str, str]:
    """Return the median and the 99th percentile of a histogram, for each value of the labels."""
    return {
        " ".join([*(f"{{{{{label}}}}}" for label in by), name]): (
            f"histogram_quantile({quantile}, sum by ({', '.join(('le', *by))}) (rate({metric}_bucket{RATE})))"
        )
        for name, quantile in (("median", 0.5), ("99 %", 0.99))
    }


ROWS: Sequence[tuple[str, Sequence[Panel]]] = [
    (
        "Is anything stuck?",
        [
            Panel(
                "Alerts",
                "none",
                {"": 'ALERTS{alertname=~"Chargeonce.+", alertstate="firing"}'},
                "What each means, and what to do: docs/operating.md.",
                is_now=True,
            ),
            Panel(
                "Stuck charges by situation",
                "none",
                {
                    "{{situation}}": "sum by (situation) (chargeonce_stuck_charges) > 0"
                    " or max by (situation) (chargeonce_view_stuck_charges) > 0"
                },
                "Explain one: chargeonce explain KEY.",
            ),
            Panel("Oldest unfinished charge", "s", {"{{instance}}": "chargeonce_oldest_unfinished_seconds"}),
            Panel(
                "Reconciliation: difference in minor units",
                "none",
                {"{{bank}} {{currency}}": "max by (bank, currency) (chargeonce_reconciliation_difference_minor_units)"},
                "0 closes the day.",
            ),
        ],
    ),
    (
        "Calls",
        [
            Panel(
                "Calls", "reqps", {"{{method}}": f"sum by (method) (rate(chargeonce_rpc_duration_seconds_count{RATE}))"}
            ),
            Panel(
                "Calls that end with an error",
                "reqps",
                {"{{code}}": f'sum by (code) (rate(chargeonce_rpc_duration_seconds_count{{code!="OK"}}{RATE}))'},
            ),
            Panel("Duration of calls", "s", _quantiles("chargeonce_rpc_duration_seconds", "method")),
            Panel(
                "Callers that are refused",
                "reqps",
                {
                    "unknown, {{job}}": f"sum by (job) (rate(chargeonce_calls_unauthenticated{RATE}))",
                    "not permitted, {{job}}": f"sum by (job) (rate(chargeonce_calls_not_permitted{RATE}))",
                },
            ),
        ],
    ),
    (
        "Charges and limits",
        [
            Panel(
                "Charges on their way",
                "none",
                {
                    "unfinished": "sum(chargeonce_unfinished_charges)",
                    "of these, a customer's turn": "sum(chargeonce_charges_awaiting_customer)",
                    "of these, old": "sum(chargeonce_charges_needing_attention)",
                },
            ),
            Panel(
                "Limits, used part",
                "percentunit",
                {
                    "{{limit}}": "max by (limit) (chargeonce_limit_used / chargeonce_limit_maximum)",
                    "bank {{bank}}": "max by (bank) (chargeonce_bank_calls_in_progress / chargeonce_bank_calls_limit)",
                },
                "At 1 what comes is refused, or waits.",
            ),
            Panel(
                "Faults of the service's own",
                "none",
                {
                    "in a minute": "sum(rate(chargeonce_charge_faults_total[5m])) * 60",
                    "stopped": "sum(chargeonce_stopped_charges)",
                },
            ),
        ],
    ),
    (
        "Banks",
        [
            Panel(
                "Answers of banks",
                "reqps",
                {
                    "{{bank}} {{step}} {{answer}}": "sum by (bank, step, answer)"
                    f" (rate(chargeonce_bank_call_duration_seconds_count{RATE}))"
                },
            ),
            Panel(
                "Duration of calls to banks", "s", _quantiles("chargeonce_bank_call_duration_seconds", "bank", "step")
            ),
            Panel("Banks that are spared", "none", {"{{bank}}": "max by (bank) (chargeonce_bank_breaker_open)"}),
        ],
    ),
    (
        "Journal",
        [
            Panel("Records", "wps", {"{{job}}": f"max by (job) (rate(chargeonce_journal_position{RATE}))"}),
            Panel("Duration of commits", "s", _quantiles("chargeonce_journal_commit_duration_seconds")),
            Panel("Records in a commit", "none", _quantiles("chargeonce_journal_commit_records")),
            Panel(
                "Commits that fail",
                "wps",
                {"{{why}}": f"sum by (why) (rate(chargeonce_journal_commit_failures_total{RATE}))"},
            ),
            Panel(
                "Accepts new charges",
                "none",
                {"{{instance}}": "chargeonce_journal_accepting"},
            ),
            Panel("Size of the write-ahead log", "bytes", {"{{instance}}": "chargeonce_journal_wal_bytes"}),
        ],
    ),
    (
        "Feed and view",
        [
            Panel("Records that a view does not show yet", "none", {"{{instance}}": "chargeonce_view_lag_records"}),
            Panel("Silence of the feed", "s", {"{{instance}}": "chargeonce_feed_silence_seconds"}),
            Panel(
                "Readers of the feed",
                "none",
                {
                    "{{instance}}": "chargeonce_feed_readers",
                    "records behind, {{instance}}": "chargeonce_feed_reader_lag_records",
                },
            ),
            Panel("Records sent", "wps", {"{{instance}}": f"rate(chargeonce_feed_records_total{RATE})"}),
            Panel("Duration of a batch of the view", "s", _quantiles("chargeonce_view_batch_duration_seconds")),
            Panel("Records in a batch of the view", "none", _quantiles("chargeonce_view_batch_records")),
            Panel("Duration of a read of the view", "s", _quantiles("chargeonce_query_duration_seconds", "query")),
        ],
    ),
    (
        "Reconciliation",
        [
            Panel("Findings", "none", {"{{bank}}": "max by (bank) (chargeonce_reconciliation_findings)"}),
            Panel("Age of the last run", "s", {"{{bank}}": "min by (bank) (chargeonce_reconciliation_age_seconds)"}),
        ],
    ),
    (
        "Processes",
        [
            Panel(
                "CPU", "percentunit", {"{{instance}}": f'rate(process_cpu_seconds_total{{job=~"command|query"}}{RATE})'}
            ),
            Panel("Memory", "bytes", {"{{instance}}": 'process_resident_memory_bytes{job=~"command|query"}'}),
        ],
    ),
]

WIDTH, HEIGHT, IN_A_ROW = 24, 8, 3
SOURCE = {"type": "prometheus", "uid": "${source}"}


def expressions() -> Sequence[str]:
    """Return the PromQL of all panels."""
    return [expression for _, panels in ROWS for panel in panels for expression in panel.expressions.values()]


def dashboard() -> str:
    """Return the dashboard, as Grafana imports it."""
    made = {
        "uid": "chargeonce",
        "title": "Chargeonce",
        "description": "Made by python -m rig.observability.",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "annotations": {"list": []},
        "panels": [{**panel, "id": number} for number, panel in enumerate(_placed(), start=1)],
    }
    return json.dumps(made, indent=2) + "\n"


def _placed() -> Iterator[dict[str, Any]]:
    """All panels, each at its place: rows of three below the title of their part."""
    top = 0
    for title, panels in ROWS:
        yield {"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}, "panels": []}
        top += 1
        for begin in range(0, len(panels), IN_A_ROW):
            row = panels[begin : begin + IN_A_ROW]
            width = WIDTH // len(row)
            for place, panel in enumerate(row):
                yield {**_panel(panel), "gridPos": {"x": place * width, "y": top, "w": width, "h": HEIGHT}}
            top += HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": "table" if panel.is_now else "timeseries",
        "title": panel.title,
        "description": panel.tells,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0} if panel.unit != "none" else {}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": panel.is_now,
                **({"format": "table"} if panel.is_now else {}),
            }
            for place, (legend, expression) in enumerate(panel.expressions.items())
        ],
    }
