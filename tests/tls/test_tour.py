"""`make run TLS=1`: the tour over TLS, and the lines it invites to go on with."""

import asyncio
import json
import re
import shlex
from pathlib import Path

import pytest

from demo import tour
from demo.transcript import FREE_PORTS
from rig.certs import make_all
from rig.processes import Town


async def run(line: str) -> str:
    made = await asyncio.create_subprocess_exec(
        *shlex.split(line), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await made.communicate()
    assert made.returncode == 0, errors.decode()
    return out.decode()


async def test_the_tour_and_its_lines_for_buf_and_curl_go_over_mutual_tls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_all(tmp_path / "certs")
    town = Town(tmp_path / "run", tmp_path / "certs")
    try:
        await tour.told(town, FREE_PORTS)
        assert "CHARGE_STATUS_CHARGED, as of position 3" in capsys.readouterr().out
        tour.invite(town)
        printed = capsys.readouterr().out
        charge, get = re.findall(r"^  (\S*buf curl .*)$", printed, re.MULTILINE)
        assert json.loads(await run(charge))["status"] == "CHARGE_STATUS_CHARGED"
        assert json.loads(await run(get))["charge"]["status"] == "CHARGE_STATUS_CHARGED"
        (statement,) = re.findall(r"(curl --cacert .*/statement)\.", printed)
        assert len(json.loads(await run(f"{statement} --silent --noproxy *"))["movements"]) == 2
        assert "-plaintext" not in printed
    finally:
        await town.__aexit__()
