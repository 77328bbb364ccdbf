"""A journal whose primary is lost: its standby is followed, a former primary never again, nor a database that has gone back."""

import asyncio
import contextlib
import random
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
import structlog

from command_service.journal import Journal, JournalRefused
from command_service.journal.postgres.cluster import Cluster
from command_service.journal.postgres.session import Lost
from prove.network.faultproxy import Fault, Kind, Proxy, Way
from rig.postgres import Node, database
from rig.postgres_pair import Pair
from tests.contract.journal_rigs import PostgresRig, add, stream
from tests.contract.postgres_rigs import END_OURS, gapless, made_on, until, waits


@pytest.fixture
async def rig(pair: Pair) -> AsyncIterator[PostgresRig]:
    async with made_on(pair) as rig:
        yield rig


async def test_appends_go_on_at_the_standby_when_the_primary_dies_and_comes_back(pair: Pair, rig: PostgresRig) -> None:
    """It is killed amid appends, and then comes back as if nothing had been: it takes writes, and is refused."""
    told: list[int] = []
    stop = asyncio.Event()

    async def append(journal: Journal, number: int) -> None:
        version = 0
        while not stop.is_set():
            (record,) = await add(journal, stream(number), version, [b"x"], finished=False)
            told.append(record.position)
            version += 1

    async def more(count: int) -> None:
        enough = len(told) + count
        await until(lambda: len(told) >= enough)

    with structlog.testing.capture_logs() as logged:
        async with rig.open() as journal, rig.open("other") as other:
            appending = [
                asyncio.create_task(append(each, number)) for number, each in enumerate((journal, other) * 4, 1)
            ]
            await more(100)
            pair.primary.kill()
            await pair.fail_over()
            await more(100)
            await pair.old_primary_returns()
            for _ in range(3):
                await pair.execute(END_OURS, rig.place.url.database)
                await more(50)
            stop.set()
            await asyncio.gather(*appending)
    assert any("takes writes on timeline" in line.get("why", "") for line in logged)
    there = [
        row[0]
        for row in await pair.fetch(
            "SELECT position FROM chargeonce.record ORDER BY 1", database=rig.place.url.database
        )
    ]
    assert sorted(told) == there == list(range(1, len(told) + 1))


@contextlib.asynccontextmanager
async def doors(pair: Pair, rig: PostgresRig) -> AsyncIterator[tuple[Proxy, Proxy, PostgresRig]]:
    """The journal behind a proxy before the present primary, and another one before its standby."""
    first, second = pair.primary.port, pair.standby.port
    async with (
        Proxy(lambda: ("127.0.0.1", first)) as to_first,
        Proxy(lambda: ("127.0.0.1", second)) as to_second,
    ):
        url = f"postgresql://postgres@{to_first.address},{to_second.address}/{rig.place.url.database}"
        yield to_first, to_second, PostgresRig(url, is_made=True)


async def test_a_server_that_has_seen_the_new_primary_never_writes_to_the_old_one_again(
    pair: Pair, rig: PostgresRig
) -> None:
    """Also while it can reach the old one only."""
    async with doors(pair, rig) as (_, to_new, theirs), theirs.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        await pair.fail_over()
        await add(journal, stream(1), 1, [b"b"], finished=False)
        await pair.old_primary_returns()
        to_new.order(*[Fault(Kind.RESET)] * 1_000)
        to_new.end_all(reset=True)
        appending = asyncio.create_task(add(journal, stream(1), 2, [b"c"], finished=False))
        await until(lambda: journal.not_accepting == "away")
        await waits(appending)
        name = rig.place.url.database
        assert await pair.standby.fetch("SELECT FROM chargeonce.head WHERE position = 1", database=name)
        to_new.forget()
        await appending
        assert await pair.fetch("SELECT FROM chargeonce.head WHERE position = 3", database=name)


async def test_a_connection_that_is_slow_to_come_about_is_not_used_when_there_is_a_newer_primary(
    pair: Pair, rig: PostgresRig
) -> None:
    """It was asked for before the promotion, and answered after another one had seen it."""
    async with doors(pair, rig) as (to_old, _, theirs):
        cluster = Cluster(theirs.place.nodes(), random.Random(0))
        to_old.order(Fault(Kind.DELAY, Way.UP, when=b"FROM chargeonce.head", seconds=60.0))
        slow = asyncio.create_task(cluster.connect())
        await until(lambda: bool(to_old.fired[Kind.DELAY]))
        await pair.take_over()
        (await cluster.connect()).end()
        with pytest.raises(Lost):
            await slow


