"""Two PostgreSQL servers of which one follows the other synchronously: a primary that may be lost, a standby to take over."""

import asyncio
import shutil
from collections.abc import Mapping

import asyncpg

from rig.postgres import Node
from rig.processes import START_SECONDS, DidNotStart


class Pair:
    """A primary and its synchronous standby, both on this machine. After a fail-over the two have changed places.

    A commit is acknowledged when both have it on their disks: while the standby is away, commits wait.
    """

    def __init__(self, *, password: str = "", settings: Mapping[str, str] | None = None) -> None:
        synchronous = {"synchronous_standby_names": "ANY 1 (a, b)", "synchronous_commit": "on"}
        self.primary = Node(password=password, settings={**synchronous, **(settings or {})})
        self.standby = Node(password=password)
        self._names = {self.primary: "a", self.standby: "b"}

    def dsn(self, database: str = "postgres") -> str:
        """Return how to reach one of the databases at whichever server has it, without the password."""
        return f"postgresql://postgres@{','.join(node.address for node in self._names)}/{database}"

    async def start(self) -> "Pair":
        """Start both, and return when the standby follows. Raises DidNotStart."""
        await self.primary.start()
        await self.rejoin()
        return self

    async def fail_over(self, *, alone: bool = True) -> None:
        """Kill the primary, if it runs, and make the standby the primary.

        Then commits wait no longer for a standby, which is what a manager of fail-overs sets when there is none. Unless it is
        told not to: then they wait until the other rejoins.
        """
        if self.primary.is_running:
            self.primary.kill()
        await self.take_over(alone=alone)

    async def take_over(self, *, alone: bool = True) -> None:
        """Make the standby the primary, whatever the other one does: frozen or cut off, nobody can stop it."""
        await self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        if alone:
            await self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            await self.primary.execute("SELECT pg_reload_conf()")

    async def old_primary_returns(self) -> None:
        """Start the old primary beside the new one, as if nobody had kept it from that: both take writes."""
        await self.standby.start("-c", "synchronous_standby_names=")

    async def rejoin(self) -> None:
        """Let the other, whatever it holds, follow the primary anew.

        Returns when it has all, and when no commit is acknowledged without it any longer.
        """
        if self.standby.is_running:
            self.standby.kill()
        await self._copy_primary()
        await self.standby.start()
        await self.follows()
        await self.primary.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await self.primary.execute("SELECT pg_reload_conf()")
        # The checkpointer sets it for all. It reads it when it is asked for a checkpoint, if it was told by then that there is
        # something to read: and it was, if a new connection begins with what was read.
        for _ in range(int(START_SECONDS / 0.01)):
            if (await self.primary.fetch("SHOW synchronous_standby_names"))[0][0]:
                break
            await asyncio.sleep(0.01)
        await self.primary.execute("CHECKPOINT")
        await self.follows()

    async def follows(self) -> None:
        """Wait until the standby shows what the primary has by now: whoever reads it finds that.

        What committed while the standby was copied is hidden there until the primary logs which transactions still run.
        """
        (now,) = (await self.primary.fetch("SELECT pg_log_standby_snapshot()"))[0]
        streams = (
            "SELECT FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming' AND flush_lsn >= $2"
        )
        shows = "SELECT WHERE pg_last_wal_replay_lsn() >= $1"
        for _ in range(int(START_SECONDS / 0.01)):
            follows = await self.primary.fetch(streams, self._names[self.standby], now)
            if follows and await self.standby.fetch(shows, now):
                return
            await asyncio.sleep(0.01)
        raise DidNotStart(f"the standby does not follow:\n{self.standby.log_text()[-4000:]}")

    async def execute(self, sql: str, *values: object, database: str = "postgres") -> None:
        """Do a statement at the primary, on a connection of its own."""
        await self.primary.execute(sql, *values, database=database)

    async def fetch(self, sql: str, *values: object, database: str = "postgres") -> list[asyncpg.Record]:
        """Do a statement at the primary, on a connection of its own, and return its rows."""
        return await self.primary.fetch(sql, *values, database=database)

    async def __aenter__(self) -> "Pair":
        """Start both, or leave nothing of them."""
        try:
            return await self.start()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Close both."""
        for node in self._names:
            await asyncio.to_thread(node.close)

    async def _copy_primary(self) -> None:
        """Replace what the standby holds, its own settings for replication too."""
        name = self._names[self.standby]
        await self.primary.execute(
            "SELECT pg_create_physical_replication_slot($1, true)"
            " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)",
            name,
        )
        shutil.rmtree(self.standby.data, ignore_errors=True)
        conninfo = f"host=127.0.0.1 port={self.primary.port} user=postgres password={_quoted(self.primary.password)}"
        await self.standby.run(
            *("pg_basebackup", "-D", self.standby.data, "-d", conninfo, "-S", name),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )
        followed = _quoted(f"{conninfo} application_name={name}")
        (self.standby.data / "postgresql.auto.conf").write_text(
            f"primary_conninfo = {followed}\nprimary_slot_name = '{name}'\n"
        )


def _quoted(text: str) -> str:
    """Quote a value, by rules that hold in connection strings as in files of settings."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
