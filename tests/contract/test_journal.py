"""The contract of command_service/journal/__init__.py: every store must pass these tests."""

import asyncio
import hashlib
import itertools
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from command_service.journal import GENESIS, START, Appended, Journal, JournalCorrupt, Place, Record, VersionConflict
from tests.contract.journal_rigs import STORES, Moment, Rig, add, rig_of, stream


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """An empty store of each kind."""
    return rig_of(request, tmp_path)


@pytest.fixture
async def journal(store: Rig) -> AsyncIterator[Journal]:
    """A new journal in it."""
    async with store.open() as journal:
        yield journal


async def all_of(journal: Journal) -> list[Record]:
    """Read every record like a reader of the feed."""
    records: list[Record] = []
    place = START
    while more := await journal.read_after(place):
        records += more
        place = Place(more[-1].position, more[-1].chain)
    return records


# ---------------------------------------------------------------- storing
async def test_a_new_journal_is_empty_and_has_an_id_of_its_own(journal: Journal) -> None:
    """It has no records, no unfinished streams, and room for more."""
    assert uuid.UUID(journal.journal_id)
    assert (journal.head, journal.restored, journal.accepting) == (START, False, True)
    assert list(await journal.read(stream(1))) == []
    assert list(await journal.read_after(START)) == []
    assert list(await journal.unfinished()) == []


EVENTS = [b"first", b"", bytes(range(256)), b"\x00", b"long" * 25_000]


async def test_records_are_read_as_they_were_appended(journal: Journal) -> None:
    """To the byte, by stream and by position, and equal to the append's result."""
    stored = await add(journal, stream(1), 0, EVENTS, finished=False)
    assert [(record.charge_id, record.version, record.event) for record in stored] == [
        (stream(1), version, event) for version, event in enumerate(EVENTS, 1)
    ]
    assert list(await journal.read(stream(1))) == list(stored)
    assert list(await journal.read_after(START)) == list(stored)


async def test_a_stream_is_read_without_the_records_of_others(journal: Journal) -> None:
    """Even if these lie between its own."""
    for version in range(3):
        for number in (1, 2):
            await add(journal, stream(number), version, [b"%d" % number], finished=False)
    assert [(record.version, record.event) for record in await journal.read(stream(2))] == [
        (1, b"2"),
        (2, b"2"),
        (3, b"2"),
    ]


async def test_a_journal_that_is_opened_again_is_the_same_and_continues_at_its_end(store: Rig) -> None:
    """The same id, head, records and unfinished streams."""
    async with store.open() as journal:
        await add(journal, stream(1), 0, [b"a", b"b"], finished=False)
        before = (journal.journal_id, journal.head, await all_of(journal), list(await journal.unfinished()))
    async with store.open() as journal:
        after = (journal.journal_id, journal.head, await all_of(journal), list(await journal.unfinished()))
        assert after == before
        (record,) = await add(journal, stream(1), 2, [b"c"], finished=True)
        assert (record.position, record.version) == (3, 3)


async def test_closing_finishes_the_requested_appends(store: Rig) -> None:
    """Appends under way are stored and answered, even if one commit cannot take them all."""
    async with store.open() as journal:
        appends = [asyncio.create_task(add(journal, stream(n), 0, [b"x"], finished=False)) for n in range(1_200)]
        await asyncio.sleep(0)  # each has asked
    assert [record.position for append in appends for record in await append] == list(range(1, 1_201))
    async with store.open() as journal:
        assert journal.head.position == 1_200


# ---------------------------------------------------------------- versions
@pytest.mark.parametrize(("versions", "expected"), [(0, 1), (0, 7), (2, 0), (2, 1), (2, 3)])
async def test_an_append_to_another_version_is_refused_and_stores_nothing(
    journal: Journal, store: Rig, versions: int, expected: int
) -> None:
    """Neither the records nor the mark that the stream is finished."""
    if versions:
        await add(journal, stream(1), 0, [b"x"] * versions, finished=False)
    head, moment = journal.head, store.moment()
    assert await journal.append(stream(1), expected, [b"y"], finished=True) == VersionConflict()
    assert (journal.head, store.moment()) == (head, moment)


