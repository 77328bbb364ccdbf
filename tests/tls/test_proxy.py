"""A bank of COMMAND_BANKS behind a proxy, as processes: its own authorities, the file, and the gauge of its breaker."""

from pathlib import Path

import grpc.aio
import httpx

from charging.v1 import command_pb2_grpc
from charging.v1.common_pb2 import CHARGE_STATUS_CHARGED
from rig.certs import HERE, Authority
from rig.processes import Town, free_address
from rig.proxy import a_proxy
from tests.tls.test_bank import REQUEST, Front, movements, server_context


async def test_a_bank_is_charged_at_through_the_proxy_of_its_settings_and_not_that_of_the_environment(
    tmp_path: Path,
) -> None:
    """The only bank goes around it still, in plaintext, and has a gauge without a label."""
    ours, town, metrics = Authority(), Town(tmp_path), free_address()
    (tmp_path / "authorities").mkdir()
    (tmp_path / "authorities" / "ca.crt").write_bytes(ours.pem)

    async def gauges() -> list[str]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            lines = (await http.get(f"http://{metrics}/metrics")).text.splitlines()
        return [line for line in lines if line.startswith("chargeonce_bank_breaker_open")]

    async def charged(key: str) -> None:
        request = type(REQUEST)()
        request.CopyFrom(REQUEST)
        request.idempotency_key = key
        async with grpc.aio.insecure_channel(town.command.listen) as channel:
            answer = await command_pb2_grpc.CommandServiceStub(channel).Charge(request, timeout=60)
        assert answer.status == CHARGE_STATUS_CHARGED

    try:
        await town.start_bank()
        front = Front(town.bank.listen)
        async with a_proxy() as proxy, a_proxy() as other:
            around = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"), other.url)
            await town.start_command(COMMAND_METRICS_LISTEN=metrics, **around)
            await charged("order-1")
            assert await gauges() == ["chargeonce_bank_breaker_open 0.0"]
            await town.command.stop()
            with front.open(server_context(ours.issue(tmp_path / "bank", ips=HERE))):
                file = tmp_path / "banks.toml"
                file.write_text(
                    f'[banks.acme]\nkind = "two_step"\nurl = "https://127.0.0.1:{front.port}"\n'
                    f'tls = "authorities"\nproxy = "{proxy.url}"\n'
                )
                await town.start_command(COMMAND_METRICS_LISTEN=metrics, COMMAND_BANKS=str(file), **around)
                await charged("order-2")
                assert await gauges() == ['chargeonce_bank_breaker_open{bank="acme"} 0.0']
                await town.command.stop()
            assert proxy.asked == [f"127.0.0.1:{front.port}"]
            assert other.asked == []
        assert len(await movements(town)) == 2
    finally:
        await town.__aexit__()
