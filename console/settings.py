"""The console's settings, and the reasons for their defaults."""

from dataclasses import dataclass
from pathlib import Path

from chassis.exposure import is_loopback
from chassis.settings import Address, SettingsError, address, addresses, optional_path, setting, yes_or_no


@dataclass(frozen=True, slots=True)
class Settings:
    """The console's settings."""

    listen: Address = setting("CONSOLE_LISTEN", address, "127.0.0.1:8088", "where browsers reach the console")
    commands: tuple[Address, ...] = setting(
        "CONSOLE_COMMAND",
        addresses,
        "127.0.0.1:50051",
        "the command servers, comma-separated: each is shown, and a step of the desk goes to the first that knows the charge",
    )
    queries: tuple[Address, ...] = setting(
        "CONSOLE_QUERY",
        addresses,
        "127.0.0.1:50052",
        "the query servers, comma-separated: each is shown, and the first that answers is asked",
    )
    servers_tls: Path | None = setting(
        "CONSOLE_SERVERS_TLS",
        optional_path,
        "",
        "a folder with ca.crt, the authorities of the servers' certificates, and tls.crt and tls.key, if the servers ask for a "
        "certificate; without it they are asked in plaintext. The certificate is never a person's identity",
    )
    tls: Path | None = setting(
        "CONSOLE_TLS",
        optional_path,
        "",
        "a folder with tls.crt and tls.key: with it browsers reach the console by https; its files may be replaced at any time",
    )
    is_open: bool = setting(
        "CONSOLE_OPEN",
        yes_or_no,
        "no",
        "yes allows what protects people's tokens to be missing: an address that other machines reach without CONSOLE_TLS, "
        "servers of other machines without CONSOLE_SERVERS_TLS, and beyond this machine servers without a policy, where "
        "everybody who reaches the console may then do everything",
    )

    @property
    def is_here_only(self) -> bool:
        """Whether only browsers of this machine reach the console."""
        return is_loopback(self.listen.host)

    @property
    def may_be_nobody(self) -> bool:
        """Whether a browser without a sign-in may ask servers that know no identities.

        Never if the console shows the servers a certificate: whoever asks would have its rights.
        """
        shows_certificate = self.servers_tls is not None and (self.servers_tls / "tls.crt").exists()
        return (self.is_here_only or self.is_open) and not shows_certificate

    def check_servers(self) -> None:
        """Refuse to send tokens to other machines in plaintext. Raises SettingsError."""
        if self.servers_tls is not None or self.is_open:
            return
        away = [str(each) for each in (*self.commands, *self.queries) if not is_loopback(each.host)]
        if away:
            raise SettingsError(
                f"settings cannot be used:\n  {' and '.join(away)}: people's tokens would go there in plaintext: set "
                "CONSOLE_SERVERS_TLS, or CONSOLE_OPEN=yes"
            )
