"""Reconciliation: the last results, and a run with its progress and its findings."""

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chargeonce_client import CallFailed, OperationKind
from charging.v1.operator_pb2 import (
    FindingKind,
    ListReconciliationsRequest,
    ListReconciliationsResponse,
    ReconcileBegin,
    ReconcileFinding,
    ReconcileRequest,
    Reconciliation,
)
from console import words
from console.html import Child, tag
from console.pages import parts
from console.runs import MOST_FINDINGS, PIECE_BYTES, Run
from console.servers import tried
from console.visit import Page, Refuse, Visit, check_upload

_UNNAMED = "the bank of COMMAND_BANK_URL"
_NO_DIFFERENCES = frozenset(
    {
        FindingKind.FINDING_KIND_FEE,
        FindingKind.FINDING_KIND_PAYOUT,
        FindingKind.FINDING_KIND_CHARGEBACK,
        FindingKind.FINDING_KIND_AT_EDGE,
    }
)
_LONGEST_MAPPING = 6_000
_TOGETHER = "A CSV file and its mapping belong together."


async def last(visit: Visit) -> ListReconciliationsResponse | CallFailed:
    """Return the results of the last reconciliations."""
    return await tried(visit.asker.desk(lambda desk: desk.ListReconciliations, ListReconciliationsRequest()))


def table(found: ListReconciliationsResponse | CallFailed) -> Child:
    """Show them."""
    if isinstance(found, CallFailed):
        return parts.trouble_of_all(found)
    if not found.reconciliations:
        return tag.p("There is none yet.")
    rows = [
        [
            each.bank or _UNNAMED,
            [words.moment(getattr(each, "from")), " to ", words.moment(each.to)],
            [words.moment(each.done_at), f" ({words.age(each.done_at)} ago)"],
            f"{each.differences:,}",
            _balance(each),
        ]
        for each in found.reconciliations
    ]
    columns = ["Bank", "Range", "Done", "Differences", "Sums"]
    return parts.table("The last of each bank, and all that still differ", columns, rows)


def _kept(found: ListReconciliationsResponse | CallFailed) -> Child:
    """Show what they found."""
    if isinstance(found, CallFailed):
        return None
    return [
        [
            tag.h3(f"Found with {each.bank or _UNNAMED}, from ", words.moment(getattr(each, "from"))),
            _rows(each.findings),
        ]
        for each in found.reconciliations
        if each.findings
    ]


async def show(visit: Visit) -> Page:
    """Show the last results, and the form for a run."""
    found = await last(visit)
    content = [
        tag.h1("Reconciliation"),
        parts.part("reconciled", "Last results", [table(found), _kept(found)]),
        None
        if isinstance(found, CallFailed) and parts.is_denied(found)
        else tag.section(tag.h2("Compare", id="compare-heading"), _form(visit), aria_labelledby="compare-heading"),
    ]
    return Page("Reconciliation", content, events="/ticks")


async def begin(visit: Visit) -> Page | Response:
    """Begin a run by the statement that the bank gives itself."""
    try:
        if bool(visit.given("file")) != bool(visit.given("mapping")):
            raise ValueError(_TOGETHER)
        if visit.given("file"):
            raise ValueError("A CSV file is sent by JavaScript only. The command line takes files, too.")
        request = ReconcileRequest(begin=_asked({**visit.form, "mapping": ""}))
    except ValueError as error:
        content = [tag.h1("Reconciliation"), tag.p(str(error), class_="error", role="alert"), _form(visit)]
        return Page("Reconciliation", content, status=400)

    async def requests() -> AsyncIterator[ReconcileRequest]:
        yield request

    run = Run(request.begin.bank, visit.session.name)
    visit.shared.runs.begin(visit.asker, requests(), run)
    return visit.go(f"/reconciliation/{run.name}")


