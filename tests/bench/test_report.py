"""The results of measurements: medians, ratios within a round, verdicts, the file, the page, and the kernel's figures."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import rig.programs
from bench import __main__ as driver
from bench import machine, page, programs, results, sites, targets
from bench.compare import compare, ratios, summary
from bench.measure import Measurement, Size
from bench.overload import back_to_normal
from bench.targets import TARGETS, Verdict


def measured(service: str, number: int, rate: float, *, in_flight: int = 16, cpu_ms: float = 1.0) -> Measurement:
    return Measurement(
        round=number,
        service=service,
        in_flight=in_flight,
        rate=rate,
        p50_ms=1.0,
        p99_ms=2.0,
        p999_ms=3.0,
        max_ms=4.0,
        cpu_ms=cpu_ms,
        memory_mb=50.0,
        processes_cpu_ms={"service": cpu_ms, "bank": 0.1},
        processes_memory_mb={"service": 50.0},
        errors={"UNAVAILABLE": 1} if rate < 60 else {},
        more={},
        load_average=0.0,
    )


ROUNDS = [
    # The machine is three times as fast in the second round, and strange in the third.
    measured(sites.PRODUCT, 0, 1_000, cpu_ms=0.5),
    measured(sites.TUTORIAL, 0, 50),
    measured(sites.PRODUCT, 1, 3_000, cpu_ms=0.5),
    measured(sites.TUTORIAL, 1, 200),
    measured(sites.TUTORIAL, 2, 100),
    measured(sites.PRODUCT, 2, 100, cpu_ms=2.0),
    measured(sites.PRODUCT, 0, 700, in_flight=128),
]


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    """A machine that is faster for a while is faster for both services, and one strange round changes nothing."""
    assert ratios(ROUNDS) == {
        "rate against tutorial": {"16": 15.0},
        "cpu_ms against tutorial": {"16": 0.5},
    }


FAMILY = [
    # Which client is the better changes from round to round, and with the load.
    measured(sites.PRODUCT, 0, 1_000),
    measured(sites.TUTORIAL, 0, 100),
    measured(sites.TUTORIAL + sites.AIOHTTP, 0, 500),
    measured(sites.PRODUCT, 1, 900),
    measured(sites.TUTORIAL, 1, 300),
    measured(sites.TUTORIAL + sites.AIOHTTP, 1, 100),
    measured(sites.PRODUCT, 2, 8_000),
    measured(sites.TUTORIAL, 2, 1_000),
    measured(sites.TUTORIAL + sites.AIOHTTP, 2, 2_000),
    measured(sites.PRODUCT, 0, 600, in_flight=1),
    measured(sites.TUTORIAL, 0, 300, in_flight=1),
    measured(sites.TUTORIAL + sites.AIOHTTP, 0, 200, in_flight=1),
]


def test_a_ratio_to_the_best_of_a_family_is_to_the_fastest_of_its_variants_in_the_round_and_under_the_load() -> None:
    """2, 3 and 4 in the three rounds. Neither variant alone has this median: 10, 3 and 8; 2, 9 and 4."""
    found = ratios(FAMILY)
    assert found["rate against the best tutorial"] == {"1": 2.0, "16": 3.0}
    assert found["rate against tutorial"]["16"] == 8.0
    assert found["rate against tutorial-aiohttp"]["16"] == 4.0


def test_a_round_without_one_of_the_variants_gives_no_ratio_to_the_best() -> None:
    """The best of some is not the best of all: an interrupted round would flatter the product."""
    assert ratios(FAMILY[:8])["rate against the best tutorial"] == {"16": 2.5}
    without_client = [one for one in FAMILY if not one.service.endswith(sites.AIOHTTP)]
    assert "rate against the best tutorial" not in ratios(without_client)


def test_every_target_for_a_peer_names_a_ratio_that_the_comparison_makes() -> None:
    """A target that no measurement can reach would stand as "not measured" for ever."""
    each = [measured(name, 0, 100, in_flight=load) for name in sites.ALL for load in (1, 16, 128)]
    found = {"ratios": ratios(each)}
    assert [t.what for t in TARGETS if t.place[0] == "ratios" and t.judge(found)[1] is Verdict.UNMEASURED] == []


async def test_a_peer_far_behind_is_measured_in_the_first_round_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others in each round."""

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[str]:
        yield name

    async def measure(_: str, name: str, *__: object, round_number: int) -> list[Measurement]:
        return [measured(name, round_number, 100)]

    monkeypatch.setattr(sites, "open_site", opened)
    monkeypatch.setattr("bench.compare.measure", measure)
    names = (sites.PRODUCT, sites.TEMPORAL, sites.RESTATE)
    found = [one async for some in compare(names, [16], Size(3, 1.0, 0.0)) for one in some]
    by_service = {name: [one.round for one in found if one.service == name] for name in names}
    assert by_service == {sites.PRODUCT: [0, 1, 2], sites.TEMPORAL: [0], sites.RESTATE: [0, 1, 2]}


