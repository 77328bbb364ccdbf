"""Several command servers on one PostgreSQL, beside one on SQLite and beside the peers on the same PostgreSQL server.

In turns, as in the comparison: each round measures each service once, in another order, on an empty database. Ratios are taken
within a round. All of it shares one machine, so more servers show here what they cost, and only on more cores what they bring.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from bench import sites
from bench.measure import Measurement, Size, measure
from bench.postgres import Database, Postgres, batches, start_postgres

IN_FLIGHT = (1, 16, 128)
FIGURES: Mapping[str, Callable[[Measurement], float]] = {
    "rate": lambda it: it.rate,
    "p50_ms": lambda it: it.p50_ms,
    "p99_ms": lambda it: it.p99_ms,
    "cpu_ms": lambda it: it.cpu_ms,
    "cpu_ms_of_servers": lambda it: _spent(it, "service"),
    "cpu_ms_of_postgres": lambda it: _spent(it, "postgres", "standby"),
    "cpu_ms_of_bank": lambda it: _spent(it, "bank"),
    "cpu_ms_of_load": lambda it: _spent(it, "load"),
    "cpu_ms_of_query": lambda it: _spent(it, "query"),
}


@dataclass(frozen=True, slots=True)
class _Entrant:
    """A service, and what it keeps its charges in."""

    name: str
    service: str = sites.PRODUCT
    servers: int = 1
    on: str = "postgres"
    """`postgres`, `standby` (the same with a synchronous one), or empty: SQLite."""


SQLITE = _Entrant("SQLite", on="")
ONE = _Entrant("PostgreSQL, 1 server")
ENTRANTS = (
    SQLITE,
    ONE,
    _Entrant("PostgreSQL, 2 servers", servers=2),
    _Entrant("PostgreSQL, 4 servers", servers=4),
    _Entrant("PostgreSQL and standby, 1 server", on="standby"),
    _Entrant("DBOS", sites.DBOS_POSTGRES + sites.AIOHTTP),
    _Entrant("eventsourcing", sites.SOURCED_POSTGRES + sites.AIOHTTP),
)
# One server on PostgreSQL, against these.
AGAINST = (SQLITE.name, "DBOS", "eventsourcing")


class ChargesFailed(Exception):
    """Charges that should have succeeded did not: the rest would look better than it is."""


async def servers(*, quick: bool) -> dict[str, Any]:
    """Charges/s and CPU a charge with 1, 2 and 4 command servers on one PostgreSQL; SQLite and the peers beside."""
    size = Size(1, 0.5, 0.3) if quick else Size(5, 2.0, 0.7)
    found: dict[tuple[str, int], list[Measurement]] = {}
    appends: dict[tuple[str, int], list[float]] = {}
    async with AsyncExitStack() as stack:
        on = {"postgres": await start_postgres(stack), "standby": await start_postgres(stack, with_standby=True)}
        for number in range(size.rounds):
            turn = number % len(ENTRANTS)
            for entrant in [*ENTRANTS[turn:], *ENTRANTS[:turn]]:
                for measured, batch in await _measure(entrant, on.get(entrant.on), size):
                    at = (entrant.name, measured.in_flight)
                    found.setdefault(at, []).append(measured)
                    if batch is not None:
                        appends.setdefault(at, []).append(batch)
    figures = {
        "figures": {
            figure: _by_load(found, lambda rounds, get=get: statistics.median(map(get, rounds)))  # type: ignore[misc]
            for figure, get in FIGURES.items()
        },
        "rate_at_least": _by_load(found, lambda rounds: min(it.rate for it in rounds)),
        "rate_at_most": _by_load(found, lambda rounds: max(it.rate for it in rounds)),
        "load_average": _by_load(found, lambda rounds: statistics.median(it.load_average for it in rounds)),
        "records_a_commit": _by_load(appends, statistics.median),
        "rate_against": {
            other: {
                str(in_flight): _ratios(found[ONE.name, in_flight], found[other, in_flight]) for in_flight in IN_FLIGHT
            }
            for other in AGAINST
        },
    }
    print(table(figures))
    return figures


def table(found: Mapping[str, Any]) -> str:
    """The tables of docs/benchmark.md and docs/scaling.md."""
    figures, lines = found["figures"], []
    for name, in_flight in itertools.product(figures["rate"], map(str, IN_FLIGHT)):
        shown = [f"{figures[figure][name][in_flight]:.2f}" for figure in FIGURES if figure.startswith("cpu_ms")]
        low, high = (found[bound][name][in_flight] for bound in ("rate_at_least", "rate_at_most"))
        batch = found["records_a_commit"].get(name, {}).get(in_flight)
        lines.append(
            f"| {name} | {in_flight} | {figures['rate'][name][in_flight]:,.0f} | {low:,.0f} to {high:,.0f} | "
            f"{' | '.join(shown)} | {f'{batch:.1f}' if batch else ''} |"
        )
    for other, by_load in found["rate_against"].items():
        each = (f"{median:.2f} ({low:.2f} to {high:.2f})" for median, low, high in by_load.values())
        lines.append(f"| {other} | {' | '.join(each)} |")
    return "\n".join(lines)


async def _measure(entrant: _Entrant, postgres: Postgres | None, size: Size) -> list[tuple[Measurement, float | None]]:
    """Measure a service under each load, with the records in a commit of its journal if that is in PostgreSQL."""
    async with AsyncExitStack() as stack:
        database: Database | None = None
        if postgres is not None:
            database = await stack.enter_async_context(postgres.database())
        site = await stack.enter_async_context(
            sites.open_site(entrant.service, database=database, servers=entrant.servers)
        )
        found: list[tuple[Measurement, float | None]] = []
        position = 0
        for in_flight in IN_FLIGHT:
            (measured,) = await measure(site, entrant.name, [in_flight], size)
            if measured.errors:
                raise ChargesFailed(f"{entrant.name}, {in_flight} in flight: {dict(measured.errors)}")
            batch = None
            if database is not None and entrant.service == sites.PRODUCT:
                before = position
                position, commits = await batches(database.url, before)
                batch = (position - before) / commits
            found.append((measured, batch))
            print(
                f"  {entrant.name:<34}{in_flight:>5} in flight{measured.rate:>8,.0f}/s  cpu {measured.cpu_ms:.3f} ms"
                + (f"  {batch:.1f} records a commit" if batch is not None else ""),
                flush=True,
            )
    return found


def _spent(measured: Measurement, *names: str) -> float:
    """CPU ms a charge of the processes whose names begin so."""
    return sum(spent for process, spent in measured.processes_cpu_ms.items() if process.startswith(names))


def _by_load(
    found: Mapping[tuple[str, int], Sequence[Any]], summed: Callable[[Sequence[Any]], float]
) -> dict[str, dict[str, float]]:
    """A figure by service and by load."""
    by_load: dict[str, dict[str, float]] = {}
    for (name, in_flight), rounds in found.items():
        by_load.setdefault(name, {})[str(in_flight)] = summed(rounds)
    return by_load


def _ratios(ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> list[float]:
    """The median of the ratios within each round, the smallest and the largest."""
    each = [our.rate / their.rate for our, their in zip(ours, theirs, strict=True)]
    return [statistics.median(each), min(each), max(each)]
