"""`chargeonce sandbox`: as the tests of a client in any language use it, and as it ends."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, Money
from charging.v1.operator_pb2 import ReconcileBegin, ReconcileRequest
from charging.v1.operator_pb2_grpc import OperatorServiceStub
from charging.v1.query_pb2 import GetChargeRequest
from charging.v1.query_pb2_grpc import QueryServiceStub

SCRIPT = str(Path(sys.executable).with_name("chargeonce"))
# Far more than a start or an end takes, for a machine that is busy with other things.
MOST_SECONDS = 30.0
SERVERS = ("command", "query", "feed", "bank")


class Running:
    """A sandbox that was started, and what its line says."""

    def __init__(self, process: "subprocess.Popen[str]", line: str) -> None:
        self.process = process
        self.told: dict[str, Any] = json.loads(line)

    def address(self, server: str) -> tuple[str, int]:
        host, _, port = str(self.told[server]).removeprefix("http://").rpartition(":")
        return host, int(port)

    def charge(self, key: str, card: str = "tok_visa", seconds: float = MOST_SECONDS) -> ChargeResponse:
        """Charge, with a deadline in so many seconds; the same again if the machine was too slow for any answer."""
        with grpc.insecure_channel(self.told["command"]) as channel:
            request = ChargeRequest(
                idempotency_key=key,
                user_id="alice",
                card=Card(token=card),
                amount=Money(minor_units=1250, currency_code="EUR"),
            )
            while True:
                try:
                    return CommandServiceStub(channel).Charge(request, timeout=seconds, wait_for_ready=True)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        raise

    def bank(self, path: str, order: Mapping[str, Any] | None = None) -> Any:
        body = None if order is None else json.dumps(order).encode()
        with urllib.request.urlopen(self.told["bank"] + path, body, timeout=MOST_SECONDS) as answer:
            return json.loads(answer.read())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(MOST_SECONDS)


@contextlib.contextmanager
def a_sandbox(*arguments: str, program: Sequence[str] = (SCRIPT,), **environment: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*program, "sandbox", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield Running(process, line)
        finally:
            process.terminate()  # in order, so that no folder stays


def refused(*arguments: str, **environment: str) -> str:
    """What one says that cannot start. Its exit status is 1, and it prints no addresses."""
    done = subprocess.run(
        [SCRIPT, "sandbox", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=MOST_SECONDS,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def has_ended(pid: int) -> bool:
    """Wait until a process that is nobody's child here has ended. One that does not end by itself is killed."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(handle):
        if select.select([handle], [], [], MOST_SECONDS)[0]:
            return True
        os.kill(pid, signal.SIGKILL)
        return False


def are_free(addresses: list[tuple[str, int]]) -> bool:
    for address in addresses:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    return True


def test_it_prints_one_line_when_all_serve_and_charges_once() -> None:
    with a_sandbox() as running:
        assert list(running.told) == [*SERVERS, "folder", "log", "pid"]
        assert running.told["pid"] == running.process.pid
        first, again = running.charge("one"), running.charge("one")
        assert first.status == ChargeStatus.CHARGE_STATUS_CHARGED
        assert again.transaction_id == first.transaction_id
        (movement,) = running.bank("/statement")["movements"]
        assert movement["transaction_id"] == first.transaction_id
        with grpc.insecure_channel(running.told["query"]) as channel:
            asked = GetChargeRequest(idempotency_key="one", min_position=first.position, journal_id=first.journal_id)
            found = QueryServiceStub(channel).GetCharge(asked, timeout=MOST_SECONDS)
        assert found.charge.status == ChargeStatus.CHARGE_STATUS_CHARGED
        entries = [json.loads(entry) for entry in Path(running.told["log"]).read_text().splitlines()]
        assert [entry["service"] for entry in entries if entry["event"] == "serving"] == ["command", "query"]


def test_told_to_stop_it_ends_in_order_and_removes_its_temporary_folder() -> None:
    """It has written nothing but the line, and has closed its output after it: a reader of all of it does not wait."""
    with a_sandbox() as running:
        assert running.process.stdout is not None and running.process.stderr is not None
        assert running.process.stdout.read() == ""
        running.charge("one")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(MOST_SECONDS) == 0
        assert running.process.stderr.read() == ""
        assert not Path(running.told["folder"]).exists()
        assert are_free([running.address(each) for each in SERVERS])


def test_it_ends_when_its_parent_is_killed() -> None:
    parent = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", parent, SCRIPT, "sandbox"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        running = Running(process, process.stdout.readline())
        assert running.told["pid"] != process.pid
        running.charge("one")
        process.kill()
        assert has_ended(running.told["pid"])
    assert are_free([running.address(each) for each in SERVERS])
    assert not Path(running.told["folder"]).exists()


