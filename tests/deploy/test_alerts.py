"""Every alert, seen to fire and to clear: real servers are brought into each trouble and out of it, under a real Prometheus.

Prometheus has the real rules, hurried (`rig.prometheus.hurried`): they wait for a second, and look back at a thirtieth of the
time. Thresholds, metrics and servers are the real ones.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio
import pytest

from charging.v1 import command_pb2_grpc, query_pb2_grpc
from charging.v1.command_pb2 import ChargeRequest
from charging.v1.query_pb2 import GetChargeRequest, Situation
from contract.situations import SITUATIONS
from rig import stuck
from rig.alerts import SERVERS
from rig.observability import rules
from rig.processes import Server, Town, free_address
from rig.prometheus import Prometheus
from rig.referee import Referee
from rig.world import CHARGED, a_request, id_of, until
from tests.deploy.tools import needs_prometheus

ALWAYS = {"times": 1_000_000}
# A server is started anew several times, and twenty alerts wait for their moment.
SECONDS = 900
MOST_UNFINISHED = 20


@dataclass
class Scene:
    """A bank, both servers, and the Prometheus that watches them."""

    town: Town
    bank: Referee
    command_metrics: str
    query_metrics: str
    prometheus: Prometheus

    async def start_command(self, **more: str) -> None:
        await self.town.start_command(
            COMMAND_METRICS_LISTEN=self.command_metrics,
            COMMAND_ATTENTION_AFTER_SECONDS="1",
            COMMAND_BANK_TIMEOUT_SECONDS="2",
            COMMAND_MAX_UNFINISHED=str(MOST_UNFINISHED),
            COMMAND_DRAIN_SECONDS="0",
            **more,
        )

    async def start_query(self, **more: str) -> None:
        await self.town.start_query(QUERY_METRICS_LISTEN=self.query_metrics, QUERY_DRAIN_SECONDS="0", **more)

    async def charge(self, request: ChargeRequest, seconds: float = 10) -> None:
        """Charge once; whatever comes of it is for the alerts to tell."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with grpc.aio.insecure_channel(self.town.command.listen) as channel:
                await command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=seconds)

    async def charge_many(self, number: int) -> None:
        """Make that many charges, some at a time, each until it is done."""
        async with grpc.aio.insecure_channel(self.town.command.listen) as channel:
            service = command_pb2_grpc.CommandServiceStub(channel)

            async def make_some() -> None:
                for _ in range(number // 10):
                    request = a_request()
                    while True:
                        with contextlib.suppress(grpc.aio.AioRpcError):
                            if (await service.Charge(request, timeout=20)).status == CHARGED:
                                break

            await asyncio.gather(*(make_some() for _ in range(10)))


@asynccontextmanager
async def meanwhile(again: Callable[[], Awaitable[object]], pause_seconds: float = 0.2) -> AsyncIterator[None]:
    """Do something again and again in the background."""

    async def keep_doing() -> None:
        while True:
            await again()
            await asyncio.sleep(pause_seconds)

    doing = asyncio.create_task(keep_doing())
    try:
        yield
    finally:
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing  # raises what it may have failed with


@contextlib.contextmanager
def a_full_disk(server: Server) -> Iterator[None]:
    """A server whose files cannot grow, which counts as a full disk. The kernel does it."""
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4_096, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)


# ---------------------------------------------------------------- the troubles
@asynccontextmanager
async def a_query_server_that_restarts_and_is_gone(scene: Scene) -> AsyncIterator[None]:
    """Each of its lives is long enough for Prometheus to see it."""

    lives: set[float] = set()

    async def sees_another() -> bool:
        for _, began_at in await scene.prometheus.value('process_start_time_seconds{job="query"}'):
            if began_at not in lives:
                lives.add(began_at)
                return True
        return False

    await until(sees_another)
    for _ in range(3):
        await scene.town.query.kill()
        await scene.start_query()
        await until(sees_another)
    await scene.town.query.stop()
    yield
    await scene.start_query()


@asynccontextmanager
async def a_command_server_that_is_killed(scene: Scene) -> AsyncIterator[None]:
    await scene.town.command.kill()
    yield
    await scene.start_command()


@asynccontextmanager
async def a_caller_whom_nobody_knows(scene: Scene) -> AsyncIterator[None]:
    """At a query server that has a policy now, which knows somebody else."""
    policy = scene.town.folder / "policy.toml"
    policy.write_text(
        f'[[identities]]\nname = "shop"\ntenant = "shop"\ntoken_sha256 = "{"0" * 64}"\nroles = ["read"]\n'
    )
    await scene.town.query.stop()
    await scene.start_query(QUERY_POLICY=str(policy))

    async def ask() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with grpc.aio.insecure_channel(scene.town.query.listen) as channel:
                await query_pb2_grpc.QueryServiceStub(channel).GetCharge(GetChargeRequest(charge_id="x"), timeout=10)

    async with meanwhile(ask):
        yield
    await scene.town.query.stop()
    await scene.start_query()


