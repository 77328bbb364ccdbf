"""`make prove` itself: one table, and one file that says the same."""

import json
import subprocess
import sys
from pathlib import Path

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
