"""A server as a process: its start, its standard streams, and the signals that stop it."""

import asyncio
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from charging.v1 import command_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from chassis.stderr import StandardError
from rig.processes import Server, Town, free_address
from rig.referee import Referee
from rig.world import until
from tests.service.test_charge import HOLD

SERVERS = ["command_service", "query_service", "gateway_mock"]
PATIENCE_SECONDS = 40
ROOT = Path(__file__).parent.parent.parent


def environment_of(module: str, folder: Path) -> dict[str, str]:
    """The settings with which a server serves alone on free ports; its files are in their default places."""
    own = {
        "command_service": {"COMMAND_LISTEN": "127.0.0.1:0", "COMMAND_FEED_LISTEN": "127.0.0.1:0"},
        "query_service": {"QUERY_LISTEN": "127.0.0.1:0"},
        "gateway_mock": {"GATEWAY_MOCK_LISTEN": "127.0.0.1:0"},
    }
    return {"XDG_STATE_HOME": str(folder), **own[module]}


@asynccontextmanager
async def serving(module: str, folder: Path, *prefix: str, **more: str) -> AsyncIterator[Server]:
    server = Server(module, {**environment_of(module, folder), **more}, folder / "log", prefix)
    try:
        yield await server.start()
    finally:
        if server.is_running:
            await server.kill()


def request(key: str) -> ChargeRequest:
    return ChargeRequest(
        idempotency_key=key,
        user_id="alice",
        card=Card(token="tok_visa"),
        amount=Money(minor_units=1250, currency_code="EUR"),
    )


async def charge(listen: str, key: str) -> str:
    async with grpc.aio.insecure_channel(listen) as channel:
        stub = command_pb2_grpc.CommandServiceStub(channel)
        answer = await stub.Charge(request(key), timeout=PATIENCE_SECONDS, wait_for_ready=True)
        return ChargeStatus.Name(answer.status)


@asynccontextmanager
async def a_charge_under_way(town: Town) -> AsyncIterator[tuple["asyncio.Task[str]", Referee]]:
    """Start a call that waits for the bank, which does not come to an end until `no_more_trouble`."""
    async with Referee(town.bank_url) as referee:
        await referee.trouble("execute", **HOLD)
        waiting = asyncio.create_task(charge(town.command.listen, "order-0001"))
        await until(referee.has_fired)
        yield waiting, referee
        waiting.cancel()


# ---------------------------------------------------------------- signals
@pytest.mark.parametrize("module", SERVERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
async def test_a_signal_stops_a_server_in_order(tmp_path: Path, module: str, number: signal.Signals) -> None:
    async with serving(module, tmp_path) as server:
        assert server.process is not None
        server.process.send_signal(number)
        assert await server.ended() == 0
    events = [entry["event"] for entry in server.entries()]
    assert [entry["signal"] for entry in server.entries() if entry["event"] == "asked to stop"] == [number.name]
    assert events[-1] == "stopped"


async def test_a_terminal_that_closes_lets_calls_under_way_end(tmp_path: Path) -> None:
    """Kernel and shell each send a SIGHUP, so a second SIGHUP does not mean that its sender does not want to wait."""
    async with Town(tmp_path) as town, a_charge_under_way(town) as (waiting, referee):
        assert town.command.process is not None
        for _ in range(3):
            town.command.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.05)
        await until(lambda: "draining" in town.command.text())
        await referee.no_more_trouble()
        assert await waiting == "CHARGE_STATUS_CHARGED"
        assert await town.command.ended() == 0


async def test_a_second_sigterm_ends_a_server_at_once(tmp_path: Path) -> None:
    async with Town(tmp_path) as town, a_charge_under_way(town):
        assert town.command.process is not None
        town.command.process.send_signal(signal.SIGTERM)
        await until(lambda: "draining" in town.command.text())
        town.command.process.send_signal(signal.SIGTERM)
        assert await town.command.ended() == -signal.SIGTERM


async def test_a_server_started_by_nohup_stays_when_the_terminal_closes(tmp_path: Path) -> None:
    async with serving("query_service", tmp_path, "nohup") as server:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert [entry["signal"] for entry in server.entries() if entry["event"] == "asked to stop"] == ["SIGTERM"]


