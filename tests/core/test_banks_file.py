"""The file of COMMAND_BANKS: what it may say, and the lines that report everything else."""

from pathlib import Path

import pytest

from chassis import settings
from chassis.watched import Unusable
from command_service.bank.configured import Banks, read_banks
from command_service.bank.kinds import KINDS, BankSettings, check_members
from command_service.bank.routes import Route
from command_service.parts import Parts
from command_service.settings import Settings

ACME = '[banks.acme]\nkind = "two_step"\nurl = "https://bank.example"\n'
OTHER = '[banks.other]\nkind = "two_step"\nurl = "http://127.0.0.1:8080/"\n'
TO_ALL = "[[routes]]\nbanks = { acme = 1 }\n"
WHOLE = f"""
unnamed = "other"
{ACME}
tls = "acme-tls"
proxy = "http://proxy.example:3128"
key_file = "key"
calls = 64
timeout_seconds = 2.5
{OTHER}
[[routes]]
currencies = ["EUR", "CHF"]
brands = ["Visa", "Bücher Card"]
banks = {{ acme = 3, other = 0.5 }}
{TO_ALL}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("sk_secret")
    return tmp_path / "banks.toml"


def read(file: Path, text: str) -> Banks:
    file.write_text(text)
    return read_banks(file)


def test_a_file_says_all_of_banks_and_routes(file: Path) -> None:
    """Relative paths begin at its folder."""
    assert read(file, WHOLE) == Banks(
        {
            "acme": BankSettings(
                "acme",
                "two_step",
                "https://bank.example",
                file.parent / "key",
                file.parent / "acme-tls",
                "http://proxy.example:3128",
                64,
                2.5,
                {},
            ),
            "other": BankSettings("other", "two_step", "http://127.0.0.1:8080"),
        },
        [
            Route({"acme": 3.0, "other": 0.5}, frozenset({"EUR", "CHF"}), frozenset({"visa", "bücher card"})),
            Route({"acme": 1.0}),
        ],
        "other",
    )


def test_a_single_bank_needs_no_routes(file: Path) -> None:
    assert read(file, ACME).routes == (Route({"acme": 1.0}),)


def test_what_else_stands_in_a_banks_table_is_for_its_kind(file: Path) -> None:
    """A kind takes its own members only, and a key file if it has a key."""
    bank = read(file, ACME + 'return_url = "https://shop.example"\nsecret_word = "sk_secret"').banks["acme"]
    assert bank.options == {"return_url": "https://shop.example", "secret_word": "sk_secret"}
    check_members(bank, ("return_url", "secret_word"), has_key=False)
    with pytest.raises(settings.SettingsError) as told:
        check_members(bank, ("return_urls",), has_key=True)
    assert str(told.value).splitlines()[1:] == [
        "  [banks.acme]: nothing is meant by the key 'return_url': is 'return_urls' meant?",
        "  [banks.acme]: nothing is meant by the key 'secret_word'",
        "  [banks.acme]: a bank of the kind two_step needs a key_file",
    ]


FAULTS = {
    "": ["it names no bank: [banks.NAME]", "which bank a charge is for is not said: [[routes]]"],
    "banks = 3": ["it names no bank: [banks.NAME]", "which bank a charge is for is not said: [[routes]]"],
    'secret = "x"\n' + ACME: ["the file: nothing is meant by the key 'secret'"],
    'unnamed = "none"\n' + ACME: ["unnamed: there is no bank 'none'"],
    'unnamed = "Secret!"\n' + ACME: ["unnamed: there is no bank of that name: acme"],
    "unnamed = []\n" + ACME: ["unnamed: there is no bank of that name: acme"],
    ACME + ACME.replace("acme", "SECRET") + TO_ALL: ["[banks]: a bank's name must be 1 to 40 of a-z 0-9 _ -"],
    ACME + ACME.replace("acme", "s" * 41) + TO_ALL: ["[banks]: a bank's name must be 1 to 40 of a-z 0-9 _ -"],
    ACME + ACME.replace("acme", '""') + TO_ALL: ["[banks]: a bank's name must be 1 to 40 of a-z 0-9 _ -"],
    "banks.acme = 1": ["[banks.acme]: must be a table"],
    "[banks.acme]": ["[banks.acme]: url is missing: the bank's address", "[banks.acme]: kind must be one of KINDS"],
    ACME.replace("two_step", "secret"): ["[banks.acme]: kind must be one of KINDS"],
    ACME.replace('"two_step"', "[]"): ["[banks.acme]: kind must be one of KINDS"],
    ACME.replace("//", "//user:secret@"): [
        "[banks.acme]: url must be http://host:port or https://host, with a path if need be, and nothing else"
    ],
    ACME.replace('"https://bank.example"', "3"): ["[banks.acme]: url must be a text"],
    ACME + 'proxy = "proxy.secret:3128"': [
        "[banks.acme]: proxy must be http://host:port and nothing else: the way to the proxy itself is not encrypted"
    ],
    ACME + 'proxy = "http://user:secret@proxy.example:1"': [
        "[banks.acme]: proxy must be http://host:port and nothing else: the way to the proxy itself is not encrypted"
    ],
    ACME + 'proxy = "https://proxy.example:1"': [
        "[banks.acme]: proxy must be http://host:port and nothing else: the way to the proxy itself is not encrypted"
    ],
    ACME + 'proxy = "http://proxy.example"': [
        "[banks.acme]: proxy must be http://host:port and nothing else: the way to the proxy itself is not encrypted"
    ],
    ACME + 'proxy = "http://proxy.example:1/secret"': [
        "[banks.acme]: proxy must be http://host:port and nothing else: the way to the proxy itself is not encrypted"
    ],
    ACME.replace("https", "HTTP") + 'proxy = "http://proxy.example:1"\ntls = "tls"': [
        "[banks.acme]: tls is set, and url is http: is https meant?",
        "[banks.acme]: proxy is set, and url is http: the proxy could read and change the calls",
    ],
    ACME + 'key_file = "sk_secret"': ["[banks.acme]: key_file: there is no such file"],
    ACME + 'key_file = "."': ["[banks.acme]: key_file: is no file"],
    ACME + 'key_file = "~/key"': [
        "[banks.acme]: key_file must be a path as it is: without ~ and $NAME, control characters, and quotes or blanks at "
        "its ends"
    ],
    ACME + "tls = 3": ["[banks.acme]: tls must be a text"],
    ACME + "calls = 0": ["[banks.acme]: calls must be a whole number from 1 to 10000"],
    ACME + "calls = 2.0": ["[banks.acme]: calls must be a whole number from 1 to 10000"],
    ACME + "calls = true": ["[banks.acme]: calls must be a whole number from 1 to 10000"],
    ACME + "timeout_seconds = nan": ["[banks.acme]: timeout_seconds must be a number from 0.05 to 120"],
    ACME + 'timeout_seconds = "1"': ["[banks.acme]: timeout_seconds must be a number from 0.05 to 120"],
    ACME + OTHER: ["which bank a charge is for is not said: [[routes]]"],
    "routes = 3\n" + ACME: ["which bank a charge is for is not said: [[routes]]"],
    "routes = []\n" + ACME: ["which bank a charge is for is not said: [[routes]]"],
    "routes = [3]\n" + ACME: ["route 1: must be a table"],
    ACME + "[[routes]]": ["route 1: names no bank: banks = { NAME = WEIGHT }"],
    ACME + "[[routes]]\nbanks = {}": ["route 1: names no bank: banks = { NAME = WEIGHT }"],
    ACME + "[[routes]]\nbanks = { other = 1 }": ["route 1: there is no bank 'other'"],
    ACME + '[[routes]]\nbanks = { "sk_Secret" = 1 }': ["route 1: there is no bank of that name: acme"],
    ACME + "[[routes]]\nbanks = { acme = 0 }": ["route 1: acme must be a number from 0.001 to 1e+06"],
    ACME + "[[routes]]\nbanks = { acme = -1 }": ["route 1: acme must be a number from 0.001 to 1e+06"],
    ACME + "[[routes]]\nbanks = { acme = inf }": ["route 1: acme must be a number from 0.001 to 1e+06"],
    ACME + '[[routes]]\nbanks = { acme = "1" }': ["route 1: acme must be a number from 0.001 to 1e+06"],
    ACME + "[[routes]]\nweights = 1\nbanks = { acme = 1 }": ["route 1: nothing is meant by the key 'weights'"],
    ACME + '[[routes]]\ncurrencies = ["eur"]\nbanks = { acme = 1 }\n' + TO_ALL: [
        "route 1: currencies must be ISO 4217 codes of currencies in use, in upper case"
    ],
    ACME + "[[routes]]\ncurrencies = []\nbanks = { acme = 1 }": [
        "route 1: currencies must be a list of texts that is not empty"
    ],
    ACME + '[[routes]]\nbrands = "visa"\nbanks = { acme = 1 }': [
        "route 1: brands must be a list of texts that is not empty"
    ],
    ACME + '[[routes]]\nbrands = ["visa"]\nbanks = { acme = 1 }': [
        "route 1: the last route must fit every charge: no currencies, no brands"
    ],
    ACME + TO_ALL * 2: ["route 1: fits every charge, so that no route after it is ever reached"],
}


@pytest.mark.parametrize("text", FAULTS)
def test_every_fault_is_told_with_its_place_and_without_what_may_be_a_secret(file: Path, text: str) -> None:
    with pytest.raises(Unusable) as told:
        read(file, text)
    first, *lines = str(told.value).splitlines()
    assert first == f"{file}: cannot be used:"
    expected = [line.replace("KINDS", ", ".join(KINDS)).replace("FOLDER", str(file.parent)) for line in FAULTS[text]]
    assert [line.removeprefix("  ") for line in lines] == expected
    assert "secret" not in str(told.value).replace("'secret'", "").lower()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no such file"),
        (b"\xff", "is not UTF-8"),
        (b"secret", "is no TOML (at end of document)"),
        (b'[banks.a]\nkind = "secret" "secret"', "is no TOML (at line 2, column 17)"),
        (b"x" * (2 << 20), "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_place(file: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Unusable) as told:
        read_banks(file)
    assert str(told.value) == f"{file}: {why}"


def test_the_only_bank_and_a_file_of_banks_are_not_set_together(file: Path) -> None:
    """One of them would be ignored, in silence. An empty variable counts as none."""
    chosen = {"COMMAND_BANKS": str(file)}
    others = {"COMMAND_BANK_TLS": "tls", "COMMAND_BANK_CALLS": "1", "COMMAND_BANK_TIMEOUT_SECONDS": "1"}
    with pytest.raises(settings.SettingsError) as told:
        settings.read(Settings, {**chosen, "COMMAND_BANK_URL": "https://secret.example", **others})
    lines = str(told.value).splitlines()[1:]
    assert [line.split(" are both set")[0] for line in lines] == [
        f"  COMMAND_BANKS and COMMAND_BANK_{name}" for name in ("URL", "TLS", "TIMEOUT_SECONDS", "CALLS")
    ]
    assert "secret" not in str(told.value)
    assert settings.read(Settings, {**chosen, "COMMAND_BANK_TLS": ""}).banks == file
    assert settings.read(Settings, {"COMMAND_BANKS": "", **others}).banks is None


async def test_the_only_bank_is_a_bank_without_a_name(tmp_path: Path) -> None:
    """All settings that it had before there were several are its own still."""
    chosen = settings.read(
        Settings,
        {
            "COMMAND_BANK_URL": "https://bank.example",
            "COMMAND_BANK_TLS": str(tmp_path),
            "COMMAND_BANK_CALLS": "7",
            "COMMAND_BANK_TIMEOUT_SECONDS": "3",
        },
    )
    only = BankSettings("", "two_step", "https://bank.example", tls=tmp_path, calls=7, timeout_seconds=3.0)
    assert Parts(chosen).configured == Banks({"": only}, (Route({"": 1.0}),))


async def test_a_kinds_own_members_are_looked_at_at_the_start(file: Path) -> None:
    file.write_text(ACME + "timeout = 3")
    with pytest.raises(settings.SettingsError, match=r"\[banks.acme\]: nothing is meant by the key 'timeout'"):
        Parts(settings.read(Settings, {"COMMAND_BANKS": str(file)})).banks()
