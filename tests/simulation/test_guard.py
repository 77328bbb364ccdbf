"""Simulated code reaches no real clock, chance or thread: neither in its source, nor while a story runs.

The source test reads every module that a story runs. Watched names may be used only as in EXCEPTIONS, where each has its
reason. The guard at run time also sees uses that the source does not show, such as those of a library.
"""

import ast
import datetime
import re
import sys
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from command_service.bank import Bank
from prove.loop_bugs import Looking
from prove.simulation.guard import Guard, Reached
from prove.simulation.plan import plan_of
from prove.simulation.servers import SimulatedParts
from prove.simulation.stories import tell

ROOT = Path(__file__).parents[2]
# Modules that build a server, read its settings or run a command: a story has its own in their place.
REPLACED = frozenset({"__main__.py", "checking.py", "cli.py", "serving.py", "settings.py"})
# Packages that are programs of their own: a server runs them in a process beside it, and no story does.
PROGRAMS = frozenset({"reconciling"})
# Modules of time, chance, threads, processes or connections. `sys` has `sys.modules`, a way to all of them.
WATCHED = frozenset(
    {
        *(
            "time",
            "datetime",
            "calendar",
            "random",
            "secrets",
            "uuid",
            "os",
            "sys",
            "threading",
            "_thread",
            "concurrent",
        ),
        *(
            "multiprocessing",
            "subprocess",
            "socket",
            "select",
            "selectors",
            "ssl",
            "signal",
            "sched",
            "tempfile",
            "queue",
        ),
        *("importlib", "ctypes", "email", "http", "urllib", "_random", "_datetime", "numpy"),
    }
)
# Other ways to them: asyncio's functions that use a thread or a process, and functions that import a module by its name.
WATCHED_NAMES = frozenset(
    {
        *("asyncio.to_thread", "asyncio.run", "asyncio.Runner", "asyncio.new_event_loop"),
        *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
        *("__import__", "eval", "exec", "globals", "vars"),
    }
)
CHANCE = {"random.Random": "the type of the chance that is passed in"}
# Files are allowed: a story has real ones of its own.
FILES = re.compile(
    r"os\.(open|close|pread|pwrite|fsync|link|replace|fstat|ftruncate|fchmod|fchown|geteuid|getegid|path\.realpath|O_[A-Z]+)"
)
SOCKETS = "real connections to the bank, which a story replaces above them"
FORM = {"urllib.parse.urlencode": "a form's text: no connection is made"}
EXCEPTIONS: Mapping[str, Mapping[str, str]] = {
    "chassis/disk.py": dict.fromkeys(
        ("threading.Thread", "queue.SimpleQueue"), "the one seam to a thread: a story has a disk of its own"
    ),
    "command_service/bank/breaker.py": CHANCE,
    "command_service/parts.py": {
        **dict.fromkeys(
            ("time.monotonic", "time.time_ns", "random.Random", "os._exit"), "a part that a story's own parts override"
        ),
        "ssl.SSLContext": SOCKETS,
    },
    "command_service/bank/conformance/trial.py": {
        "uuid.uuid4": "no story runs it: a reference for a bank that is tried"
    },
    "command_service/bank/gateway_statement.py": {
        "datetime.datetime.fromtimestamp": "a time to its text",
        "datetime.UTC": "a constant",
        "urllib.parse.urlencode": FORM["urllib.parse.urlencode"],
    },
    "command_service/bank/stripe/__init__.py": {"time.time": "a default, and a story hands in its own"},
    "command_service/bank/stripe/api.py": FORM,
    "command_service/bank/stripe/dialect.py": FORM,
    "query_service/parts.py": dict.fromkeys(
        ("time.monotonic", "time.time_ns", "random.Random"), "a part that a story's own parts override"
    ),
    "query_service/view_file.py": {"sys.platform": "a constant"},
    "command_service/journal/postgres/cluster.py": CHANCE,
    "command_service/journal/postgres/store.py": CHANCE,
    "command_service/runner.py": CHANCE,
    "query_service/subscriber.py": {
        "random.Random": "a default, and a story hands in its own",
        "time.monotonic": "a default, and a story hands in its own",
    },
    "command_service/bank/transport.py": {
        "datetime.datetime.now": "the wait that an HTTP date asks for: the guard has put the virtual clock there",
        "email.utils.parsedate_to_datetime": "a date from its text",
        "datetime.UTC": "a constant",
        "ssl.SSLContext": SOCKETS,
        "ssl.SSLCertVerificationError": SOCKETS,
        "ssl.SSLError": SOCKETS,
    },
    "command_service/bank/times.py": dict.fromkeys(
        ("datetime.datetime", "datetime.datetime.fromisoformat", "datetime.timedelta", "datetime.UTC"),
        "a time from its text",
    ),
    "command_service/bank/http11.py": dict.fromkeys(("select.poll", "select.POLLIN", "ssl.SSLContext"), SOCKETS),
    "command_service/card_numbers.py": {"urllib.parse.unquote": "text from its escapes: no connection is made"},
    "command_service/journal/store.py": {"uuid.uuid4": "a new journal's id: a story hands in its own"},
    "command_service/operate.py": {
        "datetime.datetime.fromtimestamp": "a date from a record's time",
        "datetime.UTC": "a constant",
    },
    "query_service/api.py": {"uuid.UUID": "an id from its text"},
    "query_service/messages.py": {"uuid.UUID": "an id's text from its bytes"},
}


