"""The servers: how far each view is, how the banks do, what is limited."""

import asyncio
from collections.abc import Mapping, Sequence

from chargeonce_client import CallFailed, GetViewStatusResponse, ViewState
from charging.v1.common_pb2 import AnswerKind
from charging.v1.operator_pb2 import BankStatus, GetServerStatusRequest, GetServerStatusResponse
from charging.v1.query_pb2 import GetViewStatusRequest
from console import plots, words
from console.frame import staleness
from console.html import Child, tag
from console.pages import parts
from console.samples import Samples, answers_of
from console.servers import PART_SECONDS, tried
from console.visit import Page, Visit

Views = Mapping[str, GetViewStatusResponse | CallFailed]
Commands = Mapping[str, GetServerStatusResponse | CallFailed]
_UNNAMED = "the bank of COMMAND_BANK_URL"


async def views(visit: Visit) -> Views:
    """Return the state of each query server's views, by its address."""
    servers = visit.asker.servers.queries
    asked = [visit.asker.ask(each.queries.GetViewStatus, GetViewStatusRequest(), PART_SECONDS) for each in servers]
    answers = await asyncio.gather(*map(tried, asked))
    return {server.address: answer for server, answer in zip(servers, answers, strict=True)}


async def commands(visit: Visit) -> Commands:
    """Return the state of each command server, by its address."""
    servers = visit.asker.servers.commands
    asked = [visit.asker.ask(each.desk.GetServerStatus, GetServerStatusRequest(), PART_SECONDS) for each in servers]
    answers = await asyncio.gather(*map(tried, asked))
    for server, answer in zip(servers, answers, strict=True):
        if not isinstance(answer, CallFailed):
            visit.shared.samples.add(server.address, answer, visit.asker)
    return {server.address: answer for server, answer in zip(servers, answers, strict=True)}


async def show(visit: Visit) -> Page:
    """Show all servers."""
    shown_views, shown_commands = await asyncio.gather(views(visit), commands(visit))
    content: list[Child] = [tag.h1("Servers")]
    content.append(parts.part("views", "Views", [_view(address, view) for address, view in shown_views.items()]))
    for number, (address, status) in enumerate(shown_commands.items()):
        content.append(
            parts.part(
                f"command-{number}",
                f"Command server {address}",
                parts.trouble_of_all(status)
                if isinstance(status, CallFailed)
                else _command(address, status, visit.shared.samples),
            )
        )
    return Page("Servers", content, events="/ticks")


def short(shown_views: Views, shown_commands: Commands) -> Child:
    """Show each server in a line."""
    rows: list[Sequence[Child]] = []
    for address, view in shown_views.items():
        if isinstance(view, CallFailed):
            rows.append(["Query server", address, parts.badge("away", "bad"), words.trouble(view)])
        else:
            rows.append(
                [
                    "Query server",
                    address,
                    _state(view.state),
                    f"{words.count(view.charge_count, 'charge')}, {words.count(view.lag.records, 'record')} behind",
                ]
            )
    for address, status in shown_commands.items():
        if isinstance(status, CallFailed):
            is_away = not status.reason and status.code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            rows.append(
                [
                    "Command server",
                    address,
                    parts.badge("away", "bad") if is_away else parts.badge("not told"),
                    parts.OF_ALL if parts.is_denied(status) else words.trouble(status),
                ]
            )
            continue
        spared = [bank.name or _UNNAMED for bank in status.banks if bank.is_spared]
        said = f"{words.count(status.unfinished_charges, 'charge')} under way"
        if status.unfinished_charges:
            said += f", the oldest for {words.span(status.oldest_unfinished)}"
        said += f"; spared: {', '.join(spared)}" if spared else ""
        rows.append(["Command server", address, _accepting(status), said])
    return parts.table("The servers", ["Server", "Address", "State", "Now"], rows)


def _state(state: ViewState.ValueType) -> Child:
    is_live = state == ViewState.VIEW_STATE_LIVE
    return parts.badge(words.word(ViewState, state), "good" if is_live else "bad")


def _accepting(status: GetServerStatusResponse) -> Child:
    if status.not_accepting:
        return [parts.badge("takes no new charges", "bad"), f" {status.not_accepting}"]
    return parts.badge("takes charges", "good")


