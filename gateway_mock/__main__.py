"""`python -m gateway_mock`: the mock bank as a process. The only place that reads its settings."""

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from gateway_mock.app import TOKEN_SECONDS, serve
from gateway_mock.ledger import LedgerUnusable
from gateway_mock.wire import address_of

MAX_TOKEN_SECONDS = 366 * 24 * 3600  # A year: keeps a mistyped number from passing for a lifetime.

_log = structlog.get_logger()


@dataclass(frozen=True)
class Settings:
    """What the environment says. The package's docstring tells each variable's meaning."""

    listen: str
    ledger: Path
    token_seconds: float


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Reads the settings. Raises `ValueError` with all problems, naming variables and never their values."""
    problems = []
    listen = environment.get("GATEWAY_MOCK_LISTEN", "127.0.0.1:8080")
    try:
        address_of(listen)
    except ValueError as error:
        problems.append(f"GATEWAY_MOCK_LISTEN is {error}")
    seconds = environment.get("GATEWAY_MOCK_TOKEN_SECONDS", str(TOKEN_SECONDS))
    try:
        token_seconds = float(seconds)
    except ValueError:
        token_seconds = -1.0
    if not 0 <= token_seconds <= MAX_TOKEN_SECONDS:
        problems.append(f"GATEWAY_MOCK_TOKEN_SECONDS is not a number from 0 to {MAX_TOKEN_SECONDS}")
    ledger = environment.get("GATEWAY_MOCK_LEDGER", "build/gateway.db")
    if not ledger:
        problems.append("GATEWAY_MOCK_LEDGER is empty")
    if problems:
        raise ValueError("; ".join(problems))
    return Settings(listen, Path(ledger), token_seconds)


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings.ledger.parent.mkdir(parents=True, exist_ok=True)
    async with serve(
        settings.listen, settings.ledger, token_seconds=settings.token_seconds, own_process=True
    ) as address:
        _log.info("serving", listen=address, ledger=str(settings.ledger), token_seconds=settings.token_seconds)
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")


def main() -> int:
    """Runs the bank. Returns the exit code: 0 stopped by a signal, 1 could not serve, 2 wrong settings."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        settings = settings_from(os.environ)
    except ValueError as error:
        _log.error("wrong_settings", problems=str(error))
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings))
    except (LedgerUnusable, sqlite3.Error, OSError) as error:
        _log.error("cannot_serve", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
