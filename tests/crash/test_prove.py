"""`make prove` itself: one table, and one file with the same figures."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from prove.__main__ import is_full_size, passes, table
from prove.deaths.scenarios import SCENARIOS
from prove.report import RARE, Harness

ROOT = Path(__file__).parents[2]


def test_it_prints_a_table_and_writes_its_results(tmp_path: Path) -> None:
    """With controls that failed as required; otherwise it would exit with 1."""
    command = [sys.executable, "-m", "prove", "0.03", "--only", "crashpoints"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("harness ")
    (harness,) = json.loads((tmp_path / "build" / "prove.json").read_text())["harnesses"]
    assert harness["tried"] > 0
    assert harness["violations"] == []
    assert list(harness["controls"].values()) == [True, True]
    assert harness["enumerated"]["paths of 1 deaths"] > 14 * len(SCENARIOS)
    assert "all tried in" in done.stdout


def test_a_harness_without_tries_is_not_sound() -> None:
    """For any reason: it has shown nothing."""
    harness = Harness("test", "tries", skipped={"all": "strace is not installed"})
    assert not harness.is_sound
    assert "NOTHING TRIED in test" in table([harness])


def test_a_full_run_fails_for_a_rare_kind_and_a_small_one_does_not() -> None:
    """In a few minutes not every kind fires fifty times."""
    harness = Harness("test", "tries", tried=1)
    harness.knows(("never",))
    assert passes([harness], is_full=False)
    assert not passes([harness], is_full=True)
    assert is_full_size(60)
    assert not is_full_size(59)


def test_a_rare_kind_is_reported_unless_it_has_a_reason() -> None:
    """And then the reason is reported."""
    harness = Harness("test", "tries", tried=1, faults=Counter({"often": RARE, "seldom": 1, "once": 1}))
    harness.knows(("often", "never"))
    harness.complete["once"] = "there is only one"
    shown = table([harness])
    assert harness.rare == ["never", "seldom"]
    assert harness.is_sound
    assert f"too short a run: fired fewer than {RARE} times in test: never 0, seldom 1\n" in shown
    assert f"how often each fault fired in test: never 0, often {RARE}, once 1, seldom 1\n" in shown
    assert f"TOO RARE: fired fewer than {RARE} times in test: never 0, seldom 1\n" in table([harness], is_full=True)
    assert f"need not fire {RARE} times in test: once (there is only one)" in shown
