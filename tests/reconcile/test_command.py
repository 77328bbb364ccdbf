"""`reconcile`, as an operator runs it and as a server runs it for one: a real journal and bank, and a process of its own."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import httpx
import pytest

from charging.v1 import operator_pb2_grpc
from charging.v1.common_pb2 import Card
from charging.v1.operator_pb2 import (
    FindingKind,
    ListReconciliationsRequest,
    ReconcileBegin,
    ReconcileRequest,
    ReconcileResponse,
)
from chassis.refusals import Refusal
from chassis.settings import read
from command_service.journal import START
from command_service.journal.sqlite.file import SqliteFile
from command_service.reconciling.reconciler import Reconciler
from command_service.settings import Settings
from prove.planted import MAPPING, written
from rig.errors import told
from rig.processes import Town, free_address
from rig.referee import PATIENT_SECONDS, Referee
from rig.world import CHARGED, DECLINED, World, a_hold, a_request, a_world, id_of, until


class Ran(NamedTuple):
    """What came of a run: its exit status, standard output and standard error."""

    status: int
    out: str
    error: str

    @property
    def said(self) -> Mapping[str, Any]:
        """Its JSON."""
        return dict(json.loads(self.out))

    @property
    def kinds(self) -> Counter[str]:
        return Counter(finding["kind"].removeprefix("FINDING_KIND_") for finding in self.said["findings"])


def moment(seconds: float = 0) -> str:
    return time.strftime("%FT%TZ", time.gmtime(time.time() + seconds))


_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


async def reconcile(
    world: World | Town,
    *arguments: str,
    begin: str = "",
    end: str = "",
    banks: Path | None = None,
    longest_file: int = -1,
) -> Ran:
    """Run the command over the last hour and all that happened since. `longest_file`, in bytes: as if the disk were full."""
    bank = {"COMMAND_BANK_URL": world.bank_url} if banks is None else {"COMMAND_BANKS": str(banks)}
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LIMITED.format(longest_file), "-m", "command_service", "reconcile"),
        *("--clock-difference", "0"),
        *("--from", begin or moment(-3600), "--to", end or moment(1), *arguments),
        env={**os.environ, "COMMAND_JOURNAL": f"sqlite:///{world.journal}", **bank},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(running.communicate(), 2 * PATIENT_SECONDS)
    assert running.returncode is not None
    return Ran(running.returncode, out.decode(), error.decode())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def busy(world: World) -> None:
    """Operations of every kind: five movements with money, and three holds and voids."""
    charged = await world.charge(a_request())
    assert charged.status == CHARGED
    await world.refund(charged.charge_id, 250)
    captured = await world.charge(a_hold())
    await world.capture(captured.charge_id, 1000)
    await world.capture(captured.charge_id, 250)
    voided = await world.charge(a_hold())
    await world.void(voided.charge_id)
    yen = await world.charge(a_request(amount={"minor_units": 900, "currency_code": "JPY"}))
    assert yen.status == CHARGED
    declined = await world.charge(a_request(card=Card(token="tok_declined")))
    assert declined.status == DECLINED


async def _execute_unasked(referee: Referee) -> str:
    """Have the bank move 0.99 EUR that nobody here asked for; return the transaction's id."""
    order = {"reference": "order-7", "card": "tok_visa", "amount": 99, "currency": "EUR"}
    token = (await referee.http.post("/transactions", json=order)).json()["token"]
    executed = (await referee.http.post(f"/transactions/{token}/execute")).raise_for_status().json()
    return str(executed["transaction_id"])


async def settled() -> None:
    """Wait for the next second: a run over whole seconds has all of the one before."""
    second = int(time.time())
    await until(lambda: int(time.time()) > second)


async def test_a_day_of_all_operations_is_balanced_and_changes_nothing(world: World) -> None:
    await busy(world)
    await settled()
    head = world.running.journal.head
    found = await reconcile(world, "--json", "-")
    assert found.status == 0, found
    assert found.said["findings"] == []
    result = found.said["result"]
    assert result["is_balanced"]
    assert [
        (day["currency_code"], day["matched"], day["bank_minor_units"], day["journal_minor_units"])
        for day in result["days"]
    ] == [("EUR", "7", "2250", "2250"), ("JPY", "1", "900", "900")]
    assert world.running.journal.head == head
    table = await reconcile(world)
    assert table.status == 0
    assert "22.50" in table.out
    assert "balanced: a difference of 0.00 in 8 movements" in table.out


