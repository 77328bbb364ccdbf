"""The code's own shape: rules on which a reader may rely before reading."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = [
    *("chargeonce", "chargeonce_client", "chassis", "console", "contract", "command_service", "query_service"),
    "gateway_mock",
]
HARNESSES = ["judge", "rig", "demo", "bench", "prove"]
SOURCES = sorted(path for package in PRODUCT for path in (ROOT / package).rglob("*.py"))
ALL = [*SOURCES, *sorted(path for package in HARNESSES for path in (ROOT / package).rglob("*.py"))]
CORE = ("values", "events", "failures", "operation", "book", "desk_rules", "charge")
PURE = {
    "dataclasses",
    "enum",
    "typing",
    "collections.abc",
    "command_service",
    *(f"command_service.{name}" for name in CORE),
}
# Words that say nothing: a name says what the thing does.
EMPTY_WORDS = re.compile(r"(Manager|Helper|Util|Utils|Base|Impl|Handler|Data|Info)(?=[A-Z]|$)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    """One job may need a long file. A file with two jobs is split by job, never squeezed."""
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_every_file_begins_with_its_purpose(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_names_hold_no_empty_words(path: Path) -> None:
    names = {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name for name in names if EMPTY_WORDS.search(name)} == set()


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_nothing_but_pure_types_and_itself(name: str) -> None:
    tree = ast.parse((ROOT / "command_service" / f"{name}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported <= PURE


def test_only_the_chassis_starts_threads_for_sqlite_and_standard_error() -> None:
    """One seam: a simulation that runs it inline runs the real journal and the real view. The thread that writes the log may
    block for ever, so a process's `main` starts it and a simulation has none."""
    users = {
        _name(path)
        for path in SOURCES
        if re.search(r"ThreadPoolExecutor|run_in_executor|to_thread|import threading", path.read_text())
    }
    assert users == {"chassis/disk.py", "chassis/stderr.py"}


def test_the_environment_is_read_by_command_lines_and_by_the_client_only() -> None:
    readers = {_name(path) for path in SOURCES if re.search(r"os\.environ|getenv", path.read_text())}
    assert {name for name in readers if Path(name).name not in ("cli.py", "__main__.py")} == {
        "chargeonce_client/settings.py"
    }


def test_the_installed_stubs_match_the_contract(tmp_path: Path) -> None:
    """An editable install does not notice a later edit of a .proto: run `make install` again."""
    generate = (
        "import sys; sys.path.insert(0, 'protos'); import build, pathlib; "
        "build.generate(pathlib.Path('.'), pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", generate, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    made, installed = (
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in (root / "charging").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        for root in (tmp_path, ROOT)
    )
    assert made == installed


def test_nothing_names_a_machine_or_a_package_host() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    forbidden = re.compile(r"/(?:work|farm|root)/|index-url|registry *= *.?http|files\.pythonhosted|pypi\.org")
    found = [
        path
        for path in tracked
        if (ROOT / path).is_file()
        and path != _name(Path(__file__))
        and forbidden.search((ROOT / path).read_text(errors="replace"))
    ]
    assert found == []