def test_the_summary_has_the_shape_that_bench_json_promises() -> None:
    """Medians by service and in flight, and errors where there were any."""
    found = summary(ROUNDS)
    services = found["services"]
    assert isinstance(services, dict)
    assert services[sites.PRODUCT]["16"] == {
        "rate": 1_000,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "p999_ms": 3.0,
        "cpu_ms": 0.5,
        "memory_mb": 50.0,
    }
    assert services[sites.PRODUCT]["128"]["rate"] == 700
    assert services[sites.TUTORIAL]["16"]["rate"] == 100
    assert found["errors"] == {"tutorial 16": 1}


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The driver over measurements that are given; it returns the exit status."""

    def run(rounds: list[Measurement], *more: str) -> int:
        async def compared(names: Sequence[str], *_: object) -> AsyncIterator[list[Measurement]]:
            for one in rounds:
                if one.service in names:
                    yield [one]

        monkeypatch.setattr(driver, "compare", compared)
        monkeypatch.setattr(driver, "BUILD", tmp_path)
        monkeypatch.setattr(rig.programs, "BUILD", tmp_path)
        monkeypatch.setattr(sys, "argv", ["bench", "--only", "compare", *more])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        return driver.main()

    return run


def test_a_comparison_fails_if_one_of_its_charges_failed(
    comparison: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures are printed nevertheless."""
    assert comparison([one for one in ROUNDS if not one.errors]) == 0
    assert comparison(ROUNDS) == 1
    assert "not measured, because of the errors above: compare" in capsys.readouterr().err


