"""Processes for a harness's work: what it tries is mostly Python's own time, and a process has one core of it."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NoReturn

import structlog

# One a core at work, and one a core next.
AT_ONCE = 2 * (os.cpu_count() or 1)


def workers(count: int = 0) -> ProcessPoolExecutor:
    """So many processes that say nothing, or one a core; what they are given must be importable by name."""
    # A fork would share gRPC's threads and SQLite's connections, and both forbid that.
    return ProcessPoolExecutor(count or os.cpu_count() or 1, get_context("spawn"), be_silent)


def be_silent() -> None:
    """Keep the product's log, while it is tormented, out of the table."""
    structlog.configure(processors=[_drop])


def _drop(*_: Any) -> NoReturn:
    raise structlog.DropEvent
