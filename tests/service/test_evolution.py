"""What docs/compatibility.md says of changes, shown: at the gate, and between a program of today and one of a later contract.

The later contract is today's with a change. Its messages come from a pool of descriptors of their own, as in another program.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from charging.v1.command_pb2 import ChargeRequest, ChargeResponse
from charging.v1.journal_pb2 import Event
from rig.errors import refused
from rig.world import CHARGED, World, a_request, a_world

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
BUF = Path(sys.executable).with_name("buf")

# Each change: the file, what stands there today, as a pattern, and what stands there then.
NEW_FIELD = ("command", r"  string return_url = 11;", r"\g<0>\n  // Later.\n  string later = 12;")
NEW_FIELD_IN_AN_ANSWER = ("command", r"  CustomerAction action = 11;", r"\g<0>\n  // Later.\n  string later = 12;")
NEW_STATUS = ("common", r"  CHARGE_STATUS_REQUIRES_ACTION = 11;", r"\g<0>\n  // Later.\n  CHARGE_STATUS_LATER = 12;")
NEW_EVENT = (
    "journal",
    r"    ResolutionApproved resolution_approved = 26;",
    r"\g<0>\n    // Later.\n    ChargeCalledOff later = 27;",
)
ALLOWED = {
    "a new field in a request": NEW_FIELD,
    "a new field in an answer": NEW_FIELD_IN_AN_ANSWER,
    "a new status": NEW_STATUS,
    "a new event": NEW_EVENT,
    "a new method": (
        "command",
        r"  rpc Void\(VoidRequest\) returns \(VoidResponse\);",
        r"\g<0>\n  // Later.\n  rpc Later(LaterRequest) returns (LaterResponse);",
    ),
    "another comment": ("common", r"// An amount of money\.", "// Money."),
}
FORBIDDEN = {
    "a field removed": ("command", r"  string description = 5;\n", ""),
    "a field renamed": ("command", r"string user_id = 2;", "string payer_id = 2;"),
    "a field numbered anew": ("command", r"string return_url = 11;", "string return_url = 12;"),
    "a field of another type": ("common", r"int64 minor_units = 1;", "double minor_units = 1;"),
    "a field made repeated": ("command", r"  Card card = 3;", "  repeated Card card = 3;"),
    "an enum value removed": ("common", r"  DECLINE_REASON_OTHER = 6;\n", ""),
    "an enum value renamed": ("common", r"CHARGE_STATUS_CHARGED = 2", "CHARGE_STATUS_PAID = 2"),
    "an event removed": ("journal", r"    TokenExpired token_expired = 3;\n", ""),
    "a method removed": ("command", r"  rpc Void\(VoidRequest\) returns \(VoidResponse\);\n", ""),
    "a method that streams": ("query", r"returns \(GetChargeResponse\)", "returns (stream GetChargeResponse)"),
    "another package for Go": ("command", r"chargeonce\.dev/charging/v1", "chargeonce.dev/charging/v2"),
}


def later(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """Write the contract with changes into a folder."""
    shutil.copytree(PROTOS, folder)
    (folder / "buf.yaml").write_text((ROOT / "buf.yaml").read_text().replace("path: protos", "path: ."))
    for file, today, then in changes:
        path = folder / "charging" / "v1" / f"{file}.proto"
        text, count = re.subn(today, then, path.read_text())
        assert count == 1, f"{file}.proto has not one {today}"
        if "Later" in then and file == "command" and "rpc" in then:
            text += "\n// Asks later.\nmessage LaterRequest {}\n\n// Answers later.\nmessage LaterResponse {}\n"
        path.write_text(text)
    return folder


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def broken(changed: Path) -> Sequence[str]:
    """What the gate says of a changed contract, as it compares a commit with the one before it."""
    done = buf("breaking", str(changed), "--against", ".", "--error-format", "json")
    assert not done.stderr, done.stderr
    return [json.loads(line)["type"] for line in done.stdout.splitlines()]


class Later:
    """The messages of a changed contract."""

    def __init__(self, folder: Path, *changes: tuple[str, str, str]) -> None:
        image = folder / "later.binpb"
        done = buf("build", str(later(folder / "protos", *changes)), "--output", str(image))
        assert done.returncode == 0, done.stderr
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file:
            self._pool.Add(file)

    def message(self, name: str) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"charging.v1.{name}"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_the_gate_lets_pass_what_is_added(change: tuple[str, str, str], tmp_path: Path) -> None:
    assert broken(later(tmp_path / "protos", change)) == []


@pytest.mark.parametrize("change", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_gate_stops_what_breaks_others(change: tuple[str, str, str], tmp_path: Path) -> None:
    assert broken(later(tmp_path / "protos", change))


async def test_a_request_with_a_field_of_a_later_contract_is_refused_and_not_half_understood(
    world: World, tmp_path: Path
) -> None:
    request = Later(tmp_path / "later", NEW_FIELD).message("ChargeRequest")()
    request.MergeFromString(a_request().SerializeToString())
    request.later = "do it in another way"
    refusal = await refused(world.charge(ChargeRequest.FromString(request.SerializeToString())))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    request.ClearField("later")
    # Left out, the field is none: the same key is free, and the charge is made.
    answer = await world.charge(ChargeRequest.FromString(request.SerializeToString()))
    assert answer.status == CHARGED


def test_an_answer_of_a_later_contract_can_be_read(tmp_path: Path) -> None:
    """By the client of today: a new status keeps its number, and what follows it is read."""
    answer = Later(tmp_path / "later", NEW_STATUS, NEW_FIELD_IN_AN_ANSWER).message("ChargeResponse")()
    answer.charge_id, answer.status, answer.position, answer.later = "c1", 12, 7, "more"
    read = ChargeResponse.FromString(answer.SerializeToString())
    assert (read.charge_id, read.status, read.position) == ("c1", 12, 7)
    assert read.status != CHARGED


def test_an_event_of_a_later_contract_is_no_event_that_a_reader_of_today_could_pass_over(tmp_path: Path) -> None:
    """It has no kind, at which views and journals stop (tests/core/test_projection.py, tests/core/test_codec.py)."""
    event = Later(tmp_path / "later", NEW_EVENT).message("Event")()
    event.later.SetInParent()
    assert Event.FromString(event.SerializeToString()).WhichOneof("kind") is None
