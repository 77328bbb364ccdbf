"""`chargeonce` as its users run it: the real program against a sandbox, its outputs, its exit statuses and its completion."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import ParseDict

from chargeonce.commands.exits import Exit, of_charge, of_operation
from chargeonce_client import Charge, ChargeResponse, GetChargeHistoryResponse, GetUserSummaryResponse, OperationOutcome
from rig import certs
from rig.processes import Town, free_address
from rig.world import new_key

SCRIPT = Path(sys.executable).with_name("chargeonce")
PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
CHARGE = ("charge", "--user", "alice", "--card")
EUR = ("12.50", "EUR")
NO_CHARGES_ID = "6f9619ff-8b86-8011-b42d-00c04fc964ff"
# Far more than anything here takes, on a machine that is busy with other things.
MOST_SECONDS = 50.0
VARIABLES = {
    "command": "CHARGEONCE_COMMAND",
    "query": "CHARGEONCE_QUERY",
    "feed": "CHARGEONCE_FEED",
    "bank": "CHARGEONCE_BANK",
}


@contextlib.contextmanager
def sandbox() -> Iterator[dict[str, str]]:
    """Start one; the environment by which the command line finds it."""
    with subprocess.Popen([SCRIPT, "sandbox"], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            told = json.loads(running.stdout.readline())
            yield {
                **os.environ,
                **{name: told[server] for server, name in VARIABLES.items()},
                "PATH": f"{SCRIPT.parent}:{os.environ['PATH']}",
            }
        finally:
            running.terminate()


@pytest.fixture(scope="module")
def there() -> Iterator[dict[str, str]]:
    with sandbox() as environment:
        yield environment


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Let programs hear Ctrl-C. They inherit that SIGINT is ignored, as shells have it in the background."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def at(town: Town) -> dict[str, str]:
    """The environment of a client of this town."""
    return {
        **os.environ,
        "CHARGEONCE_COMMAND": town.command.listen,
        "CHARGEONCE_QUERY": town.query.listen,
        "CHARGEONCE_FEED": str(town.command.serving["feed"]),
    }


Done = subprocess.CompletedProcess[str]


def run(there: Mapping[str, str], *arguments: str) -> Done:
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, check=False, env=there, timeout=MOST_SECONDS
    )


def in_bash(there: Mapping[str, str], line: str) -> Done:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=there, timeout=MOST_SECONDS
    )


def fields(done: Done) -> dict[str, str]:
    """The fields of an answer in plain columns."""
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def trouble(there: Mapping[str, str], **fault: Any) -> None:
    httpx.post(f"{there['CHARGEONCE_BANK']}/faults", json=fault, trust_env=False, timeout=30).raise_for_status()


# ---------------------------------------------------------------- exit statuses
@pytest.mark.parametrize(
    ("arguments", "ends", "told"),
    [
        ((*CHARGE, "tok_visa", *EUR), Exit.DONE, "CHARGED"),
        ((*CHARGE, "tok_visa", "--hold", *EUR), Exit.DONE, "AUTHORIZED"),
        ((*CHARGE, "tok_declined", *EUR), Exit.NO, "DECLINED"),
        ((*CHARGE, "tok_3ds", *EUR), Exit.CUSTOMER, "REQUIRES_ACTION"),
        ((*CHARGE, "tok_visa", "--not-after", "2020-01-01", *EUR), Exit.NO, "VOIDED"),
    ],
)
def test_the_exit_status_says_how_a_charge_stands(
    there: Mapping[str, str], arguments: Sequence[str], ends: Exit, told: str
) -> None:
    done = run(there, *arguments, "--key", new_key())
    assert (done.returncode, fields(done)["status"]) == (ends, told), done.stderr


@pytest.mark.parametrize("status", [0, 99])
def test_a_status_of_a_later_contract_is_not_known(status: int) -> None:
    assert (of_charge(status), of_operation(status)) == (Exit.NOT_KNOWN, Exit.NOT_KNOWN)


@pytest.mark.parametrize(("card", "ends"), [("tok_visa", Exit.DONE), ("tok_declined", Exit.NO)])
@pytest.mark.parametrize("to", [">/dev/full", ">&-", ">&- 2>&-", "| true"])
def test_the_exit_status_tells_the_outcome_even_if_the_answer_cannot_be_written(
    there: Mapping[str, str], card: str, ends: Exit, to: str
) -> None:
    line = shlex.join([str(SCRIPT), *CHARGE, card, "--key", new_key(), *EUR])
    done = in_bash(there, f"{line} {to}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == ends, done.stderr
    if to == ">/dev/full":
        assert done.stderr.splitlines()[1:] == ["error: the answer cannot be written: No space left on device"]


def test_an_answer_to_a_question_that_cannot_be_written_is_not_known(there: Mapping[str, str]) -> None:
    key = new_key()
    run(there, *CHARGE, "tok_visa", "--key", key, "--description", "Fähre", *EUR)
    full = in_bash(there, f"{SCRIPT} get {key} >/dev/full")
    ascii_only = run({**there, "PYTHONIOENCODING": "ascii"}, "get", key)
    for done in (full, ascii_only):
        assert done.returncode == Exit.NOT_KNOWN
        assert done.stderr.startswith("error: the answer cannot be written: ") and len(done.stderr.splitlines()) == 1


def test_errors_have_their_exit_status_when_nobody_reads_them(there: Mapping[str, str]) -> None:
    """Nothing is sent under a key that nobody could be told."""

    def ended(*words: str, read: str) -> Done:
        return in_bash(there, f"{shlex.join([str(SCRIPT), *words])} {read}; exit ${{PIPESTATUS[0]}}")

    with undecided(there):
        pending = ended(*CHARGE, "tok_visa", "--patience", "2", "--key", new_key(), *EUR, read="2>&1 | head -n 1")
    assert pending.returncode == Exit.NOT_KNOWN
    assert ended("get", "never-used", read="2>&1 | true").returncode == Exit.NOT_KNOWN
    assert ended("get", "k" * 300, read="2>&1 | true").returncode == Exit.REFUSED
    user = new_key()
    unsaid = ended("charge", "--user", user, "--card", "tok_visa", *EUR, read="2>/dev/full")
    assert (unsaid.returncode, unsaid.stdout) == (Exit.NOT_KNOWN, "")
    assert run(there, "list", "--user", user, "--json").stdout == ""


def test_a_fault_of_the_command_itself_is_not_known(there: Mapping[str, str]) -> None:
    """An address that is not UTF-8 is one: it is no part of the command line."""
    done = run({**there, "CHARGEONCE_COMMAND": "\udcff:1"}, *CHARGE, "tok_visa", "--json", *EUR)
    assert (done.returncode, done.stdout) == (Exit.NOT_KNOWN, "")
    assert json.loads(done.stderr)["error"]["text"].startswith(
        "a fault of this program, so that nothing is known: Unicode"
    )


def test_a_charge_in_review_is_neither_done_nor_declined(there: Mapping[str, str]) -> None:
    trouble(there, on="token", fault="wrong_amount", times=2)
    done = run(there, *CHARGE, "tok_visa", *EUR)
    assert (done.returncode, fields(done)["status"]) == (Exit.IN_REVIEW, "IN_REVIEW")
    assert "take no new key" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("charge",), "Missing argument"),
        ((*CHARGE, "tok_visa", "12.50"), "takes 2 values"),
        ((*CHARGE, "tok_visa", "1250", "EUR"), "EUR is written with 2 decimals behind a point, such as 12.50"),
        ((*CHARGE, "tok_visa", "12,50", "EUR"), "EUR is written with 2 decimals behind a point, such as 12.50"),
        ((*CHARGE, "tok_visa", "12.50", "JPY"), "JPY is written with no decimals, such as 1250"),
        ((*CHARGE, "tok_visa", "12.50", "KWD"), "KWD is written with 3 decimals behind a point, such as 1.250"),
        ((*CHARGE, "tok_visa", "12.50", "eur"), "eur is no currency in use"),
        ((*CHARGE, "tok_visa", "--metadata", "umbrella", *EUR), "NAME=VALUE"),
        ((*CHARGE, "tok_visa", "--description", "\udcff", *EUR), "the command line is not UTF-8"),
        ((*CHARGE, "tok_visa", "--key", "", *EUR), "'--key': it is empty"),
        (("refund", "order-1", "--key", ""), "'--key': it is empty"),
        (("refund", ""), "'NAME': it is empty"),
        (("get", ""), "'NAME': it is empty"),
        (("tail", "--user", ""), "'--user': it is empty"),
        (("list", "--status", "PAID"), "'PAID' is not one of"),
        (("list", "--from", "yesterday"), "yesterday is no time such as 2027-01-31"),
        (("get", "order-1", "--tls", "/nowhere"), "does not exist"),
        (("jurnal",), "No such command 'jurnal'"),
        (("bank", "statement", "--bank", "nowhere"), "nowhere is no mock bank"),
    ],
)
def test_a_wrong_command_line_sends_nothing_and_says_what_is_right(
    there: Mapping[str, str], arguments: Sequence[str], why: str
) -> None:
    done = run(there, *arguments)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert why in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        (*CHARGE, "tok_visa", *EUR),
        ("get", "order-1"),
        ("tail",),
        ("bank", "statement"),
    ],
)
def test_without_a_server_nothing_is_sent(there: Mapping[str, str], arguments: Sequence[str]) -> None:
    nowhere = free_address()
    away = {**there, **dict.fromkeys(VARIABLES.values(), nowhere), "CHARGEONCE_BANK": f"http://{nowhere}"}
    done = run(away, *arguments)
    assert (done.returncode, done.stdout) == (Exit.UNREACHABLE, "")
    assert f"does not answer at {away['CHARGEONCE_BANK'] if 'bank' in arguments else nowhere}" in done.stderr


def test_less_patience_is_a_shorter_wait_for_a_server(there: Mapping[str, str]) -> None:
    away = {**there, "CHARGEONCE_QUERY": free_address()}
    with subprocess.Popen([SCRIPT, "get", "order-1"], stderr=subprocess.DEVNULL, env=away) as patient:
        time.sleep(0.5)  # it is far ahead then
        assert run(away, "get", "order-1", "--patience", "0.1").returncode == Exit.UNREACHABLE
        assert patient.poll() is None
        assert patient.wait(MOST_SECONDS) == Exit.UNREACHABLE


def test_operations_on_an_id_need_no_query_server(there: Mapping[str, str]) -> None:
    key, away = new_key(), {**there, "CHARGEONCE_QUERY": free_address()}
    charge_id = fields(run(there, *CHARGE, "tok_visa", "--hold", "--key", key, *EUR))["charge_id"]
    for words in (("capture", charge_id, "10.00", "EUR"), ("void", charge_id), ("refund", charge_id)):
        done = run(away, *words)
        assert (done.returncode, fields(done).get("status")) == (Exit.DONE, "EXECUTED"), done.stderr
    by_key = run(away, "refund", key, "--patience", "1")
    assert (by_key.returncode, by_key.stdout) == (Exit.UNREACHABLE, "")
    assert "nothing was sent this time" in by_key.stderr


def test_an_error_says_what_is_wrong_and_what_to_do(there: Mapping[str, str]) -> None:
    invalid = run(there, "charge", "--user", "", "--card", "tok visa", "0.00", "EUR")
    assert invalid.returncode == Exit.REFUSED
    for line in ("(INVALID_REQUEST)", "  user_id: ", "  card.token: ", "  amount.minor_units: ", "correct it before"):
        assert line in invalid.stderr
    no_charge = run(there, "refund", NO_CHARGES_ID)
    assert (no_charge.returncode, no_charge.stdout) == (Exit.REFUSED, "")
    assert "there is no such charge" in no_charge.stderr
    key = new_key()
    assert run(there, *CHARGE, "tok_visa", "--key", key, *EUR).returncode == 0
    too_much = run(there, "refund", key, "12.51", "EUR")
    assert too_much.returncode == Exit.REFUSED
    assert "(MORE_THAN_IS_LEFT)" in too_much.stderr and "left: 1250 minor units" in too_much.stderr


@pytest.mark.parametrize("words", [("get",), ("history",), ("watch",), ("refund", "--key", "r")])
def test_a_charge_that_the_view_does_not_show_may_be_there(there: Mapping[str, str], words: Sequence[str]) -> None:
    done = run(there, *words, "never-used")
    assert (done.returncode, done.stdout) == (Exit.NOT_KNOWN, "")
    assert "the view does not show such a charge, and may be behind (CHARGE_NOT_FOUND)" in done.stderr
    assert "this is no reason for a new key" in done.stderr
    of_json = json.loads(run(there, *words, "never-used", "--json").stderr.splitlines()[-1])
    assert (of_json["error"]["reason"], of_json["error"]["is_known"]) == ("CHARGE_NOT_FOUND", False)


def test_an_error_is_json_for_programs(there: Mapping[str, str]) -> None:
    done = run(there, "charge", "--user", "", "--card", "tok_visa", "--json", *EUR)
    sending, error = map(json.loads, done.stderr.splitlines())
    assert sending["idempotency_key"].startswith("cli-") and sending["repeat"].startswith(
        "chargeonce charge --key cli-"
    )
    assert error["idempotency_key"] == sending["idempotency_key"]
    assert error["error"] == {
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_REQUEST",
        "advice": "DO_NOT_RETRY",
        "text": error["error"]["text"],
        "metadata": {},
        "violations": {"user_id": error["error"]["violations"]["user_id"]},
        "retry_after": None,
        "is_known": True,
    }
    assert (done.returncode, done.stdout) == (Exit.REFUSED, "")


@contextlib.contextmanager
def undecided(there: Mapping[str, str]) -> Iterator[None]:
    """The bank decides nothing meanwhile."""
    trouble(there, on="execute", fault="in_progress", times=1000)
    try:
        yield
    finally:
        httpx.delete(f"{there['CHARGEONCE_BANK']}/faults", trust_env=False, timeout=30).raise_for_status()


def test_a_charge_that_is_not_decided_in_time_is_to_be_repeated(there: Mapping[str, str]) -> None:
    with undecided(there):
        done = run(there, *CHARGE, "tok_visa", "--patience", "2", *EUR)
    assert done.returncode == Exit.NOT_KNOWN
    assert (
        "repeat the command with the same key" in done.stderr
        or "there is no answer, so that it is not known" in done.stderr
    )


def test_after_ctrl_c_the_charge_goes_on(there: Mapping[str, str]) -> None:
    key = new_key()
    words = [str(SCRIPT), *CHARGE, "tok_visa", "--key", key, *EUR]
    with (
        undecided(there),
        subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=there) as charging,
    ):
        while run(there, "get", key).returncode != 0:
            assert charging.poll() is None
        charging.send_signal(signal.SIGINT)
        out, told = charging.communicate(timeout=MOST_SECONDS)
    assert (charging.returncode, out) == (Exit.INTERRUPTED, "")
    assert told.splitlines()[1:] == [
        "what was sent goes on at the server; the same command with the same key tells how it ended"
    ]
    watched = run(there, "watch", key)
    assert (watched.returncode, watched.stdout.splitlines()[-1].split()[1:]) == (0, ["CHARGED", "captured", *EUR])


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_it_ends_quietly_when_nobody_reads(there: Mapping[str, str], more: Sequence[str]) -> None:
    run(there, *CHARGE, "tok_visa", *EUR)
    ends = f"{SCRIPT} tail --after 0 {' '.join(more)} 2>&1 | head -n 2 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = in_bash(there, ends)
    assert (done.returncode, done.stderr) == (Exit.NO_READER, "")


# ---------------------------------------------------------------- what it does
def test_a_key_is_made_and_shown_with_the_line_that_repeats_the_command(
    there: Mapping[str, str], tmp_path: Path
) -> None:
    """That line is one charge, however often it is run, and also where the environment is another. It has no secret."""
    token = tmp_path / "a token"
    token.write_text("s3cret")
    given = {**there, "CHARGEONCE_TOKEN_FILE": str(token)}
    first = run(given, *CHARGE, "tok_visa", "--description", "one umbrella, 'large'", *EUR)
    said, repeat = first.stderr.splitlines()
    key = fields(first)["key"]
    assert said == f"charge 12.50 EUR (1250 minor units) of tok_visa for the user alice, key {key}"
    words = shlex.split(repeat.removeprefix("to repeat it safely: "))
    again = run({name: value for name, value in there.items() if name not in VARIABLES.values()}, *words[1:])
    assert words[0] == "chargeonce" and again.returncode == 0
    assert words[words.index("--token-file") + 1] == str(token) and "s3cret" not in repeat
    assert fields(again) == {**fields(first), "outcome_source": "REPLAYED"}


def test_operations_find_their_charge_by_its_key_or_its_id(there: Mapping[str, str]) -> None:
    key = new_key()
    charge_id = fields(run(there, *CHARGE, "tok_visa", "--hold", "--key", key, "50.00", "EUR"))["charge_id"]
    for words, amount in (
        (("capture", key, "30.00", "EUR"), "30.00 EUR"),
        (("void", charge_id, "--reason", "the rest"), "20.00 EUR"),
        (("refund", charge_id, "10.00", "EUR"), "10.00 EUR"),
        (("refund", key), "20.00 EUR"),
    ):
        done = run(there, *words)
        assert done.returncode == 0, done.stderr
        assert (fields(done)["status"], fields(done)["amount"]) == ("EXECUTED", amount)
    shown = [
        run(there, "get", *name) for name in ((key,), (charge_id,), ("--by", "key", key), ("--by", "id", charge_id))
    ]
    assert len({done.stdout for done in shown}) == 1
    assert fields(shown[0])["status"] == "REFUNDED"
    assert run(there, "get", "--by", "key", charge_id).returncode == Exit.NOT_KNOWN


UUIDS = (
    "c232ab00-9414-11ec-b3c8-9f6bdeced846",
    "919108f7-52d1-4320-9bac-f847db4148a8",
    "0193e4a0-7e7c-7cc2-a000-00c04fc964ff",
)


@pytest.mark.parametrize("key", UUIDS, ids=["version 1", "version 4", "version 7"])
def test_a_uuid_is_a_key_unless_it_is_of_the_version_of_ids(there: Mapping[str, str], key: str) -> None:
    run(there, *CHARGE, "tok_visa", "--key", key, *EUR)
    assert fields(run(there, "get", key))["key"] == key
    assert run(there, "refund", key).returncode == Exit.DONE


def test_a_key_that_looks_like_an_id_is_found_by_saying_so(there: Mapping[str, str]) -> None:
    key = NO_CHARGES_ID
    run(there, *CHARGE, "tok_visa", "--key", key, *EUR)
    assert run(there, "get", key).returncode == Exit.NOT_KNOWN
    assert fields(run(there, "get", key, "--by", "key"))["key"] == key


def test_what_programs_get_is_the_contracts_json(there: Mapping[str, str]) -> None:
    """Protobuf reads it back; int64 are strings, and empty fields are there."""

    def told(*words: str) -> Any:
        return json.loads(run(there, *words, "--json").stdout)

    key, user = new_key(), new_key()
    charged = told("charge", "--user", user, "--card", "tok_visa", "--key", key, "9999999999.99", "IDR")
    assert charged.pop("idempotency_key") == key
    assert charged["decline_reason"] == "DECLINE_REASON_UNSPECIFIED" and isinstance(charged["position"], str)
    assert ParseDict(charged, ChargeResponse()).position == int(charged["position"])
    refunded = told("refund", key, "0.01", "IDR", "--key", "r")
    assert refunded.pop("idempotency_key") == "r"
    assert ParseDict(refunded, OperationOutcome()).amount.minor_units == 1
    shown = told("get", key)
    assert ParseDict(shown["charge"], Charge()).amount.minor_units == 999_999_999_999
    assert shown["charge"]["amount"] == {"minor_units": "999999999999", "currency_code": "IDR"}
    assert told("list", "--user", user) == shown["charge"] == told("watch", key)["charge"]
    entries = ParseDict(told("history", key), GetChargeHistoryResponse()).entries
    assert [entry.event for entry in entries][:3] == ["ChargeRequested", "TokenIssued", "Charged"]
    sums = ParseDict(told("summary", user), GetUserSummaryResponse())
    assert sums.currencies[0].net_minor_units == 999_999_999_998
    assert told("view", "status")["state"] == "VIEW_STATE_LIVE"
    (moved,) = told("bank", "statement", "--reference", shown["charge"]["charge_id"])["movements"]
    assert (moved["kind"], moved["minor_units"]) == ("charge", 999_999_999_999)
    first, *_ = map(
        json.loads, run(there, "tail", "--after", "0", "--until-head", "--key", key, "--json").stdout.splitlines()
    )
    assert (first["event"], first["content"]["amount"]["minor_units"]) == ("ChargeRequested", "999999999999")


def test_list_has_filters_and_a_limit_over_pages(there: Mapping[str, str]) -> None:
    user = new_key()
    keys = [new_key() for _ in range(3)]
    for key, card in zip(keys, ("tok_visa", "tok_declined", "tok_visa"), strict=True):
        run(there, "charge", "--user", user, "--card", card, "--key", key, *EUR)

    def listed(*words: str) -> list[str]:
        heading, *rows = run(there, "list", "--user", user, *words).stdout.splitlines()
        assert heading.split()[0] == "REQUESTED"
        return [row.split()[-2] for row in rows]

    assert listed() == keys[::-1]
    assert listed("--limit", "2") == keys[:0:-1]
    assert listed("--status", "declined") == [keys[1]]
    assert listed("--before", "2020-01-01T00:00:00+01:00") == []
    assert listed("--from", "2020-01-01") == keys[::-1]


def test_watch_ends_when_the_charge_is_decided(there: Mapping[str, str]) -> None:
    key = new_key()
    with subprocess.Popen(
        [SCRIPT, *CHARGE, "tok_slow", "--key", key, *EUR], stdout=subprocess.DEVNULL, env=there
    ) as charging:
        while run(there, "get", key).returncode != 0:
            assert charging.poll() in (None, 0)
        watched = run(there, "watch", key)
        assert charging.wait(MOST_SECONDS) == 0
    statuses = [line.split()[1] for line in watched.stdout.splitlines()]
    assert (watched.returncode, statuses[-1]) == (0, "CHARGED")
    declined = new_key()
    run(there, *CHARGE, "tok_declined", "--key", declined, *EUR)
    assert run(there, "watch", declined).returncode == Exit.NO


def test_nothing_of_a_charge_can_move_a_terminals_cursor_or_colour_it(there: Mapping[str, str]) -> None:
    """A description may hold line breaks, and rich's own markup is text."""
    key = new_key()
    run(there, *CHARGE, "tok_visa", "--key", key, "--description", "one\n[red]two[/red]", *EUR)
    assert fields(run(there, "get", key))["description"] == r"one\n[red]two[/red]"