# ---------------------------------------------------------------- by the source
JOURNAL = ROOT / "command_service" / "journal"
# Of PostgreSQL a story runs what lies above the seam (session.py): the store, its leases, and the way to the primary.
ABOVE_SEAM = frozenset(
    {"__init__.py", "session.py", "store.py", "plan.py", "following.py", "leases.py", "cluster.py", "schema.py"}
)


def simulated() -> list[Path]:
    """The sources that a story runs. An operator's commands are none of them, nor the real statements."""
    services = (path for name in ("command_service", "query_service") for path in (ROOT / name).rglob("*.py"))
    services = (path for path in services if path != JOURNAL / "copying.py")
    services = (path for path in services if path.parent.name != "postgres" or path.name in ABOVE_SEAM)
    chassis = (ROOT / "chassis" / name for name in ("disk.py", "sqlite.py"))
    return [
        *chassis,
        *(path for path in sorted(services) if path.name not in REPLACED and path.parent.name not in PROGRAMS),
    ]


def reached(source: str) -> Iterator[str]:
    """Every use of a watched name, by its full name, under any import."""
    tree = ast.parse(source)
    names: dict[str, str] = {name: name for name in WATCHED_NAMES if "." not in name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or full] = full
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"{node.module}.*" for alias in node.names if alias.name == "*" and _is_watched(node.module))
    within: set[ast.AST] = set()
    for node in ast.walk(tree):  # an attribute comes before its object
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (f"SQL {found}" for found in re.findall(SQL, node.value, re.IGNORECASE))
        if node in within or not isinstance(node, ast.Attribute | ast.Name):
            continue
        attributes: list[str] = []
        part: ast.expr = node
        while isinstance(part, ast.Attribute):
            within.add(part)
            attributes.insert(0, part.attr)
            part = part.value
        if isinstance(part, ast.Name) and part.id in names:
            within.add(part)
            full = ".".join((names[part.id], *attributes))
            if _is_watched(full):
                yield full


# SQLite's own functions of time and chance.
SQL = r"\brandom(?:blob)?\(|\bcurrent_(?:time|date|timestamp)\b|'now'|\bunixepoch\(\)|\bjulianday\(\)"


def _is_watched(full: str) -> bool:
    return full.split(".", maxsplit=1)[0] in WATCHED or full in WATCHED_NAMES


@pytest.mark.parametrize("path", simulated(), ids=lambda path: str(path.relative_to(ROOT)))
def test_simulated_source_reaches_no_clock_chance_or_thread(path: Path) -> None:
    """Except for EXCEPTIONS, each of which is needed."""
    allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)), {})
    assert {found for found in reached(path.read_text()) if not FILES.fullmatch(found)} == set(allowed)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from time import monotonic\nmonotonic()", "time.monotonic"),
        ("def f():\n    from time import monotonic as m\n    return m()", "time.monotonic"),
        ("import time as t\nclock = t.time", "time.time"),
        ("import time\ngetattr(time, 'monotonic')()", "time"),
        ("import time\ntime.clock_gettime(time.CLOCK_REALTIME)", "time.clock_gettime"),
        ("import time\ntime.strftime('%Y')", "time.strftime"),
        ("from time import *", "time.*"),
        ("import secrets\nsecrets.token_hex()", "secrets.token_hex"),
        ("import datetime\ndatetime.datetime.now()", "datetime.datetime.now"),
        ("import datetime\ndatetime.datetime.utcnow()", "datetime.datetime.utcnow"),
        ("from datetime import datetime\ndatetime.now()", "datetime.datetime.now"),
        ("from datetime import date\ndate.today()", "datetime.date.today"),
        ("import random\nrandom.expovariate(1)", "random.expovariate"),
        ("from random import SystemRandom\nSystemRandom().random()", "random.SystemRandom"),
        ("import _thread\n_thread.start_new_thread(print, ())", "_thread.start_new_thread"),
        ("import threading\nthreading.Thread(target=print).start()", "threading.Thread"),
        ("import concurrent.futures\nconcurrent.futures.ThreadPoolExecutor()", "concurrent.futures.ThreadPoolExecutor"),
        ("import asyncio\nasyncio.to_thread(print)", "asyncio.to_thread"),
        ("from asyncio import to_thread\nto_thread(print)", "asyncio.to_thread"),
        ("import os\nos.urandom(8)", "os.urandom"),
        ("import uuid\nuuid.uuid4()", "uuid.uuid4"),
        ("import sys\nsys.modules['time'].time()", "sys.modules"),
        ("__import__('time').time()", "__import__"),
        ("import importlib\nimportlib.import_module('time')", "importlib.import_module"),
        ("connection.execute('SELECT random()')", "SQL random("),
        ("connection.execute(\"SELECT strftime('%s', 'now')\")", "SQL 'now'"),
    ],
)
def test_each_form_is_found_in_a_source(source: str, found: str) -> None:
    """The controls of the test above."""
    assert found in set(reached(source))


