"""Leases as one server of the journal has them, without a bank: what it drives, and for how long."""

import asyncpg
import pytest

from command_service.journal.postgres import leases
from tests.contract.journal_rigs import PostgresRig

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
    rig = PostgresRig(postgres_url)
    connection = await asyncpg.connect(rig.url)
    await connection.execute(LEFT_ALONE)
    await connection.close()
    async with rig.open() as journal:
        assert len(await journal.news()) == 600
