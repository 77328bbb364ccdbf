"""docs/metrics.md, made of the descriptions in the code: python -m rig.metrics_page"""

from collections.abc import Iterable
from pathlib import Path

from chassis import gate
from chassis.instruments import Description, described
from chassis.metrics import PREFIX
from command_service import observed as of_commands
from command_service import vitals
from command_service.reconciling import kept
from query_service import observed as of_queries
from query_service import serving as query_serving

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
BEGIN = """\
# Metrics

<!-- Made by `python -m rig.metrics_page` from the descriptions in the code: do not edit it here. -->

The servers offer these at `COMMAND_METRICS_LISTEN` and `QUERY_METRICS_LISTEN`, for Prometheus. Counters and histograms count
from the process's start; gauges tell the moment at which they are read. A label has few values: names of methods, codes, steps,
kinds of answer, situations, limits, and the banks of the settings. None has a tenant, a user or a key. The bank of
`COMMAND_BANK_URL` has no name, and is told without the label `bank`. Beside these are the `process_` and `python_` metrics of
prometheus_client.

A rate of errors, for example, and the time in which 99 % of charges were answered:

    sum by (code) (rate(chargeonce_rpc_duration_seconds_count{method="CommandService/Charge", code!="OK"}[5m]))
    histogram_quantile(0.99, sum by (le) (rate(chargeonce_rpc_duration_seconds_bucket{method="CommandService/Charge"}[5m])))

A decline is no error: its code is OK, and `bank_call_duration_seconds` has the answer. `limit_used / limit_maximum` near 1 is a
limit that is about to refuse calls. [tracing.md](tracing.md) is about following single calls.
"""
# The last word of a name, before _total, if it is a unit. All else are numbers of what the name says.
UNITS = {"seconds": "seconds", "bytes": "bytes", "units": "minor units of the currency"}


def command_metrics() -> list[Description]:
    """Describe all metrics of a command server."""
    instruments = [each.description for each in of_commands.Observed().instruments]
    return instruments + described({**vitals.GAUGES, **gate.GAUGES, **kept.GAUGES})


def query_metrics() -> list[Description]:
    """Describe all metrics of a query server."""
    instruments = [each.description for each in of_queries.Observed().instruments]
    return instruments + described({**query_serving.GAUGES, **gate.GAUGES})


def page() -> str:
    """Return the page."""
    return f"{BEGIN}\n## The command server\n\n{_table(command_metrics())}\n## The query server\n\n{_table(query_metrics())}"


def _table(metrics: Iterable[Description]) -> str:
    rows = ["| metric | type | labels | unit | what it tells |\n|---|---|---|---|---|\n"]
    for name, kind, text, labels, bounds in metrics:
        unit = UNITS.get(name.removesuffix("_total").rpartition("_")[2], "")
        classes = ""
        if bounds:
            classes = f"; classes up to {', '.join(f'{bound:g}' for bound in bounds)}"
        told = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{PREFIX}_{name}` | {kind} | {told} | {unit} | {text}{classes} |\n")
    return "".join(rows)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
