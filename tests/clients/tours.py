"""One run of a client, and what was wrong with it: its own tests, or a tour on one of the roads."""

from pathlib import Path
from random import Random

from tests.clients.books import faults_in_the_books
from tests.clients.programs import Client
from tests.clients.roads import ROADS, TROUBLED
from tests.clients.transcript import differences

# A tour takes some seconds, and gives up a step after a minute. A client's own tests may compile first.
TOUR_SECONDS = 180.0
TESTS_SECONDS = 900.0
TESTS, QUICKSTART = "own tests", "quickstart"
PARTS = (QUICKSTART, TESTS, *ROADS)
"""What is done with the client of a language."""


async def faults_of_tour(client: Client, road: str, folder: Path) -> list[str]:
    """Take the tour; return what was wrong with the client, its transcript, the books or the road, for people."""
    is_troubled = road in TROUBLED
    async with ROADS[road](folder, Random(f"{client.name} {road}")) as way:
        ran = await client.run("tour", folder / "tour", TOUR_SECONDS, **way.environment)
        await way.troubles.aclose()
        found = [
            ran.trouble(),
            differences(ran.out, tenant=way.tenant, is_troubled=is_troubled),
            *await faults_in_the_books(way.town, way.referee, way.tenant),
            "it met no fault, so that nothing is shown" if is_troubled and not way.met else "",
        ]
    return [fault for fault in found if fault]


async def faults_of_tests(client: Client, folder: Path) -> list[str]:
    """Run a client's own tests; return what was wrong."""
    ran = await client.run("test", folder / "tests", TESTS_SECONDS)
    return [f"{ran.out[-8000:]}\n{trouble}"] if (trouble := ran.trouble()) else []
