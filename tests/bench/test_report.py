"""The results of measurements: medians, ratios within a round, verdicts, the file, the page, and the kernel's figures."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as driver
from bench import machine, page, results, sites, targets
from bench.compare import ratios, summary
from bench.measure import Measurement
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


def test_a_comparison_fails_if_one_of_its_charges_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures are printed nevertheless."""

    async def compared(*_: object) -> AsyncIterator[list[Measurement]]:
        for one in rounds:
            yield [one]

    monkeypatch.setattr(driver, "compare", compared)
    monkeypatch.setattr(driver, "BUILD", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "compare"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    rounds = [one for one in ROUNDS if not one.errors]
    assert driver.main() == 0
    rounds = ROUNDS
    assert driver.main() == 1
    assert "not measured, because of the errors above: compare" in capsys.readouterr().err


def test_a_target_is_met_missed_or_not_measured() -> None:
    """A figure at its bound meets it, for an upper and for a lower bound."""
    rate = next(target for target in TARGETS if target.place == ("ratios", "rate against tutorial", "16"))
    lag = next(target for target in TARGETS if target.place == ("latency", "view_lag_p99_ms"))
    for value, verdict in ((5.99, Verdict.MISSED), (6.0, Verdict.MET)):
        assert rate.judge({"ratios": {"rate against tutorial": {"16": value}}}) == (value, verdict)
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
        "machine": {"cores": 2, "system": "Linux 6.1", "python": "3.11.7", "sqlite": "3.40.1"},
        **summary(ROUNDS),
    }
    found["targets"] = targets.verdicts(found)
    text = f"before\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n"
    filled = page.fill(text, page.figures(found))
    assert filled.startswith("before\n") and filled.endswith("\nafter\n")
    assert "old" not in filled and "small run" in filled and "abc" in filled
    assert "| charges/s against tutorial, 16 in flight | 15 | at least 6 times | met, in a small run |" in filled
    assert "| chargeonce | 16 | 1,000 | 1.00 | 2.0 | 3.0 | 0.500 | 50 |" in filled
    assert page.fill(filled, page.figures(found)) == filled


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
