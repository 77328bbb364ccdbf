"""How a command asks the servers: its options, its client, and its end."""

import asyncio
import contextlib
import functools
import secrets
import shlex
import signal
import string
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import click
from click.core import ParameterSource

import chargeonce_client
from chargeonce.commands import words
from chargeonce.commands.exits import Exit
from chargeonce.commands.printing import Printer, Unwritten
from chargeonce_client import CallFailed, Charge, Client, FeedBroken, GetChargeResponse, Refused, Settings, Unsettled

Command = Callable[..., Any]

CONNECT_SECONDS = 5.0
_OF_THE_CALLER = ("tls", "token_file", "tenant", "patience")
# A view that works is some milliseconds behind: then the charge of the command before this one is found.
_BEHIND_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_SERVERS = {
    "command": "the command server",
    "query": "the query server",
    "feed": "the command server's feed",
}
_ADVICE = {
    "RETRY_SAME_KEY": "the same request with the same key is safe, now or later",
    "USE_NEW_KEY": "no money moved under this key, and none will: another try needs another key",
    "ASK_STATUS": "ask for the status before anything else: chargeonce get NAME",
    "DO_NOT_RETRY": "as it is it can never succeed: correct it before you send it again",
    "": "the same command with the same key is safe, now or later",
}
_WAYS_OUT = {
    "NOT_AT_THE_DESK": "see where it stands, and what may be done: chargeonce explain NAME",
    "SECOND_PERSON_NEEDED": "somebody else has to approve it, with a credential of their own: --token-file or --tls",
    "ANOTHER_PROPOSAL": "see that one, and have it approved or rejected first: chargeonce explain NAME",
    "PROPOSAL_CHANGED": "look at the charge again: chargeonce explain NAME",
    "BANK_CONTRADICTS": "ask the bank: chargeonce desk ask-bank NAME; if it is the bank that is wrong, add --overrules ANSWER",
}
_AFTER_A_STEP = "it may be stored: before you repeat it look at chargeonce history NAME"
"""What to do after a step of the desk without an answer: it has no key."""


class Named(TypedDict, total=False):
    """A charge's name, as the client takes it: one of the two."""

    charge_id: str
    key: str


class Unreachable(Exception):
    """A server does not answer: which one, and where."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What a command works with."""

    client: Client
    printer: Printer
    settings: Settings
    probes: contextlib.AsyncExitStack

    async def reach(self, server: str) -> None:
        """Connect to a server. Raises Unreachable: then nothing was sent to it."""
        place = getattr(self.settings, server)
        # gRPC has one connection for all channels to an address: as long as this one is open, it is the client's.
        probe = await self.probes.enter_async_context(self.settings.channel(place))
        try:
            await asyncio.wait_for(probe.channel_ready(), min(CONNECT_SECONDS, self.settings.patience))
        except TimeoutError:
            raise Unreachable(f"{_SERVERS[server]} does not answer at {place}: nothing was sent this time") from None


def asking(
    *servers: str, later: Sequence[str] = (), interrupted: str = "", is_step: bool = False
) -> Callable[[Callable[..., Awaitable[Exit]]], Command]:
    """Make a command of a coroutine that asks these servers: with the options to reach them, and its exit status.

    It may ask those in `later`, too: they need not be there at first. `interrupted` is said after Ctrl-C. `is_step` if it takes
    a step of the desk, which has no key.
    """

    def made(ask: Callable[..., Awaitable[Exit]]) -> Command:
        @functools.wraps(ask)
        def command(*, as_json: bool, **given: Any) -> None:
            settings = Settings(**{name: given.pop(name) for name in (*servers, *later, *_OF_THE_CALLER)})
            printer = Printer(as_json=as_json)

            async def answered() -> Exit:
                async with _connected(settings, printer) as asked:
                    for server in servers:
                        await asked.reach(server)
                    return await ask(asked, **given)

            run(answered(), printer, interrupted, is_step=is_step)

        with_options: Command = command
        for option in reversed(_options((*servers, *later))):
            with_options = option(with_options)
        return with_options

    return made


