"""A journal whose database has a synchronous standby: nothing is told, and nothing is shown, before the standby has it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from command_service.journal import JournalRefused
from command_service.journal.postgres import store
from prove.network.faultproxy import Fault, Kind, Proxy, Way
from rig.postgres import database
from rig.postgres_pair import Pair
from tests.contract.journal_rigs import PostgresRig, add, stream
from tests.contract.postgres_rigs import COMMIT, END_OURS, gapless, made_on, until, waits


@pytest.fixture
async def rig(pair: Pair) -> AsyncIterator[PostgresRig]:
    async with made_on(pair) as rig:
        yield rig


@contextlib.asynccontextmanager
async def without_standby(pair: Pair) -> AsyncIterator[None]:
    """Stop the standby for a while."""
    await pair.standby.stop()
    try:
        yield
    finally:
        if not pair.standby.is_running:
            await pair.standby.start()


async def until_in_syncrep(pair: Pair, rig: PostgresRig) -> int:
    """Wait until a commit of the journal waits for the standby; return its backend."""
    found: list[int] = []

    async def is_found() -> bool:
        rows = await pair.fetch(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'chargeonce'"
            " AND datname = $1",
            rig.place.url.database,
        )
        found.extend(row[0] for row in rows)
        return bool(found)

    await until(is_found)
    return found[0]


async def test_while_the_standby_is_gone_appends_wait_and_none_is_lost(pair: Pair, rig: PostgresRig) -> None:
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"before"], finished=True)
        async with without_standby(pair):
            appending = [
                asyncio.create_task(add(journal, stream(number), 0, [b"x"], finished=True)) for number in range(2, 20)
            ]
            await until(lambda: journal.not_accepting == "away")
            await waits(*appending)
            assert [record.event for record in await journal.read(stream(1))] == [b"before"]
            assert journal.head.position == 1
        await asyncio.gather(*appending)
        assert journal.accepting
    assert [position for position, _, _ in rig.moment().records] == list(range(1, 20))


async def test_while_the_standby_is_gone_nobody_who_asks_for_a_later_position_keeps_others_from_reading(
    pair: Pair, rig: PostgresRig
) -> None:
    """Query servers that have seen more at another server ask for it here, each again and again."""
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"before"], finished=True)
        async with without_standby(pair):
            asking = [asyncio.create_task(journal.reaches(99)) for _ in range(10)]
            await waits(*asking)
            assert [record.event for record in await asyncio.wait_for(journal.read(stream(1)), 30)] == [b"before"]
        assert not any(await asyncio.gather(*asking))


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_commit_whose_wait_is_ended_is_not_told_and_not_shown_before_the_standby_has_it(
    end: str, pair: Pair, rig: PostgresRig
) -> None:
    """PostgreSQL ends the wait with a warning, and everybody can read the record."""
    async with rig.open() as journal, rig.open("other") as other:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        await other.beyond(0)
        async with without_standby(pair):
            appending = asyncio.create_task(add(journal, stream(1), 1, [b"b"], finished=False))
            for _ in range(3):
                await pair.execute(f"SELECT {end}($1)", await until_in_syncrep(pair, rig))
                await until(lambda: stored(rig, pair, 2))
            reading = asyncio.create_task(other.read(stream(1)))
            following = asyncio.create_task(other.beyond(1))
            await waits(appending, reading, following)
            assert journal.head.position == other.head.position == 1
            assert len(await other.read_after(other.head)) == 0
        (record,) = await appending
        assert (await reading)[-1] == record
        await following
    gapless(rig, [1, 2])


async def test_a_role_that_is_shown_no_warnings_is_told_of_a_wait_that_was_ended_all_the_same(
    pair: Pair, rig: PostgresRig
) -> None:
    """The setting of a role or a database: without the warning the commit looks like any other."""
    await pair.execute(f"ALTER DATABASE {rig.place.url.database} SET client_min_messages = 'error'")
    async with rig.open() as journal, rig.open("other") as other:
        async with without_standby(pair):
            appending = asyncio.create_task(add(journal, stream(1), 0, [b"a"], finished=False))
            for _ in range(2):
                await pair.execute("SELECT pg_cancel_backend($1)", await until_in_syncrep(pair, rig))
                await until(lambda: stored(rig, pair, 1))
            following = asyncio.create_task(other.beyond(0))
            await waits(appending, following)
        await asyncio.gather(appending, following)
    gapless(rig, [1])


async def stored(rig: PostgresRig, pair: Pair, position: int) -> bool:
    """Whether the primary shows a record."""
    return bool(
        await pair.fetch("SELECT FROM chargeonce.record WHERE position = $1", position, database=rig.place.url.database)
    )


async def test_a_commit_that_the_standby_never_got_is_made_again_where_the_standby_is_promoted(
    pair: Pair, rig: PostgresRig
) -> None:
    """Its wait was ended, so that the old primary shows it; then that one dies."""
    async with rig.open() as journal, rig.open("other") as other:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        await other.beyond(0)
        await pair.standby.stop()
        appending = asyncio.create_task(add(journal, stream(1), 1, [b"b"], finished=False))
        await pair.execute("SELECT pg_cancel_backend($1)", await until_in_syncrep(pair, rig))
        await until(lambda: stored(rig, pair, 2))
        reading = asyncio.create_task(other.read(stream(1)))
        await waits(appending, reading)
        pair.primary.kill()
        await pair.standby.start()
        await pair.fail_over()
        (record,) = await appending
        await other.beyond(1)
        assert list(await other.read(stream(1)))[1:] == [record]
        await reading
    gapless(rig, [1, 2])


# ---------------------------------------------------------------- commits that do not wait
@pytest.mark.parametrize("level", ["off", "local", "remote_write"])
async def test_commits_that_could_be_lost_are_refused_at_the_start_and_noticed_at_work(
    level: str, pair: Pair, rig: PostgresRig
) -> None:
    name = rig.place.url.database
    async with rig.open() as journal:
        await add(journal, stream(1), 0, [b"a"], finished=False)
        await pair.execute(f"ALTER DATABASE {name} SET synchronous_commit = {level}")
        with pytest.raises(JournalRefused, match=f"synchronous_commit is {level}"):
            async with rig.open("another"):
                pass
        await pair.execute(END_OURS, name)
        appending = asyncio.create_task(journal.append(stream(1), 1, [b"b"], finished=False))
        await asyncio.wait_for(rig.has_ended.wait(), 30)
        assert not appending.done()
        appending.cancel()
    gapless(rig, [1])


async def test_a_setting_that_changes_amid_a_transaction_does_not_spoil_its_commit(
    pair: Pair, rig: PostgresRig
) -> None:
    """The server looks before it writes; what it saw must hold until the commit."""
    async with Proxy(lambda: ("127.0.0.1", pair.primary.port)) as proxy:
        near = rig.url.replace(pair.primary.address, proxy.address).replace(pair.standby.address, proxy.address)
        async with PostgresRig(near, is_made=True).open() as journal:
            await add(journal, stream(1), 0, [b"a"], finished=False)
            async with without_standby(pair):
                proxy.order(Fault(Kind.DELAY, Way.UP, when=COMMIT, seconds=1.0))
                appending = asyncio.create_task(journal.append(stream(1), 1, [b"b"], finished=False))
                await until(lambda: bool(proxy.fired[Kind.DELAY]))
                await set_for_all(pair, "synchronous_commit = off")
                await until_in_syncrep(pair, rig)
                await waits(appending)
                await set_for_all(pair, "synchronous_commit = on")
            appending.cancel()  # the server has noticed, and serves no more


async def set_for_all(pair: Pair, setting: str) -> None:
    """Change a setting of the primary, for connections that are open too."""
    await pair.execute(f"ALTER SYSTEM SET {setting}")
    await pair.execute("SELECT pg_reload_conf()")


# ---------------------------------------------------------------- a database that is none
async def test_a_standby_alone_is_not_served_from(
    pair: Pair, rig: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "START_SECONDS", 1.0)
    theirs = PostgresRig(pair.standby.dsn(rig.place.url.database), is_made=True)
    with pytest.raises(JournalRefused, match="no primary of the database"):
        async with theirs.open():
            pass


async def test_a_standby_that_does_not_have_the_database_yet_keeps_nobody_from_its_start(pair: Pair) -> None:
    await pair.standby.execute("SELECT pg_wal_replay_pause()")
    try:
        url = await database(pair)
        rig = PostgresRig(pair.primary.dsn(url.rpartition("/")[2]))
        async with PostgresRig(url, is_made=True).open() as journal:
            await add(journal, stream(1), 0, [b"a"], finished=False)
        gapless(rig, [1])
    finally:
        await pair.standby.execute("SELECT pg_wal_replay_resume()")


async def test_a_database_without_a_journal_is_refused_with_the_way_out(postgres_url: str) -> None:
    with pytest.raises(JournalRefused, match="migrate"):
        async with PostgresRig(postgres_url, is_made=True).open():
            pass
