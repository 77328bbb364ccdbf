"""What finds a wrong client is shown to find it."""

import json
import shlex
from pathlib import Path

import pytest

from judge.history import charge_id_of
from rig.world import until
from tests.clients.programs import LANGUAGES, ROOT, Client
from tests.clients.tours import faults_of_tour
from tests.clients.transcript import CHARGES, EXPECTED, differences

EXPECTED_LINES = EXPECTED.read_text().splitlines()
ANOTHER_CHARGE = """{"idempotency_key": "tour-once-more", "user_id": "tour", "card": {"token": "tok_visa"},
  "amount": {"minor_units": 1250, "currency_code": "EUR"}}"""


def transcript(*lines: str, tenant: str = "default") -> str:
    """What a good client prints, or other lines, with the ids of a tenant's charges."""
    text = "\n".join(lines or EXPECTED_LINES) + "\n"
    for key in CHARGES:
        text = text.replace(f"<{key}>", charge_id_of(tenant, key))
    return text


def changed(step: str, **members: object) -> str:
    """The transcript with other members in one step."""
    return transcript(
        *(
            json.dumps(json.loads(line) | members) if json.loads(line)["step"] == step else line
            for line in EXPECTED_LINES
        )
    )


def a_client(folder: Path, script: str) -> Client:
    """A client whose tour is a script."""
    check = folder / "check"
    check.write_text(f"#!/usr/bin/env bash\n{script}\n")
    check.chmod(0o755)
    return Client("wrong", folder)


# ---------------------------------------------------------------- the transcript
def test_the_expected_transcript_is_not_different_from_itself() -> None:
    assert differences(transcript()) == ""
    assert differences(transcript(tenant="shop"), tenant="shop") == ""
    assert differences(transcript(), is_troubled=True) == ""


@pytest.mark.parametrize("is_troubled", [False, True])
@pytest.mark.parametrize("number", range(len(EXPECTED_LINES)))
def test_a_line_that_is_missing_is_reported(number: int, is_troubled: bool) -> None:
    left = transcript(*EXPECTED_LINES[:number], *EXPECTED_LINES[number + 1 :])
    assert differences(left, is_troubled=is_troubled)


def test_the_report_shows_the_line_as_expected_and_as_printed() -> None:
    shown = differences(changed("large amount", minor_units="1410065407")).splitlines()
    assert '-large amount: {"minor_units": "999999999999"}' in shown
    assert '+large amount: {"minor_units": "1410065407"}' in shown


@pytest.mark.parametrize(
    ("step", "members"),
    [
        ("large amount", {"minor_units": 999999999999}),  # a number for a string
        ("same key", {"same_transaction": 1}),
        ("unknown values", {"status": 99.0}),
        ("charge", {"charge_id": charge_id_of("shop", "tour-1")}),  # another tenant's
        ("after the deadline", {"charge_id": charge_id_of("default", "tour-1")}),
        ("void", {"more": "than is asked for"}),
        ("invalid", {"violations": ["user_id", "amount.minor_units"]}),  # not sorted
        ("watch", {"last": "CHARGE_STATUS_PENDING"}),
        ("charge", {"outcome_source": None}),
        ("watch", {"first": 1}),
    ],
)
@pytest.mark.parametrize("is_troubled", [False, True])
def test_a_member_that_is_another_is_reported(step: str, members: dict[str, object], is_troubled: bool) -> None:
    assert differences(changed(step, **members), is_troubled=is_troubled)


@pytest.mark.parametrize(
    ("step", "members"),
    [
        ("charge", {"outcome_source": "OUTCOME_SOURCE_RECOVERED"}),
        ("same key", {"outcome_source": "OUTCOME_SOURCE_JOINED"}),
        ("watch", {"first": "CHARGE_STATUS_CHARGED"}),
    ],
)
def test_only_among_faults_a_source_and_a_first_status_may_be_others(step: str, members: dict[str, object]) -> None:
    assert differences(changed(step, **members))
    assert differences(changed(step, **members), is_troubled=True) == ""


@pytest.mark.parametrize("line", ["connected", "[]", "1", "{}", ""])
def test_a_line_that_is_no_step_is_reported(line: str) -> None:
    assert f"+no step: {line}" in differences(f"{line}\n{transcript()}")


# ---------------------------------------------------------------- the runs
async def test_a_client_that_charges_twice_under_another_key_is_found(tmp_path: Path) -> None:
    call = [ROOT / ".venv/bin/buf", "curl", "--protocol", "grpc", "--data", ANOTHER_CHARGE]
    spendthrift = a_client(
        tmp_path,
        f"{LANGUAGES['python'].folder}/check tour && {shlex.join(map(str, call))} "
        '"http://$CHARGEONCE_COMMAND/charging.v1.CommandService/Charge" > /dev/null',
    )
    (found,) = await faults_of_tour(spendthrift, "quiet", tmp_path)
    moved = charge_id_of("default", "tour-once-more"), "charge", 1250, "EUR"
    assert found == f"the bank moved, against the tour or once too often, {moved}"


async def test_a_client_that_ends_early_is_found_and_that_it_only_told_of_money(tmp_path: Path) -> None:
    early = a_client(tmp_path, f"head -n 5 {EXPECTED}; exit 3")
    status, printed, *books = await faults_of_tour(early, "quiet", tmp_path)
    assert status.startswith("it ended with status 3")
    assert "-new key: " in printed
    assert len([each for each in books if each.startswith("the bank did not move ")]) == 13


async def test_a_road_without_a_fault_shows_nothing(tmp_path: Path) -> None:
    idle = a_client(tmp_path, f"cat {EXPECTED}")
    assert "it met no fault, so that nothing is shown" in await faults_of_tour(idle, "killed", tmp_path)


async def test_a_client_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    hanging = a_client(tmp_path, "sleep 1000 & echo $!; wait")
    ran = await hanging.run("tour", tmp_path / "tour", 1.0)
    assert ran.trouble().startswith("it took too long")
    child = Path("/proc", ran.out.strip(), "stat")
    await until(lambda: not child.exists() or child.read_text().split()[2] == "Z")


# ---------------------------------------------------------------- the clients
def test_every_folder_of_a_client_is_one_that_is_run() -> None:
    assert {path.parent.name for path in (ROOT / "clients").glob("*/check")} <= set(LANGUAGES)