def test_a_terminal_gets_colours_and_whole_lines(there: Mapping[str, str]) -> None:
    """However narrow it is."""
    key = new_key()
    run(there, *CHARGE, "tok_visa", "--key", key, *EUR)
    in_terminal = {**there, "TERM": "xterm-256color", "COLUMNS": "40"}
    for words in (["get", key], ["list", "--user", "alice"], ["watch", key]):
        command = ["script", "--quiet", "--command", shlex.join([str(SCRIPT), *words]), "/dev/null"]
        shown = subprocess.run(
            command, capture_output=True, text=True, check=True, env=in_terminal, timeout=MOST_SECONDS
        )
        assert "\x1b[32mCHARGED" in shown.stdout
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)
        lines = [line.rstrip() for line in plain.splitlines()]
        assert lines == [line.rstrip() for line in run(there, *words).stdout.splitlines()]


async def test_tail_follows_chosen_charges_through_a_restart_of_the_server(tmp_path: Path) -> None:
    """Each event once. Those of a charge that began before are found by its user and its key, too."""
    async with Town(tmp_path) as town:
        await town.start_query()
        there = at(town)
        old, new, other = new_key(), new_key(), new_key()
        await asyncio.to_thread(run, there, *CHARGE, "tok_visa", "--key", old, *EUR)
        tails = [
            await asyncio.create_subprocess_exec(
                SCRIPT,
                "tail",
                "--json",
                *words,
                env=there,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            for words in (("--user", "alice"), ("--key", old), ("--after", "0", "--key", new))
        ]
        try:
            for tail, begin in zip(tails, ("3", "3", "0"), strict=True):
                assert tail.stderr is not None
                assert json.loads(await tail.stderr.readline()) == {"after": begin}
            await asyncio.to_thread(run, there, "charge", "--user", "bob", "--card", "tok_visa", "--key", other, *EUR)
            await asyncio.to_thread(run, there, "refund", old)
            await town.command.kill()
            await town.start_command()
            done = await asyncio.to_thread(run, there, *CHARGE, "tok_visa", "--key", new, *EUR)
            assert done.returncode == 0, done.stderr
            refund, charge = (
                ["RefundRequested", "TokenIssued", "Refunded"],
                ["ChargeRequested", "TokenIssued", "Charged"],
            )
            for tail, expected in zip(tails, ([*refund, *charge], refund, charge), strict=True):
                assert tail.stdout is not None
                lines = [json.loads(await asyncio.wait_for(tail.stdout.readline(), 30)) for _ in expected]
                assert [line["event"] for line in lines] == expected
        finally:
            for tail in tails:
                tail.send_signal(signal.SIGINT)
            assert [await tail.wait() for tail in tails] == [Exit.INTERRUPTED] * 3


async def test_tail_waits_for_a_view_that_is_behind_what_the_feed_brings(tmp_path: Path) -> None:
    """Whose a charge is stands in its first event, which is before the beginning here, and in the view."""
    async with Town(tmp_path) as town:
        await town.start_query()
        there = at(town)
        town.query.send(signal.SIGSTOP)
        await asyncio.to_thread(run, there, *CHARGE, "tok_visa", *EUR)
        tail = asyncio.create_task(
            asyncio.to_thread(run, there, "tail", "--after", "1", "--user", "alice", "--until-head")
        )
        await asyncio.sleep(3)  # by then it asks, most likely
        town.query.send(signal.SIGCONT)
        done = await tail
    assert [line.split()[3] for line in done.stdout.splitlines()] == ["TokenIssued", "Charged"], done.stderr
    assert done.returncode == Exit.DONE


async def test_it_shows_a_certificate_and_a_token(tmp_path: Path) -> None:
    """By certificate the shop charges and refunds; by token the till may not refund."""
    folder = tmp_path / "certs"
    certs.make_all(folder)
    async with Town(tmp_path, folder) as town:
        await town.start_query()
        there = {
            **os.environ,
            "CHARGEONCE_COMMAND": town.command.listen,
            "CHARGEONCE_QUERY": town.query.listen,
            "CHARGEONCE_TLS": str(certs.shop(folder)),
        }
        key, as_till = new_key(), ("--token-file", str(folder / "clients" / "till.token"))
        ran = [
            await asyncio.to_thread(run, there, *words)
            for words in (
                (*CHARGE, "tok_visa", "--key", key, *EUR),
                ("refund", key, "5.00", "EUR"),
                ("refund", key, *as_till),
                ("get", key, *as_till),
            )
        ]
        plaintext = await asyncio.to_thread(run, {**there, "CHARGEONCE_TLS": ""}, "get", key)
    assert [done.returncode for done in ran] == [0, 0, Exit.REFUSED, 0], ran
    assert "(PERMISSION_DENIED)" in ran[2].stderr
    assert fields(ran[3])["status"] == "PARTIALLY_REFUNDED"
    assert plaintext.returncode == Exit.UNREACHABLE


# ---------------------------------------------------------------- the page, the help, the completion
_CHANGING = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"(txn|ttok)_[0-9a-f]+", "TRANSACTION"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"20\d\d-\d\d-\d\dT[\d:]+Z", "TIME"),
    (r"\d\d:\d\d:\d\d UTC", "TIME"),
    # How often a bank was asked depends on how long ago it was.
    (r"(?m)^(next|attempts) .*", r"\1"),
    (r"(once|twice|\d+ times in a row), last", "OFTEN, last"),
)


