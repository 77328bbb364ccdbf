"""The two PostgreSQL nodes of the compose file, by their own scripts and settings; only TLS is left out."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import composed
from rig.world import until
from tests.deploy.composed import ComposedNode


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[ComposedNode, ComposedNode]]:
    composed.make_all(tmp_path / "files")
    first, second = (ComposedNode(name, tmp_path / "files") for name in ("postgres-1", "postgres-2"))
    first.other, second.other = second, first
    yield first, second
    first.close()
    second.close()


async def test_the_second_copies_the_first_and_commits_wait_for_it(nodes: tuple[ComposedNode, ComposedNode]) -> None:
    first, second = nodes
    await first.start()
    await second.start()
    assert second.sql("SELECT pg_is_in_recovery()") == "t"
    await until(
        lambda: first.sql("SELECT application_name, sync_state FROM pg_stat_replication") == "postgres_2|quorum"
    )
    first.sql("CREATE TABLE kept (it int)")
    await second.stop()
    waiting = asyncio.create_task(asyncio.to_thread(first.sql, "INSERT INTO kept VALUES (1)"))
    await until(lambda: first.sql("SELECT wait_event FROM pg_stat_activity WHERE query LIKE 'INSERT%'") == "SyncRep")
    assert not waiting.done()
    await second.start()
    await waiting
    await until(lambda: second.sql("SELECT it FROM kept") == "1")


async def test_a_node_that_lost_its_disk_copies_the_other_and_begins_nothing(
    nodes: tuple[ComposedNode, ComposedNode],
) -> None:
    """The first one too, after the second took its place; and without the other it does not start, unless it may begin."""
    first, second = nodes
    assert second.refuses_to_begin() == "postgres_2 has no data, and 127.0.0.1 does not answer\n"
    await first.start()
    await second.start()
    identity = "SELECT system_identifier FROM pg_control_system()"
    same = second.sql(identity)
    await first.stop()
    await second.promote_here()
    shutil.rmtree(first.data)
    await first.start()
    assert first.sql(identity) == same
    assert first.sql("SELECT pg_is_in_recovery()") == "t"
    await until(
        lambda: second.sql("SELECT application_name, sync_state FROM pg_stat_replication") == "postgres_1|quorum"
    )


async def test_the_roles_are_let_in_by_their_passwords_to_what_is_theirs(
    nodes: tuple[ComposedNode, ComposedNode],
) -> None:
    first, _ = nodes
    await first.start()
    secrets = first.folder / "secrets"
    right = (secrets / "chargeonce-password").read_text()
    assert first.logs_in("chargeonce", "chargeonce", right) == ""
    assert "password authentication failed" in first.logs_in("chargeonce", "chargeonce", "wrong")
    assert "no pg_hba.conf entry" in first.logs_in("chargeonce", "postgres", right)
    assert "no pg_hba.conf entry" in first.logs_in(
        "postgres", "chargeonce", (secrets / "postgres-password").read_text()
    )
