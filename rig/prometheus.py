"""A real Prometheus that scrapes servers of this machine each second, with the real rules, hurried.

`prometheus` and `promtool` are Debian's package prometheus; `make lacking` says whether they are here.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import httpx

from rig.processes import free_address
from rig.world import until

PROGRAMS = ("prometheus", "promtool")
# How much faster time goes in a hurried rule; but no alert waits for longer, and none looks back at less, than this.
HASTE = 30
LONGEST_WAIT_SECONDS, SHORTEST_WINDOW_SECONDS = 1, 6
# Far longer than any hurried alert takes, for a machine that is busy with other things.
PATIENT_SECONDS = 120.0
LOOK_SECONDS = 0.25
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def lacking() -> list[str]:
    """Return which of the programs are not here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def are_required() -> bool:
    """Whether a missing program is a failure."""
    return bool(os.environ.get("PROMETHEUS_REQUIRED")) or os.environ.get("CI") == "true"


def hurried(rules: str) -> str:
    """Return rules that wait for a second at most, and look back at a thirtieth of the time. Nothing else differs.

    >>> hurried("expr: rate(x[5m]) > 0 unless x offset 5m, for: 1h, for: 0s")
    'expr: rate(x[10s]) > 0 unless x offset 10s, for: 1s, for: 0s'
    """

    def window(found: re.Match[str]) -> str:
        seconds = int(found[2]) * _SECONDS[found[3]]
        return f"{found[1]}{max(SHORTEST_WINDOW_SECONDS, seconds // HASTE)}s"

    def wait(found: re.Match[str]) -> str:
        return f"for: {min(LONGEST_WAIT_SECONDS, int(found[1]))}s"

    return re.sub(r"(\[|offset )(\d+)([smh])", window, re.sub(r"for: (\d+)[smh]", wait, rules))


class Prometheus:
    """One Prometheus, with all its files in a folder. `jobs` are the addresses of metrics by the names of jobs."""

    def __init__(self, folder: Path, rules: str, jobs: Mapping[str, Collection[str]]) -> None:
        self._folder = folder
        self._files = {
            folder / "rules.yaml": hurried(rules),
            folder / "prometheus.yml": json.dumps(  # which is YAML
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["rules.yaml"],
                    "scrape_configs": [
                        {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                        for job, addresses in jobs.items()
                    ],
                }
            ),
        }
        self._listen = free_address()
        self._process: asyncio.subprocess.Process | None = None
        self._http = httpx.AsyncClient(base_url=f"http://{self._listen}/api/v1", timeout=60, trust_env=False)

    async def _told(self, path: str, **query: str) -> Any:
        return (await self._http.get(path, params=query)).raise_for_status().json()["data"]

    async def firing(self) -> dict[str, list[dict[str, str]]]:
        """The alerts that fire: the labels of each, by its name."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in (await self._told("/alerts"))["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    async def fires(self, *names: str) -> None:
        """Wait until each of these has fired since now. Raises TimeoutError."""
        waited_for = set(names)
        try:
            async with asyncio.timeout(PATIENT_SECONDS):
                while waited_for:
                    waited_for -= (await self.firing()).keys()
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"do not fire: {sorted(waited_for)}") from None

    async def clears(self, *names: str) -> None:
        """Wait until none of these fires. Raises TimeoutError."""
        firing: set[str] = set(names)
        try:
            async with asyncio.timeout(PATIENT_SECONDS):
                while firing := set(names) & (await self.firing()).keys():  # noqa: ASYNC110 - it asks Prometheus
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"still fire: {sorted(firing)}") from None

    async def value(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression of PromQL is now: labels and value of each series."""
        return [
            (each["metric"], float(each["value"][1]))
            for each in (await self._told("/query", query=expression))["result"]
        ]

    async def __aenter__(self) -> "Prometheus":
        """Start it, and return when it answers."""
        for path, text in self._files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self._listen}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        async def answers() -> bool:
            try:
                await self.firing()
            except httpx.HTTPError:
                assert self._process is not None
                assert self._process.returncode is None, (self._folder / "prometheus.log").read_text()
                return False
            return True

        try:
            await until(answers)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._http.aclose()
