"""A small part of the crashes and storage faults of `make prove`, run at every change."""

import itertools
import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prove import clients
from prove.__main__ import save
from prove.deaths import crashpoints, kills, lives, powercut, replay, scenarios, syscalls
from prove.deaths.writer import folder_in_memory
from prove.page import BEGIN, END, fill, table
from prove.report import Harness
from prove.storage import disks, errors, files, gone, restores
from rig.processes import Town
from rig.referee import Referee

# All that a test asks for is tried, however long that takes.
WITHOUT_LIMIT = math.inf

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def a_harness() -> Harness:
    return Harness("test", "tried")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder for hundreds of journals: on a busy disk each costs a tenth of a second."""
    with folder_in_memory() as folder:
        yield folder


@pytest.mark.parametrize(
    "name",
    [
        *("approved", "answer lost", "refunded", "called off", "hold called off too late"),
        *("customer confirms", "customer is not there"),
    ],
)
async def test_after_a_death_at_any_call_of_a_port_each_operation_ends_once(name: str, in_memory: Path) -> None:
    """Before and after every call of a port in the first life. The other scenarios' turn comes in test_prove.py."""
    harness, scenario = a_harness(), scenarios.named(name)
    async with crashpoints.Walk(harness, in_memory) as walk:
        async for _ in walk.paths(scenario, 1):
            pass
    assert harness.violations == []
    is_under_way = scenario.before in (scenarios.Before.UNDER_WAY, scenarios.Before.EXECUTED)
    assert harness.tried > (8 if is_under_way else 15)
    assert harness.faults["died after journal.append"] >= 2
    assert harness.faults["died before transport.handle_async_request"] >= 1


@pytest.mark.parametrize("bug", crashpoints.CONTROLS, ids=lambda bug: str(bug.value))
async def test_a_control_of_the_crash_points_is_found(bug: lives.Bug, in_memory: Path) -> None:
    """By the invariant that it breaks."""
    name, invariant = crashpoints.CONTROLS[bug]
    harness = a_harness()
    async with crashpoints.Walk(harness, in_memory, bug=bug) as walk:
        async for _ in walk.paths(scenarios.named(name), 1):
            pass
    assert harness.found(invariant)


def test_paths_grow_by_one_death_until_none_is_left(in_memory: Path) -> None:
    """A path of two deaths begins with a path of one, and a life that passed its last point begins none."""
    first = crashpoints.grow(in_memory, scenarios.SCENARIOS[0], ())
    assert first.longer == [(point,) for point in range(1, first.walked.tried)]
    last = crashpoints.grow(in_memory, scenarios.SCENARIOS[0], first.longer[-1])
    assert last.longer == [(*first.longer[-1], point) for point in range(1, last.walked.tried)]
    assert last.longer
    assert first.walked.violations + last.walked.violations == []


@needs_strace
async def test_a_power_cut_loses_no_acknowledged_record(in_memory: Path) -> None:
    """Also after a restart over a WAL whose sync had failed."""
    harness = a_harness()
    chance = random.Random(1)
    lives = (powercut.FAILED, replay.Life(10, powercut.OFTEN))
    moments = replay.record(in_memory, lives)
    assert await powercut.cut(moments, in_memory, 60, chance, harness, "test", WITHOUT_LIMIT) == 0
    assert harness.violations == []
    assert harness.tried == 60
    assert harness.faults["page of a failed sync lost"] > 0


@needs_strace
async def test_a_failed_sync_of_the_wals_name_at_the_start_of_a_journal_loses_no_record(in_memory: Path) -> None:
    """SQLite ignores the failure: unless the folder is synced, the file of all records before a checkpoint has no name."""
    moments = replay.record(in_memory, [replay.Life(20, (), "fdatasync:error=EIO:when=6")])
    failed = [moment for moment in moments if moment.is_over and moment.call.name == "fdatasync" and moment.call.result]
    assert len(failed) == 1
    harness = a_harness()
    await powercut.cut(moments, in_memory, 60, random.Random(1), harness, "test", WITHOUT_LIMIT)
    assert harness.violations == []


@needs_strace
@pytest.mark.parametrize("name", powercut.CONTROLS)
async def test_a_power_cut_loses_records_of_a_journal_made_careless(name: str, in_memory: Path) -> None:
    """The controls."""
    moments = replay.record(in_memory, powercut.CONTROLS[name].lives)
    cuts, chance = powercut.CUTS_A_CONTROL, random.Random(1)
    losses = await powercut.cut(moments, in_memory, cuts, chance, a_harness(), name, WITHOUT_LIMIT)
    assert losses > 0


