"""`make run TLS=1`: the tour over TLS, and the lines it invites to go on with."""

import asyncio
import json
import re
import shlex
from pathlib import Path

import httpx
import pytest

from demo import tour
from demo.transcript import FREE_PORTS
from rig.certs import make_all, token_file
from rig.processes import Town


async def run(line: str) -> str:
    made = await asyncio.create_subprocess_exec(
        *shlex.split(line), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await made.communicate()
    assert made.returncode == 0, errors.decode()
    return out.decode()


async def seen_by_an_operator(console: str, token: Path) -> bool:
    """Whether the console lets nobody in without a sign-in, and shows an operator the charge of the tenant that he chooses."""
    async with httpx.AsyncClient(base_url=console, trust_env=False, follow_redirects=True, timeout=60) as client:
        page = await client.get("/charges")
        assert page.url.path == "/sign-in"

        async def send(place: str, **fields: str) -> None:
            (csrf, *_) = re.findall(r'name="csrf" value="([^"]+)"', (await client.get(place)).text)
            (await client.post(place, data={"csrf": csrf, **fields})).raise_for_status()

        await send("/sign-in", token=token.read_text())
        await send("/tenant", tenant="shop")
        return tour.KEY in (await client.get("/charges")).text


async def test_the_tour_and_its_lines_for_buf_and_curl_go_over_mutual_tls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_all(tmp_path / "certs")
    town = Town(tmp_path / "run", tmp_path / "certs")
    try:
        await tour.told(town, FREE_PORTS)
        assert "CHARGE_STATUS_CHARGED, as of position 3" in capsys.readouterr().out
        await town.start_console(**FREE_PORTS)
        tour.invite(town)
        printed = capsys.readouterr().out
        charge, get = re.findall(r"^  (\S*buf curl .*)$", printed, re.MULTILINE)
        assert json.loads(await run(charge))["status"] == "CHARGE_STATUS_CHARGED"
        assert json.loads(await run(get))["charge"]["status"] == "CHARGE_STATUS_CHARGED"
        (statement,) = re.findall(r"(curl --cacert .*/statement)\.", printed)
        assert len(json.loads(await run(f"{statement} --silent --noproxy *"))["movements"]) == 2
        assert "-plaintext" not in printed
        (console,) = re.findall(r"in a browser: (http://\S+)/$", printed, re.MULTILINE)
        assert await seen_by_an_operator(console, token_file(tmp_path / "certs", "ann"))
    finally:
        await town.__aexit__()
