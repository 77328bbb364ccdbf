"""Reconciles for operators who call by RPC: by the command itself, in a process of its own, so that charging is not slowed."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

from google.protobuf.json_format import Parse

from charging.v1.operator_pb2 import (
    ListReconciliationsResponse,
    ReconcileBegin,
    ReconcileProgress,
    ReconcileRequest,
    ReconcileResponse,
)
from chassis.refusals import Refusal, Violation
from command_service.journal.postgres.place import PostgresPlace
from command_service.journal.postgres.url import FILES
from command_service.journal.store import Location
from command_service.reconciling import kept
from command_service.reconciling.command import AWAY, BALANCED, DIFFERS, FAILED, UNDECIDED
from command_service.settings import Settings
from contract.errors import Reason
from contract.errors import command_refusal as refusal

# A statement of some millions of lines. It lies in a temporary folder while it is compared.
MOST_CSV_BYTES = 1 << 30
# While a file is on its way, the caller hears something this often, and must send something this often.
PROGRESS_SECONDS = 1.0
MESSAGE_SECONDS = 60.0
# The longest line is the result, with a year of days in a few currencies.
MOST_LINE_BYTES = 16 << 20


class Reconciler:
    """Runs the command for a server with these settings. One call at a time: the service sees to that."""

    def __init__(self, chosen: Settings, *, message_seconds: float = MESSAGE_SECONDS) -> None:
        """`message_seconds`: the longest wait for a next message of the caller, whose file others wait for."""
        self._settings = chosen
        self._message_seconds = message_seconds

    async def run(self, requests: AsyncIterator[ReconcileRequest]) -> AsyncGenerator[ReconcileResponse, None]:
        """Compare what a call asks for; first comes progress, while the file is received.

        Raises a Refusal: INVALID_REQUEST, with what is wrong, or BANK_UNREACHABLE. Closing it ends the process.
        """
        with tempfile.TemporaryDirectory(prefix="chargeonce-") as scratch:
            folder = Path(scratch)
            receiving = asyncio.create_task(_received(requests, folder, self._message_seconds))
            try:
                while not (await asyncio.wait({receiving}, timeout=PROGRESS_SECONDS))[0]:
                    yield ReconcileResponse(progress=ReconcileProgress())
                arguments = receiving.result()
            finally:
                receiving.cancel()
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "command_service", "reconcile", "--lines", "--gently", "--scratch", scratch),
                *(part for setting in _told(self._settings) for part in ("--set", setting)),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MOST_LINE_BYTES,
                start_new_session=True,
            )
            has_result = False
            assert child.stdout is not None
            assert child.stderr is not None
            complaints = asyncio.create_task(child.stderr.read())
            try:
                async for line in child.stdout:
                    response = Parse(line, ReconcileResponse())
                    has_result = response.HasField("result")
                    yield response
                said = (await complaints).decode(errors="replace")
                if (status := await child.wait()) in (AWAY, FAILED):
                    raise _refused(status, said.replace(f"{folder}/", ""))
                if not has_result or status not in (BALANCED, DIFFERS, UNDECIDED):
                    raise RuntimeError(f"reconcile ended with {status}: {said[-2000:]}")
            finally:
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)  # and the process that reads the journal for it
                    await child.wait()
                complaints.cancel()

    async def last(self) -> ListReconciliationsResponse:
        """Return the last results."""
        return ListReconciliationsResponse(reconciliations=kept.kept(kept.folder(self._settings)))


async def _received(requests: AsyncIterator[ReconcileRequest], folder: Path, message_seconds: float) -> Sequence[str]:
    """Receive what is asked for, with the CSV file; return the command's arguments. Raises a Refusal."""
    begin: ReconcileBegin | None = None
    size = 0
    with (folder / "statement.csv").open("wb") as file:
        while (request := await _next(requests, message_seconds)) is not None:
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


async def _next(requests: AsyncIterator[ReconcileRequest], seconds: float) -> ReconcileRequest | None:
    """Return the next message, and None after the last one. Raises a Refusal if it does not come in time."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(requests, None)
    except TimeoutError:
        raise _invalid("item", f"must come within {seconds:.0f} seconds after the one before") from None


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
