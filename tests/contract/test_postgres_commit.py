"""Commits to PostgreSQL that go wrong: each is found out about, and is told once and stored once, or was not stored."""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence

import asyncpg
import pytest

from command_service.journal import (
    Journal,
    JournalBusy,
    JournalCorrupt,
    JournalFull,
    JournalRefused,
    NotStored,
    Record,
    VersionConflict,
)
from command_service.journal.postgres import statements
from prove.network.faultproxy import Fault, Kind, Way
from rig.postgres import Connection, Node, database
from tests.contract.journal_rigs import PostgresRig, add, stream
from tests.contract.postgres_rigs import COMMIT, COMMITTED, END_OURS, gapless, proxied, until


@pytest.fixture
def rig(postgres_url: str) -> PostgresRig:
    return PostgresRig(postgres_url)


# ---------------------------------------------------------------- answers that are lost
async def test_a_commit_that_is_cut_off_at_any_byte_is_told_once_and_stored_once(rig: PostgresRig) -> None:
    """Before the commit has come to the database, or after it was done there."""
    cuts = [(Way.UP, COMMIT, number) for number in range(len(COMMIT))]
    cuts += [(Way.DOWN, COMMITTED, number) for number in range(len(COMMITTED))]
    async with proxied(rig) as (journal, proxy):
        for version, (way, packet, after) in enumerate(cuts):
            proxy.order(Fault((Kind.CUT, Kind.RESET)[version % 2], way, when=packet, after_bytes=after))
            (record,) = await add(journal, stream(1), version, [b"%d" % version], finished=False)
            assert (record.position, record.version) == (version + 1, version + 1)
        assert proxy.fired[Kind.CUT] + proxy.fired[Kind.RESET] == len(cuts)
    gapless(rig, list(range(1, len(cuts) + 1)))


