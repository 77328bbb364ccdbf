"""`make postgres`: what it prints works, and its primary can be killed."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import grpc.aio

import gateway_mock
from charging.v1 import command_pb2_grpc
from rig.processes import Server
from rig.referee import PATIENT_SECONDS
from rig.world import CHARGED, a_request


async def test_a_database_to_try_things_with_takes_charges_before_and_after_its_primary_is_killed(
    tmp_path: Path,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rig.try_postgres"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def said(pattern: str) -> str:
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            if found := re.search(pattern, line):
                return found.group(1)
        raise AssertionError(f"it never said {pattern}")

    try:
        url = await said("COMMAND_JOURNAL='(.*)'")
        _, standby = url.partition("@")[2].partition("/")[0].split(",")
        async with gateway_mock.serve("127.0.0.1:0", tmp_path / "bank.db") as bank:
            environment = {
                "COMMAND_JOURNAL": url,
                "COMMAND_BANK_URL": f"http://{bank}",
                "COMMAND_LISTEN": "127.0.0.1:0",
                "COMMAND_FEED_LISTEN": "127.0.0.1:0",
            }
            command = await Server("command_service", environment, tmp_path / "command.log").start()
            try:
                async with grpc.aio.insecure_channel(command.listen) as channel:
                    stub = command_pb2_grpc.CommandServiceStub(channel)
                    assert (await stub.Charge(a_request(), timeout=PATIENT_SECONDS)).status == CHARGED
                    await said("(Ctrl-C ends both)")
                    process.stdin.write(b"\n")
                    assert await said(r"(\S+) is the primary now") == standby
                    assert (await stub.Charge(a_request(), timeout=PATIENT_SECONDS)).status == CHARGED
                    await said("(and is there)")
            finally:
                await command.stop()
    finally:
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), PATIENT_SECONDS) == 0
