"""The services of deploy/compose.yaml without an engine: their own commands, environments and health checks, in its order.

Hosts are this machine and ports are free ones. What the file mounts lies in a folder, and what a container would have at a path
is found there: all paths and addresses of commands, of the environment and of scripts are replaced, and nothing else is.
"""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig import composed
from rig.postgres import Node
from rig.postgres_tls import behind_tls
from rig.processes import STOP_SECONDS, free_address
from tests.deploy.deployment import DEPLOY, compose, entrypoint

BIN = Path(sys.executable).parent
# Far more than a start takes, for a machine that is busy with other things.
START_SECONDS = 60.0
# What the image's own entry point does. The node listens where the test can reach it, and on nothing else.
ENTRYPOINT = """#!/bin/sh
set -eu
shift
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata="$PGDATA" --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
    pg_ctl --pgdata="$PGDATA" --wait --options="$* -p $PORT -c listen_addresses= -c unix_socket_directories=$SOCKETS" start
    PGHOST=$SOCKETS PGPORT=$PORT FIRST
    pg_ctl --pgdata="$PGDATA" --wait --mode=fast stop
fi
exec postgres -D "$PGDATA" -p "$PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$SOCKETS" "$@"
"""
# The programs at hand are built without TLS, and their user is not `postgres`.
WITHOUT_TLS = (("ssl = on", "ssl = off"), ("hostssl", "host   "), ("verify-full", "disable"), ("peer", "trust"))


@dataclass
class Service:
    """A service of the compose file, and its process."""

    name: str
    described: Mapping[str, Any]
    folder: Path
    paths: Mapping[str, Path]
    """Where the container's paths are."""
    addresses: Mapping[str, str]
    """Where host:port is; the service's own ports are localhost's."""
    log: Path
    process: asyncio.subprocess.Process | None = None

    def here(self, text: str) -> str:
        """Replace the container's addresses and paths by those of this machine."""
        for address, at in self.addresses.items():
            host, _, port = address.partition(":")
            text = re.sub(rf"\b{host}:{port}\b", at, text)
            text = text.replace(f"'{host}', {port}", f"'localhost', {at.rpartition(':')[2]}")
        text = re.sub(r"\b0\.0\.0\.0:(\d+)", lambda found: self._own(found[1], "0.0.0.0"), text)
        return re.sub(
            "|".join(rf"(?<![\w/.-]){re.escape(path)}(?![\w-])" for path in sorted(self.paths, key=len, reverse=True)),
            lambda found: str(self.paths[found[0]]),
            text,
        )

    def _own(self, port: str, host: str) -> str:
        return f"{host}:{self.addresses[f'localhost:{port}'].rpartition(':')[2]}"

    @property
    def environment(self) -> dict[str, str]:
        """The process's whole environment."""
        given = {name: self.here(value) for name, value in self.described["environment"].items()}
        return {"PATH": f"{BIN}:/usr/bin:/bin", "LC_ALL": "C", **given}

    @property
    def words(self) -> list[str]:
        """The process's command line."""
        words = [*self.described.get("entrypoint", entrypoint()), *self.described["command"]]
        return [self.here(word.replace("$$", "$")) for word in words]

    async def begin(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.words, env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def is_healthy(self) -> bool:
        """Do its health check once."""
        asked = await asyncio.create_subprocess_exec(
            *(self.here(word) for word in self.described["healthcheck"]["test"][1:]),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return await asked.wait() == 0

    async def meets(self, condition: str) -> None:
        """Wait for a condition of `depends_on`."""
        assert self.process is not None
        if condition == "service_completed_successfully":
            assert await asyncio.wait_for(self.process.wait(), START_SECONDS) == 0, self.log.read_text()
            return
        assert condition == "service_healthy"
        async with asyncio.timeout(START_SECONDS):
            while not await self.is_healthy():
                assert self.process.returncode is None, self.log.read_text()[-4000:]
                await asyncio.sleep(0.1)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, and return its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)


class ComposedNode(Node):
    """A PostgreSQL node that is started as the compose file does it."""

    def __init__(self, name: str, files: Path) -> None:
        super().__init__()
        self.name = name
        self.described = compose()[name]
        self.other: ComposedNode | None = None
        self._script = self._prepare(files)

    async def _make_data(self) -> None:
        """Leave it to the script."""

    def _begin(self, _: Sequence[str]) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, "/bin/sh", self._script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_composed(),
            )
        self._tell_watch(str(self._process.pid))
        return self._process

    def refuses_to_begin(self) -> str:
        """Run the script where it must not start a server, and return what it says."""
        done = subprocess.run(
            [*self._as_user, "/bin/sh", self._script],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
            **self._as_composed(),
        )
        assert done.returncode == 1, done
        return str(done.stderr)

    def sql(self, statement: str) -> str:
        """Do a statement as the superuser, over the socket, and return what it answers."""
        done = subprocess.run(
            [
                *self._as_user,
                self._programs / "psql",
                "-h",
                self.folder / "run",
                "-p",
                str(self.port),
                "-U",
                "postgres",
                "-At",
                "-c",
                statement,
            ],
            capture_output=True,
            text=True,
            check=True,
            **self._as_composed(),
        )
        return str(done.stdout).strip()

    async def promote_here(self) -> None:
        """Let it follow no other any longer, as a person would do it in its container."""
        await asyncio.to_thread(self.sql, "SELECT pg_promote()")

    def logs_in(self, user: str, database: str, password: str) -> str:
        """Log in over TCP and return what is said against it."""
        done = subprocess.run(
            [
                *self._as_user,
                self._programs / "psql",
                f"host=127.0.0.1 port={self.port} user={user} dbname={database}",
                "-c",
                "SELECT",
            ],
            capture_output=True,
            text=True,
            check=False,
            **{**self._as_composed(), "env": {**self._as_composed()["env"], "PGPASSWORD": password}},
        )
        return str(done.stderr)

    def _as_composed(self) -> dict[str, Any]:
        assert self.other is not None
        environment = {
            **{name: self._here(value) for name, value in self.described["environment"].items()},
            "OTHER": "127.0.0.1",
            "PGPORT": str(self.other.port),  # where PostgreSQL's own clients find the other
            "PORT": str(self.port),
            "SOCKETS": str(self.folder / "run"),
            "PGDATA": str(self.data),
            "PATH": f"{self.folder / 'bin-of-image'}:{self._programs}:/usr/bin:/bin",
        }
        return {"cwd": self.folder, "env": environment}

    def _here(self, text: str) -> str:
        for path, at in (
            ("/tls", "tls"),
            ("/run/postgresql", "run"),
            ("/run/secrets", "secrets"),
            ("/etc/postgresql", "etc"),
        ):
            text = re.sub(rf"(?<![\w-]){path}(?![\w-])", str(self.folder / at), text)
        return text

    def _prepare(self, files: Path) -> Path:
        """Lay the files that the compose file mounts into the node's folder, and return the script that starts it."""
        made: list[Path] = []

        def lay(name: str, content: str, mode: int = 0o600) -> Path:
            file = self.folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
            file.chmod(mode)
            made.extend((file.parent, file))
            return file

        for name in ("tls.crt", "tls.key", "ca.crt"):
            lay(f"tls/{name}", (files / "certs" / "postgres" / name).read_text())
        for name in composed.PASSWORDS:
            lay(f"secrets/{name}", (files / "passwords" / name).read_text())
        scripts = {}
        for name, to in (("postgresql.conf", "etc"), ("pg_hba.conf", "etc"), ("node.sh", "run"), ("first.sh", "run")):
            text = (DEPLOY / "postgres" / name).read_text()
            for with_tls, without in WITHOUT_TLS:
                text = text.replace(with_tls, without)
            scripts[name] = lay(f"{to}/{name}", self._here(text), 0o700)
        first = f"/bin/sh {scripts['first.sh']}"
        lay("bin-of-image/docker-entrypoint.sh", ENTRYPOINT.replace("FIRST", first), 0o700)
        for path in made:
            self._own(path)
        return scripts["node.sh"]


