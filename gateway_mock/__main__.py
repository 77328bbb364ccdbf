"""`python -m gateway_mock`: the mock bank as a process. The only place that reads its settings."""

import os
import sqlite3
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import structlog

from chassis import process, settings, stderr
from chassis.settings import Address, address, file_path, number, setting, state_file
from gateway_mock.app import TOKEN_SECONDS, serve
from gateway_mock.ledger import LedgerUnusable

MAX_TOKEN_SECONDS = 366 * 24 * 3600  # A year: keeps a mistyped number from passing for a lifetime.

_log = structlog.get_logger()


@dataclass(frozen=True)
class Settings:
    """The mock bank's settings."""

    listen: Address = setting("GATEWAY_MOCK_LISTEN", address, "127.0.0.1:8080", "where the bank is called")
    ledger: Path = setting(
        "GATEWAY_MOCK_LEDGER", file_path, state_file("gateway.db"), "the file that holds every movement of money"
    )
    token_seconds: float = setting(
        "GATEWAY_MOCK_TOKEN_SECONDS",
        number(0, MAX_TOKEN_SECONDS),
        str(TOKEN_SECONDS),
        "how long a token can be executed; with 0 each is late at once",
    )


async def run(chosen: Settings, stop: process.StopRequest) -> None:
    """Serves until it is asked to stop."""
    chosen.ledger.parent.mkdir(parents=True, exist_ok=True)
    async with serve(str(chosen.listen), chosen.ledger, token_seconds=chosen.token_seconds, own_process=True) as listen:
        _log.info("serving", listen=listen, ledger=str(chosen.ledger), token_seconds=chosen.token_seconds)
        await stop.wait()
    _log.info("stopped")


def main() -> int:
    """Runs the bank. Returns the exit code: 0 stopped by a signal, 1 could not serve, 2 wrong settings."""
    process.open_standard_streams()
    process.server_parser(
        "python -m gateway_mock", "A mock bank that fails on request.", Settings, os.environ
    ).parse_args()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, stderr.install())),
    )
    try:
        chosen = settings.read(Settings, os.environ)
    except settings.SettingsError as error:
        _log.error("wrong_settings", problems=str(error))
        return 2
    try:
        process.serve_until_stopped(partial(run, chosen))
    except (LedgerUnusable, sqlite3.Error, OSError) as error:
        _log.error("cannot_serve", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