async def test_a_flipped_bit_of_a_record_is_noticed_before_it_is_served() -> None:
    """Fifty of the two thousand bits, and the control."""
    harness = a_harness()
    await files.flips(WITHOUT_LIMIT, lambda _: None, harness, most=50)
    assert harness.violations == []
    assert harness.faults["bit flipped"] == 50
    assert harness.is_sound


@needs_strace
async def test_changed_files_are_refused_or_complete() -> None:
    """Cut short, swapped, deleted, of another journal, from a backup."""
    harness = a_harness()
    await files.damages(WITHOUT_LIMIT, lambda _: None, harness)
    assert harness.violations == []
    assert harness.faults["damaged files refused"] > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_charges_are_accepted_again_after_a_full_disk_has_room() -> None:
    """Twice, by one server without a restart."""
    harness = a_harness()
    async with disks.small_disk(harness, 0) as disk:
        assert disk is not None
        await disk.fill_and_free()
        await disk.fill_and_free()
    assert harness.violations == []
    assert harness.faults == {"disk full": 2, "disk with room again": 2}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_charges_are_accepted_again_after_another_program_held_the_journal() -> None:
    """By one server without a restart; and the control."""
    harness = a_harness()
    async with disks.small_disk(harness, 0) as disk:
        assert disk is not None
        await disk.hold_the_lock()
    assert harness.violations == []
    assert harness.faults == {"write lock held by another program": 1}
    assert await disks.is_busy_control_found()


async def test_a_restored_backup_is_noticed_and_a_second_server_is_refused() -> None:
    """One round of each, and all sides agree at the end."""
    harness = a_harness()
    async with restores.restored(harness, 0) as one:
        await one.back_up_and_restore()
    assert harness.violations == []
    assert harness.faults == {"backups under load": 1, "restored backups": 1, "second server on one file": 1}


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize(("call", "number"), [("pwrite64", 40), ("fdatasync", 12)])
async def test_an_error_of_the_disk_loses_no_acknowledged_record(
    call: str, number: int, error: str, tmp_path: Path
) -> None:
    """One failed operation, in the middle of the work."""
    harness = a_harness()
    assert await errors.fail(tmp_path / "failing", call, error, False, number, harness=harness)
    assert harness.violations == []


async def test_servers_killed_under_load_leave_histories_that_agree(tmp_path: Path) -> None:
    """Three kills of the command server, in one round."""
    harness = a_harness()
    await kills.a_round(tmp_path, 0, 3, WITHOUT_LIMIT, harness)
    assert harness.violations == []
    assert harness.tried >= 1
    assert harness.faults["charges"] > 0


@pytest.mark.timeout(1200)  # some rounds, each of which waits for starts, kills and for all to come to rest
@pytest.mark.parametrize(("bug", "invariant"), kills.CANARIES.items())
async def test_a_bug_of_the_command_server_is_found_by_a_few_kills(bug: str, invariant: str) -> None:
    """By the invariant that it breaks."""
    assert await kills.is_found(bug, invariant)


def test_a_run_of_kills_ends_when_each_kind_had_fifty_and_the_operations_are_made() -> None:
    """With a rarer kind, or an operation too few, it continues."""
    kinds = [kills.QUERY_KILLED, *map(kills.command_killed, kills.MOMENTS), *map(kills.bank_killed, kills.BANK_KILLS)]
    kinds += [kills.PAUSED, kills.UNREAD, "refunds", "captures", "voids", "charges called off"]
    harness = a_harness()
    harness.faults.update(dict.fromkeys(kinds, 50), charges=20_000 - 4 * 50)
    assert kills.is_enough(harness)
    for kind in [*kinds, "charges"]:
        harness.faults[kind] -= 1
        assert not kills.is_enough(harness), kind
        harness.faults[kind] += 1


def test_a_recording_is_read_in_the_order_in_which_its_calls_began_and_ended() -> None:
    """A sync that overlaps another thread's write ends after it."""
    lines = [
        r'7 pwrite64(3<\x2f\x61>, "\x01\x02", 2, 0) = 2',
        r"7 fdatasync(3<\x2f\x61> <unfinished ...>",
        r'8 write(4<\x2f\x62>, "\x03", 1) = 1',
        r"7 <... fdatasync resumed>) = -1 EIO (Input/output error) (INJECTED)",
        "7 +++ killed by SIGKILL +++",
    ]
    seen = [(moment.call.name, moment.is_over, moment.call.result) for moment in replay.parse(lines)]
    assert seen == [
        ("pwrite64", False, 2),
        ("pwrite64", True, 2),
        ("fdatasync", False, -1),
        ("write", False, 1),
        ("write", True, 1),
        ("fdatasync", True, -1),
    ]


