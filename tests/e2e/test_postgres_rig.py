"""The real PostgreSQL servers that other tests stand on: they serve, die and come back as the tests rely on."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from rig.postgres import Node, database


async def test_a_test_gets_an_empty_database_of_its_own(postgres: Node, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE mark ()")
    await connection.close()
    connection = await asyncpg.connect(await database(postgres))
    assert await connection.fetchval("SELECT to_regclass('mark')") is None
    assert await connection.fetchval("SHOW fsync") == "on"
    await connection.close()


async def test_a_node_dies_with_all_its_processes_and_comes_back_with_what_was_committed() -> None:
    async with Node() as node:
        await node.execute("CREATE TABLE mark AS SELECT 7 AS number")
        held = await node.connect()
        backend = await held.fetchval("SELECT pg_backend_pid()")
        node.kill()
        assert not node.is_running
        assert not _runs(backend)
        held.terminate()
        await node.start()
        assert [row["number"] for row in await node.fetch("SELECT number FROM mark")] == [7]


async def test_a_paused_node_answers_when_it_goes_on() -> None:
    async with Node() as node:
        held = await node.connect()
        node.pause()
        answer = asyncio.create_task(held.fetchval("SELECT 7"))
        done, _ = await asyncio.wait([answer], timeout=0.3)
        assert not done
        node.resume()
        assert await answer == 7
        await held.close()


async def test_a_node_with_a_password_wants_it() -> None:
    async with Node(password="a word") as node:
        assert await node.fetch("SELECT")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(node.dsn(), password="another word")


def test_a_node_ends_with_the_process_that_started_it_even_if_that_is_killed() -> None:
    start = "import rig.postgres as rig, time; node = rig.Node(); rig.wait_for(node.start()); print(node.folder, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{start}; time.sleep(600)"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        server = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        assert _runs(server)
        process.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not folder.exists():
            break
        time.sleep(0.05)
    assert not folder.exists()
    assert not _runs(server)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
