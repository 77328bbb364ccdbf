"""The history checker: a good history passes, and for each invariant a history that breaks only it is found."""

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from judge.checker import check
from judge.cli import main
from judge.history import BankCall, Movement, Observed, Session, charge_id_of, fold
from tests.simulation.histories import (
    ABANDON,
    CARD_NUMBER,
    DECLINE,
    DECLINED,
    KEY,
    OTHER,
    REVIEW,
    bare,
    call,
    charged,
    expired,
    issued,
    journal,
    requested,
)

EVENTS = [
    (KEY, requested(KEY)),
    (OTHER, requested(OTHER)),
    (KEY, issued("t-1")),
    (KEY, charged()),
    (OTHER, issued("t-2")),
    (OTHER, DECLINE),
]
REFERENCE, OTHER_REFERENCE = charge_id_of("default", KEY), charge_id_of("default", OTHER)
MOVED = Movement("txn-1", "t-1", REFERENCE, 1250, "EUR")


def good() -> Observed:
    """One charged and one declined charge, observed from every side."""
    records = journal(*EVENTS)
    return Observed(
        records,
        calls=[
            call(),
            call(outcome_source=3),
            call(OTHER, status=DECLINED, transaction_id="", decline_reason=1, position=6, durable_position=6),
            call(amount=99, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED", advice="ASK_STATUS", position=0),
            call(
                OTHER, amount=99, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED", advice="USE_NEW_KEY", position=0
            ),
            call("never-stored", outcome="refused", reason="JOURNAL_FULL", advice="RETRY_SAME_KEY", position=0),
            call(outcome="unknown"),
        ],
        movements=[MOVED],
        bank_calls=[
            BankCall("token", REFERENCE, "", "tok_visa", 1250, "EUR"),
            BankCall("execute", "", "t-1", "", 1250, "EUR", token_was_durable=True),
            BankCall("execute", "", "t-1", "", 1250, "EUR", token_was_durable=True),
            BankCall("look_up", "", "t-unknown"),
        ],
        view=fold(records),
        sessions=[Session(0, [(r.position, r.chain) for r in records]), Session(2, [(3, records[2].chain)])],
        anchor=(6, records[-1].chain),
        planted=[CARD_NUMBER],
        blobs={"log": b"nothing to see"},
        is_at_rest=True,
    )


CHARGED_ONCE = [(KEY, requested(KEY)), (KEY, issued("t-1")), (KEY, charged())]
CHANGED_EVENT = replace(journal(*EVENTS)[3], event=charged(amount=9).SerializeToString())
LONGER = [*EVENTS, ("order-00003", requested("order-00003"))]

BROKEN: dict[str, Callable[[], Observed]] = {
    "I1": lambda: replace(good(), movements=[MOVED, replace(MOVED, transaction_id="txn-2")], is_at_rest=False),
    "I2 another amount": lambda: bare(*CHARGED_ONCE, movements=[]),
    "I2 another transaction": lambda: bare(*CHARGED_ONCE, movements=[replace(MOVED, transaction_id="txn-9")]),
    "I3 not durable": lambda: replace(
        good(), bank_calls=[BankCall("execute", REFERENCE, "t-1", token_was_durable=False)]
    ),
    "I3 unknown token": lambda: replace(good(), bank_calls=[BankCall("execute", REFERENCE, "t-9")]),
    "I3 unknown charge": lambda: replace(good(), bank_calls=[BankCall("token", "nobody")]),
    "I3 money without a charge": lambda: replace(
        good(), movements=[MOVED, replace(MOVED, reference="nobody")], is_at_rest=False
    ),
    "I4 two tokens": lambda: bare(
        (KEY, requested(KEY)),
        (KEY, issued("t-1")),
        (KEY, expired("t-1")),
        (KEY, issued("t-2")),
        movements=[replace(MOVED, token="t-1")],
    ),
    "I5 asked": lambda: replace(good(), bank_calls=[BankCall("token", REFERENCE, "", "tok_visa", 9, "EUR")]),
    "I5 asked at another bank": lambda: replace(good(), bank_calls=[BankCall("look_up", REFERENCE, bank="acme")]),
    "I5 moved at another bank": lambda: replace(good(), movements=[replace(MOVED, bank="acme")]),
    "I5 told": lambda: bare((KEY, requested(KEY)), (KEY, issued("t-1")), (KEY, charged(amount=9))),
    "I6 other body": lambda: replace(good(), calls=[call(amount=9)]),
    "I6 another's answer": lambda: replace(good(), calls=[call(charge_id=OTHER_REFERENCE)]),
    "I7 lost": lambda: replace(good(), calls=[call("order-00009")]),
    "I7 not yet durable": lambda: replace(good(), calls=[call(durable_position=3)]),
    "I8 nothing follows rest": lambda: bare(*CHARGED_ONCE, (KEY, issued("t-2"))),
    "I8 abandoned with a token": lambda: bare((KEY, requested(KEY)), (KEY, issued("t-1")), (KEY, ABANDON)),
    "I8 no beginning": lambda: bare((KEY, issued("t-1"))),
    "I8 a hole in a stream": lambda: Observed(journal(*CHARGED_ONCE[:1], versions={charge_id_of("default", KEY): 1})),
    "I9 a hole": lambda: Observed(journal(*EVENTS)[1:]),
    "I9 a repeat in the feed": lambda: replace(
        good(), sessions=[Session(0, [(1, good().records[0].chain), (1, good().records[0].chain)])]
    ),
    "I10 a changed record": lambda: Observed([*journal(*EVENTS)[:3], CHANGED_EVENT]),
    "I10 a lost tail": lambda: Observed(journal(*EVENTS)[:4], anchor=(6, journal(*EVENTS)[5].chain)),
    "I10 a reader saw another": lambda: replace(good(), sessions=[Session(0, [(1, bytes(32))])]),
    "I11 a row": lambda: replace(good(), view=replace(fold(journal(*EVENTS)), entries=[])),
    "I11 a sum": lambda: replace(
        good(),
        view=replace(fold(journal(*EVENTS)), sums=[{**fold(journal(*EVENTS)).sums[0], "minor_units": 1}]),
    ),
    "I11 an operation": lambda: replace(
        good(),
        view=replace(
            fold(journal(*EVENTS)),
            operations=[{**fold(journal(*EVENTS)).operations[0], "transaction_id": "another"}],
        ),
    ),
    "I11 another tenant": lambda: replace(
        good(), view=replace(fold(journal(*EVENTS)), tenants=[{"name": "another", "tenant": 1}])
    ),
    "I11 a checkpoint": lambda: replace(
        good(),
        view=replace(fold(journal(*EVENTS[:5])), checkpoint=fold(journal(*EVENTS)).checkpoint),
    ),
    "I12": lambda: bare(
        (KEY, requested(KEY)), (KEY, issued("t-1")), (KEY, DECLINE), movements=[MOVED], is_at_rest=False
    ),
    "I13 a log": lambda: replace(good(), blobs={"log": b"card 4111 1111-1111 1111"}),
    "I13 a record": lambda: bare((KEY, requested(KEY, actor=CARD_NUMBER)), planted=[CARD_NUMBER]),
    "I14": lambda: bare((KEY, requested(KEY, actor=""))),
    "I15 an outcome that is none": lambda: replace(good(), calls=[call(position=3)]),
    "I15 no charge of that key": lambda: replace(
        good(), calls=[call("order-00009", outcome="refused", reason="IDEMPOTENCY_KEY_REUSED")]
    ),
    "I15 stored after all": lambda: replace(
        good(), calls=[call(outcome="refused", reason="JOURNAL_FULL", advice="RETRY_SAME_KEY")]
    ),
    "I15 advice": lambda: replace(
        good(), calls=[call("order-00009", outcome="refused", reason="JOURNAL_FULL", advice="USE_NEW_KEY")]
    ),
    "I18 a new key beside a charge that was charged": lambda: replace(
        good(), calls=[call(amount=99, outcome="refused", reason="IDEMPOTENCY_KEY_REUSED", advice="USE_NEW_KEY")]
    ),
    "L1": lambda: bare((KEY, requested(KEY)), is_at_rest=True),
    "L3": lambda: replace(good(), view=fold(journal(*EVENTS[:5]))),
}


def test_a_good_history_passes() -> None:
    """No violation is found in it."""
    assert check(good()) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_history_that_breaks_one_invariant_violates_that_one_only(name: str) -> None:
    """Each broken history has exactly one violation."""
    assert {violation.invariant for violation in check(BROKEN[name]())} == {name.split(maxsplit=1)[0]}


def test_money_that_moved_without_a_charge_at_rest_breaks_l1_l2_and_the_sums() -> None:
    """L2 never breaks alone: the charge has not come to rest, and the sums differ."""
    broken = bare((KEY, requested(KEY)), (KEY, issued("t-1")), movements=[MOVED], is_at_rest=True)
    assert {violation.invariant for violation in check(broken)} == {"L1", "L2", "I12"}


def test_a_changing_outcome_is_found() -> None:
    """I6 implies I15: at least one of two outcomes is not the journal's."""
    broken = replace(good(), calls=[call(), call(transaction_id="txn-2")])
    assert {violation.invariant for violation in check(broken)} == {"I6", "I15"}


def test_two_charges_under_one_key_are_found() -> None:
    """Without its scope a key has two charges: the second id is not the key's, and money moves twice."""
    records = journal(*CHARGED_ONCE, (OTHER, requested(KEY)), (OTHER, issued("t-2")), (OTHER, charged("txn-2")))
    moved = [MOVED, Movement("txn-2", "t-2", OTHER_REFERENCE, 1250, "EUR")]
    found = {violation.invariant for violation in check(Observed(records, movements=moved))}
    assert found == {"I1", "I6"}


def test_every_allowed_stream_passes() -> None:
    """Declined, abandoned and in review at once, after a token, after expired tokens, after eight of them."""
    token_after_token = [(KEY, made(f"t-{n}")) for n in range(8) for made in (issued, expired)]
    begun = (KEY, requested(KEY))
    for rest in (
        [],
        [(KEY, DECLINE)],
        [(KEY, REVIEW)],
        [(KEY, ABANDON)],
        [(KEY, issued("t-1"))],
        [(KEY, issued("t-1")), (KEY, DECLINE)],
        [(KEY, issued("t-1")), (KEY, REVIEW)],
        [(KEY, issued("t-1")), (KEY, expired("t-1")), (KEY, ABANDON)],
        [(KEY, issued("t-1")), (KEY, expired("t-1")), (KEY, issued("t-2")), (KEY, charged())],
        [*token_after_token, (KEY, REVIEW)],
    ):
        assert check(bare(begun, *rest)) == []


def files(folder: Path, *movements: Movement) -> list[str]:
    """Make the checker's arguments: a journal, a statement and a history in files."""
    path, statement, history = (folder / name for name in ("journal.db", "statement.json", "history.jsonl"))
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE record (position, charge_id BLOB, version, recorded_at, chain BLOB, event BLOB)"
        )
        for r in journal(*EVENTS):
            row = (r.position, uuid.UUID(r.charge_id).bytes, r.version, r.recorded_at, r.chain, r.event)
            connection.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.commit()
    statement.write_text(json.dumps({"movements": [dataclasses.asdict(movement) for movement in movements]}))
    history.write_text("\n".join(json.dumps(dataclasses.asdict(one)) for one in good().calls))
    return ["--journal", str(path), "--statement", str(statement), "--history", str(history), "--at-rest"]