def told_in(there: Mapping[str, str], session: str) -> str:
    """Run the commands of a session; return it with what they print now."""
    seen = ""
    for command in re.findall(r"^\$ (.*)$", session, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=there,
            timeout=MOST_SECONDS,
        )
        seen += f"$ {command}\n{done.stdout}"
    return seen


def _masked(session: str) -> str:
    for pattern, name in _CHANGING:
        session = re.sub(pattern, name, session)
    return session


def test_the_pages_sessions_are_what_happens() -> None:
    sessions = re.findall(
        r"<!-- session -->\n\n```console\n(.*?)```\n\n<!-- end of session -->", PAGE.read_text(), re.DOTALL
    )
    assert len(sessions) == PAGE.read_text().count("<!-- session -->")
    with sandbox() as there:
        for session in sessions:
            assert _masked(told_in(there, session)) == _masked(session)


def test_the_page_and_the_help_have_the_same_exit_statuses(there: Mapping[str, str]) -> None:
    text = PAGE.read_text().split("<!-- exit statuses -->")[1].split("<!-- end of exit statuses -->")[0]
    of_page = dict(re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE))
    of_help = dict(re.findall(r"^ +(\d+)  (.*)$", run(there, "charge", "--help").stdout, re.MULTILINE))
    assert of_page == of_help
    assert [int(status) for status in of_page] == list(Exit)