def test_a_peer_without_its_server_is_left_out_and_the_file_and_the_page_say_why(
    comparison: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured. The reason is the one that its installation left."""
    programs.RESTATE.folder.parent.mkdir(exist_ok=True)
    rounds = [measured(sites.PRODUCT, 0, 900), measured(sites.RESTATE, 0, 300)]
    assert comparison(rounds) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert set(found["skipped"]) == set(sites.NEEDS)
    assert set(found["services"]) == {sites.PRODUCT}
    reason = found["skipped"][sites.RESTATE]
    assert f"restate is left out: {reason}" in capsys.readouterr().out
    assert f"Not measured: restate, {reason}." in page.figures(found)


def test_a_program_whose_tools_are_missing_leaves_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And is tried again when it is installed the next time."""
    monkeypatch.setattr(rig.programs, "BUILD", tmp_path)
    restate = programs.RESTATE
    assert restate.missing() == "not installed: `python -m bench.programs` does it"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert restate.install() == restate.missing() == "not installed here: node, npm"
    with pytest.raises(FileNotFoundError, match="node, npm"):
        _ = restate.program
    npm = """#!/bin/sh
        folder=node_modules/@restatedev/restate-server-any/bin
        /bin/mkdir -p $folder
        : > $folder/restate-server
    """
    for name, script in (("node", "#!/bin/sh\n"), ("npm", npm)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    assert restate.install() is restate.missing() is None
    assert restate.program.name == "restate-server"


@pytest.mark.parametrize(
    ("npm", "reason"), [("exit 1", "`npm ci` failed"), ("exit 0", "no program for this kind of machine")]
)
def test_a_program_that_cannot_be_installed_leaves_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, npm: str, reason: str
) -> None:
    """A registry that is out of reach, or a processor that nobody builds for."""
    monkeypatch.setattr(rig.programs, "BUILD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("node", "npm"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / name).chmod(0o755)
    assert programs.RESTATE.install() == programs.RESTATE.missing() == reason


def test_the_pins_name_no_host_and_pin_the_content() -> None:
    """Registries are the machine's affair; what comes from them is not."""
    for path in programs.PINS.rglob("*"):
        assert path.is_dir() or "://" not in path.read_text()
    packages = json.loads((programs.PINS / "restate" / "package-lock.json").read_text())["packages"]
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    assert "go.temporal.io/server v1." in (programs.PINS / "temporal" / "go.sum").read_text()


def test_a_target_is_met_missed_or_not_measured() -> None:
    """A figure at its bound meets it, for an upper and for a lower bound."""
    rate = next(target for target in TARGETS if target.place == ("ratios", "rate against the best tutorial", "16"))
    lag = next(target for target in TARGETS if target.place == ("latency", "view_lag_p99_ms"))
    for value, verdict in ((3.19, Verdict.MISSED), (3.2, Verdict.MET)):
        assert rate.judge({"ratios": {"rate against the best tutorial": {"16": value}}}) == (value, verdict)
    for value, verdict in ((50.0, Verdict.MET), (50.1, Verdict.MISSED)):
        assert lag.judge({"latency": {"view_lag_p99_ms": value}}) == (value, verdict)
    nothing: list[dict[str, Any]] = [{}, {"latency": {}}, {"latency": {"view_lag_p99_ms": None}}]
    for found in nothing:
        assert lag.judge(found) == (None, Verdict.UNMEASURED)


@pytest.mark.parametrize(
    ("after_ms", "answered", "seconds"),
    [
        ([10, 10, 10], [5, 5, 5], 0),
        ([900, 400, 10], [5, 5, 5], 2),
        ([900, 10, 81], [5, 5, 5], 3),
        ([900, 80, 10], [5, 5, 5], 1),
        ([0, 0, 10], [0, 0, 5], 2),
        ([0, 0, 0], [0, 0, 0], 3),
    ],
)
def test_normal_is_twice_the_worst_second_before_and_silence_is_not_normal(
    after_ms: list[float], answered: list[float], seconds: float
) -> None:
    """A later bad second counts too."""
    assert back_to_normal([30, 40], after_ms, answered) == seconds


def test_results_are_stored_part_by_part_and_continued_by_later_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later part joins them if commit, size and machine are the same; else the earlier file is kept aside."""
    path = tmp_path / "bench.json"
    monkeypatch.setattr(results, "commit", lambda: "abc")
    results.Results(path, quick=True, anew=True).add({"many": {"errors": 0}})
    results.Results(path, quick=True, anew=False).add({"rebuild": {"records_a_second": 200_000.0}})
    found = json.loads(path.read_text())
    assert (found["commit"], found["many"], found["rebuild"]) == ("abc", {"errors": 0}, {"records_a_second": 200_000.0})
    by_what = {target["what"]: target["verdict"] for target in found["targets"]}
    assert len(by_what) == len(TARGETS)
    assert by_what["rebuild of a view, records/s"] == "met, in a small run"
    assert by_what["1,000 in flight, bank of 100 ms: errors"] == "met, in a small run"
    monkeypatch.setattr(results, "commit", lambda: "def")
    results.Results(path, quick=True, anew=False).add({"many": {"errors": 1}})
    assert "rebuild" not in json.loads(path.read_text())
    assert json.loads((tmp_path / "bench-before.json").read_text()) == found


def test_the_page_gets_its_figures_from_the_file_and_keeps_its_prose() -> None:
    """A second filling changes nothing; the page of a small run says that it is small."""
    found = {
        "commit": "abc",
        "quick": True,
        "machine": {
            **results.machine(),
            "python": "3.11.7",
            "compiler": "GCC 12",
            "profile_guided": "no",
            "link_time_optimised": "unknown",
        },
        **summary([*FAMILY, measured(sites.RESTATE, 0, 400), measured(sites.RESTATE_LOCAL, 0, 250)]),
    }
    found["targets"] = targets.verdicts(found)
    text = f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n"
    filled = page.fill(text, page.figures(found))
    assert filled.startswith("before\n") and filled.endswith("\nafter\n")
    assert "\nold\n" not in filled and "small run" in filled and "abc" in filled
    assert "3.11.7 (GCC 12; profile-guided optimisation: no, link-time optimisation: unknown), uvloop" in " ".join(
        filled.split()
    )
    assert (
        "| charges/s against Restate at its best, 16 in flight | 2.5 | at least 3 times | missed, in a small run |"
        in filled
    )
    assert "| restate | - | 2.5 |" in filled and "| the best tutorial | 2 | 3 |" in filled
    assert "| chargeonce | 16 | 1,000 | 1.00 | 2.0 | 3.0 | 1.000 | 50 |" in filled
    assert page.fill(filled, page.figures(found)) == filled


@pytest.mark.parametrize(
    ("build", "version", "told"),
    [
        # As pyenv builds it when nothing is said.
        ({"CONFIG_ARGS": "'--prefix=/usr/local'", "PGO_PROF_USE_FLAG": "-fprofile-use"}, "3.11.7 (main)", ("no", "no")),
        # Docker's official image, and python-build-standalone.
        (
            {"CONFIG_ARGS": "'--enable-optimizations' '--with-lto'", "PGO_PROF_USE_FLAG": "-fprofile-use"},
            "3.12.1",
            ("yes", "yes"),
        ),
        ({"CONFIG_ARGS": "'--enable-optimizations' '--with-lto=thin'"}, "3.13.0 (Clang 21)", ("yes", "yes")),
        ({"CONFIG_ARGS": "'--enable-optimizations=no' '--with-lto=no'", "PGO_PROF_USE_FLAG": "-f"}, "", ("no", "no")),
        # Debian optimises by other means, and takes the flags out.
        ({"CONFIG_ARGS": "'--enable-shared'", "PGO_PROF_USE_FLAG": ""}, "3.11.2 (main)", ("unknown", "unknown")),
        # conda tells of another build than its own.
        (
            {"CONFIG_ARGS": "'--enable-shared'", "PGO_PROF_USE_FLAG": "-fprofile-use"},
            "3.11.5 | packaged by conda-forge | (main)",
            ("unknown", "unknown"),
        ),
        ({"CONFIG_ARGS": "'a'", "PGO_PROF_USE_FLAG": "-f", "PY_LDFLAGS": "-flto"}, "3.11.7", ("no", "yes")),
        ({}, "3.11.7", ("unknown", "unknown")),
    ],
)
def test_the_interpreters_optimisation_is_told_only_if_its_build_tells_it(
    build: dict[str, str], version: str, told: tuple[str, str]
) -> None:
    """A CPython without it is slower, so its figures must say so; and a guess would be no better than silence."""
    assert tuple(results.optimised(build, version).values()) == told


def test_the_machine_says_which_interpreter_ran() -> None:
    """Files of two interpreters are never one file."""
    found = results.machine()
    assert (found["implementation"], found["python"]) == (
        sys.implementation.name.replace("cp", "CP"),
        sys.version.split()[0],
    )
    assert found["compiler"] and found["uvloop"]
    assert str(found["compiler"]) in sys.version
    assert {found["profile_guided"], found["link_time_optimised"]} <= {"yes", "no", "unknown"}


async def test_a_cost_counts_the_cpu_time_and_memory_of_a_process_and_its_children() -> None:
    """A child of the measured process does the work."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"  # it has the parent's pipes
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    found = machine.cost(process.pid)
    await process.communicate(b"\n")
    assert found.cpu_seconds >= 0.2  # counted in ticks
    assert found.memory_mb > 1
    assert machine.cost(process.pid) == machine.Cost(0.0, 0.0)


def test_a_process_name_with_blanks_and_brackets_shifts_no_field_of_stat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stat` has the name in brackets, and the name may hold brackets too."""
    folder = tmp_path / "7"
    (folder / "task" / "7").mkdir(parents=True)
    (folder / "task" / "7" / "children").write_text("")
    (folder / "stat").write_text("7 (a) b (c) S 1 1 1 0 -1 0 0 0 0 0 100 20 3 4 20 0 1 0\n")
    (folder / "smaps_rollup").write_text(
        "0-1 ---p 00000000 00:00 0 [rollup]\nRss: 9000 kB\nPss: 1000 kB\nPss_Anon: 5 kB\n"
    )
    monkeypatch.setattr(machine, "PROC", tmp_path)
    found = machine.cost(7)
    assert (found.cpu_seconds, found.memory_mb) == pytest.approx((127 * machine.TICK_SECONDS, 1.024))
