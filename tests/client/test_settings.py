"""How a client finds its servers, and what it shows them."""

from pathlib import Path

import pytest
from grpc import StatusCode

from chargeonce_client import ChargeStatus, Client, Refused, Settings, connect, money
from rig import certs
from rig.processes import Town
from tests.client.conftest import settings_of
from tests.security import tokens
from tests.security.guarded import SHOP, a_policy, token_of

CHARGED = ChargeStatus.CHARGE_STATUS_CHARGED


async def status_of_a_charge(client: Client, key: str) -> int:
    return (await client.charge(key, user_id="alice", card="tok_visa", amount=money(1250, "EUR"))).status


def test_the_environment_names_the_servers() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"CHARGEONCE_COMMAND": "", "CHARGEONCE_TLS": ""}) == Settings()
    environment = {
        "CHARGEONCE_COMMAND": "a:1",
        "CHARGEONCE_QUERY": "b:2",
        "CHARGEONCE_FEED": "c:3",
        "CHARGEONCE_TLS": "certs",
        "CHARGEONCE_TOKEN_FILE": "token",
        "CHARGEONCE_TENANT": "north",
    }
    read = Settings.from_environment(environment)
    assert read == Settings("a:1", "b:2", "c:3", Path("certs"), Path("token"), "north")


async def test_over_tls_a_certificate_or_a_token_names_the_caller(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    certs.make_all(folder)
    async with Town(tmp_path, folder) as town:
        await town.start_query()
        here = settings_of(town)
        shop = Settings(here.command, here.query, here.feed, tls=certs.shop(folder))
        async with connect(shop) as client:
            charged = await client.charge("order-1", user_id="alice", card="tok_visa", amount=money(1250, "EUR"))
            assert charged.status == CHARGED
            assert (await client.get(key="order-1", after=charged)).charge.status == CHARGED
            assert (await client.refund("return-1", charged.charge_id)).amount == money(1250, "EUR")
            with pytest.raises(Refused) as refusal:
                await anext(client.follow())
            assert refusal.value.code is StatusCode.PERMISSION_DENIED
        till = Settings(here.command, tls=certs.shop(folder), token_file=folder / "clients" / "till.token")
        async with connect(till) as client:
            assert await status_of_a_charge(client, "order-2") == CHARGED
            with pytest.raises(Refused) as refusal:
                await client.refund("return-2", charged.charge_id)
            assert refusal.value.code is StatusCode.PERMISSION_DENIED


async def test_a_token_is_read_anew_and_goes_to_this_machine_in_plaintext(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(a_policy(SHOP))
    (tmp_path / "jwks.json").write_bytes(tokens.key_set())
    token = tmp_path / "token"
    token.write_text(f" {token_of('shop')}\n")
    town = Town(tmp_path)
    try:
        await town.start_bank()
        await town.start_command(COMMAND_POLICY=str(tmp_path / "policy.toml"))
        async with connect(Settings(town.command.listen, token_file=token)) as client:
            assert await status_of_a_charge(client, "order-1") == CHARGED
            token.write_text("another")
            with pytest.raises(Refused) as refusal:
                await status_of_a_charge(client, "order-2")
            assert refusal.value.reason == "UNAUTHENTICATED"
    finally:
        await town.__aexit__()


async def test_a_folder_without_authorities_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ca\.crt"):
        async with connect(Settings(tls=tmp_path)):
            pass