STARTS_FOR_EVER = """
import asyncio, sys
from chassis import process, telemetry

async def serve(stop):
    try:
        print("starting", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

telemetry.configure_logging("test")
process.run(serve, ())
"""


COUNTS_ITS_OBJECTS = """
import gc
from chassis import process

async def serve(stop):
    stop.wait().close()
    print(gc.get_freeze_count() > 10_000, gc.get_threshold() == process.GARBAGE_THRESHOLDS)

process.run(serve, ())
"""


def test_the_garbage_collector_leaves_alone_what_the_start_has_made() -> None:
    """A search through all of it would stop a busy server for tens of milliseconds."""
    with started(COUNTS_ITS_OBJECTS, stdout=subprocess.PIPE) as running:
        said, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert said == b"True True\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_that_is_asked_to_stop_while_it_starts_ends_in_order(number: signal.Signals) -> None:
    with started(STARTS_FOR_EVER, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as starting:
        assert starting.stdout is not None
        assert starting.stdout.readline() == b"starting\n"
        starting.send_signal(number)
        said, log = starting.communicate(timeout=PATIENCE_SECONDS)
    assert (starting.returncode, said) == (0, b"cleaned up\n")
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["asked to stop", "stopped before it served"]


def may_unshare() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-pf", "true"], check=False).returncode == 0


@pytest.mark.skipif(
    not may_unshare(), reason="only root, or a user who may make namespaces, can start a process as number 1"
)
async def test_a_server_that_is_process_1_stops_like_any_other(tmp_path: Path) -> None:
    """The kernel does not apply the default action of signals to it, also for a second SIGTERM."""
    town = Town(tmp_path)
    town.command.prefix = ("unshare", "-pf")
    async with town, a_charge_under_way(town) as (waiting, referee):
        assert town.command.process is not None
        unshare = town.command.process.pid
        (first,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        await until(lambda: '"draining"' in town.command.text())
        await referee.no_more_trouble()
        assert await waiting == "CHARGE_STATUS_CHARGED"
        assert await town.command.ended() == 0
        await town.start_command()
        unshare = town.command.process.pid
        (first,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        await referee.trouble("token", "hang_before")
        unanswered = asyncio.create_task(charge(town.command.listen, "order-0002"))
        await until(referee.has_fired)
        os.kill(int(first), signal.SIGTERM)
        await until(lambda: town.command.text().count('"draining"') == 2)
        os.kill(int(first), signal.SIGTERM)
        assert await town.command.ended() == 128 + signal.SIGTERM
        unanswered.cancel()


# ---------------------------------------------------------------- standard streams
@pytest.mark.parametrize("module", SERVERS)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_a_server_serves_and_stops_in_order_with_standard_streams_closed(
    tmp_path: Path, module: str, closed: str
) -> None:
    """No file or connection of ours gets their numbers: output to standard error would go into it."""
    listen = free_address()
    variable = {"command_service": "COMMAND", "query_service": "QUERY", "gateway_mock": "GATEWAY_MOCK"}[module]
    server = await asyncio.create_subprocess_exec(
        *("sh", "-c", f"exec {sys.executable} -m {module} {closed}"),
        env={**os.environ, **environment_of(module, tmp_path), f"{variable}_LISTEN": listen},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while server.returncode is None:
                try:
                    (await asyncio.open_connection(*listen.split(":")))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
            assert server.returncode is None
            numbers = [{"<": 0, ">": 1, "2": 2}[each[0]] for each in closed.split()]
            opened = {str(Path(f"/proc/{server.pid}/fd/{number}").readlink()) for number in numbers}
            assert opened == {"/dev/null"}
            server.terminate()
            assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


# ---------------------------------------------------------------- a log that nobody reads
@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """The ends of a full pipe: it takes no byte until somebody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        for size in (65536, 1):
            while True:
                try:
                    os.write(writing, b"\n" * size)
                except BlockingIOError:
                    break
        os.set_blocking(writing, True)
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def started(program: str, **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program of a few lines; it is killed afterwards."""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **more) as running:
        try:
            yield running
        finally:
            running.kill()


async def test_a_command_server_whose_log_nobody_reads_charges_and_stops(tmp_path: Path) -> None:
    """Nobody reads from its first line on; it answers health and SIGTERM too."""
    async with Town(tmp_path) as town:
        listen = town.command.listen
        await town.command.stop()
        with full_pipe() as (reading, writing):
            await town.start_command_unheard(writing)
            assert await charge(listen, "order-0001") == "CHARGE_STATUS_CHARGED"
            await refusals(listen, 200)
            assert await charge(listen, "order-0002") == "CHARGE_STATUS_CHARGED"
            assert await town.command.stop() == 0
            assert b"serving" not in os.read(reading, 1 << 20), "the pipe was stuck all along"


async def refusals(listen: str, calls: int) -> None:
    """Send bytes that are no request, each of which may cause a log line."""
    async with grpc.aio.insecure_channel(listen) as channel:
        method: Any = channel.unary_unary("/charging.v1.CommandService/Charge")
        for _ in range(calls):
            with pytest.raises(grpc.aio.AioRpcError):
                await method(b"\xff\xff\xff", timeout=PATIENCE_SECONDS)


ENDS = {
    "by itself": ("process.run(serve, ())", 0),
    "with a foreseen error": ("process.run(fail, ())", 1),
    "with an unforeseen error": ("process.run(crash, ())", 1),
    "with a commit's fate unknown": ("log.critical('last'); Parts(settings.read(Settings, {})).end_process()", 74),
}
LOGS_AND_ENDS = """
import logging, structlog
import command_service.__main__
from chassis import process, settings, telemetry
from command_service.parts import Parts
from command_service.settings import Settings

async def serve(stop):
    log.info("last")
    logging.getLogger("a.library").warning("last")

async def fail(stop):
    raise OSError("last")

async def crash(stop):
    raise ZeroDivisionError("last")

telemetry.configure_logging("test")
log = structlog.get_logger()
for number in range({lines}):
    log.info("line", number=number)
{end}
"""


@pytest.mark.parametrize("end", ENDS)
def test_a_process_whose_log_is_stuck_ends_with_the_right_status(end: str) -> None:
    statement, status = ENDS[end]
    with (
        full_pipe() as (_, writing),
        started(LOGS_AND_ENDS.format(lines=30_000, end=statement), stderr=writing) as running,
    ):
        assert running.wait(PATIENCE_SECONDS) == status


@pytest.mark.parametrize("end", ENDS)
def test_a_process_that_ends_has_written_its_last_lines(end: str) -> None:
    """Also with status 74, after which no other code of the process runs."""
    statement, status = ENDS[end]
    with started(LOGS_AND_ENDS.format(lines=3_000, end=statement), stderr=subprocess.PIPE) as running:
        _, log = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == status
    lines = log.decode().splitlines()
    assert [json.loads(line)["number"] for line in lines[:3_000]] == list(range(3_000))
    assert any(word in lines[-1] for word in ("last", "library warning"))


def test_lines_that_cannot_be_written_are_counted_and_the_count_is_written() -> None:
    """In the place of the missing lines; their writers did not wait."""
    with full_pipe() as (reading, writing):
        stream = StandardError(writing, most_waiting=100)
        for number in range(1_000):
            stream.write(f"line {number}\n")
        os.set_blocking(reading, True)
        said = b""
        while b"lines of this log were lost" not in said:
            said += os.read(reading, 1 << 16)
        stream.write("after\n")
        while not said.endswith(b"after\n"):
            said += os.read(reading, 1 << 16)
    lines = said.decode().split()
    written = [int(number) for number in re.findall(r"line (\d+)\n", said.decode())]
    told = [json.loads(line) for line in said.decode().splitlines() if line.startswith("{")]
    assert written == list(range(len(written)))
    assert len(written) + sum(entry["lines"] for entry in told) == 1_000
    assert lines[-1] == "after"


def test_a_full_disk_loses_lines_and_their_count_is_written_once_there_is_room() -> None:
    reading, writing = os.pipe()
    with open("/dev/full", "wb", buffering=0) as full, os.fdopen(reading, "rb") as reader:  # noqa: PTH123
        place = os.dup(full.fileno())
        stream = StandardError(place)
        for number in range(10):
            stream.write(f"line {number}\n")
        stream.drain(PATIENCE_SECONDS)
        os.dup2(writing, place)
        stream.write("after\n")
        first = reader.readline() + reader.readline()
        os.close(writing)
    assert b"after" in first
    (told,) = [json.loads(line) for line in first.splitlines() if line.startswith(b"{")]
    assert told["lines"] == 10


# ---------------------------------------------------------------- arguments and settings
def run(module: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


PROGRAMS = [*SERVERS, "demo.tour", "demo.crash", "prove", "prove.simulation", "judge"]


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_program_explains_itself_and_refuses_unknown_arguments(module: str, tmp_path: Path) -> None:
    """It does nothing else."""
    helped, version, unknown = (
        run(module, argument, XDG_STATE_HOME=str(tmp_path)) for argument in ("--help", "--version", "--nonsense")
    )
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"usage: python -m {module} ")
    assert (version.returncode, version.stdout) == (0, f"chargeonce {importlib.metadata.version('chargeonce')}\n")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith(f"usage: python -m {module} ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "misspelt", "meant", "status"),
    [
        ("command_service", "COMMAND_JORNAL", "COMMAND_JOURNAL", 1),
        ("query_service", "QUERY_VEIW", "QUERY_VIEW", 1),
        ("gateway_mock", "GATEWAY_MOCK_LEGDER", "GATEWAY_MOCK_LEDGER", 2),
    ],
)
def test_a_server_does_not_start_with_a_misspelt_setting(
    tmp_path: Path, module: str, misspelt: str, meant: str, status: int
) -> None:
    """Nor does an operator's command, which would open another journal."""
    environment = {**environment_of(module, tmp_path), misspelt: "sqlite:////secret"}
    refused = run(module, **environment)
    assert refused.returncode == status
    assert f"{misspelt} is no setting: is {meant} meant?" in refused.stderr
    assert "secret" not in refused.stderr
    assert list(tmp_path.iterdir()) == []
    if module == "command_service":
        refused = run(module, "verify-journal", **environment)
        assert (refused.returncode, "is COMMAND_JOURNAL meant?" in refused.stderr) == (1, True)


@pytest.mark.parametrize("module", SERVERS)
async def test_a_server_keeps_its_file_in_the_users_state_folder(tmp_path: Path, module: str) -> None:
    name = {"command_service": "journal.db", "query_service": "view.db", "gateway_mock": "gateway.db"}[module]
    async with serving(module, tmp_path):
        assert (tmp_path / "chargeonce" / name).is_file()


def test_a_journal_in_the_former_default_place_is_not_ignored(tmp_path: Path) -> None:
    """A new journal elsewhere would know none of its keys."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "journal.db").touch()
    refused = subprocess.run(
        [sys.executable, "-m", "command_service"],
        env={**os.environ, **environment_of("command_service", tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: COMMAND_JOURNAL is not set, and build/journal.db, ")
    assert not (tmp_path / "chargeonce").exists()


@pytest.mark.parametrize("module", SERVERS)
def test_a_server_that_may_open_too_few_files_says_so_in_a_line(tmp_path: Path, module: str) -> None:
    refused = subprocess.run(
        ["sh", "-c", f"ulimit -n 20; exec {sys.executable} -m {module}"],
        env={**os.environ, **environment_of(module, tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "only 20 files may be open at once here, a server needs 64: raise ulimit -n" in refused.stderr


async def test_grpc_itself_writes_nothing_to_standard_error(tmp_path: Path) -> None:
    """Its threads would block there. Our own line reports a port that is taken."""
    async with serving("command_service", tmp_path) as first:
        taken = {**environment_of("command_service", tmp_path / "other"), "COMMAND_LISTEN": first.listen}
        second = run("command_service", **taken)
    assert second.stderr == f"error: cannot listen on {first.listen}: is another server running there?\n"
