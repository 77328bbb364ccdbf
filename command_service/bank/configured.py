"""The banks and the rule that names one for a charge, read from the TOML file of COMMAND_BANKS, once, at the start.

```toml
unnamed = "acme"                  # the bank of the charges that were accepted under COMMAND_BANK_URL; needed for these only

[banks.acme]                      # a name of small letters, digits, _ and -: it is stored with each charge
kind = "two_step"
url = "https://bank.example"
tls = "acme"                      # a folder as that of COMMAND_BANK_TLS; a relative path begins at this file's folder
proxy = "http://proxy.example:3128"   # is asked to CONNECT; for https only
calls = 128                       # at once
timeout_seconds = 10

[banks.stripe]
kind = "stripe"
url = "https://api.stripe.com"
key_file = "/run/secrets/stripe"
return_url = "https://shop.example/back"      # whatever else stands here is for the bank's kind

[[routes]]                        # the first that fits a charge names its bank; with a single bank there need be none
currencies = ["EUR"]
brands = ["visa"]                 # as the client calls them, in small or large letters
banks = { acme = 3, stripe = 1 }  # weights: three of four charges go to acme

[[routes]]                        # the last must fit every charge
banks = { stripe = 1 }
```

A file with any fault is refused as a whole.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from chassis.documents import Reading, listed, read_toml
from chassis.settings import file_path
from chassis.watched import Files, Unusable
from command_service.bank.addresses import bank_url, proxy_url
from command_service.bank.kinds import KINDS, BankSettings
from command_service.bank.routes import Route
from contract.currencies import EXPONENTS

_NAME = re.compile(r"[a-z0-9_-]{1,40}")
_COMMON = ("kind", "url", "key_file", "tls", "proxy", "calls", "timeout_seconds")
_CALLS, _SECONDS, _WEIGHTS = (1, 10_000), (0.05, 120.0), (0.001, 1_000_000.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Banks:
    """All banks, by their names, and the routes of charges to them. The last route fits every charge."""

    banks: Mapping[str, BankSettings]
    routes: Sequence[Route]
    unnamed: str = ""
    """Of these the bank of charges that name none; empty: no bank here, unless one has the empty name."""


def read_banks(path: Path) -> Banks:
    """Read the file. Raises Unusable, whose text lists every problem and quotes no secret."""
    reading = _Reading(path.parent)
    banks = reading.file(read_toml(path, Files()))
    reading.end(path)
    return banks


class _Reading(Reading):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def file(self, document: Mapping[str, Any]) -> Banks:
        self.only("the file", document, ("unnamed", "banks", "routes"))
        tables = document.get("banks")
        if not isinstance(tables, dict) or not tables:
            self.problems.append("it names no bank: [banks.NAME]")
            tables = {}
        names = [name for name in tables if _NAME.fullmatch(name)]
        if len(names) < len(tables):
            self.problems.append("[banks]: a bank's name must be 1 to 40 of a-z 0-9 _ -")
        banks = {name: self._bank(f"[banks.{name}]", name, tables[name]) for name in names}
        unnamed = document.get("unnamed", "")
        if unnamed != "" and unnamed not in tuple(banks):
            self.problems.append(f"unnamed: there is no bank {_quoted(unnamed, banks)}")
        return Banks(MappingProxyType(banks), self._routes(document.get("routes"), banks), str(unnamed))

    def _bank(self, where: str, name: str, entry: Any) -> BankSettings:
        if not isinstance(entry, dict):
            self.problems.append(f"{where}: must be a table")
            return BankSettings(name, "", "")
        kind, url = entry.get("kind"), self._read(where, entry, "url", bank_url) or ""
        if "url" not in entry:
            self.problems.append(f"{where}: url is missing: the bank's address")
        if kind not in tuple(KINDS):
            self.problems.append(f"{where}: kind must be one of {listed(KINDS)}")
        proxy = self._read(where, entry, "proxy", proxy_url) or ""
        key_file, tls = (self._read(where, entry, key, file_path) for key in ("key_file", "tls"))
        if url.lower().startswith("http:"):
            if tls is not None:
                self.problems.append(f"{where}: tls is set, and url is http: is https meant?")
            if proxy:
                self.problems.append(
                    f"{where}: proxy is set, and url is http: the proxy could read and change the calls"
                )
        return BankSettings(
            name=name,
            kind=str(kind),
            url=url,
            key_file=self._file(where, key_file),
            tls=None if tls is None else self._folder / tls,
            proxy=proxy,
            options=MappingProxyType({key: value for key, value in entry.items() if key not in _COMMON}),
            **self._limits(where, entry),
        )

    def _read(self, where: str, entry: Mapping[str, Any], key: str, parse: Callable[[str], T]) -> T | None:
        """Read a text, if it is there."""
        value = entry.get(key)
        if value is None:
            return None
        try:
            if not isinstance(value, str):
                raise ValueError("must be a text")
            return parse(value)
        except ValueError as error:
            self.problems.append(f"{where}: {key} {error}")
            return None

    def _file(self, where: str, key_file: Path | None) -> Path | None:
        """Look whether a file can be read: without it each call would fail. Its name may be the secret, in the wrong place."""
        if key_file is None:
            return None
        file = self._folder / key_file
        try:
            Files().read(file)
        except Unusable as error:
            self.problems.append(f"{where}: key_file: {str(error).removeprefix(f'{file}: ')}")
        return file

    def _limits(self, where: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        found: dict[str, Any] = {"timeout_seconds": self.number(where, entry, "timeout_seconds", *_SECONDS)}
        calls = found["calls"] = entry.get("calls")
        least, most = _CALLS
        if calls is not None and (type(calls) is not int or not least <= calls <= most):
            self.problems.append(f"{where}: calls must be a whole number from {least} to {most}")
        return {key: value for key, value in found.items() if value is not None}

    def _routes(self, entries: Any, banks: Collection[str]) -> Sequence[Route]:
        if entries is None and len(banks) == 1:
            return (Route(dict.fromkeys(banks, 1.0)),)
        if not isinstance(entries, list) or not entries:
            self.problems.append("which bank a charge is for is not said: [[routes]]")
            return ()
        routes = [self._route(f"route {number}", entry, banks) for number, entry in enumerate(entries, 1)]
        for number, route in enumerate(routes[:-1], 1):
            if route.fits_all:
                self.problems.append(f"route {number}: fits every charge, so that no route after it is ever reached")
        if not routes[-1].fits_all:
            self.problems.append(f"route {len(routes)}: the last route must fit every charge: no currencies, no brands")
        return routes

    def _route(self, where: str, entry: Any, banks: Collection[str]) -> Route:
        if not isinstance(entry, dict):
            self.problems.append(f"{where}: must be a table")
            return Route({})
        self.only(where, entry, ("currencies", "brands", "banks"))
        currencies, brands = self._texts(where, entry, "currencies"), self._texts(where, entry, "brands")
        if any(code not in EXPONENTS for code in currencies):
            self.problems.append(f"{where}: currencies must be ISO 4217 codes of currencies in use, in upper case")
        weights = entry.get("banks")
        if not isinstance(weights, dict) or not weights:
            self.problems.append(f"{where}: names no bank: banks = {{ NAME = WEIGHT }}")
            weights = {}
        for name in weights:
            if name not in banks:
                self.problems.append(f"{where}: there is no bank {_quoted(name, banks)}")
        found = {name: self.number(where, weights, name, *_WEIGHTS) or 0.0 for name in weights if name in banks}
        return Route(MappingProxyType(found), frozenset(currencies), frozenset(brand.casefold() for brand in brands))

    def _texts(self, where: str, entry: Mapping[str, Any], key: str) -> Sequence[str]:
        if key not in entry:
            return ()
        texts = entry[key]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            self.problems.append(f"{where}: {key} must be a list of texts that is not empty")
            return ()
        return texts


def _quoted(name: object, banks: Collection[str]) -> str:
    """Quote a name that may be a bank's. Another may be a secret, in the wrong place."""
    return repr(name) if isinstance(name, str) and _NAME.fullmatch(name) else f"of that name: {listed(banks)}"
