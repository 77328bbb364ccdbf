"""The alerts. One row is one alert: when it fires, what it means, what to do and who does it, and a story in which it fires.

Alerts of a charge that is stuck have their sentences from contract/situations.py, as ExplainCharge has; the others are of
servers. `python -m rig.observability` makes of the rows what Prometheus, promtool and people read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from charging.v1.query_pb2 import Situation
from contract.situations import SITUATIONS

# What is done about an alert, as its label "severity".
PAGE_NOW = "page"  # somebody is woken: money may be unaccounted for, or the service does not work
TICKET = "ticket"  # somebody looks in working hours
NOTE = "note"  # nobody is told: it shows on the dashboard

OPERATOR, BOTH, MERCHANT = "an operator", "two operators", "the merchant"


class Story(NamedTuple):
    """A story in which an alert fires and clears: its series with their values when all is well, and while something is stuck.

    A number is a gauge's value, a text like "+60" a counter's growth in a minute, and None no sample at all. `labels` are
    those of the alert, its own aside.
    """

    series: Mapping[str, tuple[float | str | None, float | str | None]]
    labels: Mapping[str, str]


class Alert(NamedTuple):
    """One alert. `when` is PromQL; `lasts` is how long it must be true, as Prometheus writes it. Both texts are Markdown."""

    name: str
    when: str
    lasts: str
    severity: str
    sentence: str
    action: str
    who: str
    story: Story
    situation: Situation.ValueType = Situation.SITUATION_UNSPECIFIED
    """Of the charges that are stuck; unspecified if a server is."""

    @property
    def anchor(self) -> str:
        """The place of its row in docs/operating.md."""
        return self.name.lower()

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that it looks at, each once."""
        return metrics_in(self.when)


METRIC = re.compile(r"\b(?:chargeonce_\w+|up|process_\w+)\b(?=[{\[ )]|$)")


def metrics_in(expression: str) -> Sequence[str]:
    """Return the metrics that an expression of PromQL reads, each once, in order.

    >>> metrics_in('sum(up{job="a"}) + sum by (up) (up) - rate(chargeonce_a_b[5m])')
    ['up', 'chargeonce_a_b']
    """
    without_texts = re.sub(r'"[^"]*"', '""', expression)
    without_lists = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", without_texts)
    return list(dict.fromkeys(METRIC.findall(without_lists)))


# ---------------------------------------------------------------- charges that are stuck
def label_of(situation: Situation.ValueType) -> str:
    """Return the value of the label `situation`, such as bank_silent."""
    return Situation.Name(situation).removeprefix("SITUATION_").lower()


def _stuck(situation: Situation.ValueType, when: str, lasts: str, severity: str, story: Story, who: str) -> Alert:
    row = SITUATIONS[situation]
    return Alert(row.alert, when, lasts, severity, row.what, row.advice, who, story, situation)


def _on_its_way(situation: Situation.ValueType, lasts: str, severity: str, who: str = OPERATOR) -> Alert:
    """Each charge under way is driven by one of the command servers, and counted there."""
    label = label_of(situation)
    series = f'chargeonce_stuck_charges{{job="command", instance="command-1:9464", situation="{label}"}}'
    return _stuck(
        situation,
        f'sum without (instance, pod) (chargeonce_stuck_charges{{situation="{label}"}}) > 0',
        lasts,
        severity,
        Story({series: (0, 2)}, {"job": "command", "situation": label}),
        who,
    )


def _in_the_view(situation: Situation.ValueType, lasts: str, severity: str, who: str = OPERATOR) -> Alert:
    """Every query server sees all charges, so the most of one is the number."""
    label = label_of(situation)
    series = f'chargeonce_view_stuck_charges{{job="query", instance="query-1:9464", situation="{label}"}}'
    return _stuck(
        situation,
        f'max without (instance, pod) (chargeonce_view_stuck_charges{{situation="{label}"}}) > 0',
        lasts,
        severity,
        Story({series: (0, 2)}, {"job": "query", "situation": label}),
        who,
    )