async def upload(request: Request) -> Response:
    """Begin a run by a CSV file, which is the body of the request. It is passed on as it comes."""
    try:
        visit = await check_upload(request)
        if not request.query_params.get("mapping", "").strip():
            raise ValueError(_TOGETHER)
        asked = ReconcileRequest(begin=_asked(dict(request.query_params)))
    except Refuse as refusal:
        return JSONResponse({"problem": refusal.text}, refusal.status)
    except ValueError as error:
        return JSONResponse({"problem": str(error)}, 400)

    async def requests() -> AsyncIterator[ReconcileRequest]:
        yield asked
        async for chunk in request.stream():
            for start in range(0, len(chunk), PIECE_BYTES):
                yield ReconcileRequest(csv=chunk[start : start + PIECE_BYTES])

    run = Run(asked.begin.bank, visit.session.name)
    await visit.shared.runs.begin(visit.asker, requests(), run)  # the browser's body lasts as long as its request
    return JSONResponse({"place": f"/reconciliation/{run.name}"})


async def result(visit: Visit) -> Page:
    """Show a run: its progress, and then its result."""
    run = _run(visit)
    content: list[Child] = [
        tag.h1(f"Reconciliation of {run.bank or _UNNAMED}"),
        parts.part("progress", "Progress", _progress(run)),
        parts.part("sums", "Sums by day", _sums(run.result)) if run.result else None,
        parts.part(
            "findings",
            "Findings",
            _findings(run),
            note=f"The first {MOST_FINDINGS}; the command line writes all."
            if sum(run.counts.values()) > MOST_FINDINGS
            else None,
        ),
        tag.p(tag.a("All reconciliations", href="/reconciliation")),
    ]
    return Page("Reconciliation", content, events="" if run.has_ended else f"/reconciliation/{run.name}/events")


async def changes(visit: Visit) -> AsyncIterator[str]:
    """Tell each change of a run, until its end."""
    run = _run(visit)
    while not run.has_ended:
        changed = run.changed
        yield "changed"
        await changed.wait()
    yield "ended"


def _run(visit: Visit) -> Run:
    run = visit.shared.runs.find(visit.request.path_params["run"], visit.session.name)
    if run is None:
        raise Refuse(404, "There is no such reconciliation of yours here. A restart of the console forgets them.")
    return run


def _asked(given: dict[str, str]) -> ReconcileBegin:
    """Read the form. Raises ValueError, whose text is for people."""
    try:
        first, before = words.read_time(given.get("from", "")), words.read_time(given.get("to", ""))
    except ValueError:
        raise ValueError("A time is written as 2026-11-30 or 2026-11-30T12:00.") from None
    if first is None or before is None or first.ToNanoseconds() >= before.ToNanoseconds():
        raise ValueError("It needs a first moment, and a later one before which it ends.")
    mapping = given.get("mapping", "")
    if len(mapping) > _LONGEST_MAPPING:
        raise ValueError("The mapping is too long.")
    begun = ReconcileBegin(bank=given.get("bank", "").strip(), to=before, mapping=mapping)
    getattr(begun, "from").CopyFrom(first)
    return begun


def _form(visit: Visit) -> Child:
    today = datetime.now(UTC).date()

    def day(name: str, text: str, value: str) -> Child:
        return [
            tag.label(text, for_=f"compare-{name}"),
            tag.input(id=f"compare-{name}", name=name, type="date", value=visit.given(name) or value, required=True),
        ]

    return [
        tag.p(
            "It compares a bank's statement with the journal, and changes nothing. What it finds it proposes as steps of "
            "the desk."
        ),
        visit.post(
            "/reconciliation",
            tag.label("Bank, empty for the bank of COMMAND_BANK_URL", for_="compare-bank"),
            tag.input(id="compare-bank", name="bank", value=visit.given("bank"), maxlength=128, autocomplete="off"),
            day("from", "From the day (UTC)", str(today - timedelta(days=1))),
            day("to", "Before the day (UTC)", str(today + timedelta(days=1))),
            tag.details(
                tag.summary("By a CSV file instead of the bank's own statement"),
                tag.p("This needs JavaScript; the command line takes files, too."),
                tag.label("The file", for_="compare-file"),
                tag.input(id="compare-file", name="file", type="file", accept=".csv,text/csv"),
                tag.label("Its mapping, in TOML", for_="compare-mapping"),
                tag.textarea(
                    visit.given("mapping"),
                    id="compare-mapping",
                    name="mapping",
                    rows=8,
                    maxlength=_LONGEST_MAPPING,
                    spellcheck="false",
                ),
                open=bool(visit.given("mapping")),
            ),
            tag.button("Compare", type="submit"),
            class_="narrow",
            id="compare",
        ),
    ]


