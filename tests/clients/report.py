"""What became of each client: build/clients.json, and a table at the end of the run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rig.programs import BUILD
from tests.clients.programs import LANGUAGES, found
from tests.clients.tours import PARTS

REPORT = BUILD.absolute() / "clients.json"
CLIENTS = {**dict.fromkeys(LANGUAGES, PARTS), **dict.fromkeys(("grpcurl", "buf", "ghz"), ("cookbook",))}
"""The clients, and what is done with each."""


@dataclass
class Account:
    """Of one client: which parts there are, which of them ran and which passed; and why it could not be run, if so."""

    parts: list[str]
    missing: str | None = None
    ran: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Tell how many passed, and what did not."""
        failed = [part for part in self.ran if part not in self.passed]
        left = [] if self.missing else [part for part in self.parts if part not in self.ran]
        more = [
            *([f"failed: {', '.join(failed)}"] if failed else []),
            *([f"not run: {', '.join(left)}"] if left else []),
            *([f"missing: {self.missing}"] if self.missing else []),
        ]
        return f"{len(self.passed):>3} of {len(self.parts):>3}  {'; '.join(more)}".rstrip()


class Report:
    """A plugin that keeps account of the tests that are marked as a part of a client."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._accounts = {name: Account(list(parts), found(name).missing) for name, parts in CLIENTS.items()}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Have the test's reports say of which client it is."""
        if (marker := item.get_closest_marker("client")) is not None:
            name, part = marker.args
            item.user_properties += [("client", name), ("part", part)]
            if part not in self._accounts[name].parts:
                self._accounts[name].parts.append(part)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what ran, and what passed."""
        marked = dict(report.user_properties)
        name, part = str(marked.get("client", "")), str(marked.get("part", ""))
        if not name or self._accounts[name].missing is not None or report.skipped:
            return
        account = self._accounts[name]
        if report.when == "call" or report.failed:
            account.ran += [] if part in account.ran else [part]
        if report.when == "call" and report.passed:
            account.passed.append(part)
        elif report.failed and part in account.passed:
            account.passed.remove(part)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the file, and print the table."""
        self._path.parent.mkdir(exist_ok=True)
        told = {
            name: {"ran": account.ran, "passed": account.passed, "missing": account.missing}
            for name, account in self._accounts.items()
        }
        self._path.write_text(json.dumps(told, indent=2) + "\n")
        terminalreporter.section("clients: what passed")
        for line in self.table():
            terminalreporter.write_line(line)

    def table(self) -> Iterator[str]:
        """Write one line a client."""
        for name, account in self._accounts.items():
            yield f"{name:<12} {account.line()}"
