"""Traces, by a collector: from the client's call through the bank and the journal to the view, and across a crash."""

import asyncio
import contextlib
import os
import re
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chargeonce_client import Settings, connect, money
from charging.v1.common_pb2 import ChargeStatus
from rig.collector import Collector, collecting
from rig.processes import Town
from rig.proxy import listening
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import new_key, until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
CHARGE = "CommandService/Charge"


@dataclass
class Wire:
    """What the bank's requests were, as they came over the wire."""

    heard: bytes = b""
    url: str = ""

    @property
    def contexts(self) -> list[str]:
        """The trace contexts in them."""
        return re.findall(r"^traceparent: (.*)\r$", self.heard.decode("latin-1"), re.MULTILINE)


@dataclass
class Traced:
    """Servers whose spans a collector keeps."""

    town: Town
    collector: Collector
    referee: Referee
    wire: Wire
    settings: dict[str, str] = field(default_factory=dict)

    async def start_command(self) -> None:
        await self.town.start_command(COMMAND_BANK_URL=self.wire.url, **self.settings)

    async def charge(self, traceparent: str = "", *, patience: float = PATIENT_SECONDS) -> "ChargeStatus.ValueType":
        listen = Settings(self.town.command.listen, deadline=min(patience, 5.0))
        async with connect(listen) as client:
            traced = client.traced(traceparent) if traceparent else client
            amount = money(1250, "EUR")
            answer = await traced.charge(new_key(), user_id="alice", card="tok_visa", amount=amount, patience=patience)
        return answer.status


@asynccontextmanager
async def traced_town(folder: Path, sampled: str = "0") -> AsyncIterator[Traced]:
    """All three servers, with a collector, and a wire to the bank that is listened to."""
    town, wire = Town(folder), Wire()

    async def listen_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = town.bank.listen.rpartition(":")
        from_bank, to_bank = await asyncio.open_connection(host, int(port))

        async def answer() -> None:
            while got := await from_bank.read(65_536):
                writer.write(got)
            writer.close()

        answering = asyncio.ensure_future(answer())
        try:
            while got := await reader.read(65_536):
                wire.heard += got
                to_bank.write(got)
        finally:
            answering.cancel()
            to_bank.close()

    async with collecting() as collector, listening(listen_in) as port:
        wire.url = f"http://127.0.0.1:{port}"
        settings = {"COMMAND_TRACES": collector.url, "COMMAND_TRACES_SAMPLED": sampled}
        try:
            await town.start_bank()
            async with Referee(town.bank_url) as referee:
                traced = Traced(town, collector, referee, wire, settings)
                await traced.start_command()
                await town.start_query(QUERY_TRACES=collector.url, QUERY_TRACES_SAMPLED="0")
                await town.query.logged("the view has caught up")  # what it shows before that is no news
                yield traced
        finally:
            await town.__aexit__()


def shown(collector: Collector, trace: str) -> list[str]:
    return [span.attributes["event"] for span in collector.named("shown in the view", trace)]


async def test_one_trace_leads_from_the_clients_call_through_both_bank_calls_and_the_commits_to_the_view(
    tmp_path: Path,
) -> None:
    async with traced_town(tmp_path) as traced:
        collector = traced.collector
        assert await traced.charge(SAMPLED) == ChargeStatus.CHARGE_STATUS_CHARGED
        events = ["charge_requested", "token_issued", "charged"]
        await until(lambda: shown(collector, TRACE) == events and collector.named(CHARGE))
        assert {span.trace for span in collector.spans} == {TRACE}
        (call,) = collector.named(CHARGE)
        assert (call.service, call.parent, call.has_failed) == ("chargeonce-command", SPAN, False)
        assert call.attributes == {"method": CHARGE, "code": "OK"}
        calls = collector.named("bank call")
        assert [span.attributes["step"] for span in calls] == ["token", "execute"]
        assert [span.attributes["answer"] for span in calls] == ["token", "executed"]
        assert len(collector.named("append")) == 3
        within = [*calls, *collector.named("append"), *collector.named("shown in the view")]
        assert {span.parent for span in within} == {call.span}
        assert {span.service for span in collector.named("shown in the view")} == {"chargeonce-query"}
        # The bank is told, call by call, below which span its own spans would be.
        assert traced.wire.contexts == [f"00-{TRACE}-{span.span}-01" for span in calls]
        # Each log line of the call says of which trace it is.
        (line,) = [entry for entry in traced.town.command.entries() if entry["event"] == "charge at rest"]
        assert line["traceparent"] == f"00-{TRACE}-{call.span}-01"


