"""What a folder of certificates must hold, and what a start says of one that cannot be used."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest
import structlog.testing
from cryptography.hazmat.primitives import serialization

from chassis.exposure import is_loopback
from chassis.tls import ClientTls, ServerTls
from chassis.watched import Unusable
from rig import certs
from rig.certs import DAY, HERE, Authority
from rig.processes import DidNotStart, Town
from tests.tls.probes import NOW, Port, context

Spoil = Callable[[Path, Authority], object]


def encrypted(folder: Path, _: Authority) -> None:
    key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    with_password = serialization.BestAvailableEncryption(b"secret")
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, with_password)
    )


def of_another_certificate(folder: Path, ours: Authority) -> None:
    other = ours.issue(folder / "other", ips=HERE)
    (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no folder": (lambda folder, _: folder.rename(folder.with_name("elsewhere")), "tls.crt: there is no such file"),
    "no certificate": (lambda folder, _: (folder / "tls.crt").unlink(), "tls.crt: there is no such file"),
    "no key": (lambda folder, _: (folder / "tls.key").unlink(), "tls.key: there is no such file"),
    "no authorities": (lambda folder, _: (folder / "ca.crt").unlink(), "ca.crt: there is no such file"),
    "garbled certificate": (lambda folder, _: (folder / "tls.crt").write_text("x"), "tls.crt: holds no certificate"),
    "empty certificate": (lambda folder, _: (folder / "tls.crt").write_text(""), "tls.crt: holds no certificate"),
    "garbled key": (lambda folder, _: (folder / "tls.key").write_text("x"), "tls.key: holds no private key"),
    "garbled authorities": (lambda folder, _: (folder / "ca.crt").write_text("x"), "ca.crt: holds no certificate"),
    "half an authority": (
        lambda folder, ours: (folder / "ca.crt").write_bytes(ours.pem[:100] + b"\xc3\xb6" + ours.pem[-100:]),
        "ca.crt: holds no certificate",
    ),
    "expired authorities": (
        lambda folder, _: (folder / "ca.crt").write_bytes(Authority(not_after=NOW - DAY / 2).pem),
        "ca.crt: every authority in it has expired",
    ),
    "encrypted key": (encrypted, "tls.key: is encrypted"),
    "key of another": (of_another_certificate, "tls.key: is not the key of the certificate"),
    "expired": (
        lambda folder, ours: ours.issue(folder, ips=HERE, not_before=NOW - 3 * DAY, not_after=NOW - DAY),
        "tls.crt: expired on ",
    ),
    "not yet valid": (
        lambda folder, ours: ours.issue(folder, ips=HERE, not_before=NOW + DAY),
        "tls.crt: is not valid before ",
    ),
    "for clients only": (
        lambda folder, ours: ours.issue(folder, ips=HERE, client_only=True),
        "tls.crt: is no certificate for servers",
    ),
}


@pytest.fixture
def ours() -> Authority:
    return Authority()


@pytest.fixture
def folder(tmp_path: Path, ours: Authority) -> Path:
    return ours.issue(tmp_path / "server", ips=HERE)


@pytest.mark.parametrize("how", SPOILT)
def test_a_set_that_cannot_be_used_is_refused_with_the_file_and_the_reason(
    how: str, folder: Path, ours: Authority
) -> None:
    spoil, why = SPOILT[how]
    spoil(folder, ours)
    with pytest.raises(Unusable) as refused:
        ServerTls(folder, client_certificates=True)
    assert str(refused.value).startswith(f"{folder / why}")
    assert "BEGIN" not in str(refused.value)


async def test_a_server_with_such_a_set_does_not_start_and_makes_no_journal(tmp_path: Path, ours: Authority) -> None:
    town = Town(tmp_path)
    ours.issue(tmp_path / "server", dns=["localhost"])
    (tmp_path / "server" / "ca.crt").unlink()
    try:
        await town.start_bank()
        with pytest.raises(DidNotStart, match=r"error: .*/ca\.crt: there is no such file"):
            await town.start_command(COMMAND_TLS=str(tmp_path / "server"))
        assert not town.journal.exists()
        await town.start_command(COMMAND_TLS=str(tmp_path / "server"), COMMAND_CLIENT_CERTIFICATES="no")
        assert Port.of(town.command.listen).answers(context(ours.pem))
        assert not Port.of(town.command.listen).answers(None)
    finally:
        await town.__aexit__()


def test_a_certificate_that_expires_within_two_weeks_is_warned_of(folder: Path, ours: Authority) -> None:
    def warned(days: int) -> list[object]:
        ours.issue(folder, ips=HERE, not_after=NOW + days * DAY + DAY / 2)
        with structlog.testing.capture_logs() as logs:
            ServerTls(folder, client_certificates=True)
        return [(entry["event"], entry["log_level"], entry["days"]) for entry in logs]

    assert warned(13) == [("a certificate expires soon", "warning", 13)]
    assert warned(14) == []


def test_a_certificate_near_its_end_fills_no_log_while_another_file_cannot_be_used(
    folder: Path, ours: Authority
) -> None:
    """All files are examined again every second then."""
    ours.issue(folder, ips=HERE, not_after=NOW + DAY)
    server, client = ServerTls(folder, client_certificates=True), ClientTls(folder)
    good = (folder / "ca.crt").read_bytes()
    (folder / "ca.crt").write_text("x")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert not server.watched.refresh() and not client.watched.refresh()
    assert {entry["event"] for entry in logs} == {"files cannot be used: the former ones stay in use"}
    (folder / "ca.crt").write_bytes(good)
    with structlog.testing.capture_logs() as logs:
        assert server.watched.refresh() and client.watched.refresh()
    assert [entry["event"] for entry in logs] == ["a certificate expires soon", "changed files are in use"] * 2


# ---------------------------------------------------------------- a client's folder
def test_a_client_never_comes_to_trust_others_because_a_file_went_away(folder: Path) -> None:
    """Without ca.crt it would trust every public authority: that is decided at the start, and by nobody's slip later."""
    public = Path(certifi.where())
    tls = ClientTls(folder, default_authorities=public)
    before = tls.watched.value
    (folder / "ca.crt").unlink()
    assert not tls.watched.refresh()
    assert tls.watched.value is before
    chosen = ClientTls(folder, default_authorities=public).watched.value
    assert chosen.context.cert_store_stats()["x509_ca"] > 50
    assert before.context.cert_store_stats()["x509_ca"] == 1