async def test_money_that_moved_behind_our_back_is_missing_here(world: World) -> None:
    transaction_id = await _execute_unasked(world.referee)
    world.broken = {"I1", "I2", "I3", "I4", "I5", "I6"}
    await settled()
    found = await reconcile(world, "--json", "-")
    assert found.status == 1
    (finding,) = found.said["findings"]
    assert finding["kind"] == "FINDING_KIND_MISSING_HERE"
    assert (finding["reference"], finding["transaction_id"]) == ("order-7", transaction_id)
    assert finding["bank_minor_units"] == "99"
    assert finding["proposed_command"] == ""


async def test_a_charge_whose_answer_is_lost_is_tried_again_at_the_desk(world: World) -> None:
    """The money moved, and the journal does not know it yet. Once it does, nothing differs."""
    await world.trouble("execute", "error_after", times=1000)
    await world.trouble("look_up", "error_before", times=1000)
    request = a_request()
    await world.pending(request)
    await until(lambda: world.movements(request))
    await settled()
    found = await reconcile(world, "--json", "-")
    assert found.status == 1
    (finding,) = found.said["findings"]
    assert finding["kind"] == "FINDING_KIND_STATUS_DIFFERS"
    assert "is under way" in finding["text"]
    assert finding["proposed_command"].startswith(f"chargeonce desk try {id_of(request)} --reason ")
    await world.referee.no_more_trouble()

    async def is_decided() -> bool:
        return (await world.charge(request)).status == CHARGED

    await until(is_decided)
    await settled()
    assert (await reconcile(world)).status == 0


async def test_a_charge_in_review_that_the_bank_executed_is_resolved_at_the_desk(world: World) -> None:
    await world.trouble("execute", "odd_transaction_id", transaction_id="odd id")
    request = a_request()
    await world.charge(request)
    await settled()
    found = await reconcile(world, "--json", "-")
    assert found.status == 1
    (finding,) = found.said["findings"]
    assert finding["kind"] == "FINDING_KIND_STATUS_DIFFERS"
    assert "is in review" in finding["text"]
    assert finding["proposed_command"].startswith(f"chargeonce desk propose {id_of(request)} --executed 'odd id' ")


async def test_a_charge_that_the_bank_does_not_have_is_no_finding_while_it_is_under_way(world: World) -> None:
    await world.trouble("execute", "error_before", times=1000)
    await world.pending(a_request())
    await settled()
    assert (await reconcile(world)).status == 0
    await world.referee.no_more_trouble()


async def test_a_bank_that_is_away_and_a_bank_that_nobody_named(world: World) -> None:
    assert (await reconcile(world, "--bank", "acme")).status == 2
    assert (await reconcile(world, begin="yesterday")).status == 2
    assert (await reconcile(world, begin=moment(1), end=moment(-1))).status == 2
    await world.bank_down()
    away = await reconcile(world)
    assert away.status == 4
    assert "does not give its statement" in away.error
    await world.bank_up()


async def test_a_csv_file_is_compared_and_all_outputs_agree(world: World, tmp_path: Path) -> None:
    await busy(world)
    await settled()
    movements = (await world.referee.http.get("/statement")).json()["movements"]
    euros = [movement for movement in movements if movement["currency_code"] == "EUR"]
    written(tmp_path / "statement.csv", euros[1:])
    (tmp_path / "mapping.toml").write_text(MAPPING)
    file = ("--csv", str(tmp_path / "statement.csv"), "--mapping", str(tmp_path / "mapping.toml"))
    found = await reconcile(world, *file, "--json", "-", "--csv-out", str(tmp_path / "out.csv"))
    assert found.status == 1
    assert found.kinds == {"MISSING_AT_BANK": 2, "FEE": 1, "PAYOUT": 1, "CHARGEBACK": 1}
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0].startswith("kind,day,currency_code,reference")
    assert len(rows) == 1 + len(found.said["findings"])
    lines = await reconcile(world, *file, "--lines")
    told_lines = [json.loads(line) for line in lines.out.splitlines()]
    assert [line["finding"]["kind"] for line in told_lines if "finding" in line] == [
        finding["kind"] for finding in found.said["findings"]
    ]
    assert told_lines[-1]["result"]["differences"] == found.said["result"]["differences"] == "2"