def _balance(found: Reconciliation) -> Child:
    if not found.is_balanced:
        return parts.badge("not balanced", "bad")
    if found.undecided:
        return [
            parts.badge(f"not certain: {found.undecided:,} at the edge", "wait"),
            " Read the neighbouring days too.",
        ]
    return parts.badge("balanced", "good")


def _progress(run: Run) -> Child:
    told = run.progress
    shown: list[Child] = [
        words.fields(
            [
                ("Lines of the statement", f"{told.statement_lines:,}"),
                ("Records of the journal", f"{told.journal_records:,} of {told.journal_head:,}"),
                ("Differences so far", f"{_differences(run):,}"),
            ]
        )
    ]
    if run.failure:
        shown.append(tag.p(run.failure, class_="error", role="alert"))
    elif run.result is not None:
        shown.append(tag.p(_balance(run.result), f" {run.result.differences:,} differences."))
    elif told.journal_head:
        shown.append(
            tag.progress(value=told.journal_records, max=told.journal_head, aria_label="Records of the journal read")
        )
    return shown


def _differences(run: Run) -> int:
    return sum(count for kind, count in run.counts.items() if kind not in _NO_DIFFERENCES)


def _sums(found: Reconciliation) -> Child:
    def money(minor_units: int, currency: str) -> Child:
        return tag.span(words.amount(minor_units, currency), class_="amount")

    rows = [
        [
            day.day,
            f"{day.matched:,}",
            money(day.bank_minor_units, day.currency_code),
            money(day.journal_minor_units, day.currency_code),
            [
                money(day.difference_minor_units, day.currency_code),
                parts.badge("differs", "bad") if day.difference_minor_units else None,
            ],
            money(day.other_minor_units, day.currency_code),
        ]
        for day in found.days
    ]
    columns = ["Day", "Matched", "At the bank", "Here", "Difference", "Fees, payouts, chargebacks"]
    return (
        parts.table("Sums by day and currency", columns, rows) if rows else tag.p("There is no movement in this time.")
    )


def _findings(run: Run) -> Child:
    if not run.findings:
        return tag.p("None." if run.has_ended else "None so far.")
    return _rows(run.findings)


def _rows(findings: Iterable[ReconcileFinding]) -> Child:
    columns = ["What", "Day", "Charge", "At the bank", "Here", "It means", "Proposed"]
    return parts.table("Findings", columns, [_finding(finding) for finding in findings])


def _finding(found: ReconcileFinding) -> list[Child]:
    tone = "calm" if found.kind in _NO_DIFFERENCES else "bad"
    kind = " ".join(filter(None, [words.word(FindingKind, found.kind), words.word(OperationKind, found.operation)]))
    named: Child = tag.code(found.reference or found.transaction_id)
    return [
        parts.badge(kind, tone),
        found.day,
        tag.a(named, href=parts.place(found.charge_id)) if found.charge_id else named,
        words.amount(found.bank_minor_units, found.currency_code),
        words.amount(found.journal_minor_units, found.currency_code),
        found.text,
        tag.code(found.proposed_command) if found.proposed_command else None,
    ]
