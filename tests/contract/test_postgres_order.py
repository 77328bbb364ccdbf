"""Positions have no gaps and become visible in order, with 16 writers at once; and a sequence would not do."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from command_service.journal import GENESIS, START, Place
from command_service.journal.postgres.session import HeadRow
from command_service.journal.postgres.statements import Statements
from command_service.journal.records import Row, key_of, seal
from command_service.journal.store import Append, Head
from prove.network.faultproxy import Fault, Kind, Way
from tests.contract.journal_rigs import PostgresRig, add, stream
from tests.contract.postgres_rigs import COMMIT, proxied

WRITERS = 16
EACH = 10
HELD_SECONDS = 0.5
"""How long one transaction stays open when it has its position."""


class NumbersFromASequence(Statements):
    """The control: positions are given out at once, and no lock is held until they are visible."""

    async def begin(self, _: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        await self._run(self._connection.execute("BEGIN"))
        ((number,),) = await self._fetch("SELECT nextval('numbers')")
        return HeadRow(Head(Place(number - 1, GENESIS), 0), "", False, 1, "on", False), {}

    async def insert(self, rows: Any, *_: Any) -> Any:
        columns = [list(column) for column in zip(*rows, strict=True)]
        return await self._fetch(
            "INSERT INTO chargeonce.record (position, charge_id, version, recorded_at, chain, event)"
            " SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::integer[], $4::bigint[], $5::bytea[], $6::bytea[])",
            *columns,
        )


async def write(session: Statements, number: int, *, is_slow: bool) -> None:
    """Store records of one stream, each in a transaction of its own; stay in the first one for a while if asked to."""
    key, server = key_of(stream(number)), str(uuid.uuid4())
    for version in range(EACH):
        found, _ = await session.begin([key])
        records, place = seal(Append(stream(number), version, [b"x"], False), key, found.head.place, 0)
        rows: list[Row] = [(it.position, key, it.version, it.recorded_at, it.chain, it.event) for it in records]
        await session.insert(rows, Head(place, 0), [key], [], server)
        if is_slow and version == 0:
            await asyncio.sleep(HELD_SECONDS)
        assert await session.commit()


async def seen_while_many_write(url: str, sessions: Callable[[Any], Statements]) -> list[int]:
    """The positions that a reader sees who asks again and again for what comes after the last one it has."""
    opened = [await asyncpg.connect(url) for _ in range(WRITERS + 1)]
    reader = opened.pop()
    seen: list[int] = []

    async def read() -> None:
        last = seen[-1] if seen else 0
        rows = await reader.fetch("SELECT position FROM chargeonce.record WHERE position > $1 ORDER BY position", last)
        seen.extend(row[0] for row in rows)

    writing = asyncio.gather(
        *(write(sessions(each), number, is_slow=number == 1) for number, each in enumerate(opened, 1))
    )
    while not writing.done():
        await read()
    await writing
    await read()
    for each in (*opened, reader):
        await each.close()
    return seen


@pytest.fixture
def rig(postgres_url: str) -> PostgresRig:
    return PostgresRig(postgres_url)


async def test_who_reads_on_from_the_last_position_sees_each_once_and_in_order(rig: PostgresRig) -> None:
    """While one transaction stays open when it has its position."""
    assert await seen_while_many_write(rig.url, Statements) == list(range(1, WRITERS * EACH + 1))


async def test_with_positions_from_a_sequence_a_reader_misses_some(rig: PostgresRig) -> None:
    """The control: the same writers and the same reader."""
    connection = await asyncpg.connect(rig.url)
    await connection.execute("CREATE SEQUENCE numbers")
    await connection.close()
    seen = await seen_while_many_write(rig.url, NumbersFromASequence)
    assert [position for position, _, _ in rig.moment().records] == list(range(1, WRITERS * EACH + 1))
    assert set(seen) < set(range(1, WRITERS * EACH + 1))


async def test_a_reader_of_the_feed_sees_the_records_of_many_servers_in_order(rig: PostgresRig) -> None:
    """Of sixteen, one of which is slow to commit; what it reads is verified by the chain."""
    async with AsyncExitStack() as stack:
        slow, proxy = await stack.enter_async_context(proxied(rig))
        journals = [slow, *[await stack.enter_async_context(rig.open(f"{n}")) for n in range(1, WRITERS)]]
        proxy.order(Fault(Kind.DELAY, Way.UP, when=COMMIT, seconds=HELD_SECONDS))

        async def fill(number: int) -> None:
            for version in range(EACH):
                await add(journals[number], stream(number), version, [b"x"], finished=False)

        filling = asyncio.gather(*map(fill, range(WRITERS)))
        reader, seen, place = journals[-1], list[int](), START
        while len(seen) < WRITERS * EACH:
            await reader.beyond(place.position)
            records = await reader.read_after(place)
            seen += [record.position for record in records]
            place = Place(records[-1].position, records[-1].chain)
        await filling
    assert seen == list(range(1, WRITERS * EACH + 1))
