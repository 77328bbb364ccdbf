"""The allowed values of the variables of the environment, and the lines that report every other value."""

from pathlib import Path

import pytest

from chassis import settings
from command_service.journal.sqlite.file import SqliteFile
from command_service.settings import Settings as CommandSettings
from gateway_mock.cli import Settings as BankSettings
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
def test_an_unusable_bank_url_is_reported_at_the_start_without_its_value(value: str) -> None:
    """The value may hold a password; and unreported, the mistake would show with the first charge only."""
    with pytest.raises(settings.SettingsError) as told:
        bank_url(value)
    said = str(told.value).splitlines()
    assert len(said) == 2
    assert said[1].startswith("  COMMAND_BANK_URL: must be ")
    assert "secret" not in said[1]


def test_port_0_is_no_address_of_a_feed_to_follow() -> None:
    with pytest.raises(settings.SettingsError, match=r"QUERY_FEED: must be host:port with a port from 1 to 65535"):
        settings.read(QuerySettings, {"QUERY_FEED": "127.0.0.1:50053, 127.0.0.1:0"})
    assert settings.read(QuerySettings, {"QUERY_LISTEN": "127.0.0.1:0"}).listen.port == 0


def test_feeds_of_several_journals_are_told_apart_by_semicolons() -> None:
    """The views of all but the first lie beside it."""
    chosen = settings.read(QuerySettings, {"QUERY_FEED": "a:1,b:2; c:3 ;[::1]:4", "QUERY_VIEW": "/data/the view.v1.db"})
    assert [[str(server) for server in servers] for servers in chosen.feeds] == [["a:1", "b:2"], ["c:3"], ["[::1]:4"]]
    names = ("the view.v1.db", "the view.v1-2.db", "the view.v1-3.db")
    assert chosen.views == tuple(Path("/data") / name for name in names)
    for value in ("a:1;", ";a:1", "a:1;b:0", "a:1;;b:2"):
        with pytest.raises(settings.SettingsError, match="QUERY_FEED: must be host:port"):
            settings.read(QuerySettings, {"QUERY_FEED": value})


SERVERS = [
    (CommandSettings, "COMMAND_JORNAL", "COMMAND_JOURNAL"),
    (CommandSettings, "COMMAND_BANKURL", "COMMAND_BANK_URL"),
    (CommandSettings, "command_journal", "COMMAND_JOURNAL"),
    (CommandSettings, "COMMAND_FEED_PORT", "COMMAND_FEED_LISTEN"),
    (QuerySettings, "QUERY_VEIW", "QUERY_VIEW"),
    (QuerySettings, "QUERY_FEEDS", "QUERY_FEED"),
    (BankSettings, "GATEWAY_MOCK_LEGDER", "GATEWAY_MOCK_LEDGER"),
]


@pytest.mark.parametrize(("server", "misspelt", "meant"), SERVERS)
def test_a_misspelt_setting_is_refused_and_the_right_name_suggested(server: type, misspelt: str, meant: str) -> None:
    """If it were ignored, the server could begin an empty journal and charge every card again."""
    with pytest.raises(settings.SettingsError) as told:
        settings.read(server, {misspelt: "secret-value"})
    assert str(told.value).splitlines()[1:] == [f"  {misspelt} is no setting: is {meant} meant?"]


def test_unknown_and_unusable_settings_are_reported_together() -> None:
    with pytest.raises(settings.SettingsError) as told:
        settings.read(
            CommandSettings, {"COMMAND_LISTEN": "x", "COMMAND_XYZZY": "", "COMMAND_JORNAL": "", "QUERY_X": ""}
        )
    assert [line.split()[0] for line in str(told.value).splitlines()[1:]] == [
        "COMMAND_LISTEN:",
        "COMMAND_XYZZY",
        "COMMAND_JORNAL",
    ]


def test_a_clusters_variables_about_other_services_are_no_settings_of_ours() -> None:
    """Kubernetes and Docker put a service's name before them, and a service may be called `command` or `query-view`."""
    environment: dict[str, str] = {}
    for service in ("COMMAND", "COMMAND_FEED", "COMMAND_SERVICE", "QUERY", "QUERY_VIEW", "GATEWAY_MOCK"):
        environment |= {
            f"{service}_SERVICE_HOST": "10.0.0.7",
            f"{service}_SERVICE_PORT": "50051",
            f"{service}_SERVICE_PORT_GRPC": "50051",
            f"{service}_PORT": "tcp://10.0.0.7:50051",
            f"{service}_PORT_50051_TCP": "tcp://10.0.0.7:50051",
            f"{service}_PORT_50051_TCP_PROTO": "tcp",
            f"{service}_PORT_50051_TCP_PORT": "50051",
            f"{service}_PORT_50051_TCP_ADDR": "10.0.0.7",
            f"{service}_PORT_53_UDP": "udp://10.0.0.7:53",
        }
    for server in (CommandSettings, QuerySettings, BankSettings):
        settings.read(server, environment)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/alice"}, "/home/alice/.local/state/chargeonce"),
        ({"HOME": "/home/alice", "XDG_STATE_HOME": "/var/lib/alice/"}, "/var/lib/alice/chargeonce"),
        ({"HOME": "/home/alice", "XDG_STATE_HOME": "state"}, "/home/alice/.local/state/chargeonce"),
        ({"HOME": "/"}, "/.local/state/chargeonce"),
        ({}, "data"),
    ],
)
def test_a_servers_files_lie_in_a_folder_that_make_clean_does_not_remove(
    environment: dict[str, str], folder: str
) -> None:
    place = Path(folder)
    assert settings.read(CommandSettings, environment).journal == SqliteFile((place / "journal.db").absolute())
    assert settings.read(QuerySettings, environment).view == place / "view.db"
    assert settings.read(BankSettings, environment).ledger == place / "gateway.db"