CHARGES = [
    _on_its_way(Situation.SITUATION_BANK_SILENT, "1m", TICKET),
    _on_its_way(Situation.SITUATION_EXECUTION_UNKNOWN, "1m", PAGE_NOW),
    _on_its_way(Situation.SITUATION_BANK_REFUSES_US, "1m", PAGE_NOW),
    _on_its_way(Situation.SITUATION_BANK_SLOW, "5m", TICKET),
    _on_its_way(Situation.SITUATION_CALLING_OFF, "1m", TICKET),
    _on_its_way(Situation.SITUATION_AWAITING_CUSTOMER, "1h", NOTE, MERCHANT),
    _on_its_way(Situation.SITUATION_HELD_BACK, "1h", TICKET),
    _on_its_way(Situation.SITUATION_BANK_MISSING, "1m", PAGE_NOW),
    _in_the_view(Situation.SITUATION_IN_REVIEW, "5m", TICKET, BOTH),
    _in_the_view(Situation.SITUATION_AWAITING_APPROVAL, "1h", TICKET, "another operator than the one who proposes"),
    _in_the_view(Situation.SITUATION_ABANDONED, "0s", NOTE, MERCHANT),
    _in_the_view(Situation.SITUATION_HOLD_ENDING, "5m", TICKET, MERCHANT),
    _stuck(
        Situation.SITUATION_SERVER_AWAY,
        '(sum(up{job="command"}) or vector(0)) == 0',
        "1m",
        PAGE_NOW,
        Story({'up{job="command", instance="command-1:9464"}': (1, 0)}, {}),
        OPERATOR,
    ),
    _stuck(
        Situation.SITUATION_STOPPED,
        "chargeonce_stopped_charges > 0",
        "0s",
        PAGE_NOW,
        Story(
            {'chargeonce_stopped_charges{job="command", instance="command-1:9464"}': (0, 1)},
            {"job": "command", "instance": "command-1:9464"},
        ),
        OPERATOR,
    ),
]


# ---------------------------------------------------------------- servers that are stuck
_COMMAND = {"job": "command", "instance": "command-1:9464"}
_QUERY = {"job": "query", "instance": "query-1:9464"}


def _series(name: str, labels: Mapping[str, str], **more: str) -> str:
    return f"{name}{{{', '.join(f'{key}={json.dumps(value)}' for key, value in {**labels, **more}.items())}}}"


def _has_grown(counter: str, by: str) -> str:
    """A counter has grown within five minutes, or is new since then: the first fault of a kind is a series' first sample."""
    return f"sum by ({by}) (increase({counter}[5m]) > 0 or {counter} unless {counter} offset 5m) > 0"


