"""`make prove` itself: one table, and one file that says the same."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from prove.__main__ import _table
from prove.report import RARE, Harness

ROOT = Path(__file__).parents[2]


def test_it_prints_a_table_and_writes_what_it_found(tmp_path: Path) -> None:
    """With a control that failed as it must, or it would have exited with 1."""
    command = [sys.executable, "-m", "prove", "0.03", "--only", "crashpoints"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("harness ")
    (harness,) = json.loads((tmp_path / "build" / "prove.json").read_text())["harnesses"]
    assert harness["tried"] > 0
    assert harness["violations"] == []
    assert list(harness["controls"].values()) == [True]
    assert harness["enumerated"]["paths of 1 deaths"] > 50
    assert "all tried in" in done.stdout


def test_a_kind_that_fired_seldom_is_told_unless_a_reason_is_given() -> None:
    """And then the reason is told."""
    harness = Harness("test", "tries", faults=Counter({"often": RARE, "seldom": 1, "once": 1}))
    harness.complete["once"] = "there is only one"
    table = _table([harness])
    assert harness.rare == ["seldom"]
    assert f"fired fewer than {RARE} times in test: seldom\n" in table
    assert f"need not fire {RARE} times in test: once (there is only one)" in table