async def test_whoever_stops_waiting_for_a_primary_leaves_no_connection_behind(
    postgres: Node, postgres_url: str
) -> None:
    """One node has answered, and of another nothing is heard: calls end by then, and each would keep one."""
    place = PostgresRig(postgres_url).place
    async with Proxy(lambda: ("127.0.0.1", postgres.port)) as silent:
        silent.order(*[Fault(Kind.BLACK_HOLE)] * 10)
        url = postgres_url.replace(postgres.address, f"{postgres.address},{silent.address}")
        cluster = Cluster(PostgresRig(url, is_made=True).place.nodes(), random.Random(0))

        async def connections() -> int:
            ((count,),) = await postgres.fetch(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chargeonce' AND datname = $1",
                place.url.database,
            )
            return int(count)

        connecting = [asyncio.create_task(cluster.connect()) for _ in range(5)]

        async def have_answered() -> bool:
            return await connections() == len(connecting)

        async def are_gone() -> bool:
            return await connections() == 0

        await until(have_answered)
        for each in connecting:
            each.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        await asyncio.wait_for(until(are_gone), 20)


async def test_a_primary_that_freezes_is_left_for_the_promoted_standby(pair: Pair, rig: PostgresRig) -> None:
    """Its connections stay, and say nothing. When it goes on, what it was sent is not told a second time."""
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        pair.primary.pause()
        appending = asyncio.create_task(add(journal, stream(1), 1, [b"b"], finished=False))
        await waits(appending)
        await pair.take_over()
        await appending
        pair.standby.resume()
        for version in range(2, 5):
            await add(journal, stream(1), version, [b"c"], finished=False)
        pair.standby.kill()
    gapless(rig, [1, 2, 3, 4, 5])


# ---------------------------------------------------------------- a database that is not what it was
async def ended(rig: PostgresRig, journal: Journal, appended: int) -> str:
    """Return why the journal has ended its process; nothing more was appended."""
    with structlog.testing.capture_logs() as logged:
        appending = asyncio.create_task(journal.append(stream(1), appended, [b"x"], finished=False))
        await asyncio.wait_for(rig.has_ended.wait(), 20)
        assert not appending.done()
        appending.cancel()
    return " ".join(str(line.get("reason", "")) for line in logged)


def _home(rig: PostgresRig) -> str:
    with rig.place.read() as found:
        return found.home


async def test_a_database_that_was_set_back_to_an_earlier_time_ends_the_server_and_all_later_ones() -> None:
    """From a copy of its files, while the server is at work. A server that is started anew remembers nothing, and finds the
    mark of the one that did, until the journal is restored under a new id."""
    async with Node() as node:
        rig = PostgresRig(await database(node))
        async with rig.open() as journal:
            await add(journal, stream(1), 0, [b"a"], finished=False)
        await node.stop()
        earlier = node.folder / "earlier"
        await asyncio.to_thread(lambda: subprocess.run(["cp", "-a", node.data, earlier], check=True))
        await node.start()
        async with rig.open() as journal:
            await add(journal, stream(1), 1, [b"b"], finished=False)
            await node.stop()
            shutil.rmtree(node.data)
            earlier.rename(node.data)
            await node.start()
            former = journal.journal_id
            assert "restored to an earlier time" in await ended(rig, journal, 2)
        with pytest.raises(JournalRefused, match="records that were acknowledged are missing"):
            async with rig.open():
                pass
        assert "2 were acknowledged" in await asyncio.to_thread(_home, rig)
        await asyncio.to_thread(rig.place.restore, None, lambda records: {record.charge_id for record in records})
        async with rig.open() as journal:
            assert (journal.restored, journal.head.position) == (True, 1)
            assert journal.journal_id != former