SERVERS = [
    Alert(
        "ChargeonceServerDown",
        'up{job=~"command|query"} == 0',
        "2m",
        TICKET,
        "A server does not answer Prometheus. Others of its kind may still serve.",
        "Start it again, or read its log for why it does not start. After status 74 read it first: the journal is in doubt.",
        OPERATOR,
        Story({_series("up", _QUERY): (1, 0)}, _QUERY),
    ),
    Alert(
        "ChargeonceQueryServerAway",
        '(sum(up{job="query"}) or vector(0)) == 0',
        "1m",
        PAGE_NOW,
        "No query server runs, so nobody sees how charges stand. Charges go on.",
        "Start a query server: `ExplainCharge` tells of any charge again. Never send a command only to see how a charge stands:"
        " if the first one did not arrive, the second one charges.",
        OPERATOR,
        Story({_series("up", _QUERY): (1, None)}, {}),
    ),
    Alert(
        "ChargeonceServerRestarts",
        'changes(process_start_time_seconds{job=~"command|query"}[15m]) > 2',
        "0s",
        PAGE_NOW,
        "A server has ended and was started again more than twice in a quarter of an hour.",
        "Read the last lines of its log before each end. A damaged view or journal, and a broken feed, end it at each start.",
        OPERATOR,
        Story({_series("process_start_time_seconds", _COMMAND): ("+0", "+60")}, _COMMAND),
    ),
    Alert(
        "ChargeonceBankSpared",
        "max without (instance, pod) (chargeonce_bank_breaker_open) > 0",
        "1m",
        PAGE_NOW,
        "A bank does not answer, so new charges are not sent to it, but for one a minute.",
        "Look at the bank, and at the way to it. New charges take the other banks of their route, or are refused.",
        OPERATOR,
        Story(
            {_series("chargeonce_bank_breaker_open", _COMMAND, bank="acme"): (0, 1)}, {"job": "command", "bank": "acme"}
        ),
    ),
    Alert(
        "ChargeonceBankFails",
        'sum by (job, bank) (rate(chargeonce_bank_call_duration_seconds_count{answer="no_answer"}[5m]))'
        " > 0.1 * sum by (job, bank) (rate(chargeonce_bank_call_duration_seconds_count[5m]))",
        "5m",
        TICKET,
        "More than a tenth of the calls to a bank get no answer. Each is made again by itself.",
        "Look at the bank, and at the way to it; tell the bank if it goes on.",
        OPERATOR,
        Story(
            {
                _series("chargeonce_bank_call_duration_seconds_count", _COMMAND, bank="acme", answer="no_answer"): (
                    "+0",
                    "+60",
                ),
                _series("chargeonce_bank_call_duration_seconds_count", _COMMAND, bank="acme", answer="executed"): (
                    "+60",
                    "+60",
                ),
            },
            {"job": "command", "bank": "acme"},
        ),
    ),
    Alert(
        "ChargeonceJournalNotAccepting",
        "min without (instance, pod) (chargeonce_journal_accepting) == 0",
        "1m",
        PAGE_NOW,
        "The journal cannot store new charges: its disk is full, another program holds it, or PostgreSQL is away.",
        "The log says which, and so do refusals: JOURNAL_FULL, JOURNAL_BUSY, JOURNAL_AWAY. Make room (never by a"
        " file of the journal), end that program, or bring the primary and its standby back. The service goes on by itself.",
        OPERATOR,
        Story({_series("chargeonce_journal_accepting", _COMMAND): (1, 0)}, {"job": "command"}),
    ),
    Alert(
        "ChargeonceCommitsFail",
        _has_grown("chargeonce_journal_commit_failures_total", "job, why"),
        "0s",
        TICKET,
        "Commits to the journal fail. Nothing of them was stored, and no caller was told otherwise.",
        "The label `why` says the cause: mend it as for a journal that does not accept.",
        OPERATOR,
        Story(
            {_series("chargeonce_journal_commit_failures_total", _COMMAND, why="full"): (None, "+6")},
            {"job": "command", "why": "full"},
        ),
    ),
    Alert(
        "ChargeonceCommitsSlow",
        "histogram_quantile(0.95, sum by (job, le) (rate(chargeonce_journal_commit_duration_seconds_bucket[5m]))) > 0.25",
        "5m",
        TICKET,
        "One commit to the journal in twenty takes longer than a quarter of a second. Each charge waits for three of them.",
        "Look at what else uses the disk or the database; with PostgreSQL also at the way to the standby.",
        OPERATOR,
        Story(
            {
                _series("chargeonce_journal_commit_duration_seconds_bucket", _COMMAND, le="0.1"): ("+60", "+0"),
                _series("chargeonce_journal_commit_duration_seconds_bucket", _COMMAND, le="1"): ("+60", "+60"),
                _series("chargeonce_journal_commit_duration_seconds_bucket", _COMMAND, le="+Inf"): ("+60", "+60"),
            },
            {"job": "command"},
        ),
    ),
    Alert(
        "ChargeonceChargesSlow",
        "histogram_quantile(0.95, sum by (job, le) (rate(chargeonce_rpc_duration_seconds_bucket"
        '{method="CommandService/Charge"}[5m]))) > 5',
        "5m",
        TICKET,
        "One charge in twenty takes longer than five seconds to be answered.",
        "See on the dashboard which part is slow: the bank's calls, the commits, or the wait for one of the calls to the bank.",
        OPERATOR,
        Story(
            {
                _series(
                    "chargeonce_rpc_duration_seconds_bucket",
                    _COMMAND,
                    method="CommandService/Charge",
                    le=le,
                ): ("+60", stuck)
                for le, stuck in (("1", "+0"), ("10", "+60"), ("+Inf", "+60"))
            },
            {"job": "command"},
        ),
    ),
    Alert(
        "ChargeonceCallsFail",
        _has_grown('chargeonce_rpc_duration_seconds_count{code=~"INTERNAL|UNKNOWN|DATA_LOSS"}', "job, method, code"),
        "0s",
        PAGE_NOW,
        "Calls end by a fault of the service itself, or by a record that was changed.",
        "Read the server's log: it has the fault. At DATA_LOSS stop the server, run `chargeonce journal verify`, and put a"
        " backup in place by `chargeonce journal restore`, never by a copy: restored, it asks the banks for what it lacks.",
        OPERATOR,
        Story(
            {
                _series(
                    "chargeonce_rpc_duration_seconds_count", _COMMAND, method="CommandService/Charge", code="INTERNAL"
                ): (
                    "+0",
                    "+6",
                )
            },
            {"job": "command", "method": "CommandService/Charge", "code": "INTERNAL"},
        ),
    ),
    Alert(
        "ChargeonceCallsRefused",
        'sum by (job) (rate(chargeonce_rpc_duration_seconds_count{code=~"UNAVAILABLE|RESOURCE_EXHAUSTED"}[5m]))'
        " > 0.05 * sum by (job) (rate(chargeonce_rpc_duration_seconds_count[5m]))",
        "5m",
        PAGE_NOW,
        "More than one call in twenty is refused for now: callers are told to come back later.",
        "See which alerts fire beside this one. If none does, more comes than can be served: the limits show which.",
        OPERATOR,
        Story(
            {
                _series(
                    "chargeonce_rpc_duration_seconds_count",
                    _COMMAND,
                    method="CommandService/Charge",
                    code="UNAVAILABLE",
                ): (
                    "+0",
                    "+60",
                ),
                _series("chargeonce_rpc_duration_seconds_count", _COMMAND, method="CommandService/Charge", code="OK"): (
                    "+60",
                    "+60",
                ),
            },
            {"job": "command"},
        ),
    ),
    Alert(
        "ChargeonceCallersUnknown",
        "sum by (job) (rate(chargeonce_calls_unauthenticated[5m]) + rate(chargeonce_calls_not_permitted[5m])) > 0.1",
        "5m",
        TICKET,
        "Calls are refused since their callers are not known, or may not make them.",
        'The log says why ("a call was refused"); `chargeonce policy check` says what each identity may do. If no caller of'
        " yours is meant, somebody is trying doors.",
        OPERATOR,
        Story(
            {
                _series("chargeonce_calls_unauthenticated", _COMMAND): ("+0", "+60"),
                _series("chargeonce_calls_not_permitted", _COMMAND): ("+0", "+0"),
            },
            {"job": "command"},
        ),
    ),
    Alert(
        "ChargeonceLimitNear",
        "max by (job, limit) (chargeonce_limit_used / chargeonce_limit_maximum) > 0.8"
        " or max by (job, bank) (chargeonce_bank_calls_in_progress / chargeonce_bank_calls_limit) > 0.8",
        "5m",
        TICKET,
        "More than four fifths of a limit are used. At the limit new calls are refused, or wait.",
        "If something is stuck, mend that first. If not, raise the limit (memory, and what the bank takes), or add a"
        " server over the same journal in PostgreSQL. One over a journal of its own would charge a known key again.",
        OPERATOR,
        Story(
            {
                _series("chargeonce_limit_used", _COMMAND, limit="unfinished"): (100, 900),
                _series("chargeonce_limit_maximum", _COMMAND, limit="unfinished"): (1000, 1000),
            },
            {"job": "command", "limit": "unfinished"},
        ),
    ),
    Alert(
        "ChargeonceChargesOld",
        "sum without (instance, pod) (chargeonce_charges_needing_attention) > 0",
        "5m",
        TICKET,
        "Charges are unfinished for longer than `COMMAND_ATTENTION_AFTER_SECONDS`, for whatever reason but that they are held"
        " back.",
        "List them: `chargeonce list --stage unfinished --older 10m`; then explain one. If no other alert says why, they wait"
        " for their turn: look at the limits (`chargeonce desk status`).",
        OPERATOR,
        Story({_series("chargeonce_charges_needing_attention", _COMMAND): (0, 3)}, {"job": "command"}),
    ),
    Alert(
        "ChargeonceViewBehind",
        "chargeonce_view_lag_records > 1000",
        "2m",
        PAGE_NOW,
        "A view is more than a thousand records behind its journal: queries show charges as they were.",
        "After a start it builds the view: wait. Else look at its disk and its CPU. A charge that is not shown may have been"
        " made: never charge it under another key.",
        OPERATOR,
        Story({_series("chargeonce_view_lag_records", _QUERY): (3, 20_000)}, _QUERY),
    ),
    Alert(
        "ChargeonceViewStopped",
        "chargeonce_view_lag_records > 0 and changes(chargeonce_view_position[2m]) == 0",
        "1m",
        PAGE_NOW,
        "A view knows of records that it does not show, and does not move.",
        'The log says why: "the view cannot be written" (make room on its disk), or "the projection is stopped" (an event that'
        " it does not know: update the query server).",
        OPERATOR,
        Story(
            {
                _series("chargeonce_view_lag_records", _QUERY): (1, 1),
                _series("chargeonce_view_position", _QUERY): ("+60", "+0"),
            },
            _QUERY,
        ),
    ),
    Alert(
        "ChargeonceFeedSilent",
        "chargeonce_feed_silence_seconds > 20 or chargeonce_feed_silence_seconds < 0",
        "1m",
        PAGE_NOW,
        "A query server hears nothing from its feed, though every feed says something each five seconds.",
        "Look at the command servers in `QUERY_FEED`, at the way to them, and at the certificates on it. Queries show the"
        " past: a charge that they do not show may have been made.",
        OPERATOR,
        Story({_series("chargeonce_feed_silence_seconds", _QUERY): (2, 90)}, _QUERY),
    ),
    Alert(
        "ChargeonceFeedUnread",
        "sum without (instance, pod) (chargeonce_feed_readers) == 0",
        "5m",
        TICKET,
        "Nobody reads the feed, so no view shows what is charged.",
        "Start the query servers, and look at what refuses them the feed: certificates, the policy, the network.",
        OPERATOR,
        Story({_series("chargeonce_feed_readers", _COMMAND): (2, 0)}, {"job": "command"}),
    ),
    Alert(
        "ChargeonceReconciliationDiffers",
        "max without (instance, pod) (chargeonce_reconciliation_difference_minor_units) > 0",
        "0s",
        PAGE_NOW,
        "The bank's statement and the journal differ by an amount.",
        "See what it found: `chargeonce reconcile last`, or the console. Each finding says what it means, and what to do at the"
        " desk. Then reconcile the same days again, with the lines of the days beside them: it clears once they differ by 0.00"
        " and nothing is undecided.",
        BOTH,
        Story(
            {
                _series("chargeonce_reconciliation_difference_minor_units", _COMMAND, bank="acme", currency="EUR"): (
                    0,
                    1250,
                )
            },
            {"job": "command", "bank": "acme", "currency": "EUR"},
        ),
    ),
    Alert(
        "ChargeonceReconciliationFinds",
        "max without (instance, pod) (chargeonce_reconciliation_findings) > 0",
        "0s",
        TICKET,
        "Reconciliations of a bank found differences, or movements that are undecided at the edge of a statement.",
        "See what they found: `chargeonce reconcile last`, or the console. Each finding says what it means, and what to do at"
        " the desk; what is at an edge is decided by reading the neighbouring days too. Then reconcile the same days again: the"
        " alert clears once they have none.",
        OPERATOR,
        Story(
            {_series("chargeonce_reconciliation_findings", _COMMAND, bank="acme"): (0, 2)},
            {"job": "command", "bank": "acme"},
        ),
    ),
    Alert(
        "ChargeonceReconciliationOld",
        "min without (instance, pod) (chargeonce_reconciliation_age_seconds) > 36 * 3600",
        "5m",
        TICKET,
        "A bank was last reconciled more than a day and a half ago, or never.",
        "Look at the job that reconciles each day, and run it: `python -m command_service reconcile --bank NAME --from --to`.",
        OPERATOR,
        Story(
            {_series("chargeonce_reconciliation_age_seconds", _COMMAND, bank="acme"): (86_400, 180_000)},
            {"job": "command", "bank": "acme"},
        ),
    ),
]

ALERTS: Sequence[Alert] = [*CHARGES, *SERVERS]