def test_a_clock_or_chance_that_is_passed_in_may_be_used() -> None:
    """And so may a value that only has such a name."""
    source = "def f(chance, clock, time):\n    clock()\n    chance.random()\n    return time.seconds, 'random text'"
    assert not set(reached(source))


# ---------------------------------------------------------------- at run time
# Looked up while the guard is on, as by the product. The values are the names in the guard's report, if they differ.
FORMS = {
    "time.time()": "",
    "time.time_ns()": "",
    "time.monotonic()": "",
    "time.clock_gettime(0)": "",
    "time.process_time()": "",
    "time.strftime('%Y')": "",
    "time.localtime()": "",
    "random.random()": "",
    "random.expovariate(1.0)": "",
    "random.gauss(0, 1)": "",
    "random.Random()": "random.Random without a seed",
    "random.SystemRandom().random()": "random._urandom",
    "secrets.token_hex()": "random._urandom",
    "secrets.randbelow(9)": "random._urandom",
    "datetime.datetime.now()": "datetime.now",
    "datetime.datetime.utcnow()": "datetime.utcnow",
    "datetime.datetime.today()": "datetime.today",
    "datetime.date.today()": "date.today",
    "os.urandom(1)": "",
    "os.getrandom(1)": "",
    "uuid.uuid4()": "",
    "uuid.uuid1()": "",
    "threading.Thread(target=int).start()": "threading.Thread.start",
    "threading._start_new_thread(int, ())": "",
    "_thread.start_new_thread(int, ())": "",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_guard_refuses_real_clocks_chance_and_threads(form: str) -> None:
    """It also records the use, in case its exception is swallowed. Afterwards the real ones work again."""
    guard = Guard()
    names: dict[str, Any] = {name: __import__(name) for name in (*WATCHED - {"numpy"}, "secrets")}
    with guard.on(lambda: 0), pytest.raises(Reached):
        eval(form, names)  # one of those above
    assert guard.reached[0] == (FORMS[form] or form.partition("(")[0])
    eval(form, names)  # as above


def test_the_guard_refuses_a_clock_that_a_module_of_the_product_has_imported_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And an imported datetime class gives the story's time."""
    module = types.ModuleType("command_service.names_of_its_own")
    names = vars(module)
    names |= {"monotonic": time.monotonic, "datetime": datetime.datetime, "date": datetime.date}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    guard = Guard()
    with guard.on(lambda: 5_000_000):
        assert names["datetime"].now(datetime.UTC).timestamp() == 5
        for form in ("monotonic()", "datetime.utcnow()", "date.today()"):
            with pytest.raises(Reached):
                eval(form, dict(names))  # one of these
    assert guard.reached == ["time.monotonic", "datetime.utcnow", "date.today"]
    assert names["monotonic"] is time.monotonic


@pytest.mark.parametrize("form", ["time.strftime('%Y')", "random.expovariate(1.0)", "secrets.token_hex()"])
def test_a_story_whose_code_reaches_a_real_clock_chance_or_thread_fails(form: str) -> None:
    """The guard in place, around a call of the product's own loop."""
    names: dict[str, Any] = {name: __import__(name) for name in ("time", "random", "secrets")}

    class Reaching(SimulatedParts):
        def bank(self) -> Bank:
            return Looking(super().bank(), lambda: eval(form, names))  # one of those above

    found = {violation.invariant for seed in range(3) for violation in tell(plan_of(seed), parts=Reaching).violations}
    assert "guard" in found