def test_a_power_cut_leaves_all_synced_writes_and_any_part_of_the_others() -> None:
    """On the rebuilt disk, file by file."""
    file = replay.File()
    file.change(replay.Change(0, b"old" * 400))
    file.syncing = 1
    file.synced(failed=False)
    file.change(replay.Change(0, b"new" * 400))
    left = {file.after_cut(random.Random(seed), a_harness().faults) for seed in range(200)}
    sectors = [[(b"old" * 400)[at : at + 512], (b"new" * 400)[at : at + 512]] for at in (0, 512, 1024)]
    assert left == {b"".join(parts) for parts in itertools.product(*sectors)}
    file.syncing = 1
    file.synced(failed=True)
    file.syncing = 1
    file.synced(failed=False)
    assert b"old" * 400 in {file.after_cut(random.Random(seed), a_harness().faults) for seed in range(200)}


@needs_strace
async def test_a_server_killed_at_a_system_call_executes_each_operation_once(tmp_path: Path) -> None:
    """At two calls of the journal's thread; make prove tries all of them."""
    async with Town(tmp_path) as town, Referee(town.bank_url) as referee:
        harness = a_harness()
        trial = syscalls.Trial(town, clients.Clients(random.Random(0), "syscall"), clients.Witness(referee), harness)
        for number, what in ((1, "charge"), (7, "refund"), (4, "calling off")):
            assert await trial.die_in(what, syscalls.JOURNAL_PLACE, number)
        # The pool of several threads has no such call.
        assert not await trial.die_in("charge", -1, 10_000)
        await trial.reckon("test")
    assert harness.violations == []


@needs_strace
@pytest.mark.parametrize("part", [files, errors, disks, gone, restores], ids=lambda part: str(part.__name__))
async def test_a_sabotaged_run_of_a_storage_harness_fails(part: Any) -> None:
    """The controls, each found by the invariant that it breaks. None: this machine cannot have a small disk."""
    assert await part.is_control_found() in (True, None)


async def test_a_running_journal_whose_files_disappear_acknowledges_no_further_record() -> None:
    """Each way of disappearing once."""
    harness = a_harness()
    await gone.take_away(WITHOUT_LIMIT, lambda _: None, harness)
    assert harness.violations == []
    assert harness.tried == len(gone.GONE)


@needs_strace
async def test_a_bug_of_the_command_server_is_found_by_a_death_at_a_system_call() -> None:
    """Among the first calls of the journal's thread, between the execution and the token's commit."""
    assert await syscalls.is_canary_found()


# ---------------------------------------------------------------- the table
def test_a_repeated_part_of_the_proof_replaces_its_own_figures_only(tmp_path: Path) -> None:
    """Even if it crashed before it had a name."""
    out = tmp_path / "prove.json"
    save(out, {"kills": Harness("kill -9", "kills", tried=3), "storage": Harness("storage", "faults", tried=5)})
    save(out, {"kills": Harness("kills", "nothing", violations=["the harness itself failed"])})
    found = json.loads(out.read_text())["harnesses"]
    assert [(each["module"], each["tried"], len(each["violations"])) for each in found] == [
        ("kills", 0, 1),
        ("storage", 5, 0),
    ]


def test_the_readme_names_untried_harms_and_rare_faults(tmp_path: Path) -> None:
    """An outcome, or the last of a complete enumeration, is neither."""
    out = tmp_path / "prove.json"
    harness = Harness("storage", "faults", tried=5, faults=Counter({"EIO": 49, "ENOSPC": 50, "whole": 1}))
    harness.skipped["every operation"] = "the time was up"
    harness.complete["whole"] = "an outcome"
    save(out, {"storage": harness})
    shown = table(json.loads(out.read_text()))
    assert "* storage, not tried: every operation (the time was up)\n" in shown
    assert "* storage, fired fewer than 50 times: EIO 49\n" in shown
    text = fill(f"before {BEGIN} old {END} after", shown)
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert shown in text
    assert " old " not in text
