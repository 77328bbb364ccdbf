"""Leases as one server of the journal has them, without a bank: what it drives, and for how long."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from command_service.journal.postgres import following, leases, store
from command_service.journal.postgres.statements import Statements
from tests.contract.journal_rigs import PostgresRig, add, stream

LEFT_ALONE = """
INSERT INTO chargeonce.unfinished SELECT decode(md5(number::text), 'hex') FROM generate_series(1, 600) AS number
"""


async def test_claiming_more_than_a_lease_has_time_for_comes_to_an_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first ones would be anybody's again while the last ones are claimed, and so on without an end."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "CLAIMED_AT_ONCE", 1)
    monkeypatch.setattr(store, "START_SECONDS", 250.0)  # for 1,200 commits, on any disk
    rig = PostgresRig(postgres_url)
    connection = await asyncpg.connect(rig.url)
    await connection.execute(LEFT_ALONE)
    await connection.close()
    async with rig.open() as journal:
        assert len(await journal.news()) == 600


async def test_whoever_finds_many_records_of_others_hears_of_their_charges_by_and_by(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, but not all at once: in an hour of absence there may be millions."""
    monkeypatch.setattr(following, "RECORDS_TOLD_AT_ONCE", 3)
    asked: list[tuple[int, int]] = []
    ask = Statements.streams_between

    async def noted(session: Statements, after: int, until: int) -> Sequence[bytes]:
        asked.append((after, until))
        return await ask(session, after, until)

    monkeypatch.setattr(Statements, "streams_between", noted)
    rig = PostgresRig(postgres_url)
    async with rig.open() as journal, rig.open("other") as other:
        await journal.news()
        await asyncio.gather(*(add(other, stream(number), 0, [b"a"], finished=False) for number in range(100)))
        heard: set[str] = set()
        while len(heard) < 100:
            heard.update(await journal.news())
        assert heard == {stream(number) for number in range(100)}
    assert max(until - after for after, until in asked) == 3