async def test_a_charge_that_is_taken_up_after_a_crash_has_a_trace_that_links_to_its_calls(tmp_path: Path) -> None:
    """And the view tells the end of the charge in the trace of the call that asked for it."""
    async with traced_town(tmp_path) as traced:
        collector = traced.collector
        await traced.referee.trouble("execute", "in_progress", retry_after="0", times=1_000_000)
        assert await traced.charge(SAMPLED, patience=1.0) == ChargeStatus.CHARGE_STATUS_PENDING
        await until(lambda: collector.named(CHARGE))
        await traced.town.command.kill()
        await traced.referee.no_more_trouble()
        await traced.start_command()
        await until(lambda: collector.named("charge taken up") and "charged" in shown(collector, TRACE))
        (call,) = collector.named(CHARGE)[:1]
        (taken_up,) = collector.named("charge taken up")
        assert taken_up.trace != TRACE
        assert taken_up.links == [(TRACE, call.span)]
        (bank_call,) = collector.named("bank call", taken_up.trace)
        assert (bank_call.parent, bank_call.attributes["answer"]) == (taken_up.span, "executed")
        assert f"00-{taken_up.trace}-{bank_call.span}-01" in traced.wire.contexts


async def test_a_refund_has_the_trace_of_its_own_call_up_to_the_view(tmp_path: Path) -> None:
    """Although the charge was not traced, and neither is a second refund."""
    async with traced_town(tmp_path) as traced:
        collector = traced.collector
        async with connect(Settings(traced.town.command.listen)) as client:
            amount = money(1250, "EUR")
            charge = await client.charge(new_key(), user_id="alice", card="tok_visa", amount=amount)
            await client.traced(SAMPLED).refund(new_key(), charge.charge_id, amount=money(500, "EUR"))
            await client.refund(new_key(), charge.charge_id)
        await until(lambda: shown(collector, TRACE) == ["refund_requested", "token_issued", "refunded"])
        await until(lambda: len(collector.named("bank call")) == 2)
        assert {span.attributes["operation"] for span in collector.named("bank call")} == {"refund"}


