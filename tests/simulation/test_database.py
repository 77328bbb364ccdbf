"""The simulated PostgreSQL: its sessions answer as real ones do, and a record is as durable as its nodes make it."""

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from command_service.journal import Place
from command_service.journal.postgres.session import Lost, Node, Session, Undone
from command_service.journal.records import Row
from command_service.journal.store import Head
from prove.simulation.database import Database
from prove.simulation.durable import Durable
from prove.simulation.host import Process
from prove.simulation.plan import SHARED, Mask, plan_of
from prove.simulation.stage import Stage
from tests.contract.journal_rigs import PostgresRig

A, B = bytes(15) + b"a", bytes(15) + b"b"
ONE, TWO, UNKNOWN = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
Play = Callable[[Database, Node, Node], Coroutine[Any, Any, None]]


def a_row(position: int, key: bytes, version: int) -> Row:
    return position, key, version, position, bytes(31) + b"%d" % position, b""


def head_at(position: int) -> Head:
    return Head(Place(position, bytes(31) + b"%d" % position), position)


async def store(
    session: Session, rows: Sequence[Row], begun: Sequence[bytes] = (), finished: Sequence[bytes] = ()
) -> bool:
    await session.begin([])
    await session.insert(rows, head_at(rows[-1][0]), begun, finished, ONE)
    return await session.commit()


def play(play_it: Play, *, without_standby: bool = False) -> None:
    """Play with a database on virtual time, to which nothing happens but what the play does."""
    stage = Stage(dataclasses.replace(plan_of(SHARED), weights={}), Mask())
    database = Database(stage, Durable(stage), UNKNOWN)
    if without_standby:
        database.standby, database.primary.waits_for_standby = None, False
    nodes = database.nodes_for(Process("command", 1, Path(), stage.loop))
    stage.loop.run(play_it(database, *nodes))
    assert stage.found == []


# ---------------------------------------------------------------- as a real one
async def answers(node: Node) -> list[Any]:
    """What two sessions of a node say to all that can be asked, but for the journal's id."""
    session, other = await node.connect(), await node.connect()
    told: list[Any] = []

    async def tell(asked: Awaitable[Any]) -> None:
        try:
            told.append(await asked)
        except Undone:
            told.append("undone")

    async def look() -> None:
        told.append((await other.head()).head)
        for asking in (
            *(lambda: other.stream(A), lambda: other.after(1, 3), lambda: other.at(3), lambda: other.at(9)),
            other.unfinished,
        ):
            await tell(asking())
        told.append(set(await other.streams_between(0, 2)))

    await tell(session.standing())
    found = await session.register(ONE, "one", 60.0)
    told.append(found._replace(journal_id=""))
    await tell(session.register(ONE, "one", 60.0))
    await session.rollback()
    await session.register(TWO, "two", 60.0)
    for server in (ONE, UNKNOWN):
        await tell(session.renew(server, 60.0))
    # A transaction is seen when it has ended, and not before.
    await session.begin([])
    await tell(session.insert([a_row(1, A, 1), a_row(2, B, 1), a_row(3, A, 2)], head_at(3), [A, B], [], ONE))
    await look()
    await tell(session.commit())
    await look()
    # A record is stored once, and a stream is begun once.
    for rows in ([a_row(3, A, 3)], [a_row(4, A, 2)]):
        await session.begin([])
        await tell(session.insert(rows, head_at(4), [A], [], TWO))
        await session.rollback()
    told.append((await session.begin([B, bytes(16), A]))[1])
    await tell(session.insert([a_row(4, A, 3)], head_at(4), [A], [B], TWO))
    await tell(session.commit())
    await tell(session.unfinished())
    # What somebody drives is not claimed, nor what a transaction under way has locked.
    await session.begin([])
    await tell(session.insert([a_row(5, B, 2)], head_at(5), [B], [], UNKNOWN))
    await session.commit()
    await session.begin([])
    await session.insert([a_row(6, B, 3)], head_at(6), [], [B], ONE)
    await tell(other.claim(TWO, 10))
    await session.rollback()
    await tell(other.claim(TWO, 10))
    await other.release(ONE)
    await tell(other.claim(TWO, 10))
    await tell(other.confirm())
    for each in (session, other):
        each.end()
    return told


