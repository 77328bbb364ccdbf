"""The command server's command line: the server itself, and the operator's commands on its journal."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

# Before grpc is loaded: its C core writes to standard error from threads that serve, and a pipe without a reader would block
# these for ever. The server logs such errors itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from chassis import process, settings, telemetry
from chassis.caller import ANYBODY
from chassis.policy import described, read_policy
from chassis.watched import Files
from command_service.bank.conformance import page
from command_service.bank.conformance.checks import CannotBeTried, Finding
from command_service.bank.statement import StatementAway, StatementUnusable
from command_service.checking import add_arguments, check_bank
from command_service.codec import charge_id_of
from command_service.journal import JournalCorrupt, JournalRefused
from command_service.journal.copying import copy_journal
from command_service.journal.location import FORMER_DEFAULT, FORMER_FILE, location
from command_service.journal.store import Location
from command_service.operate import print_journal, restore_journal, served_from, verify_journal
from command_service.parts import Parts
from command_service.reconciling.command import AWAY, BROKEN, FAILED, reconcile
from command_service.reconciling.command import add_arguments as add_reconcile_arguments
from command_service.serving import serve
from command_service.settings import Settings, check_way_to
from contract.access import ACCESS, NAMING, ROLES

PROGRAM = "python -m command_service"


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = PROGRAM,
    command: str = "",
    make_parts: Callable[[Settings], Parts] = Parts,
) -> None:
    """Run the server, with the parts made from its settings, or one of the operator's commands. See --help.

    `program` is the command in the help. With `command` it is this operator's command, and its arguments follow.
    """
    process.open_standard_streams()
    process.keep_files_private()
    parser, commands = _parser(program)
    if command:
        commands[command].prog = program
        arguments = [command, *(arguments or ())]
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:  # by the command's own usage, which argparse itself does not show then
        commands.get(chosen.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if chosen.command == "print-journal" and chosen.tenant is not None and chosen.key is None:
        commands["print-journal"].error("--tenant goes with --key")
    if chosen.command is None:
        telemetry.configure_logging("command")
        process.run(partial(_serve_until_stopped, make_parts), (JournalRefused,))
    if chosen.command == "check-bank":
        sys.exit(_try_bank(chosen))
    if chosen.command == "reconcile":
        sys.exit(_reconcile(chosen))
    try:
        _operate(chosen)
    except (settings.SettingsError, JournalRefused, OSError) as error:
        sys.exit(f"error: {error}")


def _parser(program: str) -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Make the command line's parser, and return it with those of the commands."""
    parser = process.server_parser(
        program,
        "Charges cards, each exactly once. Without a command it serves. COMMAND_JOURNAL names the journal.",
        Settings,
        os.environ,
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    printing = commands.add_parser("print-journal", help="print the journal, or one charge's stream")
    which = printing.add_mutually_exclusive_group()
    which.add_argument("charge", nargs="?", help="the charge's id")
    which.add_argument("--key", help="the charge's idempotency key")
    printing.add_argument(
        "--tenant", help=f"the tenant whose key it is, {ANYBODY.tenant} if not given; only with --key"
    )
    commands.add_parser("verify-journal", help="verify all of the journal; exit status 1 if it is damaged")
    backing_up = commands.add_parser("backup", help="copy the journal to a new file, also while the server runs")
    backing_up.add_argument("to", type=Path)
    restoring = commands.add_parser(
        "restore", help="put a backup in the journal's place, or accept what is there, under a new journal id"
    )
    restoring.add_argument("backup", type=Path, nargs="?")
    commands.add_parser(
        "migrate", help="make the journal's tables in PostgreSQL, or bring them up to date; no server does"
    )
    copying = commands.add_parser(
        "copy-journal",
        help="copy a journal to another place under its own id; what was copied before is not copied again",
        description="Copies a journal, also while it is served. The copy is not served from, until --move has made it the "
        "one that is: then no server opens the journal that it was copied from.",
    )
    copying.add_argument(
        "--move", action="store_true", help="serve from the copy from now on; the servers must be stopped"
    )
    copying.add_argument("source", metavar="FROM", help="where it is, as in COMMAND_JOURNAL")
    copying.add_argument("target", metavar="TO", help="where it is copied to: a file, or a database after migrate")
    checking = commands.add_parser(
        "check-policy", help="tell what each identity of a policy may do; exit status 1 if the policy cannot be used"
    )
    checking.add_argument("policy", type=Path, metavar="FILE")
    add_arguments(
        commands.add_parser(
            "check-bank",
            help="hold a bank for tests to its promises; exit status 1 if it breaks one, 2 if it could not be tried",
            description="Tries a bank with charges, holds, captures, voids and refunds that are really made there: repeated, "
            "all at once, called off, and with answers thrown away.",
        )
    )
    add_reconcile_arguments(
        commands.add_parser(
            "reconcile",
            help="compare a bank's statement with the journal; exit status 0 only at a difference of 0.00",
            description="Compares a bank's statement with the journal, also beside a server at work, and changes nothing. Exit "
            "status 1 if they differ, 2 if it could not be done, 3 if they do not, but movements at the edge are not certain, "
            "4 if the bank does not give its statement, 5 after a fault of this program.",
        )
    )
    return parser, commands.choices


def _try_bank(chosen: argparse.Namespace) -> int:
    """Run check-bank; return its exit status."""
    told = 0

    def tell(finding: Finding) -> None:
        nonlocal told
        print(page.progress(finding), file=sys.stderr, flush=True)
        told += 1

    try:
        found = check_bank(Parts(settings.read(Settings, os.environ)), chosen, tell=tell)
    except (CannotBeTried, settings.SettingsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"error: stopped after {told} of the checks: nothing is said of the others", file=sys.stderr)
        return 2
    print(page.as_json(found) if chosen.as_json else page.table(found))
    return 1 if page.is_broken(found) else 0


def _reconcile(chosen: argparse.Namespace) -> int:
    """Run reconcile; return its exit status."""
    telemetry.configure_logging("reconcile")
    try:
        named = dict(setting.partition("=")[::2] for setting in chosen.settings)
        read = settings.read(Settings, {**os.environ, **named}) if named else _read_settings()
        check_way_to(read.journal, is_open=read.is_open)
        return reconcile(Parts(read), chosen)
    except StatementAway as error:
        print(f"error: {error}", file=sys.stderr)
        return AWAY
    except (StatementUnusable, settings.SettingsError, JournalRefused, JournalCorrupt, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("error: stopped: nothing is known", file=sys.stderr)
        return FAILED
    except Exception as error:  # Python's own status would be 1, which says that the sides differ
        telemetry.log_unexpected("reconcile failed", error)
        print(f"error: a fault of this program ({type(error).__name__}): nothing is known", file=sys.stderr)
        return BROKEN


def _operate(chosen: argparse.Namespace) -> None:
    """Run one of the operator's commands. Raises SettingsError, JournalRefused, OSError."""
    if chosen.command == "check-policy":
        for line in described(read_policy(chosen.policy, ROLES, Files()), ACCESS, NAMING):
            print(line)
        return
    if chosen.command == "copy-journal":
        source, target = _location("FROM", chosen.source), _location("TO", chosen.target)
        print(copy_journal(source, target, move=chosen.move, tell=partial(print, file=sys.stderr, flush=True)))
        return
    read = _read_settings()
    check_way_to(read.journal, is_open=read.is_open)
    match chosen.command:
        case "print-journal":
            # A reader such as `head` may leave early: then this program ends quietly, like any filter.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if chosen.key is None:
                lines = print_journal(read.journal, chosen.charge)
            else:
                tenant = chosen.tenant or ANYBODY.tenant
                charge_id = charge_id_of(tenant, chosen.key)
                named = f"with the idempotency key {chosen.key} of tenant {tenant}"
                lines = print_journal(read.journal, charge_id, named=named)
            for line in lines:
                print(line)
        case "verify-journal":
            print(verify_journal(read.journal))
        case "migrate":
            print(read.journal.migrate())
        case "backup":
            place = read.journal.backup(chosen.to)
            print(f"copied {place.position} records to {chosen.to}, chain {place.chain.hex()}")
        case "restore":
            home = served_from(read.journal) if chosen.backup is None else ""
            journal_id, place = restore_journal(
                read.journal, chosen.backup, any_file_system=read.journal_any_file_system
            )
            print(f"restored: {place.position} records under the new journal id {journal_id}")
            if home:
                print(
                    f"it was noted as served from {home}: see that no server serves from there any more, or what was "
                    "unfinished is charged in both places"
                )


def _location(argument: str, value: str) -> Location:
    """Read a place that an argument names. Raises SettingsError."""
    try:
        found = location(value)
    except ValueError as error:
        raise settings.SettingsError(f"{argument} {error}") from None
    check_way_to(found, is_open=os.environ.get("COMMAND_OPEN") == "yes")
    return found


def _read_settings() -> Settings:
    if "COMMAND_JOURNAL" not in os.environ and FORMER_FILE.exists():
        raise settings.SettingsError(
            f"COMMAND_JOURNAL is not set, and {FORMER_FILE}, the default of an earlier version, holds a journal: set "
            f"COMMAND_JOURNAL={FORMER_DEFAULT} to go on with it, or move it away"
        )
    return settings.read(Settings, os.environ)


async def _serve_until_stopped(make_parts: Callable[[Settings], Parts], stop: process.StopRequest) -> None:
    async with serve(_read_settings(), make_parts):
        await stop.wait()