def test_without_a_parent_from_the_start_it_runs_until_it_is_told_to_stop() -> None:
    """As in a container, where process 1 is its parent."""
    line = "(sleep 1; exec " + SCRIPT + " sandbox) & true"
    with subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        running = Running(process, process.stdout.readline())
        assert process.wait(MOST_SECONDS) == 0
        assert running.charge("one").status == ChargeStatus.CHARGE_STATUS_CHARGED
        os.kill(running.told["pid"], signal.SIGTERM)
        assert has_ended(running.told["pid"])


@pytest.mark.parametrize("fault", ["hang_before", "hang_after"])
def test_killed_and_started_again_over_its_folder_it_finishes_what_it_had_on_the_same_ports(
    tmp_path: Path, fault: str
) -> None:
    """A client goes on with the addresses and the key that it has; the bank has moved the money once."""
    with a_sandbox("--folder", str(tmp_path)) as running:
        running.bank("/faults", {"on": "execute", "fault": fault})
        assert running.charge("one", seconds=2).status == ChargeStatus.CHARGE_STATUS_PENDING
        running.kill()
    with a_sandbox("--folder", str(tmp_path)) as again:
        assert [again.told[each] for each in SERVERS] == [running.told[each] for each in SERVERS]
        assert json.loads((tmp_path / "sandbox.json").read_text()) == again.told
        assert running.charge("one").status == ChargeStatus.CHARGE_STATUS_CHARGED
        assert len(running.bank("/statement")["movements"]) == 1
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(MOST_SECONDS) == 0
    assert (tmp_path / "journal.db").exists()


def test_the_servers_settings_hold_but_for_addresses_and_files(tmp_path: Path) -> None:
    elsewhere = {"COMMAND_LISTEN": "127.0.0.1:1", "COMMAND_JOURNAL": f"sqlite:///{tmp_path / 'elsewhere.db'}"}
    with a_sandbox(COMMAND_MAX_AMOUNTS="EUR=1249", **elsewhere) as running:
        with pytest.raises(grpc.RpcError) as refusal:
            running.charge("one")
        assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert list(tmp_path.iterdir()) == []
    assert "is COMMAND_MAX_AMOUNTS meant?" in refused(COMMAND_MAX_AMOUNT="EUR=1")


def test_it_charges_at_its_own_bank_whatever_bank_the_environment_names(tmp_path: Path) -> None:
    banks = tmp_path / "banks.toml"
    with a_sandbox() as other:
        banks.write_text(f'[banks.other]\nkind = "two_step"\nurl = "{other.told["bank"]}"\n')
        with a_sandbox(COMMAND_BANKS=str(banks), COMMAND_BANK_URL=other.told["bank"]) as running:
            assert running.charge("one").status == ChargeStatus.CHARGE_STATUS_CHARGED
            assert len(running.bank("/statement")["movements"]) == 1
        assert other.bank("/statement")["movements"] == []
    with a_sandbox(COMMAND_BANK_TLS=str(tmp_path / "nowhere")) as running:
        assert running.charge("one").status == ChargeStatus.CHARGE_STATUS_CHARGED


def test_what_keeps_it_from_serving_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # taken by somebody else is as good
            other.bind(("127.0.0.1", 8080))
            other.listen()
        assert refused("--default-ports") == "error: the bank cannot listen on 127.0.0.1:8080: address already in use\n"
    with a_sandbox("--folder", str(tmp_path)):
        assert refused("--folder", str(tmp_path)) == f"error: another sandbox runs over {tmp_path}\n"
    (tmp_path / "sandbox.json").write_text("{}")
    assert refused("--folder", str(tmp_path)) == (
        f"error: {tmp_path / 'sandbox.json'} is not as a sandbox wrote it: remove it to get other ports\n"
    )


def test_it_reconciles_as_often_as_it_is_asked() -> None:
    """Its process forks for each run, and has grpc's clients in it too. With grpc's handlers of forks every fifth run died."""
    begin = ReconcileBegin()
    getattr(begin, "from").FromJsonString("2026-01-01T00:00:00Z")
    begin.to.FromJsonString("2036-01-01T00:00:00Z")
    with a_sandbox() as running:
        running.charge("one")
        with grpc.insecure_channel(running.told["command"]) as channel:
            stub = OperatorServiceStub(channel)
            for _ in range(20):
                asked = iter([ReconcileRequest(begin=begin)])
                heard = list(stub.Reconcile(asked, timeout=4 * MOST_SECONDS, wait_for_ready=True))
                assert heard[-1].HasField("result")


def test_open_to_every_address_it_names_those_of_this_machine() -> None:
    """Where the customer is sent to, too."""
    with a_sandbox("--host", "0.0.0.0") as running:
        assert {running.address(each)[0] for each in SERVERS} == {"127.0.0.1"}
        assert running.charge("one", card="tok_3ds").action.url.startswith(running.told["bank"])