def as_json(command: Command) -> Command:
    """Give a command the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: an answer, or a line for each.")(command)


def named(command: Command) -> Command:
    """Give a command the name of a charge, which it gets as `name`."""

    @functools.wraps(command)
    def read(*, name: str, by: str | None, **given: Any) -> Any:
        is_id = words.is_id(name) if by is None else by == "id"
        return command(name=Named(charge_id=name) if is_id else Named(key=name), **given)

    by = click.option(
        "--by",
        type=click.Choice(["id", "key"]),
        help="What NAME is. Else a UUID of version 8, as all ids are, is an id, and all else a key.",
    )
    return click.argument("name", callback=words.filled)(by(read))


def run(
    answer: Coroutine[Any, Any, Exit], printer: Printer, interrupted: str = "", *, is_step: bool = False
) -> NoReturn:
    """Run a command to its end, tell an error, and exit with its status.

    A fault of the command itself ends with NOT_KNOWN: a request may have been sent.
    """
    try:
        status = asyncio.run(answer)
    except click.ClickException:
        raise
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        if interrupted:
            with contextlib.suppress(Unwritten):
                printer.note(interrupted, {"interrupted": interrupted})
        status = Exit.INTERRUPTED
    except Unwritten as error:
        if isinstance(error.__cause__, BrokenPipeError):  # a reader such as `head` has left: quietly, like any filter
            status = Exit.NO_READER
        else:
            printer.error([f"the answer cannot be written: {error}"])
            status = Exit.NOT_KNOWN
    except Unreachable as error:
        printer.error([str(error)])
        status = Exit.UNREACHABLE
    except CallFailed as error:
        status = _status_of(error)
        printer.error(
            _told(error, is_step=is_step), {"error": {**_document(error), "is_known": status is Exit.REFUSED}}
        )
    except FeedBroken as error:
        printer.error([str(error)])
        status = Exit.REFUSED
    except Exception:
        *where, what = traceback.format_exc().splitlines()
        printer.error([f"a fault of this program, so that nothing is known: {what}", *where])
        status = Exit.NOT_KNOWN
    sys.exit(status)


async def known(
    client: Client, name: Named, is_awaited: Callable[[Charge], bool] = lambda _: True
) -> GetChargeResponse:
    """Return a charge as the view has it, which may learn of it, or of what is awaited, in this very moment.

    Raises CallFailed.
    """
    now = asyncio.get_running_loop().time
    until = now() + _BEHIND_SECONDS
    while True:
        try:
            answer = await client.get(**name)
            if is_awaited(answer.charge) or now() > until:
                return answer
        except Refused as error:
            if not _is_not_shown(error) or now() > until:
                raise
        await asyncio.sleep(_LOOK_SECONDS)


async def id_of(asked: Asking, name: Named) -> str:
    """Return a charge's id. The command server takes ids only, and the query server tells that of a key.

    Raises Unreachable and CallFailed.
    """
    if "charge_id" in name:
        return name["charge_id"]
    await asked.reach("query")
    return (await known(asked.client, name)).charge.charge_id


def spoken(name: Named) -> str:
    """Return a charge's name in words."""
    return " ".join(f"the {word.replace('charge_id', 'charge')} {value}" for word, value in name.items())


def new_key() -> str:
    """Return a key that nobody has had. It has letters only, so that it looks neither like an id nor like a card number."""
    return "cli-" + "".join(secrets.choice(string.ascii_lowercase) for _ in range(20))


def line_with(key: str) -> str:
    """Return this very command line with a key, and with what the environment has told: it is safe in any shell."""
    name, *rest = sys.argv[1:]
    context = click.get_current_context()
    told = [
        word
        for option in context.command.params
        if context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT
        for word in (option.opts[0], str(context.params[str(option.name)]))
    ]
    return shlex.join(["chargeonce", name, "--key", key, *told, *rest])