SIMPLE = """
currency = "EUR"
[columns]
reference = "reference"
amount = "amount"
time = "time"
"""
DAILY = """
lines = "daily"
currency = "EUR"
[columns]
amount = "amount"
time = "time"
"""


def of_file(folder: Path, mapping: str, lines: str) -> Sequence[str]:
    """The arguments of a CSV file of these lines."""
    (folder / "mapping.toml").write_text(mapping)
    (folder / "statement.csv").write_text(lines)
    return ("--csv", str(folder / "statement.csv"), "--mapping", str(folder / "mapping.toml"))


async def test_money_that_went_back_is_a_difference_though_it_had_moved_long_before(
    world: World, tmp_path: Path
) -> None:
    """Neither the first line nor its operation is among what is read."""
    lines = f"reference,amount,time,id,state\nof-last-month,-12.50,{moment(-600)},txn_1,RETURNED\n"
    mapping = (
        SIMPLE + 'transaction_id = "id"\nstatus = "state"\n[statuses]\nmoved = ["DONE"]\nwent_back = ["RETURNED"]\n'
    )
    found = await reconcile(world, *of_file(tmp_path, mapping, lines), "--json", "-")
    assert (found.status, found.kinds) == (1, {"STATUS_DIFFERS": 1})
    (finding,) = found.said["findings"]
    assert "went back the way it came" in finding["text"]
    assert (finding["transaction_id"], finding["bank_minor_units"]) == ("txn_1", "-1250")
    assert [day["difference_minor_units"] for day in found.said["result"]["days"]] == ["-1250"]


async def test_a_day_without_a_line_is_a_difference_where_the_statement_has_a_line_a_day(
    world: World, tmp_path: Path
) -> None:
    first = await world.charge(a_request())
    second = await world.charge(a_request())
    assert (first.status, second.status) == (CHARGED, CHARGED)
    await settled()
    yesterday = moment(-86_400)[:10]
    today = moment()[:10]

    async def found(*lines: str) -> Ran:
        file = of_file(tmp_path, DAILY, "\n".join(("time,amount", *lines, "")))
        return await reconcile(world, *file, "--json", "-", begin=yesterday, end=moment(86_400)[:10])

    whole = await found(f"{yesterday},0.00", f"{today},25.00")
    assert (whole.status, whole.kinds) == (0, {}), whole
    for lines in ((), (f"{yesterday},0.00",)):
        without = await found(*lines)
        assert (without.status, without.kinds) == (1, {"AMOUNT_DIFFERS": 1}), without
        (finding,) = without.said["findings"]
        assert (finding["day"], finding["bank_minor_units"], finding["journal_minor_units"]) == (today, "0", "2500")
    other = await found(f"{yesterday},7.00", f"{today},25.00")
    assert (other.status, other.kinds) == (1, {"AMOUNT_DIFFERS": 1}), other


async def test_a_line_may_be_in_the_next_file_of_a_statement_that_ends_with_the_span(
    world: World, tmp_path: Path
) -> None:
    assert (await world.charge(a_request())).status == CHARGED
    await settled()
    file = of_file(tmp_path, SIMPLE, "reference,amount,time\n")
    assert (await reconcile(world, *file, "--json", "-")).kinds == {"MISSING_AT_BANK": 1}
    with SqliteFile(world.journal).read() as reading:
        moved_at = max(record.recorded_at for record in reading.records(START)) / 1_000_000
    end = datetime.fromtimestamp(moved_at + 0.5, UTC).isoformat()
    await until(lambda: time.time() > moved_at + 1.5)  # then the span ends where it is said to
    edge = await reconcile(world, *file, "--json", "-", "--clock-difference", "1", end=end)
    assert (edge.status, edge.kinds) == (3, {"AT_EDGE": 1}), edge


async def test_the_bank_of_a_file_is_one_of_those_that_are_served(world: World, tmp_path: Path) -> None:
    """A name of no bank would find no charge here, and be the name of a file."""
    file = of_file(tmp_path, SIMPLE, f"reference,amount,time\nx,12.50,{moment(-60)}\n")
    for name in ("acmee", "../../evil"):
        refused = await reconcile(world, *file, "--bank", name)
        assert refused.status == 2
        assert "there is no such bank" in refused.error
    with pytest.raises(grpc.aio.AioRpcError) as error:
        _ = [response async for response in asked(world, [begun(SIMPLE, "../../evil"), ReconcileRequest(csv=b"x")])]
    assert told(error.value).reason == "INVALID_REQUEST"
    assert not list(tmp_path.parent.rglob("*evil*"))


