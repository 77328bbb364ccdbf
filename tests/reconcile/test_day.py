"""A small day: mixed operations, kills and bank faults are reconciled to 0.00, and planted differences are named, alone.

`make day` has a large one.
"""

from pathlib import Path

import pytest

from prove.day import day


@pytest.mark.timeout(900)
async def test_a_day_of_kills_and_faults_is_balanced_and_planted_differences_are_named(tmp_path: Path) -> None:
    told: list[str] = []
    found = await day(2_000, tmp_path, told.append, kills=3)
    assert found.problems == [], "\n".join(told)
    assert found.operations >= 2_000
    assert found.kills == {"command server": 3, "bank": 1}
    assert sum(found.faults.values()) > 0
