"""The page on testing against the sandbox, docs/testing.md: its lines are run as they stand, its tables row by row."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from charging.v1.command_pb2 import CaptureMode, CaptureRequest, CaptureResponse, ChargeRequest, ChargeResponse
from charging.v1.command_pb2_grpc import CommandServiceStub
from charging.v1.common_pb2 import Card, ChargeStatus, DeclineReason, Money, OperationStatus
from gateway_mock.model import ASKING_CARDS, CARDS
from judge.history import charge_id_of
from rig import errors
from tests.e2e.test_sandbox import MOST_SECONDS, Running, a_sandbox, has_ended

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
MOCK_BANK = (ROOT / "docs" / "mock-bank.md").read_text()
BANK_IS_DOWN = {"on": "token", "fault": "error_before", "times": 1000}


def section(name: str, page: str = PAGE) -> str:
    return page.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->", maxsplit=1)[0]


def block(name: str) -> str:
    (found,) = re.findall(r"```\w+\n(.*?)```", section(name), re.DOTALL)
    return str(found)


def rows(name: str, page: str = PAGE) -> list[list[str]]:
    """A table's cells, without its head."""
    lines = [line for line in section(name, page).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def cards(page: str) -> dict[str, tuple[str, str]]:
    """The cards in a page's table, each with its two other cells."""
    return {card: (row[1], row[2]) for row in rows("cards", page) for card in re.findall(r"`(tok_\w+)`", row[0])}


def status(answer: ChargeResponse) -> str:
    return ChargeStatus.Name(answer.status).removeprefix("CHARGE_STATUS_")


def follow(action: str, step: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{action}/{step}", method="POST"), timeout=MOST_SECONDS).close()


def in_bash(folder: Path, script: str) -> str:
    """Run lines of the page in a folder of their own, and return what they print."""
    (folder / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=2 * MOST_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_ten_lines_are_ten_and_charge_once(tmp_path: Path) -> None:
    assert len(block("ten lines").splitlines()) <= 10
    out = in_bash(tmp_path, block("ten lines"))
    assert re.findall(r'"outcomeSource": "OUTCOME_SOURCE_(\w+)"', out) == ["FRESH", "REPLAYED"]
    assert has_ended(json.loads((tmp_path / "sandbox.json").read_text())["pid"])


def test_the_crash_is_one_and_the_charge_is_made_once(tmp_path: Path) -> None:
    count = "\ncurl -s $(address bank)/statement"
    out = in_bash(tmp_path, block("ten lines") + block("crash") + count)
    assert re.findall(r"CHARGE_STATUS_\w+", out)[-2:] == ["CHARGE_STATUS_PENDING", "CHARGE_STATUS_CHARGED"]
    statement = json.loads(out[out.rindex('{"movements"') :])
    assert [movement["reference"] for movement in statement["movements"]] == [
        charge_id_of("default", key) for key in ("order-1", "order-2")
    ]
    assert has_ended(json.loads((tmp_path / "again.json").read_text())["pid"])


def test_the_line_on_the_page_has_the_members_of_the_real_one() -> None:
    shown = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    with a_sandbox() as running:
        assert list(shown) == list(running.told)
        assert {name: type(value) for name, value in shown.items()} == {
            name: type(value) for name, value in running.told.items()
        }
        with pytest.raises(urllib.error.HTTPError) as refusal:
            running.bank("/faults", {"on": "execute", "fault": "stop_after"})
        with refusal.value as error:
            assert (error.code, json.loads(error.read())) == (409, {"error": "runs_in_process"})


def test_every_card_does_what_the_page_says() -> None:
    told = cards(PAGE)
    assert told.keys() == CARDS.keys() | ASKING_CARDS.keys()
    ((_, *unknown),) = [row for row in rows("cards") if row[0] == "any other"]
    with a_sandbox() as running:
        for card, (state, more) in {**told, "tok_unknown": tuple(unknown)}.items():
            answer = running.charge(f"of-{card}", card)
            assert status(answer) == state, card
            if state == "DECLINED":
                assert DeclineReason.Name(answer.decline_reason) == f"DECLINE_REASON_{more}"
        confirmed, refused = [running.charge(key, "tok_3ds").action.url for key in ("confirmed", "refused")]
        follow(confirmed, "confirm")
        follow(refused, "refuse")
        follow(running.charge("of-tok_3ds_declined", "tok_3ds_declined").action.url, "confirm")
        assert status(running.charge("confirmed", "tok_3ds")) == "CHARGED"
        for key, card, reason in (
            ("refused", "tok_3ds", "AUTHENTICATION_REQUIRED"),
            ("of-tok_3ds_declined", "tok_3ds_declined", "CARD_DECLINED"),
        ):
            answer = running.charge(key, card)
            assert (status(answer), DeclineReason.Name(answer.decline_reason)) == (
                "DECLINED",
                f"DECLINE_REASON_{reason}",
            )
            assert reason in told[card][1]


def test_every_card_does_at_the_bank_what_its_page_says() -> None:
    told = cards(MOCK_BANK)
    assert told.keys() == CARDS.keys() | ASKING_CARDS.keys()
    with a_sandbox() as running:
        for card, (result, more) in told.items():
            order = {"reference": card, "card": card, "amount": 1250, "currency": "EUR"}
            token = running.bank("/transactions", order)["token"]
            request = urllib.request.Request(f"{running.told['bank']}/transactions/{token}/execute", method="POST")
            with urllib.request.urlopen(request, timeout=MOST_SECONDS) as answer:
                found = json.loads(answer.read())
            assert found["result"] == result, card
            if result == "declined":
                assert f"`{found['reason']}`" == more


def test_every_fault_shows_a_client_what_the_page_says() -> None:
    """All at once, each at a charge of its own."""
    told = [(f"order-{n}", json.loads(row[0].strip("`")), *row[1:3]) for n, row in enumerate(rows("faults"))]
    assert len(told) >= 10
    ids = {key: charge_id_of("default", key) for key, *_ in told}
    with a_sandbox() as running:
        for key, order, _, _ in told:
            running.bank("/faults", {**order, "reference": ids[key]})
        with ThreadPoolExecutor(len(told)) as pool:
            # What is there at once is there on a slow machine too: only what is PENDING has the short deadline.
            firsts = pool.map(lambda row: running.charge(row[0], seconds=2.0 if row[2] == "PENDING" else 20.0), told)
            assert [status(answer) for answer in firsts] == [first for _, _, first, _ in told]
            later = pool.map(lambda row: running.charge(row[0], seconds=20.0), told)
            assert [status(answer) for answer in later] == [again for _, _, _, again in told]
        ((down, order),) = [(key, order) for key, order, _, again in told if again == "PENDING"]
        assert order == BANK_IS_DOWN
        urllib.request.urlopen(urllib.request.Request(f"{running.told['bank']}/faults", method="DELETE")).close()
        assert status(running.charge(down)) == "CHARGED"
        references = [movement["reference"] for movement in running.bank("/statement")["movements"]]
        assert sorted(references) == sorted(ids.values())  # each once, and none twice


def test_a_hold_lapses_as_the_page_says() -> None:
    (order,) = re.findall(r"`(\{[^`]*expire_hold[^`]*\})`", PAGE)
    with a_sandbox() as running, grpc.insecure_channel(running.told["command"]) as channel:
        stub = CommandServiceStub(channel)
        held: ChargeResponse = stub.Charge(
            ChargeRequest(
                idempotency_key="hold",
                user_id="alice",
                card=Card(token="tok_visa"),
                amount=Money(minor_units=1250, currency_code="EUR"),
                capture=CaptureMode.CAPTURE_MODE_MANUAL,
            ),
            timeout=MOST_SECONDS,
        )
        running.bank("/faults", json.loads(order))
        captured: CaptureResponse = stub.Capture(
            CaptureRequest(idempotency_key="capture", charge_id=held.charge_id), timeout=MOST_SECONDS
        )
    assert captured.outcome.status == OperationStatus.OPERATION_STATUS_DECLINED
    assert DeclineReason.Name(captured.outcome.decline_reason) == "DECLINE_REASON_AUTHORIZATION_EXPIRED"


def reason_of(running: Running, key: str) -> str:
    """The reason with which a charge is refused."""
    with pytest.raises(grpc.RpcError) as refusal:
        running.charge(key)
    error: Any = refusal.value
    return errors.told(error).reason


def test_the_settings_bring_about_what_the_page_says() -> None:
    told = {row[0].strip("`"): row[1] for row in rows("settings")}
    amounts, unfinished, window, abandon = told
    with a_sandbox(**dict([amounts.split("=", 1)])) as running:
        assert reason_of(running, "one") in told[amounts]
    with a_sandbox(**dict([unfinished.split("=", 1)])) as running:
        running.bank("/faults", BANK_IS_DOWN)
        assert status(running.charge("one", seconds=1)) == "PENDING"
        assert reason_of(running, "two") in told[unfinished]
    with a_sandbox(**dict([window.split("=", 1)])) as running:
        assert status(running.charge("one")) == "CHARGED"
        assert reason_of(running, "two") in told[window]
    with a_sandbox(**dict([abandon.split("=", 1)])) as running:
        running.bank("/faults", BANK_IS_DOWN)
        assert status(running.charge("one")) == "ABANDONED"
        assert "ABANDONED" in told[abandon]


def test_the_service_in_ci_has_the_image_and_the_ports_of_the_containerfile() -> None:
    container = (ROOT / "deploy" / "sandbox" / "Containerfile").read_text()
    job = yaml.safe_load(block("ci"))["jobs"]["test"]
    service = job["services"]["chargeonce"]
    (ports,) = re.findall(r"^EXPOSE (.*)$", container, re.MULTILINE)
    assert service["ports"] == [f"{port}:{port}" for port in ports.split()]
    assert f"docker build --tag {service['image']} deploy/sandbox" in container
    assert f"docker build --tag {service['image']} deploy/sandbox" in PAGE