async def test_a_fault_of_the_program_is_no_difference(world: World, tmp_path: Path) -> None:
    lines = "".join(f"order-{n},1.00,{moment(-60)}\n" for n in range(50_000))
    file = of_file(tmp_path, SIMPLE, f"reference,amount,time\n{lines}")
    broken = await reconcile(world, *file, longest_file=1_000_000)
    assert broken.status == 5
    assert "a fault of this program" in broken.error


async def test_a_difference_is_kept_until_a_run_over_its_days_finds_none(world: World, tmp_path: Path) -> None:
    stub = operator_pb2_grpc.OperatorServiceStub(world.channel)
    hour, day = moment(-3600), moment(-86_400)

    async def kept() -> list[int]:
        found = await stub.ListReconciliations(ListReconciliationsRequest())
        assert all(len(each.findings) == min(each.differences, 100) for each in found.reconciliations)
        return [each.differences for each in found.reconciliations]

    lines = "".join(f"order-{n},12.50,{moment(-600)}\n" for n in range(120))
    statement = f"reference,amount,time\n{lines}"
    assert (await reconcile(world, *of_file(tmp_path, SIMPLE, statement), begin=hour)).status == 1
    assert await kept() == [120]
    assert (await reconcile(world, begin=day, end=moment(-7200))).status == 0
    assert await kept() == [0, 120]
    assert (await reconcile(world, *of_file(tmp_path, SIMPLE, statement), begin=day, end=moment(-300))).status == 1
    assert await kept() == [120, 120]
    assert (await reconcile(world, begin=day)).status == 0
    assert await kept() == [0]


# ---------------------------------------------------------------- by RPC
def asked(
    world: World, requests: list[ReconcileRequest]
) -> "grpc.aio.StreamStreamCall[ReconcileRequest, ReconcileResponse]":
    return operator_pb2_grpc.OperatorServiceStub(world.channel).Reconcile(iter(requests), timeout=4 * PATIENT_SECONDS)


def begun(mapping: str = "", bank: str = "") -> ReconcileRequest:
    begin = ReconcileBegin(bank=bank, mapping=mapping)
    getattr(begin, "from").FromSeconds(int(time.time()) - 3600)
    begin.to.FromSeconds(int(time.time()) - 60)
    return ReconcileRequest(begin=begin)


async def test_by_rpc_a_file_is_compared_while_the_server_works_and_the_result_is_kept(
    world: World, tmp_path: Path
) -> None:
    stub = operator_pb2_grpc.OperatorServiceStub(world.channel)
    assert not (await stub.ListReconciliations(ListReconciliationsRequest())).reconciliations
    lines = "".join(f"order-{n},12.50,{moment(-600)}\n" for n in range(5_000))
    statement = f"reference,amount,time\n{lines}".encode()
    mapping = SIMPLE
    chunks = [ReconcileRequest(csv=statement[at : at + 12_000]) for at in range(0, len(statement), 12_000)]
    heard = [response async for response in asked(world, [begun(mapping), *chunks])]
    findings = [response.finding for response in heard if response.HasField("finding")]
    assert {finding.kind for finding in findings} == {FindingKind.FINDING_KIND_MISSING_HERE}
    assert len(findings) == 5_000
    result = heard[-1].result
    assert (result.differences, result.is_balanced) == (5_000, False)
    assert [day.difference_minor_units for day in result.days] == [5_000 * 1250]
    (last,) = (await stub.ListReconciliations(ListReconciliationsRequest())).reconciliations
    assert list(last.findings) == findings[:100]
    del last.findings[:]
    assert last == result


