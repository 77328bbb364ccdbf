"""The cookbook, docs/grpcurl.md: each of its lines, run as it stands, prints the block that follows it."""

import re
from pathlib import Path

import pytest

from charging.v1 import command_pb2, journal_pb2, operator_pb2, query_pb2
from tests.clients.cookbook import LOAD, PAGE, PROGRAMS, ROOT, fits, story, tell

METHODS = [
    f"{service.full_name}/{method.name}"
    for module in (command_pb2, query_pb2, journal_pb2, operator_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=pytest.mark.client(name, "cookbook")) for name in PROGRAMS]
)
def test_each_line_prints_what_the_page_shows(program: str) -> None:
    wrong = [f"{command}\n{printed}" for step, command, printed in tell(program) if not fits(step.shown, printed)]
    assert wrong == [], "\n".join(wrong)


def test_no_line_of_the_page_is_left_out() -> None:
    """Each block is of some program's story, and every method is called with both debugging clients."""
    commands = {program: [command for step in story() for command in step.commands_of(program)] for program in PROGRAMS}
    assert {command for step in story() for command in step.commands} == {
        each for of in commands.values() for each in of
    }
    assert PAGE.read_text().count("```sh\n") == len(story())
    assert len(METHODS) == 23
    for program in ("grpcurl", "buf"):
        called = {word for command in commands[program] for word in re.findall(r"charging\.v1\.\w+/\w+", command)}
        assert called == set(METHODS)
    assert len(commands[LOAD]) == 1


def test_what_differs_is_told_from_what_may() -> None:
    shown = '{\n  "position": "3",\n  ...\n  "status": "CHARGED"\n}\n'
    assert fits(shown, '{\n  "position":  "17",\n  "a": 1,\n  "b": 2,\n  "status": "CHARGED"\n}\n')
    assert not fits(shown, '{\n  "position": "3",\n  "status": "PENDING"\n}\n')
    assert not fits(shown, '{\n  "position": "3",\n  "status": "CHARGED",\n  "more": 1\n}\n')
    assert not fits("", "error: no\n")


def test_the_tools_are_pinned_by_content() -> None:
    pins = Path(__file__).parent / "pins"
    for name, module in (("grpcurl", "github.com/fullstorydev/grpcurl"), ("ghz", "github.com/bojand/ghz")):
        assert re.search(rf"^{re.escape(module)} v\S+ h1:", (pins / name / "go.sum").read_text(), re.MULTILINE)
        assert "://" not in (pins / name / "go.mod").read_text()
    assert "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest" in (ROOT / "docs" / "grpcurl.md").read_text()