SOUND = "6 records, 1 movements, 7 calls: no violations\n"


def test_the_command_checks_files_and_counts_their_contents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads a journal, a statement and a history; exit status 0 means that every invariant holds, 1 that one does not."""
    assert main(files(tmp_path, MOVED)) == 0
    assert capsys.readouterr().out == SOUND
    assert main(files(tmp_path, MOVED, MOVED)) == 1
    assert f"I1 at charge {REFERENCE}: the money moved 2 times" in capsys.readouterr().out
    assert main(["--journal", str(tmp_path / "none"), "--statement", str(tmp_path / "statement.json")]) == 2
    assert capsys.readouterr().err.startswith("cannot be read: there is no file")


def test_the_checker_is_installed_with_the_servers_and_runs_from_the_wheel(tmp_path: Path) -> None:
    """An operator has the wheel, and neither the proof nor the tests. (A second and a half: a wheel is built.)"""
    root, source, installed = Path(__file__).parents[2], tmp_path / "source", tmp_path / "installed"
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages = set(build["targets"]["wheel"]["packages"])
    # A copy: the build makes the contract's stubs, and must not change those of this environment.
    source.mkdir()
    for part in packages - {"charging"} | {"protos"}:
        shutil.copytree(root / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copyfile(root / part, source / part)
    python = [sys.executable, "-P"]
    subprocess.run([*python, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    install: list[str | Path] = [
        *python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        installed,
        wheel,
    ]
    subprocess.run(install, check=True)
    names = {folder.name for folder in installed.iterdir() if folder.suffix != ".dist-info"}
    assert names == packages | {"bin"}
    assert packages.isdisjoint({"prove", "rig", "bench", "demo", "tests"})
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def said(*arguments: str) -> str:
        command = [*python, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert said("-m", "chargeonce", "verify-history", *files(tmp_path, MOVED)) == SOUND
    where = "import judge.cli, sys; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    loaded = said("-c", where).split()
    assert str(installed / "judge" / "cli.py") in loaded
    ours = [name for name in loaded if Path(name).is_relative_to(root) and ".venv" not in name]
    assert ours == []
