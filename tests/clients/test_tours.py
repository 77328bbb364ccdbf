"""Every client takes the tour on every road, and sees what each must see; and passes the tests of its own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.programs import LANGUAGES, found
from tests.clients.roads import ROADS
from tests.clients.tours import TESTS, faults_of_tests, faults_of_tour

# A tour mostly waits: two at once take little longer than one on a machine of two cores.
AT_ONCE = 2
# Far more than a run may take, which ends by itself: the one that is waited for, and those before it.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(2_000)]

Runs = Mapping[tuple[str, str], "asyncio.Task[list[str]]"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runs]:
    """The runs of the chosen tests, under way in the order of the tests. Each returns what was wrong."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def run(name: str, part: str) -> list[str]:
        client, folder = LANGUAGES[name], tmp_path_factory.mktemp(f"{name}-{part}".replace(" ", "-"))
        async with turns:
            return await (faults_of_tests(client, folder) if part == TESTS else faults_of_tour(client, part, folder))

    chosen = [
        marker.args
        for item in request.session.items
        if item.path == Path(__file__) and (marker := item.get_closest_marker("client")) is not None
    ]
    under_way = {(name, part): asyncio.create_task(run(name, part)) for name, part in chosen if found(name).is_ready}
    yield under_way
    for task in under_way.values():
        task.cancel()
    await asyncio.gather(*under_way.values(), return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param(name, part, id=f"{name} {part}", marks=pytest.mark.client(name, part))
        for name in LANGUAGES
        for part in (TESTS, *ROADS)
    ],
)
async def test_nothing_is_wrong(runs: Runs, name: str, part: str) -> None:
    if faults := await runs[name, part]:
        pytest.fail("\n\n".join(faults), pytrace=False)