async def test_a_batch_whose_answer_is_lost_is_told_to_each_of_its_callers(rig: PostgresRig) -> None:
    """To those who lose the race for a stream, too: they have lost it to the batch itself, or before it."""
    async with proxied(rig) as (journal, proxy):
        for after in (0, len(COMMITTED) - 1):
            proxy.order(Fault(Kind.CUT, Way.DOWN, when=COMMITTED, after_bytes=after))
            streams = [stream(100 * after + number // 2) for number in range(20)]
            outcomes = await asyncio.gather(
                *(journal.append(each, 0, [b"%d" % number], finished=False) for number, each in enumerate(streams))
            )
            told = [it for it in outcomes if not isinstance(it, VersionConflict)]
            assert len(told) == 10
            for (record,) in told:
                assert [record] == list(await journal.read(record.charge_id))
    assert len(rig.moment().records) == 20


async def test_a_commit_that_is_cut_off_again_and_again_is_told_once_and_stored_once(rig: PostgresRig) -> None:
    async with proxied(rig) as (journal, proxy):
        proxy.order(*[Fault(Kind.RESET, Way.DOWN, when=COMMITTED), Fault(Kind.RESET, Way.UP, when=COMMIT)] * 5)
        await add(journal, stream(1), 0, [b"a", b"b"], finished=False)
    gapless(rig, [1, 2])


async def test_another_server_goes_on_from_a_commit_whose_answer_was_lost(rig: PostgresRig) -> None:
    """It takes the stream further before the first one has found out; both appends are told."""
    async with proxied(rig) as (journal, proxy), rig.open("other") as other:
        proxy.order(Fault(Kind.CUT, Way.DOWN, when=COMMITTED))
        appending = asyncio.create_task(add(journal, stream(1), 0, [b"a"], finished=False))

        async def goes_on() -> bool:
            return not isinstance(await other.append(stream(1), 1, [b"b"], finished=True), VersionConflict)

        await until(goes_on)
        (record,) = await appending
        assert (record.position, record.event) == (1, b"a")
    gapless(rig, [1, 2])


async def test_a_server_whose_commit_is_settled_drives_what_it_began_and_nothing_of_others(rig: PostgresRig) -> None:
    async with proxied(rig) as (journal, proxy), rig.open("other") as other:
        await add(other, stream(1), 0, [b"a"], finished=False)
        for number, version in ((1, 1), (2, 0)):
            proxy.order(Fault(Kind.CUT, Way.DOWN, when=COMMITTED))
            await add(journal, stream(number), version, [b"b"], finished=False)
        assert [journal.drives(stream(number)) for number in (1, 2)] == [False, True]
        assert [other.drives(stream(number)) for number in (1, 2)] == [True, False]


async def test_a_backend_that_is_terminated_at_any_moment_loses_nothing_and_doubles_nothing(
    rig: PostgresRig, postgres: Node
) -> None:
    """57P01, and a connection that ends: between statements and amid them."""
    stop = asyncio.Event()
    appended = 0

    async def append() -> None:
        nonlocal appended
        while not stop.is_set():
            await add(journal, stream(1), appended, [b"%d" % appended], finished=False)
            appended += 1

    async with rig.open() as journal:
        appending = asyncio.create_task(append())
        for _ in range(30):
            await postgres.execute(END_OURS, rig.place.url.database)
            before = appended
            await until(lambda: appended > before)  # noqa: B023  # it is over before the next one begins
        stop.set()
        await appending
    gapless(rig, list(range(1, appended + 1)))


# ---------------------------------------------------------------- errors at every statement
# An unprivileged role, whose reads ask a policy, and whose writes ask a trigger. What is raised is noted in a sequence, which a
# rollback does not take back.
FAULTS = """
CREATE SCHEMA fault;
CREATE TABLE fault.due (place text, code text, times bigint);
CREATE SEQUENCE fault.fired MINVALUE 0 START 0;
SELECT nextval('fault.fired');
CREATE FUNCTION fault.at(here text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE due fault.due;
    BEGIN
        SELECT * INTO due FROM fault.due WHERE place = here;
        IF FOUND AND nextval('fault.fired') <= due.times THEN
            RAISE EXCEPTION 'a fault of the test' USING ERRCODE = due.code;
        END IF;
        RETURN true;
    END $$;
CREATE FUNCTION fault.before() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM fault.at(TG_ARGV[0]);
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END $$;
CREATE TRIGGER faulty BEFORE INSERT ON chargeonce.record FOR EACH ROW EXECUTE FUNCTION fault.before('insert');
CREATE TRIGGER faulty BEFORE UPDATE ON chargeonce.head FOR EACH ROW EXECUTE FUNCTION fault.before('head');
CREATE TRIGGER faulty BEFORE DELETE ON chargeonce.unfinished FOR EACH ROW EXECUTE FUNCTION fault.before('finish');
CREATE TRIGGER faulty BEFORE INSERT ON chargeonce.server FOR EACH ROW EXECUTE FUNCTION fault.before('register');
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON chargeonce.record DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fault.before('commit');
ALTER TABLE chargeonce.head ENABLE ROW LEVEL SECURITY;
ALTER TABLE chargeonce.record ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON chargeonce.head FOR SELECT USING (true);
CREATE POLICY faulty ON chargeonce.head FOR UPDATE USING (fault.at('lock'));
CREATE POLICY faulty ON chargeonce.record FOR SELECT USING (fault.at('versions'));
CREATE POLICY writable ON chargeonce.record FOR INSERT WITH CHECK (true);
GRANT USAGE ON SCHEMA chargeonce, fault TO charges;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA chargeonce TO charges;
"""
PLACES = ("lock", "versions", "insert", "head", "finish", "commit")


@pytest.fixture
async def faulty(rig: PostgresRig, postgres: Node) -> AsyncIterator[tuple[PostgresRig, Connection]]:
    """The rig as an unprivileged role has it, and a connection that orders faults."""
    with contextlib.suppress(asyncpg.DuplicateObjectError):
        await postgres.execute("CREATE ROLE charges LOGIN")
    connection = await asyncpg.connect(rig.url)
    await connection.execute(FAULTS)
    yield PostgresRig(rig.url.replace("//postgres@", "//charges@"), is_made=True), connection
    await connection.close()


async def order(connection: Connection, place: str, code: str, times: int) -> None:
    async with connection.transaction():
        await connection.execute("TRUNCATE fault.due; SELECT setval('fault.fired', 0)")
        await connection.execute("INSERT INTO fault.due VALUES ($1, $2, $3)", place, code, times)


async def fired(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT last_value FROM fault.fired"))


async def test_an_error_at_any_statement_is_mended_by_another_try_or_told_as_not_stored(
    faulty: tuple[PostgresRig, Connection], rig: PostgresRig
) -> None:
    """Serialization failure, deadlock, lock timeout, shutdown, no transaction ids left, full disk, I/O.

    Nothing is doubled, and no position is left out.
    """
    theirs, connection = faulty
    version = 1
    async with theirs.open() as journal:
        await add(journal, stream(1), 0, [b"first"], finished=False)
        for code, place in itertools.product(("40001", "40P01", "55P03", "57P01", "54000", "53100", "58030"), PLACES):
            await order(connection, place, code, times=1)
            is_told = code == "53100" and place != "commit"  # what a commit says is looked up in any case
            (outcome,) = await asyncio.gather(
                add(journal, stream(1), version, [place.encode()], finished=True), return_exceptions=True
            )
            assert isinstance(outcome, JournalFull) == is_told
            assert await fired(connection) > 0
            await order(connection, "", "", 0)
            await add(journal, stream(1), version + (not is_told), [b"again"], finished=False)
            version += 1 + (not is_told)
    gapless(rig, list(range(1, version + 1)))


@pytest.mark.parametrize("place", PLACES[:-1])
async def test_an_error_that_stays_is_told_as_busy_and_goes_away_with_its_cause(
    place: str, faulty: tuple[PostgresRig, Connection], rig: PostgresRig
) -> None:
    theirs, connection = faulty
    async with theirs.open() as journal:
        await add(journal, stream(1), 0, [b"first"], finished=False)
        await order(connection, place, "40001", times=1_000_000)
        with pytest.raises(JournalBusy):
            await add(journal, stream(1), 1, [b"second"], finished=True)
        assert journal.not_accepting == "busy"
        await order(connection, "", "", 0)
        await add(journal, stream(1), 1, [b"second again"], finished=True)
        assert journal.accepting
    gapless(rig, [1, 2])


async def test_an_error_of_any_kind_neither_ends_reads_nor_the_news_of_other_servers(
    faulty: tuple[PostgresRig, Connection], rig: PostgresRig
) -> None:
    """An I/O error, a fault inside PostgreSQL, a statement that an operator has cancelled."""
    theirs, connection = faulty
    async with theirs.open() as journal, rig.open("other") as other:
        for version, code in enumerate(("58030", "XX000", "57014")):
            await order(connection, "versions", code, times=2)
            await add(other, stream(1), version, [b"a"], finished=False)
            await journal.beyond(version)
            assert len(await journal.read(stream(1))) == version + 1
            assert await fired(connection) > 0
            await order(connection, "", "", 0)
        await order(connection, "versions", "XX001", times=1_000_000)
        with pytest.raises(JournalCorrupt):
            await journal.read(stream(1))


@pytest.mark.parametrize(
    "taken",
    ["DROP SCHEMA chargeonce CASCADE", "REVOKE SELECT ON ALL TABLES IN SCHEMA chargeonce FROM charges"],
)
async def test_a_server_whose_tables_are_taken_away_ends_also_if_nothing_is_asked_of_it(
    taken: str, faulty: tuple[PostgresRig, Connection]
) -> None:
    theirs, connection = faulty
    async with theirs.open():
        await connection.execute(taken)
        await asyncio.wait_for(theirs.has_ended.wait(), 20)


async def test_a_start_that_the_database_has_no_room_for_is_refused(faulty: tuple[PostgresRig, Connection]) -> None:
    theirs, connection = faulty
    await order(connection, "register", "53100", times=1_000_000)
    with pytest.raises(JournalRefused, match="a fault of the test"):
        async with theirs.open():
            pass


@pytest.mark.parametrize("setting", ["idle_session_timeout", "transaction_timeout"])
async def test_a_database_that_ends_connections_by_a_time_limit_ends_nothing_else(
    setting: str, rig: PostgresRig, postgres: Node
) -> None:
    await postgres.execute(f"ALTER DATABASE {rig.place.url.database} SET {setting} = '100ms'")
    async with proxied(rig) as (journal, proxy):
        for version in range(3):
            proxy.order(Fault(Kind.DELAY, Way.UP, when=COMMIT, seconds=0.3))
            await add(journal, stream(1), version, [b"a"], finished=False)
            await asyncio.sleep(0.3)
        holder = await asyncpg.connect(rig.url, server_settings={setting: "0"})
        await holder.execute("BEGIN; SELECT FROM chargeonce.head FOR UPDATE")
        appending = asyncio.create_task(add(journal, stream(1), 3, [b"a"], finished=False))
        await asyncio.sleep(0.5)
        await holder.close()
        await appending
        assert journal.accepting
    # Or it ends the test's own look.
    await postgres.execute(f"ALTER DATABASE {rig.place.url.database} RESET {setting}")
    gapless(rig, [1, 2, 3, 4])


async def test_a_warning_that_transaction_ids_run_out_is_not_taken_for_a_lost_standby() -> None:
    """It comes with each id that is given: whoever tried again for as long as it is warned would use up the rest of them."""
    async with Node() as node:
        await node.stop()
        await use_up_transaction_ids(node)
        await node.start()
        # As a vacuum that cannot get on, which is how it comes to this.
        vacuuming = await node.connect()
        await vacuuming.execute("BEGIN; LOCK TABLE pg_description IN SHARE UPDATE EXCLUSIVE MODE")
        rig = PostgresRig(await database(node))
        async with rig.open() as journal:
            await add(journal, stream(1), 0, [b"a"], finished=False)
            assert not await asyncio.wait_for(journal.reaches(2), 10)
        await vacuuming.close()


async def use_up_transaction_ids(node: Node) -> None:
    """Have a server that is stopped begin with one of its last thirty million."""
    ids_a_file = 1 << 20
    newest = (2**31 - 30_000_000) // ids_a_file * ids_a_file
    await node.run("pg_resetwal", "-x", str(newest), "-D", node.data)
    status = node.data / "pg_xact" / f"{newest // ids_a_file:04X}"
    status.write_bytes(bytes(ids_a_file // 4))
    shutil.chown(status, (node.data / "PG_VERSION").owner())


# ---------------------------------------------------------------- the head's lock
@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever waits for a lock waits for a tenth of a second, and whoever holds it idly loses it after half a one."""
    begin = statements.BEGIN.replace("lock_timeout = 5000", "lock_timeout = 100").replace(
        "session_timeout = 5000", "session_timeout = 500"
    )
    assert begin.count("00") == 2
    monkeypatch.setattr(statements, "BEGIN", begin)
    yield


async def test_a_head_that_somebody_holds_is_told_as_busy_and_waited_for(rig: PostgresRig, impatient: None) -> None:
    async with rig.open() as journal:
        holder = await asyncpg.connect(rig.url)
        await holder.execute("BEGIN; SELECT FROM chargeonce.head FOR UPDATE")
        with pytest.raises(JournalBusy):
            await add(journal, stream(1), 0, [b"a"], finished=False)
        assert journal.not_accepting == "busy"
        await holder.execute("ROLLBACK")
        await holder.close()
        await add(journal, stream(1), 0, [b"b"], finished=False)
        assert journal.accepting
    gapless(rig, [1])


async def test_a_server_that_stands_still_amid_a_commit_holds_up_the_others_for_a_while_only(
    rig: PostgresRig, impatient: None
) -> None:
    """Its commit is undone by the database; when it goes on, it is tried again."""
    async with proxied(rig) as (journal, proxy), rig.open("other") as other:
        proxy.order(Fault(Kind.DELAY, Way.UP, when=COMMIT, seconds=60.0))
        appending = asyncio.create_task(journal.append(stream(1), 0, [b"slow"], finished=False))
        await until(lambda: bool(proxy.fired[Kind.DELAY]))
        proxy.order(*[Fault(Kind.RESET)] * 1_000)  # it does not go on while the other is at work
        (quick,) = await until_stored(other)
        assert quick.position == 1
        proxy.forget()
        assert isinstance(await appending, VersionConflict)
    gapless(rig, [1])


async def until_stored(journal: Journal) -> Sequence[Record]:
    """Append to stream 1 until it is stored."""
    while True:
        with contextlib.suppress(NotStored):
            return await add(journal, stream(1), 0, [b"quick"], finished=False)


# ---------------------------------------------------------------- connections
async def test_a_server_for_which_there_is_no_connection_left_waits_and_goes_on() -> None:
    async with (
        Node(settings={"max_connections": "12", "superuser_reserved_connections": "0"}) as node,
        contextlib.AsyncExitStack() as others,
    ):
        rig = PostgresRig(await database(node))
        operator = await node.connect()
        others.push_async_callback(operator.close)
        async with rig.open() as journal:
            await add(journal, stream(1), 0, [b"a"], finished=False)
            await take_all(node, others)
            await operator.execute(END_OURS, rig.place.url.database)
            await take_all(node, others)
            appending = asyncio.create_task(add(journal, stream(1), 1, [b"b"], finished=False))
            done, _ = await asyncio.wait([appending], timeout=0.5)
            assert not done
            await others.aclose()
            await appending
        gapless(rig, [1, 2])


async def test_a_wait_for_news_that_is_given_up_leaves_no_task_behind(rig: PostgresRig) -> None:
    """A reader that cannot wait for the hint ends the wait; where one server is alone, no hint ever comes."""
    (node,) = rig.place.nodes()
    session = await node.connect()
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(session.news(60))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before
    session.end()


async def take_all(node: Node, others: contextlib.AsyncExitStack) -> None:
    """Take every connection that there is."""
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:
            others.push_async_callback((await node.connect()).close)