@pytest.mark.parametrize("version", [0, 3])
async def test_of_racing_writers_on_one_stream_exactly_one_wins(journal: Journal, version: int) -> None:
    """The others get a conflict, and the stream has the winner's records."""
    if version:
        await add(journal, stream(1), 0, [b"x"] * version, finished=False)
    outcomes = await asyncio.gather(
        *(journal.append(stream(1), version, [b"%d" % writer] * 2, finished=False) for writer in range(50)),
    )
    (won,) = [outcome for outcome in outcomes if not isinstance(outcome, VersionConflict)]
    assert Counter(map(type, outcomes))[VersionConflict] == 49
    assert list(await journal.read(stream(1)))[version:] == list(won)
    assert journal.head.position == version + 2


async def test_writers_that_read_again_after_a_conflict_all_succeed(journal: Journal) -> None:
    """No record is lost or overwritten."""

    async def write(name: bytes) -> None:
        outcome: Appended = VersionConflict()
        while outcome == VersionConflict():
            version = len(await journal.read(stream(1)))
            outcome = await journal.append(stream(1), version, [name], finished=False)

    names = [b"%d" % number for number in range(12)]
    await asyncio.gather(*map(write, names))
    records = await journal.read(stream(1))
    assert sorted(record.event for record in records) == sorted(names)
    assert [record.version for record in records] == list(range(1, 13))