def _options(servers: Sequence[str]) -> list[Callable[[Command], Command]]:
    known = Settings()
    return [
        *(
            click.option(
                f"--{server}",
                metavar="HOST:PORT",
                envvar=f"CHARGEONCE_{server.upper()}",
                default=getattr(known, server),
                show_envvar=True,
                help=f"Where {_SERVERS[server]} is.",
            )
            for server in servers
        ),
        click.option(
            "--tls",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            envvar="CHARGEONCE_TLS",
            show_envvar=True,
            help="A folder with ca.crt, the authorities to trust, and tls.crt and tls.key, if a certificate is shown.",
        ),
        click.option(
            "--token-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar="CHARGEONCE_TOKEN_FILE",
            show_envvar=True,
            help="A file with a bearer token.",
        ),
        click.option(
            "--tenant",
            envvar="CHARGEONCE_TENANT",
            default=known.tenant,
            show_default=False,
            show_envvar=True,
            help="The tenant for which an operator speaks who belongs to none.",
        ),
        click.option(
            "--patience",
            metavar="SECONDS",
            type=click.FloatRange(min=0.1),
            default=known.patience,
            help="For how long a request without an answer is repeated.",
        ),
        as_json,
    ]


@contextlib.asynccontextmanager
async def _connected(settings: Settings, printer: Printer) -> AsyncIterator[Asking]:
    """Make a client, which connects when it is used."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(chargeonce_client.connect(settings))
        except OSError as error:
            raise click.UsageError(f"the certificates cannot be used: {error}") from None
        yield Asking(client, printer, settings, stack)


def _is_not_shown(error: CallFailed) -> bool:
    """Whether a view shows no such charge. The command server gives the same reason with other advice: it knows."""
    return error.reason == "CHARGE_NOT_FOUND" and error.advice == "RETRY_SAME_KEY"


def _status_of(error: CallFailed) -> Exit:
    return Exit.REFUSED if isinstance(error, Refused) and not _is_not_shown(error) else Exit.NOT_KNOWN


def _told(error: CallFailed, *, is_step: bool) -> list[str]:
    """Return an error in lines: what is wrong, what belongs to it, what to do."""
    if _is_not_shown(error):
        return [
            f"the view does not show such a charge, and may be behind ({error.reason})",
            "  ask again later; this is no reason for a new key: to send the charge again with its own is safe",
        ]
    advice = _WAYS_OUT.get(error.reason) or _ADVICE.get(error.advice, error.advice)
    if is_step and error.is_safe_without_a_key:
        advice = "nothing was stored: repeat it later"
        if error.reason == "BANK_UNREACHABLE":
            advice += "; to approve it without the bank's word, add --overrules ANSWER"
    elif is_step and isinstance(error, Unsettled):
        advice = _AFTER_A_STEP
    if isinstance(error, Unsettled) and not (is_step and error.is_safe_without_a_key):
        first = f"there is no answer, so that it is not known: {error.text} ({error.reason or error.code.name})"
    else:
        first = f"{error.text} ({error.reason or error.code.name})"
    return [
        first,
        *(f"  {name}: {value}{' minor units' * (name == 'left')}" for name, value in error.metadata.items()),
        *(f"  {field or 'the request'}: {text}" for field, text in error.violations.items()),
        f"  {advice.replace('ANSWER', _answer_as_told(error)).replace('NAME', _name_as_given())}",
    ]


def _answer_as_told(error: CallFailed) -> str:
    """Return the bank's answer that a refusal tells of, as --overrules has it."""
    said = error.metadata.get("bank_said")
    return words.option(said) if said else "ANSWER"


def _name_as_given() -> str:
    """Return the charge's name as this command line has it, for another one; NAME if it has none."""
    given = click.get_current_context().params
    by = ["--by", given["by"]] if given.get("by") else []
    return shlex.join([given["name"], *by]) if given.get("name") else "NAME"


def _document(error: CallFailed) -> dict[str, Any]:
    return {
        "code": error.code.name,
        "reason": error.reason,
        "advice": error.advice,
        "text": error.text,
        "metadata": error.metadata,
        "violations": error.violations,
        "retry_after": error.retry_after,
    }
