"""Telemetry: one JSON line a log entry on standard error.

Log entries have fixed texts and named values. No part of a request's input is ever a value. An entry that cannot be written
is lost and counted, without any other effect (see `stderr`).
"""

import json
import logging
import traceback
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict

from chassis import stderr, tracing


def configure_logging(service: str) -> None:
    """Send structlog's entries and the warnings of libraries to standard error as JSON lines."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _with_context,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, stderr.install())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    # A library's record may quote a request (grpc logs a failing call with its exception's text), so only its source is
    # logged, never its text.
    logging.basicConfig(handlers=[_LibraryRecords(service)], level=logging.WARNING, force=True)


def _with_context(_: object, __: str, entry: EventDict) -> EventDict:
    """Say of which trace an entry is, if it is of one."""
    if context := tracing.current():
        entry[tracing.HEADER] = context
    return entry


# Made once: json.dumps with an option would make an encoder for each line.
_ENCODER = json.JSONEncoder(default=repr)


def _json(entry: object, **_: object) -> str:
    return _ENCODER.encode(entry)


class _LibraryRecords(logging.Handler):
    """Turns a library's log record into an entry that names its source and level only."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        structlog.get_logger().warning(
            "library warning", service=self._service, source=record.name, line=record.lineno, error=error
        )


def log_unexpected(event: str, error: BaseException, **values: object) -> None:
    """Log an unforeseen error: its type and the lines that it passed, not its text, which may quote an input."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
    structlog.get_logger().error(event, error=type(error).__name__, lines=lines, **values)