SPOILT = {
    "another journal": (f"UPDATE chargeonce.head SET journal_id = '{uuid.UUID(int=7)}'", "holds the journal"),
    "another record at the end": ("UPDATE chargeonce.head SET chain = sha256('')", "ends at position 1"),
    "a newer format": ("UPDATE chargeonce.head SET format = 1000", "use the version that wrote it"),
    "no head": ("DELETE FROM chargeonce.head", "lost its head"),
    "no tables": ("DROP SCHEMA chargeonce CASCADE", "migrate"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_a_database_that_holds_something_else_than_was_served_ends_the_server(
    spoilt: str, postgres_url: str
) -> None:
    rig = PostgresRig(postgres_url)
    statement, reason = SPOILT[spoilt]
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        connection = await asyncpg.connect(rig.url)
        await connection.execute(statement)
        await connection.close()
        assert reason in await ended(rig, journal, 1)


IDLE = {
    "no head": SPOILT["no head"],
    "no tables": SPOILT["no tables"],
    "no right to write": ("REVOKE ALL ON chargeonce.server FROM {role}", "permission denied"),
    "another table than ours": ("ALTER TABLE chargeonce.server RENAME COLUMN until TO till", '"until" does not exist'),
}


@pytest.mark.parametrize("spoilt", IDLE)
async def test_a_database_that_cannot_be_used_ends_a_server_that_has_nothing_to_do_too(
    spoilt: str, postgres: Node, postgres_url: str
) -> None:
    """It would be away for ever, and nobody would know why."""
    made = PostgresRig(postgres_url)
    name, role = made.place.url.database, f"role_{made.place.url.database}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN", database=name)
    await postgres.execute(f"GRANT USAGE ON SCHEMA chargeonce TO {role}", database=name)
    await postgres.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA chargeonce TO {role}", database=name)
    rig = PostgresRig(postgres_url.replace("postgres@", f"{role}@"), is_made=True)
    statement, reason = IDLE[spoilt]
    with structlog.testing.capture_logs() as logged:
        async with rig.open():
            await postgres.execute(statement.format(role=role), database=name)
            await asyncio.wait_for(rig.has_ended.wait(), 20)
    assert reason in " ".join(str(line.get("reason", "")) for line in logged)


async def test_a_server_whose_role_lacks_rights_does_not_start_and_names_them(
    postgres: Node, postgres_url: str
) -> None:
    made = PostgresRig(postgres_url)
    name, role = made.place.url.database, f"role_{made.place.url.database}"
    await postgres.execute(f"CREATE ROLE {role} LOGIN", database=name)
    with pytest.raises(JournalRefused, match=r"permission denied for schema chargeonce.*GRANT"):
        async with PostgresRig(postgres_url.replace("postgres@", f"{role}@"), is_made=True).open():
            pass


TORN = {
    "its newest record is lost": "DELETE FROM chargeonce.record WHERE position = 2",
    "all are lost": "DELETE FROM chargeonce.record",
    "its newest record is damaged": "UPDATE chargeonce.record SET event = 'c' WHERE position = 2",
    "its head is an older one": """
        UPDATE chargeonce.head SET (position, chain) = (SELECT position, chain FROM chargeonce.record WHERE position = 1)
    """,
    "its head is damaged": "UPDATE chargeonce.head SET chain = sha256(chain)",
}


@pytest.mark.parametrize("torn", TORN)
async def test_a_server_does_not_start_with_a_journal_whose_head_is_not_its_newest_record(
    torn: str, postgres_url: str
) -> None:
    rig = PostgresRig(postgres_url)
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a", b"b"], finished=False)
    connection = await asyncpg.connect(rig.url)
    await connection.execute(TORN[torn])
    await connection.close()
    with pytest.raises(JournalRefused, match=r"its head is at position [12], .* verify-journal"):
        async with rig.open():
            pass


async def test_a_journal_that_goes_on_elsewhere_than_was_acknowledged_is_refused_at_the_next_connection(
    postgres: Node, postgres_url: str
) -> None:
    """It has the same id and is longer, and holds another record where one was acknowledged."""
    rig, name = PostgresRig(postgres_url), postgres_url.rpartition("/")[2]
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        connection = await asyncpg.connect(rig.url)
        await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await postgres.execute(END_OURS, name)
        await connection.execute("UPDATE chargeonce.record SET chain = sha256('')")
        await connection.execute("UPDATE chargeonce.head SET position = 2, chain = sha256('2')")
        await connection.close()
        await postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert "another record at position 1" in await ended(rig, journal, 1)
