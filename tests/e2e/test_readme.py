"""The README's lines for a terminal, run as they stand, in their order, against real servers.

Where grpcurl is not installed, `buf curl`, which the set-up installs, stands in for it: it takes the same message, address,
method, certificates and headers.
"""

import asyncio
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx

from rig import certs
from rig.processes import Town

README = Path(__file__).parents[2] / "README.md"
BUF = Path(sys.executable).with_name("buf")


def shown() -> list[list[str]]:
    """The commands in the README's section, split as a shell would."""
    section = README.read_text().split("<!-- operations -->")[1].split("<!-- end of operations -->")[0]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    return [shlex.split(command) for command in re.split(r"\n(?=grpcurl|curl)", lines.replace("\\\n", ""))]


async def run(words: list[str], town: Town) -> Any:
    """Run a command of the README against these servers, and return the JSON that it prints."""
    ports = {"50051": town.command.listen, "50052": town.query.listen, "8080": town.bank_url.removeprefix("http://")}
    moved = [re.sub(r"127\.0\.0\.1:(\d+)", lambda found: ports[found[1]], word) for word in words]
    body = moved[moved.index("-d") + 1] if "-d" in moved else None
    if moved[0] == "curl":
        method = moved[moved.index("-X") + 1] if "-X" in moved else "POST"
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            return (await client.request(method, moved[-1], content=body)).raise_for_status().json()
    seconds = ["--connect-timeout", "5"]
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *seconds, "-d", str(body)]
    if "-max-time" in moved:
        command += ["--timeout", f"{moved[moved.index('-max-time') + 1]}s"]
    made = await asyncio.create_subprocess_exec(
        *command,
        f"http://{moved[-2]}/{moved[-1]}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await made.communicate()
    assert made.returncode == 0, errors.decode()
    return json.loads(out)


async def test_the_lines_on_what_follows_a_charge_do_what_the_page_says(tmp_path: Path) -> None:
    async with Town(tmp_path) as town:
        await town.start_query()
        hold, capture, void, refund, charge, _, pending, called_off, _ = [await run(each, town) for each in shown()]
        again = await run(shown()[6], town)
    assert hold["status"] == "CHARGE_STATUS_AUTHORIZED"
    assert [
        (each["outcome"]["status"], each["outcome"]["amount"]["minorUnits"]) for each in (capture, void, refund)
    ] == [
        ("OPERATION_STATUS_EXECUTED", "3000"),
        ("OPERATION_STATUS_EXECUTED", "2000"),
        ("OPERATION_STATUS_EXECUTED", "1000"),
    ]
    money = {name: value for name, value in charge["charge"].items() if name.endswith("MinorUnits")}
    assert money == {"authorizedMinorUnits": "5000", "capturedMinorUnits": "3000", "refundedMinorUnits": "1000"}
    assert pending.get("status") == "CHARGE_STATUS_PENDING"
    assert called_off["outcome"]["status"] == "OPERATION_STATUS_EXECUTED"
    assert again["status"] == "CHARGE_STATUS_VOIDED"


def with_credentials(town: Town, folder: Path) -> list[str]:
    """The commands in the README's section on certificates and tokens, for a shell, against these servers and certificates."""
    section = README.read_text().split("<!-- credentials -->")[1].split("<!-- end of credentials -->")[0]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).replace("\\\n", "")
    ports = {"50051": town.command.listen, "50052": town.query.listen}
    lines = re.sub(r"127\.0\.0\.1:(\d+)", lambda found: ports[found[1]], lines)
    lines = lines.replace("data/certs", shlex.quote(str(folder))).replace(".venv/bin/buf", shlex.quote(str(BUF)))
    if shutil.which("grpcurl") is None:
        lines = re.sub(r" -(cacert|cert|key) ", r" --\1 ", lines.replace(" -H ", " --header "))
        lines = re.sub(r"(?m)^grpcurl(.*?) ([\d.]+:\d+) (charging\S+)$", _as_buf, lines, flags=re.DOTALL | re.MULTILINE)
    return re.split(r"\n+(?=\S*(?:grpcurl|buf'? ))", lines.strip())


def _as_buf(found: re.Match[str]) -> str:
    return f"{shlex.quote(str(BUF))} curl --protocol grpc{found[1]} https://{found[2]}/{found[3]}"


async def in_shell(command: str) -> tuple[int | None, str]:
    made = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await made.communicate()
    return made.returncode, out.decode()


async def at_last(command: str) -> tuple[int | None, str]:
    """Run it until it succeeds, a few times: a person's next line comes later than the view's."""
    for _ in range(10):
        status, out = await in_shell(command)
        if status == 0:
            break
        await asyncio.sleep(0.2)
    return status, out


async def test_the_lines_with_certificates_and_with_a_token_do_what_the_page_says(tmp_path: Path) -> None:
    """By certificate the shop charges; by token the till charges and reads, and may not refund."""
    folder = tmp_path / "certs"
    certs.make_all(folder)
    async with Town(tmp_path, folder) as town:
        await town.start_query()
        *allowed, denied = with_credentials(town, folder)
        ran = [*[await at_last(command) for command in allowed], await in_shell(denied)]
    assert len(ran) == 5
    charged, history, charged_by_token, shown, refused = ran
    assert [status for status, _ in ran[:4]] == [0] * 4, ran
    for _, out in (charged, charged_by_token):
        assert json.loads(out)["status"] == "CHARGE_STATUS_CHARGED"
    assert {entry["actor"] for entry in json.loads(history[1])["entries"]} == {"shop"}
    assert json.loads(shown[1])["charge"]["operations"][0]["actor"] == "till"
    assert refused[0] != 0
    assert "PERMISSION_DENIED" in refused[1].upper().replace(" ", "_") or "PermissionDenied" in refused[1]


async def test_the_lines_on_the_customers_step_do_what_the_page_says(tmp_path: Path) -> None:
    section = README.read_text().split("<!-- customer -->")[1].split("<!-- end of customer -->")[0]
    (lines,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    asked, again = re.split(r"(?:^curl .*\n)+", lines, flags=re.MULTILINE)
    pages = re.findall(r'^curl (?:-X (\w+) )?"\$URL(.*?)"', lines, flags=re.MULTILINE)
    async with Town(tmp_path) as town, httpx.AsyncClient(trust_env=False, timeout=30) as browser:

        async def in_a_shell(script: str) -> str:
            script = script.replace("127.0.0.1:50051", town.command.listen).replace(
                ".venv/bin/buf", shlex.quote(str(BUF))
            )
            status, out = await in_shell(script)
            assert status == 0, out
            return out

        url = (await in_a_shell(f'{asked}\nprintf %s "$URL"')).strip()
        page, confirmed = [await browser.request(method or "GET", url + path) for method, path in pages]
        charged = json.loads(await in_a_shell(asked.partition("URL=")[0] + again))
    assert url.startswith(town.bank_url)
    assert "Confirm" in page.text
    assert not confirmed.is_error
    assert charged["status"] == "CHARGE_STATUS_CHARGED"
