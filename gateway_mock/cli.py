"""The mock bank's command line."""

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from chassis import process, settings, telemetry
from chassis.settings import Address, address, file_path, number, optional_path, setting, state_file, yes_or_no
from chassis.tls import ServerTls
from chassis.watched import keep_fresh
from gateway_mock.app import HOLD_SECONDS, KEY_SECONDS, TOKEN_SECONDS, serve
from gateway_mock.schema import LedgerUnusable

MAX_SECONDS = 366 * 24 * 3600  # More than a year is a mistyped number.

log = structlog.get_logger()


@dataclass(frozen=True)
class Settings:
    """The mock bank's settings."""

    listen: Address = setting("GATEWAY_MOCK_LISTEN", address, "127.0.0.1:8080", "where the bank is called")
    ledger: Path = setting(
        "GATEWAY_MOCK_LEDGER", file_path, state_file("gateway.db"), "the file that holds every movement of money"
    )
    tls: Path | None = setting(
        "GATEWAY_MOCK_TLS",
        optional_path,
        "",
        "a folder with tls.crt, tls.key and ca.crt, the authorities of clients' certificates: with it the bank speaks HTTPS",
    )
    client_certificates: bool = setting(
        "GATEWAY_MOCK_CLIENT_CERTIFICATES",
        yes_or_no,
        "yes",
        "with TLS each client must show a certificate of an authority in ca.crt; with no, none is asked for",
    )
    token_seconds: float = setting(
        "GATEWAY_MOCK_TOKEN_SECONDS",
        number(0, MAX_SECONDS),
        str(TOKEN_SECONDS),
        "how long a token can be executed; with 0 each is late at once",
    )
    hold_seconds: float = setting(
        "GATEWAY_MOCK_HOLD_SECONDS",
        number(0, MAX_SECONDS),
        str(HOLD_SECONDS),
        "how long an authorized amount can be captured; with 0 each hold has lapsed at once",
    )
    key_seconds: float = setting(
        "GATEWAY_MOCK_KEY_SECONDS",
        number(0, MAX_SECONDS),
        str(KEY_SECONDS),
        "how long the one-step bank remembers a key; with 0 each request is a new payment",
    )


PROGRAM = "python -m gateway_mock"


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Run the bank. See --help. Returns the exit status: 0 stopped by a signal, 1 could not serve, 2 wrong settings."""
    process.open_standard_streams()
    process.keep_files_private()
    process.server_parser(program, "A mock bank that fails on request.", Settings, os.environ).parse_args(arguments)
    telemetry.configure_logging("bank")
    try:
        chosen = settings.read(Settings, os.environ)
    except settings.SettingsError as error:
        log.error("the settings are wrong", problems=str(error))
        return 2
    try:
        process.serve_until_stopped(partial(_serve_until_stopped, chosen))
    except (LedgerUnusable, settings.SettingsError, sqlite3.Error, OSError) as error:
        log.error("the bank cannot serve", why=str(error))
        return 1
    return 0


async def _serve_until_stopped(chosen: Settings, stop: process.StopRequest) -> None:
    tls = ServerTls(chosen.tls, client_certificates=chosen.client_certificates) if chosen.tls else None
    chosen.ledger.parent.mkdir(parents=True, exist_ok=True)
    async with serve(
        str(chosen.listen),
        chosen.ledger,
        token_seconds=chosen.token_seconds,
        hold_seconds=chosen.hold_seconds,
        key_seconds=chosen.key_seconds,
        own_process=True,
        tls=tls.context if tls else None,
    ) as listen:
        watching = asyncio.create_task(keep_fresh([tls.watched] if tls else []))
        log.info(
            "serving",
            listen=listen,
            ledger=str(chosen.ledger),
            token_seconds=chosen.token_seconds,
            hold_seconds=chosen.hold_seconds,
            key_seconds=chosen.key_seconds,
        )
        await stop.wait()
        watching.cancel()
    log.info("stopped")