async def test_only_the_clients_flag_or_our_share_has_a_call_traced(tmp_path: Path) -> None:
    """Whatever a client sends as its trace context."""
    async with traced_town(tmp_path) as traced:
        malformed = (UNSAMPLED, "00-zz", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", SAMPLED + "x" * 300)
        for context in ("", *malformed):
            assert await traced.charge(context) == ChargeStatus.CHARGE_STATUS_CHARGED
        assert traced.wire.contexts == []
        assert await traced.charge(SAMPLED) == ChargeStatus.CHARGE_STATUS_CHARGED
        await until(lambda: traced.collector.named(CHARGE))
        assert len(traced.collector.named(CHARGE)) == 1
        await traced.town.command.stop()
        traced.settings["COMMAND_TRACES_SAMPLED"] = "1"
        await traced.start_command()
        assert await traced.charge() == ChargeStatus.CHARGE_STATUS_CHARGED
        await until(lambda: len(traced.collector.named(CHARGE)) == 2)
        (own,) = [span for span in traced.collector.named(CHARGE) if span.trace != TRACE]
        assert own.parent == ""
        assert await traced.charge(UNSAMPLED) == ChargeStatus.CHARGE_STATUS_CHARGED
        await traced.town.command.stop()  # which sends what is recorded
        assert len(traced.collector.named(CHARGE)) == 2


async def test_a_refused_call_is_a_span_that_has_failed(tmp_path: Path) -> None:
    async with traced_town(tmp_path) as traced, connect(Settings(traced.town.command.listen)) as client:
        with pytest.raises(Exception, match="amount"):
            await client.traced(SAMPLED).charge(new_key(), user_id="alice", card="tok_visa", amount=money(-1, "EUR"))
        await until(lambda: traced.collector.named(CHARGE))
        (call,) = traced.collector.named(CHARGE)
        assert (call.has_failed, call.attributes["code"]) == (True, "INVALID_ARGUMENT")


async def test_a_collector_that_is_away_holds_nothing_up(tmp_path: Path) -> None:
    """What it loses is logged once, and once when it takes spans again."""
    async with traced_town(tmp_path, sampled="1") as traced:
        traced.collector.status = 400  # which is not tried again
        command = traced.town.command
        assert await traced.charge() == ChargeStatus.CHARGE_STATUS_CHARGED
        await command.logged("the collector of traces does not take them: they are lost until it does")
        traced.collector.status = 200
        assert await traced.charge() == ChargeStatus.CHARGE_STATUS_CHARGED
        await command.logged("the collector of traces takes them again")
        assert len([1 for entry in command.entries() if "collector" in entry["event"]]) == 2
        traced.collector.status = 503
        assert await traced.charge() == ChargeStatus.CHARGE_STATUS_CHARGED
        assert await command.stop() == 0


async def test_a_collectors_url_may_end_in_a_slash(tmp_path: Path) -> None:
    """That is no path."""
    async with traced_town(tmp_path) as traced:
        await traced.town.command.stop()
        traced.settings["COMMAND_TRACES"] += "/"
        await traced.start_command()
        assert await traced.charge(SAMPLED) == ChargeStatus.CHARGE_STATUS_CHARGED
        await until(lambda: traced.collector.named(CHARGE))


async def test_what_many_calls_share_is_logged_in_the_trace_of_none(tmp_path: Path) -> None:
    """A commit that the journal refuses, though the first call whose events are in it is traced."""
    async with traced_town(tmp_path) as traced:
        command = traced.town.command
        with contextlib.closing(sqlite3.connect(traced.town.journal, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            charging = asyncio.ensure_future(traced.charge(SAMPLED))
            entry = await command.logged("nothing was stored")
            other.execute("ROLLBACK")
        assert await charging == ChargeStatus.CHARGE_STATUS_CHARGED
        assert "traceparent" not in entry
        assert TRACE in (await command.logged("charge at rest"))["traceparent"]


async def test_without_traces_a_context_is_neither_stored_nor_passed_on(tmp_path: Path) -> None:
    async with traced_town(tmp_path) as traced:
        await traced.town.command.stop()
        traced.settings.clear()
        await traced.start_command()
        assert await traced.charge(SAMPLED) == ChargeStatus.CHARGE_STATUS_CHARGED
        assert traced.wire.contexts == []
        assert TRACE.encode() not in traced.town.journal.read_bytes()
        assert TRACE not in traced.town.command.text()


@pytest.mark.parametrize("module", ["command_service", "query_service"])
async def test_a_missing_extra_is_told_with_its_remedy(module: str, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ModuleNotFoundError('none', name='opentelemetry')\n")
    variable = f"{module.partition('_')[0].upper()}_TRACES"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), variable: "http://127.0.0.1:4318", "HOME": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    text = (await asyncio.wait_for(process.stderr.read(), PATIENT_SECONDS)).decode()
    assert await process.wait() == 1
    assert f"{variable} is set, and the package opentelemetry is not installed" in text
    assert "pip install 'chargeonce[otel]'" in text