def test_a_client_whose_key_went_away_does_not_go_on_as_nobody(folder: Path) -> None:
    tls = ClientTls(folder)
    before = tls.watched.value
    (folder / "tls.crt").unlink()
    (folder / "tls.key").unlink()
    assert not tls.watched.refresh()
    assert tls.watched.value is before


def test_a_client_needs_authorities_and_a_whole_pair(folder: Path, tmp_path: Path) -> None:
    (folder / "tls.key").unlink()
    with pytest.raises(Unusable, match=r"tls\.key: there is no such file"):
        ClientTls(folder)
    (folder / "tls.crt").unlink()
    assert ClientTls(folder).watched.value.pair is None
    (folder / "ca.crt").unlink()
    with pytest.raises(Unusable, match="holds none of"):
        ClientTls(folder, default_authorities=Path(certifi.where()))
    with pytest.raises(Unusable, match="holds none of"):
        ClientTls(tmp_path / "nowhere")


def test_loopback_is_this_machine_and_no_name_but_localhost() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "localhost.example", "bank", ""))


# ---------------------------------------------------------------- make certs
def test_make_certs_writes_keys_for_their_owner_only_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> dict[Path, bytes]:
        monkeypatch.setattr("sys.argv", ["certs", str(tmp_path / "certs"), *arguments])
        certs.main()
        return {file: file.read_bytes() for file in (tmp_path / "certs").rglob("*") if file.is_file()}

    old_mask = os.umask(0)
    try:
        made = run()
    finally:
        os.umask(old_mask)
    secret = [file for file in made if file.suffix in (".key", ".token")]
    assert len(secret) == 7
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}
    tokens = {file.read_bytes().strip() for file in secret if file.suffix == ".token"}
    assert len(tokens) == 3
    told = [content for file, content in made.items() if file.suffix != ".token"]
    assert not any(token in content for token in tokens for content in told)
    assert run() == made
    again = run("--again")
    assert again.keys() == made.keys()
    assert all(again[file] != made[file] for file in made)
    for server in ("bank", "command", "query"):
        ServerTls(tmp_path / "certs" / server, client_certificates=True)
    ClientTls(tmp_path / "certs" / "clients" / "shop")