def _view(address: str, view: GetViewStatusResponse | CallFailed) -> Child:
    if isinstance(view, CallFailed):
        return [tag.h3(f"Query server {address}"), parts.trouble(view)]
    rows = [
        [
            tag.code(journal.shown.journal_id or "none yet"),
            [_state(journal.state), " ", staleness(journal.state, journal.shown.lag)],
            f"{journal.shown.position:,} of {journal.shown.head_position:,}",
            f"{journal.shown.lag.records:,}",
            f"{journal.shown.lag.silence_milliseconds:,} ms ago"
            if journal.shown.lag.silence_milliseconds >= 0
            else "never",
            f"{journal.charge_count:,}",
        ]
        for journal in view.journals
    ]
    columns = ["Journal", "State", "Position", "Records behind", "Last heard", "Charges"]
    return [tag.h3(f"Query server {address}"), parts.table(f"The views of {address}", columns, rows)]


def _command(address: str, status: GetServerStatusResponse, samples: Samples) -> Child:
    return [
        words.fields(
            [
                ("State", _accepting(status)),
                ("Under way", words.count(status.unfinished_charges, "charge")),
                ("The oldest", words.span(status.oldest_unfinished) if status.unfinished_charges else ""),
                ("Held back", words.count(status.charges_held_back, "charge") if status.charges_held_back else ""),
                ("Journal", [tag.code(status.journal_id), f" at position {status.journal_position:,}"]),
                ("Started", [words.moment(status.started_at), f" ({words.age(status.started_at)} ago)"]),
            ]
        ),
        tag.h3("Banks"),
        [_bank(address, bank, samples) for bank in status.banks],
        tag.h3("Limits"),
        parts.table(
            f"The limits of {address}",
            ["What", "Used", "At most", "Share"],
            [
                [limit.name.replace("_", " "), f"{limit.used:,}", f"{limit.limit:,}", _meter(limit.used, limit.limit)]
                for limit in status.limits
            ],
        )
        if status.limits
        else tag.p("They are told to operators of no tenant."),
    ]


def _meter(used: int, limit: int) -> Child:
    if limit <= 0:
        return "none"
    share = f"{min(used / limit, 9.99):.0%}"
    return [tag.meter(share, value=used, max=limit, high=limit * 0.8, aria_label=f"{share} used"), f" {share}"]


def _bank(address: str, bank: BankStatus, samples: Samples) -> Child:
    if not bank.calls_at_once:
        return tag.article(_bank_head(bank), tag.p("Its figures are told to operators of no tenant."), class_="bank")
    counts = answers_of(bank)
    stretches = samples.stretches(address, bank.name)
    newest = stretches[-1] if stretches else None
    name = bank.name or _UNNAMED
    slow = _bound(bank, 0.99)
    plotted: list[tuple[str, str, list[float | None]]] = [
        ("Answers a second", f"{newest.rate:.1f}" if newest else "-", [each.rate for each in stretches]),
        (
            "Mean time",
            f"{newest.seconds * 1_000:.0f} ms" if newest and newest.seconds is not None else "-",
            [each.seconds for each in stretches],
        ),
        (
            "Errors",
            f"{newest.errors:.0%}" if newest and newest.errors is not None else "-",
            [each.errors for each in stretches],
        ),
    ]
    return tag.article(
        _bank_head(bank),
        tag.div(
            [
                tag.figure(
                    tag.figcaption(title, " ", tag.b(now)),
                    plots.plot(values, f"{title} of {name} over the last minutes, now {now}"),
                )
                for title, now, values in plotted
            ],
            class_="plots",
        ),
        words.fields(
            [
                ("Calls under way", f"{bank.calls_under_way:,} of {bank.calls_at_once:,}"),
                ("Answers since the start", f"{sum(counts.values()):,}, errors {counts[True]:,}"),
                ("99 % within", slow),
            ]
        ),
        tag.details(
            tag.summary("Answers by step and kind"),
            parts.table(
                f"Answers of {name}",
                ["Step", "Answer", "Number"],
                [
                    [answer.step.replace("_", " "), words.word(AnswerKind, answer.answer), f"{answer.count:,}"]
                    for answer in bank.answers
                ],
            ),
        )
        if bank.answers
        else None,
        class_="bank",
    )


def _bank_head(bank: BankStatus) -> Child:
    state = parts.badge("spared", "bad") if bank.is_spared else parts.badge("called", "good")
    return tag.h4(bank.name or _UNNAMED, " ", state)


def _bound(bank: BankStatus, share: float) -> str:
    """Return the bound within which a share of the answers came."""
    total, sofar = sum(bank.duration_counts), 0
    if not total:
        return ""
    for count, bound in zip(bank.duration_counts, bank.duration_bounds, strict=False):
        sofar += count
        if sofar >= share * total:
            return words.span(bound)
    return f"more than {words.span(bank.duration_bounds[-1])}" if bank.duration_bounds else ""
