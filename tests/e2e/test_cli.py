"""The `chargeonce` command, as it is installed: every server and every operator's command by its name.

`test_command_line.py` has the commands of clients.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from chargeonce.table import COMMANDS, FORMER, Program
from rig.world import a_request, a_world
from tests.service.tenants_rig import as_tenant, shared_by

SCRIPT = Path(sys.executable).with_name("chargeonce")


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )


def test_help_names_every_command() -> None:
    done = run("--help", environment={"COLUMNS": "160"})
    assert done.returncode == 0
    assert all(name in done.stdout and command.text in done.stdout for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_under_its_own_name(name: str) -> None:
    done = run(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    usage = "usage" if isinstance(COMMANDS[name], Program) else "Usage"
    assert done.stdout.startswith(f"{usage}: chargeonce {name} ")


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_goes_on_working_and_is_not_shown(former: str) -> None:
    """Deployments use it."""
    assert run(former, "--help").stdout == run(*FORMER[former].split(), "--help").stdout
    assert not re.search(rf"^ +{former} ", run("--help").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (("refnud",), "Usage: chargeonce [OPTIONS] COMMAND"),
        ((), "Usage: chargeonce [OPTIONS] COMMAND"),
        (("journal",), "Usage: chargeonce journal [OPTIONS] COMMAND"),
        (("journal", "verify", "--quickly"), "usage: chargeonce journal verify"),
        (("verify-journal", "--quickly"), "usage: chargeonce journal verify"),
        (("command-server", "--quickly"), "usage: chargeonce command-server"),
    ],
)
def test_an_unknown_command_or_argument_is_refused_with_what_there_is(arguments: tuple[str, ...], usage: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(usage)


async def test_print_journal_finds_a_charge_by_its_idempotency_key(tmp_path: Path) -> None:
    """And prints the very stream that it prints by the charge's id; a key without a charge is an error."""
    async with a_world(tmp_path) as world:
        asked = a_request()
        charge_id = (await world.charge(asked)).charge_id
        await world.charge(a_request())
        environment = {"COMMAND_JOURNAL": f"sqlite:///{world.journal}"}
        by_key = run("journal", "print", "--key", asked.idempotency_key, environment=environment)
        by_id = run("journal", "print", charge_id, environment=environment)
        assert by_key.stdout == by_id.stdout
        assert [line.split()[1] for line in by_key.stdout.splitlines()] == [charge_id] * 3
        missing = run("journal", "print", "--key", "never-used", environment=environment)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert (
            missing.stderr
            == "error: the journal holds no charge with the idempotency key never-used of tenant default\n"
        )


def test_print_journal_takes_a_charge_or_a_key_and_not_both() -> None:
    assert run("journal", "print", "some-id", "--key", "some-key").returncode == 2


async def test_print_journal_finds_a_charge_by_the_key_of_its_tenant(tmp_path: Path) -> None:
    """A key of two tenants names two charges."""
    async with a_world(tmp_path, shared_by({"a": 1.0, "b": 1.0})) as world:
        request = a_request()
        ids = [(await world.commands.Charge(request, **as_tenant(tenant))).charge_id for tenant in ("a", "b")]
        environment = {"COMMAND_JOURNAL": f"sqlite:///{world.journal}"}
        for tenant, charge_id in zip(("a", "b"), ids, strict=True):
            printed = run(
                "journal", "print", "--key", request.idempotency_key, "--tenant", tenant, environment=environment
            )
            assert [line.split()[1] for line in printed.stdout.splitlines()] == [charge_id] * 3
        missing = run("journal", "print", "--key", request.idempotency_key, environment=environment)
        assert missing.returncode == 1
