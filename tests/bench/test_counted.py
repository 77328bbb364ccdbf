"""The counted causes of the product's speed: see bench/counted.py. No time is asserted here."""

from pathlib import Path

from bench.counted import RECORDS_A_CHARGE, commits_a_charge, reads_a_record


async def test_under_load_charges_share_commits(tmp_path: Path) -> None:
    """A charge has three records, each durable before the next step: with 64 in flight that takes less than one commit."""
    assert await commits_a_charge(tmp_path, charges=256, in_flight=64) < 1


async def test_a_charge_alone_is_durable_after_each_of_its_steps(tmp_path: Path) -> None:
    """Meta: the count above counts commits. Without company every record has a commit of its own."""
    assert await commits_a_charge(tmp_path, charges=8, in_flight=1) == RECORDS_A_CHARGE


async def test_a_hundred_live_readers_cost_few_reads_of_a_record(tmp_path: Path) -> None:
    """One read for all; a reader that falls far behind may need another, but never one each."""
    assert 1 <= await reads_a_record(tmp_path, readers=100, charges=100) <= 3