@asynccontextmanager
async def a_bank_that_does_not_answer(scene: Scene) -> AsyncIterator[None]:
    """Charges wait for it, almost as many as may be unfinished, and new ones are refused."""
    await scene.bank.trouble("token", "hang_before", seconds=60, **ALWAYS)
    waiting = asyncio.gather(*(scene.charge(a_request(), 7) for _ in range(MOST_UNFINISHED - 1)))
    async with meanwhile(lambda: scene.charge(a_request(), 2)):
        yield
    await waiting
    await scene.bank.no_more_trouble()


@asynccontextmanager
async def a_full_disk_of_the_journal(scene: Scene) -> AsyncIterator[None]:
    with a_full_disk(scene.town.command):
        async with meanwhile(lambda: scene.charge(a_request())):
            yield


@asynccontextmanager
async def another_program_at_the_journal(scene: Scene) -> AsyncIterator[None]:
    """It holds the journal's write lock most of the time."""

    def hold() -> None:
        with contextlib.closing(sqlite3.connect(scene.town.journal, timeout=20, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(0.6)
            other.execute("ROLLBACK")

    async with meanwhile(partial(asyncio.to_thread, hold)), meanwhile(lambda: scene.charge(a_request())):
        yield


@asynccontextmanager
async def a_full_disk_of_the_view(scene: Scene) -> AsyncIterator[None]:
    with a_full_disk(scene.town.query):
        await scene.charge_many(400)
        yield


@asynccontextmanager
async def a_record_that_was_changed(scene: Scene) -> AsyncIterator[None]:
    """A bit of a charge's records flips in the file, and the charge is asked for again."""
    request = a_request()
    await scene.charge(request)

    def flip() -> None:
        key = bytes.fromhex(id_of(request).replace("-", ""))
        with contextlib.closing(sqlite3.connect(scene.town.journal, timeout=20)) as file, file:
            file.execute("UPDATE record SET version = (version | 64) - (version & 64) WHERE charge_id = ?", (key,))

    flip()
    await scene.charge(request)
    yield
    flip()


@asynccontextmanager
async def a_statement_with_a_movement_that_nobody_asked_for(scene: Scene) -> AsyncIterator[None]:
    """The bank takes it back: its ledger is put back to the time before."""
    town, bank = scene.town, scene.bank.http
    await town.bank.kill()
    shutil.copytree(town.folder, before := town.folder / "before", ignore=lambda _, names: set(names) - ledger(names))
    await town.start_bank()
    opened = await bank.post(
        "/transactions", json={"reference": "stray", "card": "tok_visa", "amount": 1250, "currency": "EUR"}
    )
    (await bank.post(f"/transactions/{opened.json()['token']}/execute")).raise_for_status()
    assert await reconcile(scene) == DIFFERS
    yield
    await town.bank.kill()
    for name in ledger(path.name for path in town.folder.iterdir()):
        (town.folder / name).unlink()
    shutil.copytree(before, town.folder, dirs_exist_ok=True)
    await town.start_bank()
    assert await reconcile(scene) != DIFFERS


def ledger(names: Iterable[str]) -> set[str]:
    """Those names that are of the bank's ledger and its WAL."""
    return {name for name in names if name.startswith("bank.db")}


@asynccontextmanager
async def a_reconciliation_two_days_ago(scene: Scene) -> AsyncIterator[None]:
    """The command server is started again two days later, as its clock has it; there it is reconciled again."""
    later = {"LATER_MODULE": "command_service", "LATER_SECONDS": str(2 * 86_400)}
    await reconcile(scene)
    command = scene.town.command
    await command.stop()
    command.module = "rig.later"
    await scene.start_command(**later)
    yield
    await reconcile(scene, **later)
    await scene.prometheus.clears("ChargeonceReconciliationOld")
    await command.stop()
    command.module = "command_service"
    await scene.start_command()


DIFFERS = 1


async def reconcile(scene: Scene, **later: str) -> int:
    """Compare the bank's statement with the journal, beside the server. Returns the exit status."""
    today = datetime.now(UTC).date()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rig.later" if later else "command_service", "reconcile"),
        *("--from", str(today - timedelta(days=2)), "--to", str(today + timedelta(days=2))),
        *("--clock-difference", "0"),  # one machine: the newest movements count too
        env={
            **os.environ,
            "COMMAND_JOURNAL": f"sqlite:///{scene.town.journal}",
            "COMMAND_BANK_URL": scene.town.bank_url,
            **later,
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    status = await process.wait()
    assert status in {0, DIFFERS, 3}  # 3: nothing differs, but what is at the edge is not certain
    return status


class Trouble(NamedTuple):
    """What goes wrong, and the alerts that fire while it lasts."""

    of: Callable[[Scene], AbstractAsyncContextManager[None]]
    alerts: tuple[str, ...]


TROUBLES = [
    Trouble(
        a_query_server_that_restarts_and_is_gone,
        (
            *("ChargeonceServerDown", "ChargeonceQueryServerAway", "ChargeonceFeedUnread"),
            "ChargeonceServerRestarts",
        ),
    ),
    Trouble(a_command_server_that_is_killed, ("ChargeonceServerAway", "ChargeonceFeedSilent")),
    Trouble(a_caller_whom_nobody_knows, ("ChargeonceCallersUnknown",)),
    Trouble(
        a_bank_that_does_not_answer,
        (
            *("ChargeonceBankSpared", "ChargeonceBankFails", "ChargeonceChargesSlow", "ChargeonceChargesOld"),
            *("ChargeonceLimitNear", "ChargeonceCallsRefused"),
        ),
    ),
    Trouble(a_full_disk_of_the_journal, ("ChargeonceJournalNotAccepting", "ChargeonceCommitsFail")),
    Trouble(another_program_at_the_journal, ("ChargeonceCommitsSlow",)),
    Trouble(a_full_disk_of_the_view, ("ChargeonceViewBehind", "ChargeonceViewStopped")),
    Trouble(a_record_that_was_changed, ("ChargeonceCallsFail",)),
    Trouble(
        a_statement_with_a_movement_that_nobody_asked_for,
        ("ChargeonceReconciliationDiffers", "ChargeonceReconciliationFinds"),
    ),
    Trouble(a_reconciliation_two_days_ago, ("ChargeonceReconciliationOld",)),
]


# ---------------------------------------------------------------- charges
STOPPED, AWAY, ABANDONED = (
    Situation.SITUATION_STOPPED,
    Situation.SITUATION_SERVER_AWAY,
    Situation.SITUATION_ABANDONED,
)


@needs_prometheus
@pytest.mark.timeout(SECONDS)
async def test_every_alert_about_a_charge_fires_while_it_is_stuck_and_clears_by_what_is_advised(tmp_path: Path) -> None:
    """One world with a charge in each situation; `rig.stuck` brings it there by real faults, and out by the advice."""
    alerts = [row.alert for row in SITUATIONS.values() if row.alert]
    (tmp_path / "world").mkdir()
    async with stuck.world(tmp_path / "world") as world:
        jobs = {"command": [world.addresses["command metrics"]], "query": [world.addresses["query metrics"]]}
        async with Prometheus(tmp_path / "prometheus", rules(), jobs) as prometheus:
            keys = {it: await world.provoke(it) for it in stuck.ORDER if it not in (STOPPED, AWAY)}
            await prometheus.fires(*(SITUATIONS[it].alert for it in keys))
            for situation in (STOPPED, AWAY):
                key = await world.provoke(situation)
                await prometheus.fires(SITUATIONS[situation].alert)
                await world.clear(key)
            for key in keys.values():
                await world.clear(key)
            await prometheus.clears(*(alert for alert in alerts if alert != SITUATIONS[ABANDONED].alert))
            await a_day_passes(world)
            await prometheus.clears(*alerts)
            await until(partial(prometheus.value, 'chargeonce_view_stuck_charges{situation="abandoned"} == 0'))


async def a_day_passes(world: stuck.StuckWorld) -> None:
    """The query server is started again the next day, as its clock has it: what is told of the last day is over."""
    query = world.town.query
    await query.stop()
    former, query.module = query.module, "rig.later"
    await world.town.start_query(
        QUERY_POLICY=str(world.policy),
        QUERY_FEED_TOKEN_FILE=str(world.token_file("query-server")),
        QUERY_METRICS_LISTEN=world.addresses["query metrics"],
        LATER_MODULE=former,
        LATER_SECONDS=str(86_400 + 3_600),
    )


def test_every_situation_with_an_alert_can_be_provoked() -> None:
    assert {it for it, row in SITUATIONS.items() if row.alert} == set(stuck.ORDER)


@needs_prometheus
@pytest.mark.timeout(SECONDS)
async def test_every_alert_about_a_server_fires_in_its_trouble_and_clears_after_it(tmp_path: Path) -> None:
    """One world for all troubles, one after another; once the last is over, none of the alerts fires any more."""
    town, command, query = Town(tmp_path), free_address(), free_address()
    try:
        await town.start_bank()
        prometheus = Prometheus(tmp_path / "prometheus", rules(), {"command": [command], "query": [query]})
        scene = Scene(town, Referee(town.bank_url), command, query, prometheus)
        await scene.start_command()
        await scene.start_query()
        async with prometheus, scene.bank:
            await scene.charge_many(10)
            for trouble in TROUBLES:
                await prometheus.clears(*trouble.alerts)  # a former trouble may have had them fire too
                async with trouble.of(scene):
                    await prometheus.fires(*trouble.alerts)
            await prometheus.clears(*(alert for trouble in TROUBLES for alert in trouble.alerts))
    finally:
        await town.__aexit__()


def test_every_alert_about_a_server_is_provoked() -> None:
    provoked = {alert for trouble in TROUBLES for alert in trouble.alerts}
    assert {alert.name for alert in SERVERS} <= provoked
