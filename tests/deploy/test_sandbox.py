"""The sandbox as it is shipped: in the wheel, with what the servers need and nothing else, and as an image."""

import json
import re
import sys
from pathlib import Path

import yaml

from chargeonce.sandbox import DEFAULT_PORTS
from tests.deploy.deployment import DEPLOY, entrypoint
from tests.deploy.test_image import PYPROJECT, pins
from tests.e2e.test_sandbox import a_sandbox

CONTAINERFILE = (DEPLOY / "sandbox" / "Containerfile").read_text()
INSTRUCTIONS = dict(re.findall(r"^([A-Z]+) (.*)$", CONTAINERFILE, re.MULTILINE))
# The sandbox's command in an environment where only these packages are installed besides Python's own: others are not found.
ONLY_WITH = """
import json, sys
from importlib.metadata import packages_distributions
needed = set(json.loads(sys.argv.pop(1)))
for package, of in packages_distributions().items():
    if needed.isdisjoint({package, *(each.lower().replace("_", "-") for each in of)}):
        sys.modules[package] = None
from chargeonce.__main__ import main
main()
"""


def test_it_is_in_the_wheel_and_needs_nothing_of_those_who_develop_it() -> None:
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = json.dumps([*packages, *pins(DEPLOY / "requirements.txt")])
    with a_sandbox(program=(sys.executable, "-P", "-c", ONLY_WITH, needed)) as running:
        assert running.charge("one").transaction_id


def test_its_image_is_the_servers_with_another_command_on_the_documented_ports(tmp_path: Path) -> None:
    (base,) = re.findall(r"--tag (\S+) \.$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert base == INSTRUCTIONS["FROM"]
    assert sorted(map(int, INSTRUCTIONS["EXPOSE"].split())) == sorted(DEFAULT_PORTS.values())
    assert INSTRUCTIONS["ENV"] == f"CHARGEONCE_HEALTH=localhost:{DEFAULT_PORTS['query']}"
    words = [*entrypoint(), *yaml.safe_load(INSTRUCTIONS["CMD"])]
    assert words == ["chargeonce", "sandbox", "--host", "0.0.0.0", "--default-ports", "--folder", "/data"]
    with a_sandbox("--host", "0.0.0.0", "--folder", str(tmp_path)) as running:  # the documented ports may be taken here
        assert running.charge("one").transaction_id