@pytest.mark.parametrize(
    "value",
    [
        *("~/secret.db", "/home/~/secret.db", "~", "$HOME/secret.db", "/var/${NAME}/secret.db"),
        *("secret.db\r", "sec\nret.db", "secret\x7f.db", "'secret.db'", 'secret.db"', " secret.db", "secret.db "),
    ],
)
def test_a_path_that_only_a_shell_would_expand_is_refused(value: str) -> None:
    """The server would make a folder of that name with a new journal. Files written on Windows end lines with CR."""
    for server, variable, before in (
        (CommandSettings, "COMMAND_JOURNAL", "sqlite:///"),
        (QuerySettings, "QUERY_VIEW", ""),
        (BankSettings, "GATEWAY_MOCK_LEDGER", ""),
    ):
        with pytest.raises(settings.SettingsError, match=f"  {variable}: must be ") as told:
            settings.read(server, {variable: before + value})
        assert "secret" not in str(told.value)


def test_an_odd_path_is_taken_literally() -> None:
    for value in ("./~view.db~", "view~1.db", "Müller & Söhne/100 %.db", "a$.db"):
        assert settings.read(QuerySettings, {"QUERY_VIEW": value}).view == Path(value)


@pytest.mark.parametrize("server", [CommandSettings, QuerySettings, BankSettings])
def test_a_programs_help_lists_every_setting_with_its_default(server: type) -> None:
    told = settings.describe(server, {"HOME": "/home/alice"})
    for field in server.__dataclass_fields__.values():  # type: ignore[attr-defined]  # it is a dataclass
        assert f"  {field.metadata['variable']} [" in told
        assert field.metadata["why"] in told
    assert "/home/alice/.local/state/chargeonce/" in told


def max_amounts(value: str) -> dict[str, int]:
    return dict(settings.read(CommandSettings, {"COMMAND_MAX_AMOUNTS": value}).max_amounts)


def test_an_operators_caps_are_given_by_currency() -> None:
    assert max_amounts("") == max_amounts(" ") == {}
    assert max_amounts("EUR=500000, IDR = 999999999999") == {"EUR": 500_000, "IDR": 999_999_999_999}


@pytest.mark.parametrize(
    "value",
    [
        *("EUR", "EUR=", "=5", "EUR=0", "EUR=-5", "EUR=5.00", "EUR=1e6", "EUR=1000000000000", "EUR=05", "EUR=\u0665"),
        *("eur=5", "XXX=5", "HRK=5", "EUR=5,EUR=6", "EUR=5,", ",", "EUR=5;USD=6", "EUR 5", "EUR=5=6"),
    ],
)
def test_an_impossible_cap_is_reported_at_the_start(value: str) -> None:
    """A typing error here could disable the cap."""
    with pytest.raises(
        settings.SettingsError, match=r"COMMAND_MAX_AMOUNTS: must be like EUR=500000,IDR=999999999999: "
    ):
        max_amounts(value)


def duplicate_window(environment: dict[str, str]) -> float:
    return settings.read(CommandSettings, environment).duplicate_window_seconds


def test_duplicates_are_looked_for_where_the_operator_wants_it_only() -> None:
    """Up to a week."""
    assert duplicate_window({}) == 0
    for value, taken in (("0", 0.0), ("0.5", 0.5), ("600", 600.0), ("604800", 604_800.0)):
        assert duplicate_window({"COMMAND_DUPLICATE_WINDOW_SECONDS": value}) == taken


@pytest.mark.parametrize("value", ["", "-1", "604801", "nan", "inf", "1h", "10 s"])
def test_an_impossible_window_for_duplicates_is_reported_at_the_start(value: str) -> None:
    """A typing error could switch it off, or refuse honest clients."""
    with pytest.raises(settings.SettingsError, match=r"COMMAND_DUPLICATE_WINDOW_SECONDS: must be "):
        duplicate_window({"COMMAND_DUPLICATE_WINDOW_SECONDS": value})
