"""`make stuck`: what it prints is true, its troubles end by a word, and no server stays behind."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from chargeonce_client.settings import Settings
from charging.v1 import query_pb2_grpc
from charging.v1.common_pb2 import ChargeStatus
from charging.v1.query_pb2 import GetChargeRequest
from rig.referee import PATIENT_SECONDS
from rig.try_stuck import HERE
from rig.world import heard, is_behind, until


async def test_a_charge_in_each_situation_is_there_to_try_things_with_and_goes_on_once_its_trouble_ends() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rig.try_stuck"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said = ""

    async def heard_of(text: str) -> None:
        nonlocal said
        while text not in said:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert line, f"it never said {text}: {said}"
            said += line

    try:
        await heard_of("Ctrl-C ends everything")
        keys = re.findall(r"^  ([a-z-]+-1) ", said, re.MULTILINE)
        assert len(keys) == len(set(keys)) == len(HERE)
        told = dict(re.findall(r"CHARGEONCE_(\w+)=(\S+)", said))
        settings = Settings(told["COMMAND"], told["QUERY"], told["FEED"], None, Path(told["TOKEN_FILE"]))
        async with settings.channel(told["QUERY"]) as channel, httpx.AsyncClient(trust_env=False) as http:
            queries = query_pb2_grpc.QueryServiceStub(channel)
            request = GetChargeRequest(idempotency_key="execution-unknown-1")

            async def is_charged() -> bool:
                answer = await heard(lambda: queries.GetCharge(request, timeout=PATIENT_SECONDS), is_behind)
                return answer.charge.status == ChargeStatus.CHARGE_STATUS_CHARGED

            assert not await is_charged()
            for address in re.findall(r"http://\S+/(?:statement|metrics)", said):
                assert (await http.get(address)).status_code == 200
            process.stdin.write(b"execution-unknown-1\n")
            await heard_of("execution-unknown-1: its cause has ended")
            await until(is_charged, 2 * PATIENT_SECONDS)
            process.stdin.write(b"hello\n")
            await heard_of("neither a key")
            process.stdin.write(b"stop\nstart\n")
            await heard_of("End the cause of another")  # the damaged record of the stopped one
            process.stdin.write(b"stopped-1\n")
            await heard_of("stopped-1: its cause has ended")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 2 * PATIENT_SECONDS) == 0
        for server in ("COMMAND", "QUERY"):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*told[server].split(":"))
    finally:
        if process.returncode is None:
            process.terminate()  # it ends its servers
            await process.wait()