async def test_a_conflict_harms_no_append_beside_it_and_leaves_no_gap(journal: Journal, store: Rig) -> None:
    """The first, a middle or the last append of one commit is refused."""
    commits = store.commits()
    outcomes = await asyncio.gather(
        journal.append(stream(9), 5, [b"refused"], finished=False),
        journal.append(stream(1), 0, [b"a", b"b"], finished=False),
        journal.append(stream(1), 0, [b"refused", b"too"], finished=True),
        journal.append(stream(1), 2, [b"c"], finished=False),
        journal.append(stream(2), 0, [b"d"], finished=True),
        journal.append(stream(2), 0, [b"refused"], finished=False),
    )
    assert store.commits() == commits + 1, "they were meant to share a commit"
    refused = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, VersionConflict)]
    assert refused == [0, 2, 5]
    records = await all_of(journal)
    assert [(record.position, record.event) for record in records] == [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")]
    assert set(await journal.unfinished()) == {stream(1)}


async def test_a_commit_of_conflicts_only_stores_nothing(journal: Journal) -> None:
    """And the next append takes the next position."""
    outcomes = await asyncio.gather(*(journal.append(stream(n), 1, [b"x"], finished=False) for n in range(5)))
    assert {type(outcome) for outcome in outcomes} == {VersionConflict}
    (record,) = await add(journal, stream(1), 0, [b"x"], finished=False)
    assert record.position == 1


# ---------------------------------------------------------------- order and visibility
async def append_to_many(journal: Journal, streams: int, versions: int, first: int = 0) -> None:
    """One writer a stream. A stream is unfinished at odd versions."""

    async def write(number: int) -> None:
        for version in range(versions):
            await add(journal, stream(number), version, [b"%d" % version], finished=version % 2 == 1)

    await asyncio.gather(*map(write, range(first, first + streams)))


async def test_positions_count_from_one_without_gaps(store: Rig) -> None:
    """With several writers, conflicts in between, and over a restart."""
    for opening in range(2):
        async with store.open() as journal:
            assert await journal.append(stream(99), 9, [b"x"], finished=False) == VersionConflict()
            await asyncio.gather(
                *(add(journal, stream(opening * 100 + n), 0, [b"x"] * (n % 3 + 1), finished=False) for n in range(30))
            )
    async with store.open() as journal:
        assert [record.position for record in await all_of(journal)] == list(range(1, 121))
        assert journal.head.position == 120


async def test_a_reader_that_tails_sees_every_record_once_in_order_and_none_early(journal: Journal) -> None:
    """While many append: it is shown acknowledged records only, and finds some after each wake-up."""

    async def tail() -> list[Record]:
        place, seen = START, list[Record]()
        while place.position < 400:
            await journal.beyond(place.position)
            records = await journal.read_after(place)
            head = journal.head
            assert records, "woken for nothing"
            assert records[-1].position <= head.position, "shown before it was acknowledged"
            seen += records
            place = Place(records[-1].position, records[-1].chain)
        return seen

    tails = [asyncio.create_task(tail()) for _ in range(3)]
    await append_to_many(journal, streams=40, versions=10)
    for seen in await asyncio.gather(*tails):
        assert [record.position for record in seen] == list(range(1, 401))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(journal.beyond(400), 0.01)


async def test_every_moment_of_the_store_is_whole(journal: Journal, store: Rig) -> None:
    """Read from outside while many append: no position is missing, and `unfinished` belongs to the same moment."""
    moments: list[Moment] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            moments.append(store.moment())

    watching = asyncio.create_task(asyncio.to_thread(watch))
    first = 0
    while len({len(moment.records) for moment in moments}) < 10:
        await append_to_many(journal, streams=20, versions=5, first=first)
        first += 20
    done.set()
    await watching
    for moment in moments:
        assert [position for position, _, _ in moment.records] == list(range(1, len(moment.records) + 1))
        newest = {charge_id: version for _, charge_id, version in moment.records}
        assert moment.unfinished == {charge_id for charge_id, version in newest.items() if version % 2 == 1}
        assert Counter(charge_id for _, charge_id, _ in moment.records) == newest, "versions have no gaps either"


async def test_unfinished_streams_are_those_that_their_last_append_marks(journal: Journal) -> None:
    """A stream may finish at once, finish later, or begin again."""
    await add(journal, stream(1), 0, [b"a"], finished=False)
    await add(journal, stream(2), 0, [b"a", b"b"], finished=True)
    await add(journal, stream(3), 0, [b"a"], finished=False)
    await add(journal, stream(3), 1, [b"b"], finished=True)
    await add(journal, stream(4), 0, [b"a"], finished=True)
    await add(journal, stream(4), 1, [b"b"], finished=False)
    await add(journal, stream(4), 2, [b"b"], finished=False)
    assert sorted(await journal.unfinished()) == [stream(1), stream(4)]


# ---------------------------------------------------------------- reading on
async def test_a_read_is_bounded_and_the_next_one_continues_after_it(journal: Journal) -> None:
    """At most 500 records."""
    await add(journal, stream(1), 0, [b"x"] * 1_100, finished=False)
    first = await journal.read_after(START)
    second = await journal.read_after(Place(500, first[-1].chain))
    third = await journal.read_after(Place(1_000, second[-1].chain))
    assert [len(first), len(second), len(third)] == [500, 500, 100]
    assert [record.position for record in [*first, *second, *third]] == list(range(1, 1_101))


async def test_a_read_of_large_records_is_bounded_by_its_bytes(journal: Journal) -> None:
    """About 1 MiB, but always at least one record: a larger one must not stop its readers for ever."""
    sizes = [400_000, 400_000, 400_000, 3_000_000, 10]
    await add(journal, stream(1), 0, [b"x" * size for size in sizes], finished=False)
    place, reads = START, []
    while records := await journal.read_after(place):
        reads.append([len(record.event) for record in records])
        place = Place(records[-1].position, records[-1].chain)
    assert reads == [[400_000, 400_000], [400_000], [3_000_000], [10]]


async def test_a_reader_waits_exactly_until_the_head_passes_it(journal: Journal) -> None:
    """No longer and no shorter."""
    await add(journal, stream(1), 0, [b"a", b"b"], finished=False)
    await journal.beyond(0)
    await journal.beyond(1)
    waiting = asyncio.create_task(journal.beyond(2))
    assert await journal.append(stream(2), 5, [b"x"], finished=False) == VersionConflict()
    assert not waiting.done(), "a conflict moved nothing"
    await add(journal, stream(2), 0, [b"x"], finished=False)
    await waiting


async def test_no_wake_up_is_lost(journal: Journal) -> None:
    """With any number of readers, whose waits begin at any moment of an append."""
    for position in range(100):
        append = asyncio.create_task(add(journal, stream(position), 0, [b"x"], finished=False))
        waits = [asyncio.create_task(journal.beyond(position)) for _ in range(5)]
        for _ in range(position % 10):
            await asyncio.sleep(0)
        waits += [asyncio.create_task(journal.beyond(position)) for _ in range(5)]
        await asyncio.gather(append, *waits)


async def test_a_reader_that_stops_waiting_takes_no_wake_up_from_others(journal: Journal) -> None:
    """A reader of the feed does so at each heartbeat."""
    waits = [asyncio.create_task(journal.beyond(0)) for _ in range(10)]
    await asyncio.sleep(0)
    for wait in waits[::2]:
        wait.cancel()
    await add(journal, stream(1), 0, [b"x"], finished=False)
    await asyncio.gather(*waits[1::2])


# ---------------------------------------------------------------- the chain
def independent_chain(before: bytes, record: Record) -> bytes:
    """The formula of journal.proto, without the program's code."""
    fields = [
        before,
        record.position.to_bytes(8, "big"),
        uuid.UUID(record.charge_id).bytes,
        record.version.to_bytes(8, "big"),
        record.recorded_at.to_bytes(8, "big"),
        hashlib.sha256(record.event).digest(),
    ]
    return hashlib.sha256(b"".join(fields)).digest()


async def test_the_chain_is_the_contracts(journal: Journal) -> None:
    """Recomputed independently, over records of one commit and of many."""
    await append_to_many(journal, streams=10, versions=4)
    await add(journal, stream(77), 0, EVENTS, finished=True)
    chain = GENESIS
    for record in await all_of(journal):
        chain = independent_chain(chain, record)
        assert record.chain == chain
        assert await journal.chain_at(record.position) == chain
    assert journal.head == Place(45, chain)
    assert await journal.chain_at(0) == GENESIS == bytes(32)


async def test_a_reader_with_another_chain_gets_no_records(journal: Journal) -> None:
    """The next records are verified against the reader's own chain."""
    await add(journal, stream(1), 0, [b"a", b"b"], finished=False)
    with pytest.raises(JournalCorrupt) as raised:
        await journal.read_after(Place(1, bytes(32)))
    assert raised.value.position == 2


# ---------------------------------------------------------------- commits
async def test_appends_that_queue_up_share_a_commit(journal: Journal, store: Rig) -> None:
    """So a durable commit is affordable."""
    before = store.commits()
    await append_to_many(journal, streams=60, versions=5)
    commits = store.commits() - before
    assert journal.head.position == 300
    assert 5 <= commits <= 30


@pytest.mark.parametrize("turns", range(1, 6))
async def test_an_append_whose_caller_has_gone_is_still_stored(journal: Journal, turns: int) -> None:
    """Queued or under way, and no other append is harmed: a client's cancellation never undoes a charge."""
    for version in itertools.count():
        long = asyncio.create_task(add(journal, stream(9), 3_000 * version, [b"x"] * 3_000, finished=True))
        for _ in range(3):
            await asyncio.sleep(0)  # its commit has begun, and takes longer than the turns that follow
        first, second, third = (
            asyncio.create_task(add(journal, stream(number), version, [b"x"], finished=False)) for number in (1, 2, 3)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        if not long.done():
            break
        await asyncio.gather(first, second, third)  # the machine stood still in one of the turns: once more
    long.cancel()
    second.cancel()
    await asyncio.gather(first, third)
    assert {type(outcome) for outcome in await asyncio.gather(long, second, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    assert len(await journal.read(stream(9))) == 3_000 * (version + 1)
    assert [record.event for record in await journal.read(stream(2))] == [b"x"] * (version + 1)
    assert sorted(await journal.unfinished()) == [stream(1), stream(2), stream(3)]


async def test_records_have_the_time_of_their_append(journal: Journal) -> None:
    """In microseconds, by the journal's clock, and never backwards."""
    await append_to_many(journal, streams=3, versions=3)
    moments = [record.recorded_at for record in await all_of(journal)]
    assert all(before <= after for before, after in itertools.pairwise(moments))
    assert all(1_790_000_000_000_000 <= moment < 1_790_000_000_000_100 for moment in moments)
