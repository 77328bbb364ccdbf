"""The cookbook, docs/grpcurl.md: python -m tests.clients.cookbook writes what its lines print into it

It is a story of commands, in blocks marked `sh`, each with a block of what its commands print. It is told with one of the
programs at a time, each time at a sandbox of its own: the commands of the other programs are left out.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.clients.tools import BUF, TOOLS
from tests.e2e.test_sandbox import Running, a_sandbox

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "grpcurl.md"
# Ten streams, each of a few seconds, and a good many commands.
COMMAND_SECONDS = 60.0
LOAD = "ghz"
PROGRAMS = ("grpcurl", "buf", LOAD)
_BLOCK = re.compile(r"```sh\n(.*?)```\n\n```(?:json|text)\n(.*?)```", re.DOTALL)
_PORTS = {"command": "127.0.0.1:50051", "query": "127.0.0.1:50052", "feed": "127.0.0.1:50053", "bank": "127.0.0.1:8080"}
# What differs from one telling to the next.
_MASKS = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"\b(txn|ttok)_[0-9a-f]{32}", r"\1_"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
    (r'"(\w*[pP]osition|silenceMilliseconds)": ?"\d+"', r'"\1": N'),
    (r'"(chain|event|value|nextPageToken)": ?"[^"]*"', r'"\1": BYTES'),
)
LEFT_OUT = "..."


@dataclass(frozen=True, slots=True)
class Step:
    """A block of the page: its commands, each of which prints what is shown."""

    commands: tuple[str, ...]
    shown: str

    def commands_of(self, program: str) -> list[str]:
        """Return the commands of the story with one of the programs. A load has no story."""
        others = LOAD if program == LOAD else "curl chargeonce"
        return [command for command in self.commands if _program(command) in (program, *others.split())]


def _program(command: str) -> str:
    """The program that it runs, after the settings of its environment."""
    return next(word for word in command.split() if "=" not in word)


def story() -> list[Step]:
    """Read the page."""
    return [
        Step(tuple(re.split(r"\n+(?=(?:grpcurl|buf|curl|chargeonce|ghz) )", commands.strip())), shown)
        for commands, shown in _BLOCK.findall(PAGE.read_text())
    ]


def tell(program: str) -> Iterator[tuple[Step, str, str]]:
    """Run the story with one of the programs: each command with its step and what it printed."""
    with a_sandbox() as running:
        for step in story():
            for command in step.commands_of(program):
                yield step, command, _run(command, running)


def fits(shown: str, printed: str) -> bool:
    """Whether what was printed is what the page shows, but for what differs each time."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == LEFT_OUT else re.escape(line) + r"\n" for line in _masked(shown).splitlines()
    ]
    return re.fullmatch("".join(lines), _masked(printed)) is not None


def _masked(text: str) -> str:
    lines = [re.sub(r"(?<=\S)[ \t]+", " ", line.expandtabs()).rstrip() for line in text.strip("\n").splitlines()]
    masked = "".join(line + "\n" for line in lines)
    for pattern, word in _MASKS:
        masked = re.sub(pattern, word, masked)
    return masked


def _run(command: str, running: Running) -> str:
    real = {shown: str(running.told[server]).removeprefix("http://") for server, shown in _PORTS.items()}
    for shown, address in real.items():
        command = command.replace(shown, address)
    installed = [str(tool.program.parent) for tool in TOOLS.values() if tool.missing() is None]
    done = subprocess.run(
        ["bash", "-c", command.replace("sqlite:///box/", f"sqlite:///{running.told['folder']}/")],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(BUF.parent), *installed, os.environ["PATH"]]),
            "CHARGEONCE_FEED": running.told["feed"],
            "CHARGEONCE_QUERY": running.told["query"],
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    printed = done.stdout
    for shown, address in real.items():
        printed = printed.replace(address, shown)
    return printed


def main() -> None:
    """Write what is printed into the page, where what is there does not fit it."""
    page = PAGE.read_text()
    for program in PROGRAMS:
        for step, command, printed in tell(program):
            if fits(step.shown, printed):
                continue
            print(f"{command}\n", file=sys.stderr)
            text = "".join(line.expandtabs().rstrip() + "\n" for line in printed.strip("\n").splitlines())
            begin = re.compile(r"```\n\n```(?:json|text)\n").search(page, page.index(command))
            assert begin is not None
            page = page[: begin.end()] + text + page[page.index("```", begin.end()) :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