async def test_a_card_number_in_a_file_is_neither_told_nor_kept(world: World) -> None:
    card = "4111111111111111"
    statement = f"reference,amount,time\n{card},12.50,{moment(-600)}\norder-1,12.50,{moment(-600)}\n".encode()
    heard = [response async for response in asked(world, [begun(SIMPLE), ReconcileRequest(csv=statement)])]
    found = {response.finding.reference for response in heard if response.HasField("finding")}
    assert found == {"(looks like a card number)", "order-1"}
    kept = [file for file in world.journal.parent.rglob("*") if file.is_file()]
    assert any(b"order-1" in file.read_bytes() for file in kept)
    assert [file for file in kept if card.encode() in file.read_bytes()] == []


async def test_by_rpc_what_is_wrong_is_told(world: World) -> None:
    for requests in (
        [],
        [ReconcileRequest(csv=b"x")],
        [begun("columns = 1"), ReconcileRequest(csv=b"x")],
        [begun(bank="acme")],
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            _ = [response async for response in asked(world, requests)]
        assert told(error.value).reason == "INVALID_REQUEST", requests
        assert str(world.journal.parent) not in str(told(error.value).everything)
    await world.bank_down()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        _ = [response async for response in asked(world, [begun()])]
    assert told(error.value).reason == "BANK_UNREACHABLE"
    await world.bank_up()


async def test_a_caller_who_leaves_ends_the_run_and_another_may_begin(world: World) -> None:
    call = asked(world, [begun()])
    call.cancel()

    async def is_free() -> bool:
        try:
            return [response async for response in asked(world, [begun()])][-1].result.is_balanced
        except grpc.aio.AioRpcError as error:
            assert told(error).reason == "TOO_MANY_CALLS"
            return False

    await until(is_free)


async def test_a_caller_who_leaves_amid_the_work_leaves_nothing_behind(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither files nor a process, whose command line would name one of them."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))  # of the process that compares
    lines = "".join(f"order-{n},12.50,{moment(-600)}\n" for n in range(40_000))
    statement = f"reference,amount,time\n{lines}".encode()
    chunks = [ReconcileRequest(csv=statement[at : at + 12_000]) for at in range(0, len(statement), 12_000)]
    call = asked(world, [begun(SIMPLE), *chunks])
    async for response in call:
        if response.HasField("finding"):
            break
    assert _processes_with(str(scratch))
    call.cancel()
    await until(lambda: not _processes_with(str(scratch)) and not list(scratch.iterdir()))


def _processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in (line := path.read_text(errors="replace")):
                found.append(line)
    return found


async def test_a_caller_hears_of_progress_while_the_file_is_on_its_way(world: World) -> None:
    heard = asyncio.Event()

    async def requests() -> AsyncIterator[ReconcileRequest]:
        yield begun(SIMPLE)
        await heard.wait()
        yield ReconcileRequest(csv=b"reference,amount,time\n")

    stub = operator_pb2_grpc.OperatorServiceStub(world.channel)
    is_balanced = False
    async for response in stub.Reconcile(requests(), timeout=4 * PATIENT_SECONDS):
        heard.set()
        is_balanced = response.result.is_balanced
    assert is_balanced


async def test_a_caller_who_sends_nothing_does_not_hold_the_place_of_others(world: World) -> None:
    async def requests() -> AsyncIterator[ReconcileRequest]:
        yield begun(SIMPLE)
        await asyncio.Event().wait()

    reconciler = Reconciler(read(Settings, {"COMMAND_JOURNAL": f"sqlite:///{world.journal}"}), message_seconds=0.01)
    with pytest.raises(Refusal) as error:
        _ = [response async for response in reconciler.run(requests())]
    assert "must come within" in str(error.value.violations)


async def test_the_last_result_is_a_gauge(tmp_path: Path) -> None:
    metrics = free_address()
    town = Town(tmp_path)
    try:
        await town.start_bank()
        await town.start_command(COMMAND_METRICS_LISTEN=metrics)
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENT_SECONDS) as client:
            assert "chargeonce_reconciliation_age_seconds +Inf" in (await client.get(f"http://{metrics}/metrics")).text
        async with Referee(town.bank_url) as referee:
            await _execute_unasked(referee)
        await settled()
        assert (await reconcile(town)).status == 1
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENT_SECONDS) as client:
            page = (await client.get(f"http://{metrics}/metrics")).text
    finally:
        await town.__aexit__()
    assert 'chargeonce_reconciliation_difference_minor_units{currency="EUR"} 99.0' in page
    assert "chargeonce_reconciliation_findings 1.0" in page
    assert "chargeonce_reconciliation_age_seconds " in page
