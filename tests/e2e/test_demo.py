"""The stories leave no process behind, in every way that they can end."""

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path

import pytest

from demo.transcript import comparable, shown, transcript
from rig.processes import DidNotStart, Town

README = Path(__file__).parents[2] / "README.md"
# The tour as `make run` starts it, but on free ports.
TOUR = "from demo import tour; tour.main(dict.fromkeys(tour.LISTEN, '127.0.0.1:0'))"
CRASH = "from demo import crash; crash.main()"
STARTING = ""  # no line has to be printed yet: the first server has just been started
PATIENCE_SECONDS = 40


async def test_a_town_whose_command_server_does_not_start_leaves_no_bank(tmp_path: Path) -> None:
    town = Town(tmp_path)
    town.command.environment = {"COMMAND_DRAIN_SECONDS": "never"}
    with pytest.raises(DidNotStart):
        async with town:
            pass
    assert town.bank.process is not None
    assert not town.bank.is_running


@pytest.mark.parametrize(
    ("story", "stage", "number"),
    [
        (TOUR, STARTING, signal.SIGINT),
        (TOUR, STARTING, signal.SIGTERM),
        (TOUR, STARTING, signal.SIGHUP),
        (TOUR, "The charge, as the command server answered it", signal.SIGHUP),
        (TOUR, "Ctrl-C stops everything.", signal.SIGINT),
        (TOUR, "Ctrl-C stops everything.", signal.SIGTERM),
        (TOUR, "Ctrl-C stops everything.", signal.SIGHUP),
        (CRASH, STARTING, signal.SIGTERM),
        (CRASH, "2. ", signal.SIGINT),
    ],
    ids=lambda value: {TOUR: "tour", CRASH: "crash"}.get(value, str(value)[:10]),
)
async def test_a_story_that_is_asked_to_stop_ends_its_servers(
    tmp_path: Path, story: str, stage: str, number: signal.Signals
) -> None:
    """At any stage, by Ctrl-C, by SIGTERM and when its terminal is closed; it prints a few words."""
    mark = str(uuid.uuid4())  # every process of the story has the mark in its environment
    telling = await begun(story, tmp_path, mark)
    assert telling.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while stage and not (await telling.stdout.readline()).decode().startswith(stage):
                pass
            while len(marked(mark)) < 2:  # noqa: ASYNC110  # nothing tells of a process that another one starts
                await asyncio.sleep(0.005)
            telling.send_signal(number)
            _, errors = await telling.communicate()
    finally:
        left = marked(mark)
        for process in left:
            os.kill(process, signal.SIGKILL)
    assert left == []
    assert telling.returncode == (0 if story == TOUR else 1)
    assert errors.decode().strip() in ("", "Stopped before the end of the story.")


async def test_the_tour_starts_a_killed_server_again(tmp_path: Path) -> None:
    """A person can kill the command server during charges, and then find each charged once."""
    mark = str(uuid.uuid4())
    telling = await begun(TOUR, tmp_path, mark)
    assert telling.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            advice = ""
            while not (said := (await telling.stdout.readline()).decode()).startswith("Ctrl-C stops everything."):
                assert "pkill" not in said, "it would kill other people's servers too"
                if said.startswith("  kill -9 "):
                    advice = said
            (command,) = [process for process in marked(mark) if b"command_service" in command_line(process)]
            assert advice == f"  kill -9 {command}\n"
            os.kill(command, signal.SIGKILL)
            said = (await telling.stdout.readline()).decode()
            assert said == "command_service has ended with status -9: it is started again\n"
            said = (await telling.stdout.readline()).decode()
            (command,) = [process for process in marked(mark) if b"command_service" in command_line(process)]
            assert said == f"command_service serves again, as process {command}\n"
            telling.send_signal(signal.SIGINT)
            told, _ = await telling.communicate()
    finally:
        for process in marked(mark):
            os.kill(process, signal.SIGKILL)
    assert "command_service ended with status 0" in told.decode()


async def test_the_readme_shows_what_the_tour_prints() -> None:
    """In every character except the bank's random ids and the time; if it fails: python -m demo.transcript."""
    assert comparable(shown(README.read_text())) == comparable(await transcript())


async def begun(story: str, folder: Path, mark: str) -> asyncio.subprocess.Process:
    """Start a story in a process with the mark in its environment; all its child processes inherit the mark."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        story,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "RUN_FOLDER": str(folder), "STORY": mark},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def command_line(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def marked(mark: str) -> list[int]:
    """The processes that have the mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            pass  # it has ended, or belongs to another user
    return found
