"""A command server's session with a node of a simulated PostgreSQL: the statements.

`command_service.journal.postgres.session` says what each of them promises; `statements.py` there has the real ones.
"""

from collections.abc import Mapping, Sequence

from command_service.journal.postgres.schema import FORMAT
from command_service.journal.postgres.session import HeadRow, Lost, Standing, Undone
from command_service.journal.records import RECORDS_A_READ, Row, Verifiable
from command_service.journal.store import Head
from prove.simulation.lines import Line
from prove.simulation.machine import Machine
from prove.simulation.tables import AtWork, Claimed, Inserted, Nothing, Released


class Session(Line):
    """A session."""

    async def standing(self) -> Standing:
        """Ask the node what it is."""

        def ask() -> Standing:
            is_standby = self._machine.is_standby
            return Standing(is_standby, 0 if is_standby else self._machine.timeline)

        return await self._ask("standing", ask)

    async def begin(self, keys: Sequence[bytes]) -> tuple[HeadRow, Mapping[bytes, int]]:
        """Begin a transaction, and lock the head; return it, and the newest versions."""

        async def begin() -> tuple[HeadRow, Mapping[bytes, int]]:
            if self._is_open:
                self._stage.broke("seam", self._machine.name, "a transaction was begun within another")
            self._is_open, self._has_failed, self._inserted = True, False, None
            self._must_write()
            await self._machine.lock.take(self)
            streams = self._machine.tables.streams
            return self._head_row(), {key: max((row[2] for row in streams.get(key, ())), default=0) for key in keys}

        return await self._await("begin", begin)

    async def insert(
        self, rows: Sequence[Row], head: Head, begun: Sequence[bytes], finished: Sequence[bytes], server: str
    ) -> Sequence[bytes]:
        """Store rows, and move the head."""

        def insert() -> Sequence[bytes]:
            self._must_be_open()
            tables = self._machine.tables
            for position, key, version, *_ in rows:
                if position in tables.rows or version in (row[2] for row in tables.streams.get(key, ())):
                    raise Undone("there is such a record")
            self._inserted = Inserted(rows, head, begun, finished, server)
            return [key for key in begun if key not in tables.unfinished]

        return await self._ask("insert", insert)

    async def commit(self) -> bool:
        """Commit."""

        async def commit() -> bool:
            self._must_be_open()
            self._is_open, inserted = False, self._inserted
            try:
                return await self._machine.commit(inserted) if inserted is not None else True
            finally:
                self._undo()

        return await self._await("commit", commit)

    async def rollback(self) -> None:
        """Undo the transaction."""

        def roll_back() -> None:
            self._undo()
            self._is_open = False

        await self._ask("rollback", roll_back)

    async def confirm(self) -> bool:
        """Commit what changes nothing."""

        async def confirm() -> bool:
            self._must_write()
            return await self._machine.commit(Nothing())

        return await self._await("confirm", confirm)

    async def head(self) -> HeadRow:
        """Read the head."""
        return await self._ask("head", self._head_row)

    async def stream(self, key: bytes) -> Sequence[Verifiable]:
        """Read a stream."""
        return await self._ask("stream", lambda: self._machine.tables.stream(key))

    async def after(self, position: int, until: int) -> Sequence[Row]:
        """Read the records after a position."""
        return await self._ask("after", lambda: self._machine.tables.between(position, until)[:RECORDS_A_READ])

    async def at(self, position: int) -> Verifiable | None:
        """Read one record."""
        return await self._ask("at", lambda: self._machine.tables.at(position))

    async def streams_between(self, position: int, until: int) -> Sequence[bytes]:
        """List the streams of a stretch of records."""
        between = self._machine.tables.between
        return await self._ask("streams between", lambda: sorted({row[1] for row in between(position, until)}))

    async def unfinished(self) -> Sequence[bytes]:
        """List the streams that are not finished."""
        return await self._ask("unfinished", lambda: sorted(self._machine.tables.unfinished))

    # ------------------------------------------------------------ leases: none waits for the standby
    async def register(self, server: str, _name: str, seconds: float) -> HeadRow:
        """Note a server as at work."""

        def register() -> HeadRow:
            machine = self._must_write()
            if server in machine.tables.servers:
                raise Undone("there is such a server")
            machine.commit_here(AtWork(server, machine.now() + seconds))
            return self._head_row()

        return await self._ask("register", register)

    async def renew(self, server: str, seconds: float) -> bool:
        """Note that a server is still at work."""

        def renew() -> bool:
            machine = self._must_write()
            is_at_work = machine.tables.is_at_work(server, machine.now())
            if is_at_work:
                machine.commit_here(AtWork(server, machine.now() + seconds))
            return is_at_work

        return await self._ask("renew", renew)

    async def claim(self, server: str, most: int) -> Sequence[bytes]:
        """Have a server drive what nobody drives."""

        def claim() -> Sequence[bytes]:
            machine = self._must_write()
            locked = machine.locked()
            free = [key for key in machine.tables.driven_by_nobody(machine.now()) if key not in locked][:most]
            if free:
                machine.commit_here(Claimed(server, free))
            return free

        return await self._ask("claim", claim)

    async def driven(self, server: str, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Tell which of some streams a server drives."""
        unfinished = self._machine.tables.unfinished
        return await self._ask("driven", lambda: [key for key in keys if unfinished.get(key) == server])

    async def condemn(self, why: str) -> None:
        """Note that no server is to serve from this journal: in a story it never comes to that."""
        self._stage.broke("I7", self._machine.name, why)

    async def release(self, server: str) -> None:
        """Note that a server is no longer at work."""
        await self._ask("release", lambda: self._must_write().commit_here(Released(server)))

    async def listen(self, server: str) -> None:  # noqa: ARG002  # it hears of its own records too
        """Listen."""

        def listen() -> None:
            self._listens = True

        await self._ask("listen", listen)

    # ------------------------------------------------------------ what is common
    def _must_be_open(self) -> None:
        if not self._is_open or self._has_failed:
            self._stage.broke(
                "seam", self._machine.name, "a statement needs a transaction, and one that has not failed"
            )

    def _must_write(self) -> Machine:
        if self._machine.is_standby:
            raise Lost("a standby writes nothing")
        return self._machine

    def _head_row(self) -> HeadRow:
        head, has_standby = self._machine.tables.head, self._machine.waits_for_standby
        return HeadRow(head, self._around.journal_id, False, FORMAT, "on", has_standby)
