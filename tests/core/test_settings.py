"""What a variable of the environment may hold, and that what it may not is told in a line of its own."""

import pytest

from chassis import settings
from command_service.settings import Settings as CommandSettings
from query_service.settings import Settings as QuerySettings


def bank_url(value: str) -> str:
    return settings.read(CommandSettings, {"COMMAND_BANK_URL": value}).bank_url


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://bank.example", "https://bank.example"),
        ("https://bank.example./", "https://bank.example."),
        ("HTTP://Bank_1:65535/v1/", "HTTP://Bank_1:65535/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("https://bücher.example", "https://bücher.example"),
    ],
)
def test_a_bank_is_named_by_its_address_and_a_path(value: str, taken: str) -> None:
    assert bank_url(value) == taken


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bank.example",
        "ftp://bank.example",
        "http://",
        "http://:8080",
        "http://..",
        "http://.secret.example",
        "http://secret..example",
        f"http://{'s' * 64}.example",
        "http://999.1.1.1",
        "http://secret host",
        "http://secret.example/a b",
        " http://secret.example",
        "http://secret.example\n",
        "http://secret%20.example",
        "http://secret\\example",
        "http://[::1",
        "http://[::secret]",
        "http://::1",
        "http://xn--",
        "http://secret.example:0",
        "http://secret.example:65536",
        "http://secret.example:secret",
        "http://user:secret@bank.example",
        "http://secret@bank.example",
        "http://secret.example?",
        "http://secret.example?a=b",
        "http://secret.example#a",
    ],
)
def test_what_names_no_bank_is_told_in_a_line_without_its_value(value: str) -> None:
    """It may hold a password; and what is wrong would else come to light with the first charge."""
    with pytest.raises(settings.SettingsError) as told:
        bank_url(value)
    said = str(told.value).splitlines()
    assert len(said) == 2
    assert said[1].startswith("  COMMAND_BANK_URL: must be ")
    assert "secret" not in said[1]


def test_a_feed_is_not_followed_at_port_0_where_nobody_can_listen() -> None:
    with pytest.raises(settings.SettingsError, match=r"QUERY_FEED: must be host:port with a port from 1 to 65535"):
        settings.read(QuerySettings, {"QUERY_FEED": "127.0.0.1:50053, 127.0.0.1:0"})
    assert settings.read(QuerySettings, {"QUERY_LISTEN": "127.0.0.1:0"}).listen.port == 0


def max_amounts(value: str) -> dict[str, int]:
    return dict(settings.read(CommandSettings, {"COMMAND_MAX_AMOUNTS": value}).max_amounts)


def test_caps_of_ones_own_are_named_by_currency() -> None:
    assert max_amounts("") == max_amounts(" ") == {}
    assert max_amounts("EUR=500000, IDR = 999999999999") == {"EUR": 500_000, "IDR": 999_999_999_999}


@pytest.mark.parametrize(
    "value",
    [
        *("EUR", "EUR=", "=5", "EUR=0", "EUR=-5", "EUR=5.00", "EUR=1e6", "EUR=1000000000000", "EUR=05", "EUR=\u0665"),
        *("eur=5", "XXX=5", "HRK=5", "EUR=5,EUR=6", "EUR=5,", ",", "EUR=5;USD=6", "EUR 5", "EUR=5=6"),
    ],
)
def test_a_cap_that_cannot_be_is_told_at_the_start(value: str) -> None:
    """A typing error here would let through what was to be stopped."""
    with pytest.raises(
        settings.SettingsError, match=r"COMMAND_MAX_AMOUNTS: must be like EUR=500000,IDR=999999999999: "
    ):
        max_amounts(value)
