"""The counted causes of the product's speed: see bench/counted.py. No time is asserted here."""

from pathlib import Path

import pytest

from bench.counted import (
    RECORDS_A_CHARGE,
    commits_a_charge,
    made_a_charge,
    reads_a_record,
    system_calls_a_charge,
)


async def test_under_load_charges_share_commits(tmp_path: Path) -> None:
    """A charge has three records, each durable before the next step: with 64 in flight that takes less than one commit."""
    assert await commits_a_charge(tmp_path, charges=256, in_flight=64) < 1


async def test_a_charge_alone_is_durable_after_each_of_its_steps(tmp_path: Path) -> None:
    """Meta: the count above counts commits. Without company every record has a commit of its own."""
    assert await commits_a_charge(tmp_path, charges=8, in_flight=1) == RECORDS_A_CHARGE


async def test_a_charge_takes_one_task_and_three_timers_and_no_object_of_httpx(tmp_path: Path) -> None:
    """The task accepts it and runs it to rest; one timer bounds its call, and two its steps at the bank."""
    made = await made_a_charge(tmp_path, charges=256, in_flight=64)
    committing = made.pop("task GroupCommit._commit_queue", 0.0)
    hops = made.pop("hops to the writer")
    timers = made.pop("timers")
    assert made == {"task Reception._see_to": 1.0}
    assert 3.0 <= timers < 3.1  # some are not a charge's
    assert committing <= hops < 1  # charges share commits, and each commit is one hop


async def test_a_charge_alone_takes_a_hop_for_each_record(tmp_path: Path) -> None:
    """Meta: the count above counts hops. A commit that is alone is sent at once."""
    made = await made_a_charge(tmp_path, charges=8, in_flight=1)
    assert RECORDS_A_CHARGE <= made["hops to the writer"] < RECORDS_A_CHARGE + 0.5  # some look after the store


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the system calls of a process")
async def test_a_charge_alone_takes_few_reads_and_writes() -> None:
    """Measured: 45. Eighteen store its three records durably; the others are wake-ups, messages and its line of the log."""
    assert await system_calls_a_charge(charges=100) < 60


async def test_a_hundred_live_readers_cost_few_reads_of_a_record(tmp_path: Path) -> None:
    """One read for all; a reader that falls far behind may need another, but never one each."""
    assert 1 <= await reads_a_record(tmp_path, readers=100, charges=100) <= 3
