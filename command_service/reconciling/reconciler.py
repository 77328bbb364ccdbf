"""Reconciles for operators who call by RPC: by the command itself, in a process of its own, so that charging is not slowed."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

from google.protobuf.json_format import Parse

from charging.v1.operator_pb2 import ListReconciliationsResponse, ReconcileBegin, ReconcileRequest, ReconcileResponse
from chassis.refusals import Refusal, Violation
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.url import FILES
from command_service.journal.store import Location
from command_service.reconciling import kept
from command_service.reconciling.command import AWAY, FAILED
from command_service.settings import Settings
from contract.errors import Reason
from contract.errors import command_refusal as refusal

# A statement of some millions of lines. It lies in a temporary folder while it is compared.
MOST_CSV_BYTES = 1 << 30
# The longest line is the result, with a year of days in a few currencies.
MOST_LINE_BYTES = 16 << 20


class Reconciler:
    """Runs the command for a server with these settings. One call at a time: the service sees to that."""

    def __init__(self, chosen: Settings) -> None:
        self._settings = chosen

    async def run(self, requests: AsyncIterator[ReconcileRequest]) -> AsyncIterator[ReconcileResponse]:
        """Compare what a call asks for. Raises a Refusal: INVALID_REQUEST, with what is wrong, or BANK_UNREACHABLE."""
        with tempfile.TemporaryDirectory(prefix="chargeonce-") as scratch:
            folder = Path(scratch)
            arguments = await _received(requests, folder)
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "command_service", "reconcile", "--lines", "--gently"),
                *(part for setting in _told(self._settings) for part in ("--set", setting)),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MOST_LINE_BYTES,
            )
            assert child.stdout is not None
            assert child.stderr is not None
            complaints = asyncio.create_task(child.stderr.read())
            try:
                async for line in child.stdout:
                    yield Parse(line, ReconcileResponse())
                said = (await complaints).decode(errors="replace")
                if (status := await child.wait()) in (AWAY, FAILED):
                    raise _refused(status, said.replace(f"{folder}/", ""))
                if status > FAILED + 1 or status < 0:
                    raise RuntimeError(f"reconcile ended with {status}: {said[-2000:]}")
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
                complaints.cancel()

    async def last(self) -> ListReconciliationsResponse:
        """Return the last results, one a bank."""
        return ListReconciliationsResponse(reconciliations=kept.kept(kept.folder(self._settings)))


async def _received(requests: AsyncIterator[ReconcileRequest], folder: Path) -> Sequence[str]:
    """Receive what is asked for, with the CSV file; return the command's arguments. Raises a Refusal."""
    begin: ReconcileBegin | None = None
    size = 0
    with (folder / "statement.csv").open("wb") as file:
        async for request in requests:
            match request.WhichOneof("item"), begin:
                case "begin", None:
                    begin = request.begin
                    if not begin.mapping:
                        break  # the client may leave its side open
                case "csv", ReconcileBegin():
                    size += file.write(request.csv)
                    if size > MOST_CSV_BYTES:
                        raise _invalid("csv", f"must be at most {MOST_CSV_BYTES} bytes")
                case _:
                    raise _invalid("item", "must be begin first, and only then csv")
    if begin is None:
        raise _invalid("item", "must be begin first")
    arguments = ["--bank", begin.bank]
    for name, field in (("--from", getattr(begin, "from")), ("--to", begin.to)):
        if not field.ToMicroseconds():
            raise _invalid(f"begin.{name.removeprefix('--')}", "is required")
        arguments += [name, field.ToJsonString()]
    if begin.mapping:
        (folder / "mapping.toml").write_text(begin.mapping)
        arguments += ["--csv", str(folder / "statement.csv"), "--mapping", str(folder / "mapping.toml")]
    return arguments


def _told(chosen: Settings) -> Sequence[str]:
    """Tell the settings that the command needs, as the server has them: they need not be in the environment."""
    told = [f"COMMAND_JOURNAL={_written(chosen.journal)}", f"COMMAND_OPEN={'yes' if chosen.is_open else 'no'}"]
    if chosen.banks is not None:
        told.append(f"COMMAND_BANKS={chosen.banks}")
    else:
        told += [f"COMMAND_BANK_URL={chosen.bank_url}", f"COMMAND_BANK_TLS={chosen.bank_tls or ''}"]
    return [*told, f"COMMAND_RECONCILIATIONS={kept.folder(chosen) or ''}"]


def _written(journal: Location) -> str:
    """Write a place as COMMAND_JOURNAL does."""
    if isinstance(journal, PostgresPlace):
        files = {name: file for name in FILES if (file := getattr(journal.url, name)) is not None}
        return f"{journal.url}?{urlencode({'sslmode': journal.url.sslmode, **files})}"
    return f"sqlite:///{journal}"


def _refused(status: int, said: str) -> Refusal:
    if status == AWAY:
        return refusal(Reason.BANK_UNREACHABLE)
    return _invalid("begin", said.strip().removeprefix("error: ") or "cannot be compared")


def _invalid(field: str, text: str) -> Refusal:
    return refusal(Reason.INVALID_REQUEST, violations=[Violation(field, text)])
