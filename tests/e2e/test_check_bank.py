"""`check-bank` as an operator runs it, against banks that are processes: a good one, a broken one, and none."""

import asyncio
import http.server
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import gateway_mock
from command_service.bank.conformance.suite import CHECKS


async def checking(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "command_service", "check-bank", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def check_bank(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Its exit status, what it printed, and what it told on the way."""
    process = await checking(*arguments, **environment)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class UnlimitedRefunds(http.server.BaseHTTPRequestHandler):
    """Hands everything on to a good bank, but for what that says of a refund that it declines."""

    bank: httpx.Client
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # An answer goes out at once and whole.

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(self.bank.post(self.path, content=body))

    def do_GET(self) -> None:
        self._answer(self.bank.get(self.path))

    def _answer(self, got: httpx.Response) -> None:
        said: Mapping[str, Any] = got.json()
        if said.get("kind") == "refund" and said.get("result") == "declined":
            said = {**said, "result": "executed", "reason": None, "transaction_id": "txn_" + said["token"]}
        body = json.dumps(said).encode()
        self.send_response(got.status_code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(bank: str) -> Iterator[str]:
    """A bank that does not limit refunds."""
    with httpx.Client(base_url=f"http://{bank}", trust_env=False, timeout=30) as client:
        handler = type("Handler", (UnlimitedRefunds,), {"bank": client})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


async def test_a_bank_that_keeps_its_promises(tmp_path: Path) -> None:
    """Each check has its row; nothing is broken; what is not possible is told with its reason. By a name, or without one."""
    async with gateway_mock.serve("127.0.0.1:0", tmp_path / "bank.db") as bank:
        status, out, told = await check_bank(COMMAND_BANK_URL=f"http://{bank}")
        assert (status, "BROKEN" in out) == (0, False), out
        for check in CHECKS:
            assert any(line.startswith(f"{check.promise}  {check.name}  ") for line in out.splitlines())
        assert out.endswith(" not possible to try: it keeps each promise that was tried\n")
        assert "nobody but the bank can let a hold lapse:\n" in out
        assert "kept       refund     a refund stays within what was captured and not refunded\n" in told
        assert len(told.splitlines()) == sum(len(check.kinds) for check in CHECKS)

        banks = tmp_path / "banks.toml"
        banks.write_text(f'[banks.acme]\nkind = "two_step"\nurl = "http://{bank}"\n')
        status, out, _ = await check_bank("acme", "--json", "--currency", "JPY", COMMAND_BANKS=str(banks))
        assert status == 0
        found = json.loads(out)
        assert {"kept", "not_tried"} == {finding["end"] for finding in found}
        assert {finding["check"] for finding in found} == {check.name for check in CHECKS}


async def test_a_bank_that_breaks_one(tmp_path: Path) -> None:
    """The status says so, the row, and the verdict; and what was seen."""
    async with gateway_mock.serve("127.0.0.1:0", tmp_path / "bank.db") as bank:
        with serving(bank) as broken:
            status, out, _ = await check_bank(COMMAND_BANK_URL=broken)
    assert status == 1
    seen = [line for line in out.splitlines() if "a refund of more than was captured: executed as txn_" in line]
    assert seen[0].startswith("  8  refund: a refund stays within what was captured and not refunded; ")
    assert out.splitlines()[-1].endswith(": it breaks promise 8")


async def test_one_who_stops_it_is_told_that_it_says_nothing_of_the_rest(tmp_path: Path) -> None:
    async with gateway_mock.serve("127.0.0.1:0", tmp_path / "bank.db") as bank:
        hang = {"on": "cancel", "fault": "hang_before", "times": 1000}
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            (await client.post(f"http://{bank}/faults", json=hang)).raise_for_status()
        # A process inherits that SIGINT is ignored, as shells have it in the background.
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = await checking(COMMAND_BANK_URL=f"http://{bank}")
        signal.signal(signal.SIGINT, former)
        assert process.stderr is not None
        assert (await process.stderr.readline()).startswith(b"kept ")
        process.send_signal(signal.SIGINT)
        out, told = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert told.decode().endswith(" of the checks: nothing is said of the others\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "why"),
    [
        ((), {"COMMAND_BANK_URL": "http://127.0.0.1:9"}, "ConnectionRefusedError"),
        ((), {"COMMAND_BANK_URL": "https://bank.example"}, "--yes-this-is-a-test-bank"),
        (("acme",), {}, "COMMAND_BANKS is not set"),
        (("other",), {"COMMAND_BANKS": "banks.toml"}, "name one of: acme, live"),
        (("live",), {"COMMAND_BANKS": "banks.toml"}, "live mode"),
        (("live", "--yes-this-is-a-test-bank"), {"COMMAND_BANKS": "banks.toml"}, "live mode"),
        (("--amount", "3"), {}, "from 4 to"),
        (("--declined-card", "tok"), {}, "must be TOKEN=REASON"),
    ],
)
async def test_what_cannot_or_may_not_be_tried(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], why: str
) -> None:
    """Its status is not that of a broken promise, and nothing that is secret is told."""
    (tmp_path / "key").write_text("sk_live_51secret\n")
    (tmp_path / "banks.toml").write_text(
        '[banks.acme]\nkind = "two_step"\nurl = "http://127.0.0.1:9"\n'
        '[banks.live]\nkind = "two_step"\nurl = "http://127.0.0.1:9"\nkey_file = "key"\n'
        "[[routes]]\nbanks = { acme = 1 }\n"
    )
    if "COMMAND_BANKS" in environment:
        environment = {"COMMAND_BANKS": str(tmp_path / "banks.toml")}
    status, out, told = await check_bank(*arguments, **environment)
    assert (status, out) == (2, "")
    assert why in told
    assert "51secret" not in told