async def test_a_simulated_session_answers_as_a_real_one(postgres_url: str) -> None:
    real = await answers(PostgresRig(postgres_url).place.nodes()[0])
    simulated: list[Any] = []

    async def ask(_: Database, node: Node, __: Node) -> None:
        simulated.extend(await answers(node))

    await asyncio.to_thread(play, ask, without_standby=True)
    assert simulated == real


# ---------------------------------------------------------------- two nodes
def test_a_commit_ends_and_is_seen_when_the_standby_has_it() -> None:
    async def it(database: Database, a: Node, _: Node) -> None:
        writer, reader = await a.connect(), await a.connect()
        assert await store(writer, [a_row(1, A, 1)])
        assert database.standby is not None
        database.standby.kill()
        committing = asyncio.create_task(store(writer, [a_row(2, A, 2)]))
        await asyncio.sleep(60.0)
        assert not committing.done()
        assert (await reader.head()).head == head_at(1)
        database.standby.restart()
        database.follow_again()
        assert await committing
        assert (await reader.head()).head == head_at(2)

    play(it)


def test_what_the_standby_lacks_is_shown_after_a_restart_and_lost_by_a_failover() -> None:
    async def it(database: Database, a: Node, b: Node) -> None:
        standby = database.standby
        assert standby is not None
        standby.kill()
        writer = await a.connect()
        committing = asyncio.create_task(store(writer, [a_row(1, A, 1)]))
        await asyncio.sleep(1.0)
        database.primary.kill()
        with pytest.raises(Lost):
            await committing
        database.primary.restart()
        reader = await a.connect()
        assert (await reader.head()).head == head_at(1)
        confirming = asyncio.create_task(reader.confirm())
        await asyncio.sleep(60.0)
        assert not confirming.done()
        standby.restart()
        database.promote(waits_for_standby=False)
        assert (await (await b.connect()).head()).head.place.position == 0
        await asyncio.sleep(60.0)
        assert not confirming.done()  # a former primary has no standby
        assert (await (await a.connect()).standing()).timeline < (await (await b.connect()).standing()).timeline

    play(it)


def test_a_wait_that_is_cancelled_ends_in_a_commit_that_a_failover_loses() -> None:
    async def it(database: Database, a: Node, b: Node) -> None:
        assert database.standby is not None
        database.standby.kill()
        database.primary.warns = lambda: True
        writer = await a.connect()
        assert not await store(writer, [a_row(1, A, 1)])
        assert (await writer.head()).head == head_at(1)
        database.standby.restart()
        database.promote(waits_for_standby=False)
        assert await store(await b.connect(), [a_row(1, B, 1)])
        database.take_in(database.machines[0])
        reader = await a.connect()
        assert [row[1] for row in await reader.after(0, 9)] == [B]
        assert (await reader.standing()).is_standby

    play(it)


def test_the_lock_is_given_in_order_and_never_to_two() -> None:
    async def it(_: Database, a: Node, __: Node) -> None:
        first, second, third = [await a.connect() for _ in range(3)]
        await first.begin([])
        waiting = asyncio.create_task(second.begin([]))
        await asyncio.sleep(0.1)
        later = asyncio.create_task(third.begin([]))
        await asyncio.sleep(0.1)
        await first.rollback()
        await waiting
        await asyncio.sleep(1.0)
        assert not later.done()
        second.end()  # a session that ends gives it back
        await later
        await (await a.connect()).begin([])  # and so does one that stands still in its transaction
        with pytest.raises(Lost):
            await third.commit()

    play(it)
