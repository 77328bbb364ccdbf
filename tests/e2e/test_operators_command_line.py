"""`chargeonce` as operators run it, with charges that are stuck by real faults: explain, stuck, desk and reconcile."""

import asyncio
import csv
import json
import re
import shlex
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc import StatusCode

from chargeonce.commands.exits import Exit
from chargeonce_client import (
    AnswerKind,
    AskBankResponse,
    Charge,
    ExplainChargeResponse,
    GetServerStatusResponse,
    ListReconciliationsResponse,
    ProposeResolutionResponse,
    ReconcileResponse,
)
from charging.v1.operator_pb2 import HoldBackResponse
from charging.v1.query_pb2 import Situation
from contract.situations import ID_NOT_KEPT
from rig import stuck
from rig.processes import free_address
from rig.staffed import TENANT
from rig.stuck import StuckWorld
from rig.world import new_key, until
from tests.client.scripted import Error, a_server_of
from tests.e2e.test_command_line import MOST_SECONDS, NO_CHARGES_ID, SCRIPT, Done, fields

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHY = ("--reason", "as the runbook says")
AGAINST = ("--overrules", "contradiction")
SEEN = ("--evidence", "the bank's statement of today, line 1")
UNKNOWN, REVIEW, HOLD = (
    Situation.SITUATION_EXECUTION_UNKNOWN,
    Situation.SITUATION_IN_REVIEW,
    Situation.SITUATION_HOLD_ENDING,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[StuckWorld]:
    async with stuck.world() as world:
        yield world


async def run_in(environment: Mapping[str, str], *words: str) -> Done:
    """Run it, with nobody at a terminal."""

    def ran() -> Done:
        return subprocess.run(
            [SCRIPT, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=MOST_SECONDS,
        )

    return await asyncio.to_thread(ran)


async def run(world: StuckWorld, person: str, *words: str) -> Done:
    """Run it as somebody of the rig's people."""
    return await run_in(world.environment(person), *words)


async def done(world: StuckWorld, person: str, *words: str) -> dict[str, str]:
    """Run it; the fields of its answer."""
    ran = await run(world, person, *words)
    assert ran.returncode == Exit.DONE, ran.stderr
    return fields(ran)


async def document(world: StuckWorld, person: str, *words: str) -> Any:
    ran = await run(world, person, *words, "--json")
    assert ran.returncode == Exit.DONE, ran.stderr
    return json.loads(ran.stdout)


async def refusal(world: StuckWorld, person: str, *words: str) -> str:
    """Run it; what it says when it is refused."""
    ran = await run(world, person, *words)
    assert (ran.returncode, ran.stdout) == (Exit.REFUSED, ""), ran.stderr
    return ran.stderr


async def provoked(world: StuckWorld, situation: Situation.ValueType) -> str:
    return await world.provoke(situation, new_key())


async def shown(world: StuckWorld, key: str, *parts: str) -> str:
    """What `explain` prints, once the view has all of these parts: it lags a moment."""
    told = ""

    async def has_all() -> bool:
        nonlocal told
        told = (await run(world, "ann", "explain", key)).stdout
        return all(part in told for part in parts)

    await until(has_all)
    return told


# ---------------------------------------------------------------- explain, stuck, list
async def test_explain_tells_the_situation_the_attempts_what_may_be_done_and_the_events(world: StuckWorld) -> None:
    key = await provoked(world, UNKNOWN)
    told = await shown(world, key, "EXECUTION_UNKNOWN", "TokenIssued")
    assert re.search(r"^situation +EXECUTION_UNKNOWN$", told, re.MULTILINE)
    assert re.search(r"^stage +AWAITING_EXECUTION since 20", told, re.MULTILINE)
    assert re.search(r"^attempts +\d+ calls to the bank since .*the last answer NO_ANSWER at 20", told, re.MULTILINE)
    assert "cannot move money twice" in told
    assert re.search(rf"operate +chargeonce desk try {key} ", told)
    assert [line.split()[2] for line in told.splitlines() if re.match(r"\d+ +20", line)] == [
        "ChargeRequested",
        "TokenIssued",
    ]
    by_id = await run(world, "ann", "explain", world.stuck[key].charge_id)
    assert "EXECUTION_UNKNOWN" in by_id.stdout


async def test_explain_gives_programs_the_contracts_json_and_the_events(world: StuckWorld) -> None:
    key = await provoked(world, REVIEW)
    await shown(world, key, "IN_REVIEW")
    told = await document(world, "ann", "explain", key)
    assert [entry["event"] for entry in told.pop("entries")][-1] == "ReviewRequired"
    assert ParseDict(told, ExplainChargeResponse()).situation == REVIEW


async def test_a_charge_that_is_unknown_cannot_be_explained(world: StuckWorld) -> None:
    ran = await run(world, "ann", "explain", "never-used")
    assert (ran.returncode, ran.stdout) == (Exit.NOT_KNOWN, "")
    assert "the view does not show such a charge" in ran.stderr


async def test_stuck_lists_what_somebody_should_look_at_with_the_reason(world: StuckWorld) -> None:
    keys = {
        await provoked(world, UNKNOWN): "AWAITING_EXECUTION",
        await provoked(world, Situation.SITUATION_HELD_BACK): "HELD_BACK",
        await provoked(world, REVIEW): "IN_REVIEW",
        await provoked(world, Situation.SITUATION_AWAITING_APPROVAL): "AWAITING_APPROVAL",
        await provoked(world, HOLD): "HOLD_ENDING",
    }

    async def reasons() -> dict[str, str]:
        ran = await run(world, "ann", "stuck", "--older", "1s")
        heading, *rows = ran.stdout.splitlines()
        assert heading.split() == ["SINCE", "WHY", "STATUS", "AMOUNT", "USER", "KEY", "CHARGE"]
        return {row.split()[-2]: row.split()[1] for row in rows}

    async def all_are_there() -> bool:
        return keys.items() <= (await reasons()).items()

    await until(all_are_there)
    patient = await run(world, "ann", "stuck", "--older", "1d", "--hold-ends-within", "1s")
    assert {row.split()[-2] for row in patient.stdout.splitlines()} & keys.keys() == {
        key for key, why in keys.items() if why not in ("AWAITING_EXECUTION", "HOLD_ENDING")
    }


async def test_list_takes_stages_ages_and_ends_of_holds(world: StuckWorld) -> None:
    unknown, review, hold = [await provoked(world, it) for it in (UNKNOWN, REVIEW, HOLD)]

    async def listed(*words: str) -> set[str]:
        told = (await run(world, "ann", "list", "--limit", "500", "--json", *words)).stdout
        charges = [ParseDict(json.loads(line), Charge()) for line in told.splitlines()]
        return {charge.idempotency_key for charge in charges} & {unknown, review, hold}

    async def is_told(expected: set[str], *words: str) -> bool:
        return await listed(*words) == expected

    await until(lambda: is_told({unknown}, "--stage", "awaiting-execution"))
    await until(lambda: is_told({review}, "--stage", "in-review"))
    await until(lambda: is_told({unknown}, "--older", "1s"))
    assert await listed("--stage", "unfinished") == {unknown}
    assert await listed("--older", "1d") == await listed("--stage", "held-back") == set()
    await until(lambda: is_told({hold}, "--hold-ends-within", "2h"))
    assert await listed("--hold-ends-within", "1m") == set()
    heading, *rows = (await run(world, "ann", "list", "--stage", "in-review")).stdout.splitlines()
    assert heading.split()[:3] == ["REQUESTED", "STATUS", "STAGE"]
    assert all("IN_REVIEW since 20" in row for row in rows) and rows


# ---------------------------------------------------------------- the desk
async def test_a_charge_is_held_back_let_go_and_tried_each_step_with_its_reason(world: StuckWorld) -> None:
    key = await provoked(world, UNKNOWN)
    held = await done(world, "ann", "desk", "hold", key, "--reason", "the bank asked us to")
    assert (held["status"], held["held_back"]) == ("PENDING", "by an operator")
    assert "NOT_AT_THE_DESK" in (said := await refusal(world, "ann", "desk", "try", key, *WHY))
    assert f"chargeonce explain {key}" in said
    await world.mend(key)
    assert "held_back" not in await done(world, "ben", "desk", "release", key, "--reason", "they are done")
    await run(world, "ben", "desk", "try", key, "--reason", "no time to lose")  # if it has not come to rest meanwhile
    told = await shown(world, key, "Charged")
    assert re.search(r" HeldBack .* ann +the bank asked us to$", told, re.MULTILINE)
    assert re.search(r" LetGo .* ben +they are done$", told, re.MULTILINE)
    history = (await run(world, "ann", "history", key)).stdout
    assert history.splitlines()[0].split() == [
        *("POSITION", "RECORDED", "EVENT", "STATUS"),
        *("OPERATION", "KEY", "BY", "WHY"),
    ]
    assert history.strip() in told


async def test_two_people_resolve_a_charge_in_review(world: StuckWorld) -> None:
    key = await provoked(world, REVIEW)
    transaction = await world.transaction_id(key)
    asked = await done(world, "ann", "desk", "ask-bank", key)
    about = {"operation": "charge", "key": key, "bank_said": "CONTRADICTION"}
    assert asked == {**about, "transaction_id": transaction, "differs_in": "amount"}
    proposed = await run(world, "ann", "desk", "propose", key, "--executed", transaction, *SEEN, *WHY)
    number = fields(proposed)["proposal"]
    line = f"chargeonce desk approve {world.stuck[key].charge_id} --proposal {number} --reason ..."
    assert line in proposed.stderr
    another = await refusal(world, "ben", "desk", "propose", key, "--not-executed", *SEEN, *WHY)
    assert "ANOTHER_PROPOSAL" in another and f"proposal: {number}" in another and f"chargeonce explain {key}" in another
    by_ann = await refusal(world, "ann", "desk", "approve", key, "--proposal", number, *WHY)
    assert "SECOND_PERSON_NEEDED" in by_ann and "--token-file" in by_ann
    contradicted = await refusal(world, "ben", "desk", "approve", key, "--proposal", number, *WHY)
    assert "BANK_CONTRADICTS" in contradicted and "bank_said: CONTRADICTION" in contradicted
    assert "add --overrules contradiction" in contradicted
    told = await shown(world, key, "AWAITING_APPROVAL")
    assert re.search(
        rf"^proposal +{number}, says EXECUTED, transaction_id {transaction}, evidence ", told, re.MULTILINE
    )
    assert "operate, not ann" in told
    await world.mend(key)
    approved = await done(world, "ben", "desk", "approve", key, *WHY, "--yes")
    assert (approved["status"], approved["bank_said"]) == ("CHARGED", "EXECUTED")
    assert "NOT_AT_THE_DESK" in await refusal(world, "ann", "desk", "hold", key, *WHY)
    assert (await world.violations()) == []


async def test_a_proposal_is_approved_against_the_bank_only_by_saying_so(world: StuckWorld) -> None:
    key = await provoked(world, REVIEW)
    transaction = await world.transaction_id(key)
    refund = ("--refunded", transaction, "--refund", "re_1")
    told = await document(world, "ann", "desk", "propose", key, *refund, *SEEN, *WHY)
    number = ParseDict(told, ProposeResolutionResponse()).proposal
    approval = ("desk", "approve", key, "--proposal", str(number), *WHY)
    other = await refusal(world, "ben", *approval, "--overrules", "no-answer")
    assert "bank_said: CONTRADICTION" in other and "add --overrules contradiction" in other
    approved = await done(world, "ben", *approval, *AGAINST)
    assert (approved["status"], approved["bank_said"]) == ("REFUNDED", "CONTRADICTION")
    told = await shown(world, key, "ResolutionApproved")
    assert re.search(r" ResolutionApproved .* ben .*; although the bank said: CONTRADICTION$", told, re.MULTILINE)
    assert "ben approved" in told and "although the bank said: contradiction." in told


async def test_a_rejected_proposal_leaves_the_charge_in_review(world: StuckWorld) -> None:
    key = await provoked(world, REVIEW)
    number = (await done(world, "ann", "desk", "propose", key, "--not-executed", *SEEN, *WHY))["proposal"]
    rejected = await done(world, "ann", "desk", "reject", key, "--proposal", number, "--reason", "I misread it")
    assert rejected["status"] == "IN_REVIEW"
    changed = await refusal(world, "ben", "desk", "approve", key, "--proposal", number, *WHY)
    assert "PROPOSAL_CHANGED" in changed and f"chargeonce explain {key}" in changed
    told = await shown(world, key, "ResolutionRejected")
    assert re.search(
        r" ResolutionProposed .* ann +NOT_EXECUTED; as the runbook says; evidence: the bank's", told, re.MULTILINE
    )
    none_open = await run(world, "ben", "desk", "approve", key, "--yes", *WHY)
    assert none_open.returncode == Exit.NOT_KNOWN
    assert "no open proposal" in none_open.stderr and "nothing was sent" in none_open.stderr


async def test_whoever_approves_is_shown_the_proposal_and_asked(world: StuckWorld) -> None:
    """At a terminal; elsewhere nobody can be asked, so the proposal is to be named."""
    key = await provoked(world, REVIEW)
    number = (await done(world, "ann", "desk", "propose", key, "--not-executed", *SEEN, *WHY))["proposal"]
    await shown(world, key, "AWAITING_APPROVAL")
    line = shlex.join([str(SCRIPT), "desk", "reject", key, *WHY])

    def at_a_terminal(answer: str) -> Done:
        return subprocess.run(
            ["script", "--quiet", "--return", "--command", line, "/dev/null"],
            input=answer,
            capture_output=True,
            text=True,
            check=False,
            env=world.environment("ben"),
            timeout=MOST_SECONDS,
        )

    for more in ((), ("--json",)):
        unasked = await run(world, "ben", "desk", "reject", key, *WHY, *more)
        assert unasked.returncode == Exit.USAGE and "--proposal N, or add --yes" in unasked.stderr
    no = await asyncio.to_thread(at_a_terminal, "n\n")
    assert no.returncode == Exit.INTERRUPTED and "nothing was sent" in no.stdout
    for part in (number, "NOT_EXECUTED", SEEN[1], "ann", "12.50 EUR"):
        assert part in no.stdout
    assert "resolution_rejected" not in world.story(key)
    yes = await asyncio.to_thread(at_a_terminal, "y\n")
    assert yes.returncode == Exit.DONE, yes.stdout
    assert world.story(key)[-1] == "resolution_rejected"


async def test_an_operator_of_no_tenant_speaks_for_the_one_that_is_named(world: StuckWorld) -> None:
    key = await provoked(world, UNKNOWN)
    assert "PERMISSION_DENIED" in await refusal(world, "night", "explain", key)
    told = await run(world, "night", "explain", key, "--tenant", TENANT)
    assert told.returncode == Exit.DONE and key in told.stdout, told.stderr
    by_environment = {**world.environment("night"), "CHARGEONCE_TENANT": TENANT}
    assert (await run_in(by_environment, "desk", "try", key, *WHY)).returncode == Exit.DONE
    elsewhere = {**by_environment, "CHARGEONCE_TENANT": "another"}
    assert (await run_in(elsewhere, "explain", key)).returncode == Exit.NOT_KNOWN
    absent = await run_in(elsewhere, "desk", "try", world.stuck[key].charge_id, *WHY)
    assert (absent.returncode, "there is no such charge" in absent.stderr) == (Exit.REFUSED, True)


async def test_the_desk_is_for_operators_and_for_charges_that_there_are(world: StuckWorld) -> None:
    key = await provoked(world, UNKNOWN)
    assert "PERMISSION_DENIED" in await refusal(world, "shop", "desk", "try", key, *WHY)
    assert "there is no such charge" in await refusal(world, "ann", "desk", "try", NO_CHARGES_ID, *WHY)


async def test_desk_status_tells_of_banks_and_limits(world: StuckWorld) -> None:
    told = ParseDict(await document(world, "night", "desk", "status"), GetServerStatusResponse())
    assert {bank.name for bank in told.banks} == set(world.banks)
    ran = await run(world, "night", "desk", "status")
    assert re.search(r"^takes_new_charges +yes$", ran.stdout, re.MULTILINE)
    assert re.search(r"^north +called +\d+ of \d+ at once +\d+ +\d+ ms$", ran.stdout, re.MULTILINE)
    assert re.search(r"^calls +\d+ +\d+$", ran.stdout, re.MULTILINE)


# ---------------------------------------------------------------- reconcile
DAY = ("reconcile", "--bank", "north", "--from", "2026-01-05", "--to", "2026-01-06")
MAPPING = """
[columns]
reference = "reference"
type = "type"
amount = "amount"
currency = "currency"
time = "time"
[types]
payment = "payment"
payout = "payout"
"""
STATEMENT = f"""reference,type,amount,currency,time
{NO_CHARGES_ID},payment,12.50,EUR,2026-01-05T10:00:00Z
,payout,-99.00,EUR,2026-01-05T23:00:00Z
"""


@pytest.fixture
def file(tmp_path: Path) -> tuple[str, ...]:
    """The options of a statement with a payment that nobody ordered, and a payout."""
    statement, mapping = tmp_path / "north.csv", tmp_path / "north.toml"
    statement.write_text(STATEMENT)
    mapping.write_text(MAPPING)
    return ("--csv", str(statement), "--mapping", str(mapping))


async def test_a_day_without_differences_is_balanced(world: StuckWorld) -> None:
    ran = await run(world, "night", *DAY)
    assert (ran.returncode, fields(ran)["balanced"]) == (Exit.DONE, "yes"), ran.stderr


async def test_what_a_reconciliation_finds_is_shown_and_written_and_kept(
    world: StuckWorld, file: Sequence[str], tmp_path: Path
) -> None:
    out = tmp_path / "found.csv"
    ran = await run(world, "night", *DAY, *file, "--csv-out", str(out))
    assert ran.returncode == Exit.NO, ran.stderr
    kinds = [line.split()[0] for line in ran.stdout.splitlines()[:2]]
    assert sorted(kinds) == ["MISSING_HERE", "PAYOUT"]
    assert re.search(rf"^MISSING_HERE +2026-01-05 +12.50 EUR +- +{NO_CHARGES_ID} +", ran.stdout, re.MULTILINE)
    assert re.search(r"^2026-01-05 +EUR +0 +12.50 EUR +0.00 EUR +12.50 EUR ", ran.stdout, re.MULTILINE)
    assert re.search(r"^differences +1$", ran.stdout, re.MULTILINE)
    assert re.search(r"^balanced +no$", ran.stdout, re.MULTILINE)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {(row["kind"], row["reference"], row["bank_minor_units"]) for row in rows} == {
        ("FINDING_KIND_MISSING_HERE", NO_CHARGES_ID, "1250"),
        ("FINDING_KIND_PAYOUT", "", "-9900"),
    }
    last = await run(world, "night", "reconcile", "last")
    assert last.returncode == Exit.NO
    assert re.search(r"^north +2026-01-05T00:00:00Z +2026-01-06T00:00:00Z +20\S+ +1 +0 +no$", last.stdout, re.MULTILINE)
    assert re.search(rf"^north +MISSING_HERE +2026-01-05 +12.50 EUR +- +{NO_CHARGES_ID} +", last.stdout, re.MULTILINE)
    assert (await run(world, "night", *DAY)).returncode == Exit.DONE  # the same day again, by the bank's own statement
    assert (await run(world, "night", "reconcile", "last")).returncode == Exit.DONE


async def test_programs_get_each_finding_and_then_the_result(world: StuckWorld, file: Sequence[str]) -> None:
    ran = await run(world, "night", *DAY, *file, "--json")
    messages = [ParseDict(json.loads(line), ReconcileResponse()) for line in ran.stdout.splitlines()]
    assert (ran.returncode, [it.WhichOneof("item") for it in messages]) == (Exit.NO, ["finding", "finding", "result"])
    assert (messages[-1].result.differences, messages[-1].result.is_balanced) == (1, False)
    ran = await run(world, "night", "reconcile", "last", "--json")
    (kept,) = ParseDict(json.loads(ran.stdout), ListReconciliationsResponse()).reconciliations
    assert (list(kept.findings), ran.returncode) == ([message.finding for message in messages[:-1]], Exit.NO)
    del kept.findings[:]
    assert messages[-1].result == kept


async def test_a_reconciliation_that_cannot_be_done_says_why(world: StuckWorld, file: Sequence[str]) -> None:
    Path(file[3]).write_text(MAPPING.replace("columns", "colums"))
    assert "  begin: mapping" in await refusal(world, "night", *DAY, *file)
    assert "no such bank: name one of: north" in await refusal(world, "night", *DAY, "--bank", "nowhere")
    assert "PERMISSION_DENIED" in await refusal(world, "ann", *DAY)


# ---------------------------------------------------------------- without an answer
STOPPING = (StatusCode.UNAVAILABLE, "charging.v1", "SERVER_STOPPING", "RETRY_SAME_KEY")
BANK_AWAY = (StatusCode.UNAVAILABLE, "charging.v1", "BANK_UNREACHABLE", "RETRY_SAME_KEY")


@pytest.mark.parametrize(
    ("lines", "words", "told"),
    [
        ([STOPPING, HoldBackResponse()], ("hold", NO_CHARGES_ID), f"look at chargeonce history {NO_CHARGES_ID}"),
        (
            [BANK_AWAY] * 50,
            ("approve", NO_CHARGES_ID, "--proposal", "1", "--patience", "1"),
            "nothing was stored: repeat it later; to approve it without the bank's word, add --overrules no-answer",
        ),
    ],
    ids=["it may be stored", "nothing was stored"],
)
async def test_a_step_without_an_answer_says_whether_it_may_be_repeated(
    world: StuckWorld, lines: Sequence[Error | Message], words: Sequence[str], told: str
) -> None:
    async with a_server_of(*lines, bank_said="NO_ANSWER") as address:
        ran = await run_in({**world.environment("ann"), "CHARGEONCE_COMMAND": address}, "desk", *words, *WHY)
    assert (ran.returncode, ran.stdout) == (Exit.NOT_KNOWN, "")
    assert told in ran.stderr


async def test_an_id_of_the_banks_that_may_not_be_kept_is_told_as_no_difference(world: StuckWorld) -> None:
    contradiction = AnswerKind.ANSWER_KIND_CONTRADICTION
    answer = AskBankResponse(bank_said=contradiction, differing_fields=["transaction_id"], idempotency_key="order-1")
    async with a_server_of(answer) as address:
        place = {**world.environment("ann"), "CHARGEONCE_COMMAND": address}
        ran = await run_in(place, "desk", "ask-bank", NO_CHARGES_ID)
    assert fields(ran) == {"key": "order-1", "bank_said": "CONTRADICTION"}
    assert ID_NOT_KEPT in ran.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("stuck",),
        ("explain", "order-1"),
        ("desk", "hold", NO_CHARGES_ID, *WHY),
        ("desk", "status"),
        ("reconcile", "last"),
        ("reconcile", "--from", "2026-11-30", "--to", "2026-12-01"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
async def test_without_a_server_no_step_is_taken(world: StuckWorld, words: Sequence[str]) -> None:
    away = dict.fromkeys(("CHARGEONCE_COMMAND", "CHARGEONCE_QUERY"), free_address())
    ran = await run_in({**world.environment("ann"), **away}, *words, "--patience", "1")
    assert (ran.returncode, ran.stdout) == (Exit.UNREACHABLE, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("desk", "try", "order-1"), "Missing option '--reason'"),
        (("desk", "hold", "order-1", "--reason", ""), "'--reason': it is empty"),
        (("desk", "propose", "order-1", *SEEN, *WHY), "--executed TRANSACTION, --not-executed and --refunded"),
        (
            ("desk", "propose", "order-1", "--executed", "txn_1", "--not-executed", *SEEN, *WHY),
            "--executed TRANSACTION, --not-executed and --refunded",
        ),
        (("desk", "propose", "order-1", "--refunded", "txn_1", *SEEN, *WHY), "--refund TRANSACTION belong together"),
        (("desk", "propose", "order-1", "--not-executed", *WHY), "Missing option '--evidence'"),
        (("list", "--older", "10"), "10 is no time span such as 90s, 10m, 2h or 1d"),
        (("list", "--stage", "paid"), "'paid' is not one of"),
        (("reconcile",), "say which days: --from TIME --to TIME"),
        (("reconcile", "first"), "'first' is not 'last'"),
    ],
)
async def test_a_wrong_command_line_takes_no_step(world: StuckWorld, words: Sequence[str], told: str) -> None:
    ran = await run(world, "ann", *words)
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")
    assert told in " ".join(ran.stderr.split())
