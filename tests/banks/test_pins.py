"""What the fakes are made of is pinned by content, and no pin names a host: registries are the machine's affair."""

import json
import re
from pathlib import Path

import pytest

import rig.programs
from tests.banks import programs

FOLDER = Path(programs.__file__).parent


def test_the_pins_name_no_host_and_pin_the_content() -> None:
    for path in (*programs.PINS.rglob("*"), FOLDER / "requirements.txt"):
        assert path.is_dir() or "://" not in path.read_text()
    packages = json.loads((programs.PINS / "stripe-stateful-mock" / "package-lock.json").read_text())["packages"]
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    assert re.search(
        r"^github\.com/stripe/stripe-mock v\S+ h1:", (programs.PINS / "stripe-mock" / "go.sum").read_text(), re.M
    )
    assert re.search(r"^localstripe==\S+ \\\n    --hash=sha256:", (FOLDER / "requirements.txt").read_text(), re.M)


def test_what_is_missing_and_what_to_install_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rig.programs, "BUILD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        programs.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "stripe-mock cannot be set up: not installed here: go. It needs Go 1.24 or later.\n"
        "stripe-stateful-mock cannot be set up: not installed here: node, npm. "
        "It needs Node.js 20 or later and npm, which comes with Node.js.\n"
    )
