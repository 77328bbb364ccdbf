"""The command line of clients. It stands on the public contract only, and knows no server's code.

`table` has the commands; this is how they are found, listed and completed, each loaded when it is used.
"""

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from chargeonce.table import BY_HEADING, COMMANDS, Program


class _Commands(click.Group):
    """The commands whose names begin with `prefix`."""

    def __init__(self, prefix: str = "", **settings: Any) -> None:
        super().__init__(no_args_is_help=True, **settings)
        self._prefix = prefix

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. What is no UTF-8 in it cannot be part of a request."""
        try:
            " ".join(args).encode()
        except UnicodeEncodeError:
            raise click.UsageError("the command line is not UTF-8", ctx) from None
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's
        """Return the next word of each name, once."""
        names = [name.removeprefix(self._prefix) for name in COMMANDS if name.startswith(self._prefix)]
        return list(dict.fromkeys(name.split()[0] for name in names))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's
        """Load a command. A program stands here to be completed only: `__main__` runs it."""
        name = self._prefix + cmd_name
        match COMMANDS.get(name):
            case None:
                is_first = any(other.startswith(f"{name} ") for other in COMMANDS)
                return _Commands(f"{name} ", name=cmd_name) if is_first else None
            case Program(text=text):
                files = click.Argument(["arguments"], nargs=-1, type=click.Path())
                return click.Command(cmd_name, params=[files], help=text)
            case question:
                command: click.Command = question.load()
                return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's
        """List the commands by what they are for."""
        for heading, commands in BY_HEADING.items():
            rows = [(name, command.text) for name, command in commands.items() if name.startswith(self._prefix)]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table: nothing is loaded."""
        words = [word for word in self.list_commands(ctx) if word.startswith(incomplete)]
        if not words and incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(word, help=self._text(word)) for word in words]

    def _text(self, word: str) -> str:
        name = self._prefix + word
        if name in COMMANDS:
            return COMMANDS[name].text
        return ", ".join(other.removeprefix(f"{name} ") for other in COMMANDS if other.startswith(f"{name} "))


def main(arguments: Sequence[str]) -> None:
    """Run a command, and exit with its status."""
    commands = _Commands(
        name="chargeonce",
        help="Charges cards, each exactly once: its clients, its servers and what operators need.",
        epilog="chargeonce COMMAND --help describes each.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True},
    )
    click.version_option(package_name="chargeonce", message="%(prog)s %(version)s")(commands)
    commands.main(list(arguments), prog_name="chargeonce")
