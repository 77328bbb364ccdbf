"""The console's pages over a view of a million charges: python -m bench.console [CHARGES]

Each page is loaded some times over HTTP, as a browser would, and the median and the slowest time are printed. The journal is
filled without the servers, and the view is built from its feed.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import httpx

from bench import DIRECT
from bench.fill import RECORDS_A_CHARGE, filled
from charging.v1.query_pb2 import GetViewStatusRequest, ListChargesRequest
from charging.v1.query_pb2_grpc import QueryServiceStub
from rig.processes import Town

if TYPE_CHECKING:
    from charging.v1.query_pb2_grpc import QueryServiceAsyncStub

CHARGES = 1_000_000
LOADS = 20
TARGET_MILLISECONDS = 200.0
_LOOK_SECONDS = 1.0
_PATIENT_SECONDS = 30.0


async def measured(charges: int, folder: Path) -> Mapping[str, list[float]]:
    """Return the times of each page's loads in milliseconds, rising."""
    records = charges * RECORDS_A_CHARGE
    town = Town(folder)
    await filled(town.journal, records)
    async with town:
        await town.start_query()
        await town.start_console()
        async with grpc.aio.insecure_channel(town.query.listen, options=DIRECT) as channel:
            queries = QueryServiceStub(channel)
            began = time.monotonic()
            while (await queries.GetViewStatus(GetViewStatusRequest())).as_of_position < records:  # noqa: ASYNC110  # it is polled
                await asyncio.sleep(_LOOK_SECONDS)
            print(f"the view has {charges:,} charges, after {time.monotonic() - began:.0f} s")
            places = await _places(queries)
        found = {}
        async with httpx.AsyncClient(
            base_url=f"http://{town.console.listen}", timeout=_PATIENT_SECONDS, trust_env=False, follow_redirects=True
        ) as client:
            for name, place in places.items():
                found[name] = [await _load(client, place) for _ in range(LOADS)]
        return found


async def _places(queries: "QueryServiceAsyncStub") -> Mapping[str, str]:
    """Return the pages by what they show; the one far down the list is reached by its page token."""
    page = await queries.ListCharges(ListChargesRequest(page_size=1000))
    charge = page.charges[0]
    for _ in range(20):
        page = await queries.ListCharges(ListChargesRequest(page_size=1000, page_token=page.next_page_token))
        if not page.next_page_token:
            break
    return {
        "now": "/",
        "charges": "/charges",
        "charges, far down": f"/charges?page={page.next_page_token}",
        "charges of a user": f"/charges?user={charge.user_id}",
        "charges of a status": "/charges?status=charged",
        "charges of a status that none has": "/charges?status=abandoned",
        "charges of a user and a status": f"/charges?user={charge.user_id}&status=declined",
        "charges unfinished for a day": "/charges?stage=unfinished&age=1d",
        "charges in review": "/charges?stage=in+review",
        "charges before a time": "/charges?to=2020-01-01T00:00",
        "charges of a status, before a time": "/charges?status=declined&to=2099-01-01T00:00",
        "a charge": f"/search?q={charge.idempotency_key}",
        "a user": f"/user?id={charge.user_id}",
        "live": "/live",
        "servers": "/servers",
        "reconciliation": "/reconciliation",
    }


async def _load(client: httpx.AsyncClient, place: str) -> float:
    began = time.perf_counter()
    (await client.get(place)).raise_for_status()
    return (time.perf_counter() - began) * 1_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description="Times the console's pages.")
    parser.add_argument("charges", type=int, nargs="?", default=CHARGES, help=f"default: {CHARGES:,}")
    parser.add_argument("--folder", type=Path, help="keep the files here, for another run")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(measured(chosen.charges, folder))
    print(f"{'page':<38}{'median':>10}{'slowest':>10}   ms, of {LOADS} loads")
    for name, times in found.items():
        late = "  later than the target" if statistics.median(times) > TARGET_MILLISECONDS else ""
        print(f"{name:<38}{statistics.median(times):>10.1f}{max(times):>10.1f}{late}")
    print(f"the slowest page's median: {max(map(statistics.median, found.values())):.1f} ms")


if __name__ == "__main__":
    main()
