"""The servers of the peers that need one of their own: Restate, Temporal. Each gets an empty folder and free ports.

What is measured is the published server with its defaults, but for what is said here.

Restate, from npm: https://docs.restate.dev/references/server-config names the settings
* default-num-partitions 1: all charges share one log and its commits, which is the faster on two cores; the default is 24
* two logs: `replicated`, the default since 1.4, in which even a single node talks to itself as to others; and `local`
  (bifrost.default-provider), the default before, which can never be replicated and costs less. The product has one node too
* logs at WARN, no telemetry, no Unix sockets
* durability is the default of both: an entry is acknowledged when it is in the write-ahead log and synced
  (`rocksdb-disable-wal-fsync` is false in the sections `log-server` and `bifrost.local`; the writers of both set RocksDB's
  `sync` by it). So it is as durable as the product's journal: a commit of SQLite in WAL mode with synchronous=FULL

Temporal, built from its Go module `go.temporal.io/server`, with `config/development-sqlite-file.yaml` of that module as the
model: one SQLite file, journal_mode=WAL, synchronous=2 (FULL), one connection, one history shard
* logs at ERROR, no archival, no metrics
"""

import asyncio
import json
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.programs import RESTATE, TEMPORAL
from rig.processes import DidNotStart

# A server that needs longer has hung.
START_SECONDS = 60.0
NAMESPACE = "default"


def free_listen() -> str:
    """A free address of this machine, as host:port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def start_restate(stack: AsyncExitStack, folder: Path, log: str) -> tuple[str, str, int]:
    """Start a Restate server with this kind of log; return the addresses of ingress and administration, and its process id."""
    ingress, admin = free_listen(), free_listen()
    settings = {
        "RESTATE_DEFAULT_NUM_PARTITIONS": "1",
        "RESTATE_BIFROST__DEFAULT_PROVIDER": log,
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn",
        "RESTATE_LOG_FORMAT": "json",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": free_listen(),
        "RESTATE_INGRESS__BIND_ADDRESS": ingress,
        "RESTATE_ADMIN__BIND_ADDRESS": admin,
    }
    command = [str(RESTATE.program), "--no-logo", "--base-dir", str(folder / "restate")]
    process = await _start(stack, command, settings, folder / "restate.log")
    await _until(lambda: _answers("GET", f"http://{admin}/health"), folder / "restate.log", process)
    return ingress, admin, process.pid


async def register(admin: str, worker: str, log: Path) -> None:
    """Tell a Restate server which worker has the handlers; return when it has read them and routes charges to it."""
    await _until(lambda: _answers("POST", f"http://{admin}/deployments", {"uri": f"http://{worker}"}), log)


async def start_temporal(stack: AsyncExitStack, folder: Path) -> tuple[str, int]:
    """Start a Temporal server with a namespace; return the address of its frontend, and its process id."""
    frontend = free_listen()
    (folder / "temporal.yaml").write_text(json.dumps(_temporal_config(frontend, folder / "temporal.db")))
    command = [str(TEMPORAL.program), "--config-file", str(folder / "temporal.yaml"), "--allow-no-auth", "start"]
    process = await _start(stack, command, {}, folder / "temporal.log")
    await _until(lambda: _register_namespace(frontend), folder / "temporal.log", process)
    return frontend, process.pid


def _temporal_config(frontend: str, database: Path) -> dict[str, Any]:
    """The server's configuration: JSON, which is YAML too."""
    store = {
        "sql": {
            "pluginName": "sqlite",
            "databaseName": str(database),
            "connectAddr": "localhost",  # unused, but required
            "connectProtocol": "tcp",
            "connectAttributes": {"cache": "private", "setup": "true", "journal_mode": "wal", "synchronous": "2"},
            "maxConns": 1,
            "maxIdleConns": 1,
        }
    }
    ports = {
        name: {"rpc": {"grpcPort": _port(grpc), "membershipPort": _port(free_listen()), "bindOnLocalHost": True}}
        for name, grpc in {
            "frontend": frontend,
            **{name: free_listen() for name in ("history", "matching", "worker")},
        }.items()
    }
    return {
        "log": {"stdout": True, "level": "error"},
        "persistence": {
            "defaultStore": "store",
            "visibilityStore": "visibility",
            "numHistoryShards": 1,
            "datastores": {"store": store, "visibility": store},
        },
        "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": "127.0.0.1"}},
        "services": ports,
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {
                "active": {"enabled": True, "initialFailoverVersion": 1, "rpcName": "frontend", "rpcAddress": frontend}
            },
        },
        "dcRedirectionPolicy": {"policy": "noop"},
        "archival": {"history": {"state": "disabled"}, "visibility": {"state": "disabled"}},
        "namespaceDefaults": {"archival": {"history": {"state": "disabled"}, "visibility": {"state": "disabled"}}},
        "publicClient": {"hostPort": frontend},
    }


async def _register_namespace(frontend: str) -> bool:
    # Not at the top: installed in the benchmark's own environment only.
    from google.protobuf.duration_pb2 import Duration  # noqa: PLC0415
    from temporalio.api.workflowservice.v1 import (  # type: ignore[import-not-found]  # noqa: PLC0415
        DescribeNamespaceRequest,
        RegisterNamespaceRequest,
    )
    from temporalio.client import Client  # type: ignore[import-not-found]  # noqa: PLC0415
    from temporalio.service import RPCError, RPCStatusCode  # type: ignore[import-not-found]  # noqa: PLC0415

    try:
        service = (await Client.connect(frontend)).workflow_service
        try:
            await service.register_namespace(
                RegisterNamespaceRequest(
                    namespace=NAMESPACE, workflow_execution_retention_period=Duration(seconds=24 * 3_600)
                )
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise
        await service.describe_namespace(DescribeNamespaceRequest(namespace=NAMESPACE))
    except (RPCError, RuntimeError):  # RuntimeError: nothing listens yet
        return False
    return True


# ---------------------------------------------------------------- parts
async def _start(stack: AsyncExitStack, command: Sequence[str], settings: dict[str, str], log: Path) -> Process:
    """Start a program; the stack ends it, and all that it started."""
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **settings},
            stdin=DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )

    async def end() -> None:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    stack.push_async_callback(end)
    return process


async def _until(is_ready: Callable[[], Awaitable[bool]], log: Path, process: Process | None = None) -> None:
    """Ask until it is so. Raises DidNotStart with the end of the log after START_SECONDS, or when the process has ended."""
    loop = asyncio.get_running_loop()
    until = loop.time() + START_SECONDS
    while not await is_ready():
        if loop.time() > until or (process is not None and process.returncode is not None):
            raise DidNotStart(f"{log.stem} is not ready:\n{log.read_text(errors='replace')[-4_000:]}")
        await asyncio.sleep(0.1)


async def _answers(method: str, url: str, body: object = None) -> bool:
    """Whether a request has success; no success is no error here, since the server may not have begun."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=START_SECONDS) as client:
            return (await client.request(method, url, json=body)).is_success
    except httpx.TransportError:
        return False


def _port(listen: str) -> int:
    return int(listen.rpartition(":")[2])