class Composed:
    """All of it."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        composed.make_all(self.files)
        self.services: dict[str, Service] = {}
        self._folder = folder
        self.nodes = {name: ComposedNode(name, self.files) for name in ("postgres-1", "postgres-2")}
        first, second = self.nodes.values()
        first.other, second.other = second, first

    async def up(self, doors: Mapping[str, str]) -> None:
        """Start the services one after another, each when what it depends on is as it has to be. Doors lead to the nodes."""
        described = {name: each for name, each in compose().items() if each["image"].startswith("chargeonce:")}
        addresses = dict(doors)
        for name, each in described.items():
            for value in each["environment"].values():
                for port in re.findall(r"^0\.0\.0\.0:(\d+)$", value):
                    addresses[f"{name}:{port}"] = free_address()
        for name, each in described.items():
            own = {f"localhost:{key.partition(':')[2]}": f"localhost:{at.rpartition(':')[2]}"
                   for key, at in addresses.items() if key.partition(":")[0] == name}  # fmt: skip
            paths = self._mounted(name, each)
            self.services[name] = Service(
                name, each, self._folder / name, paths, {**addresses, **own}, self._folder / f"{name}.log"
            )
        waiting = dict(self.services)
        while waiting:
            for name, service in list(waiting.items()):
                needed = service.described.get("depends_on", {})
                if not waiting.keys() & needed.keys():
                    for other, how in needed.items():
                        if other in self.services:
                            await self.services[other].meets(how["condition"])
                    await service.begin()
                    del waiting[name]
        for service in self.services.values():
            if service.name != "migrate":
                await service.meets("service_healthy")

    def at(self, service: str, port: int) -> str:
        """Where a port of a service is, for a client that verifies its certificate."""
        return self.services[service].addresses[f"localhost:{port}"]

    def _mounted(self, name: str, described: Mapping[str, Any]) -> Mapping[str, Path]:
        own = self._folder / name
        paths = {"/run/secrets": self.files / "passwords"}
        for mount in described.get("volumes", ()):
            source, target = mount.split(":")[:2]
            if source.startswith("../data/deploy"):
                paths[target] = self.files / source.removeprefix("../data/deploy/")
            else:
                paths[target] = DEPLOY / source if source.startswith(".") else own / "volume"
        paths |= {each.partition(":")[0]: own / "tmpfs" for each in described["tmpfs"]}
        for path in paths.values():
            if not path.exists():
                path.mkdir(parents=True)
        return paths


@contextlib.asynccontextmanager
async def composed_in(folder: Path) -> AsyncIterator[Composed]:
    """Everything of the compose file but Prometheus, up and healthy; it ends with the context."""
    made = Composed(folder)
    first, second = made.nodes.values()
    try:
        await first.start()
        await second.start()
        async with contextlib.AsyncExitStack() as stack:
            doors = {}
            for name, node in made.nodes.items():
                dsn = await stack.enter_async_context(behind_tls(node.dsn(), made.files / "certs" / "postgres"))
                doors[f"{name}:5432"] = re.sub(r".*@([\d.:]+)/.*", r"\1", dsn)
            try:
                await made.up(doors)
                yield made
            finally:
                for service in made.services.values():
                    if service.process is not None and service.process.returncode is None:
                        service.process.kill()
                        await service.process.wait()
    finally:
        for node in made.nodes.values():
            await asyncio.to_thread(node.close)