def completed(shell: str, words: str, there: Mapping[str, str]) -> list[str]:
    """What a shell offers for words, the last one unfinished: by the script that is printed for it, in that shell itself."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    ask = {
        "bash": 'eval "$(chargeonce completion bash)"; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        "$(complete -p chargeonce | sed 's/.*-F \\([^ ]*\\).*/\\1/') chargeonce; printf '%s\\n' \"${COMPREPLY[@]}\"",
        # zsh completes at its line editor only: what it would insert is caught.
        "zsh": "compdef() { :; }; _describe() { for each in ${(P)2:-} ${(P)3:-}; do print -r -- ${each%%:*}; done }; "
        "compadd() { for each in ${(P)${@[-1]}}; do print -r -- $each; done }; "
        'eval "$(chargeonce completion zsh)"; words=(${=1}); CURRENT=${#words}; _chargeonce_completion',
        "fish": "chargeonce completion fish | source; complete --do-complete $argv[1]",
    }[shell]
    arguments = ["fish", "-c", ask, words] if shell == "fish" else [shell, "-c", ask, shell, words]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=there, timeout=MOST_SECONDS)
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_values(shell: str, there: Mapping[str, str]) -> None:
    assert completed(shell, "chargeonce jour", there) == ["journal"]
    assert completed(shell, "chargeonce journal p", there) == ["print"]
    assert sorted(completed(shell, "chargeonce charge --c", there)) == ["--card", "--command"]
    assert completed(shell, "chargeonce list --status part", there) == ["partially_refunded"]
