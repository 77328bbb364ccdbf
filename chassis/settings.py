"""Settings come from the environment, once, into a frozen dataclass; all problems are reported together.

A settings class is a frozen dataclass whose fields are made by `setting`, each with its variable, its default and the
reason why it exists. The field's parser defines the allowed values. All variables of a class share a prefix, and an unknown
variable with this prefix is refused: a misspelt one would otherwise be ignored in silence.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Default = str | Callable[[Mapping[str, str]], str] | None

# Kubernetes and Docker describe other services to a container in variables with the services' names: a service called
# `command` has COMMAND_PORT=tcp://10.0.0.7:50051, which is no setting of ours.
_OF_OTHER_SERVICES = re.compile(
    r"\w+_SERVICE_HOST=.*|\w+_SERVICE_PORT(_\w+)?=\d*|\w+_PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|\w+_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*"
)


class SettingsError(Exception):
    """The environment does not hold valid settings; the text lists every problem and its remedy."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port to listen on or to connect to. A listener on port 0 gets a free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def from_here(self) -> "Address":
        """Where programs of this machine reach a listener: one that listens on every address has none to connect to."""
        return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)


def setting(
    variable: str, parse: Callable[[str], T], default: Default, why: str, *, instead_of: Sequence[str] = ()
) -> T:
    """Declare a field read from `variable`; a default of None makes it required. `why` is shown with a problem.

    A default may depend on the environment. Where `variable` is set, those that it stands instead of must not be.
    """
    metadata = {"variable": variable, "parse": parse, "default": default, "why": why, "instead_of": instead_of}
    # The type checker sees the field's own type; the dataclass sees its description.
    return dataclasses.field(metadata=metadata)  # type: ignore[no-any-return]  # dataclasses.field is typed as its value


def read(settings: type[T], environment: Mapping[str, str]) -> T:
    """Make a settings object from the environment. Raises SettingsError naming every unusable or unknown variable."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]  # T is a dataclass by this module's rule
        variable, why = field.metadata["variable"], field.metadata["why"]
        text = environment.get(variable, _default(field, environment))
        if text is None:
            problems.append(f"{variable} is not set ({why})")
            continue
        try:
            values[field.name] = field.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{variable}: {error} ({why})")
        both = [other for other in field.metadata["instead_of"] if environment.get(variable) and environment.get(other)]
        problems += [f"{variable} and {other} are both set: set one of them ({why})" for other in both]
    problems += _unknown(settings, environment)
    if problems:
        raise SettingsError("settings cannot be used:\n  " + "\n  ".join(problems))
    return settings(**values)


def describe(settings: type, environment: Mapping[str, str]) -> str:
    """List every setting for a program's help: its variable, its default in this environment, and why it exists."""
    lines = ["settings are variables of the environment (defaults in brackets):"]
    for field in dataclasses.fields(settings):
        default = _default(field, environment)
        shown = "none: must be set" if default is None else default or "nothing"
        lines += ["", f"  {field.metadata['variable']} [{shown}]", f"      {field.metadata['why']}"]
    return "\n".join(lines)


def _default(field: "dataclasses.Field[Any]", environment: Mapping[str, str]) -> str | None:
    default: Default = field.metadata["default"]
    return default(environment) if callable(default) else default


def _unknown(settings: type, environment: Mapping[str, str]) -> list[str]:
    known = [field.metadata["variable"] for field in dataclasses.fields(settings)]
    words = itertools.takewhile(
        lambda word: len(set(word)) == 1, zip(*(name.split("_") for name in known), strict=False)
    )
    prefix = "".join(f"{word[0]}_" for word in words)
    problems = []
    for name, value in environment.items():
        if name in known or not (name.startswith(prefix) or name.upper() in known):
            continue
        if _OF_OTHER_SERVICES.fullmatch(f"{name}={value}"):
            continue
        near = difflib.get_close_matches(name.upper(), known, n=1)
        problems.append(
            f"{name} is no setting" + (f": is {near[0]} meant?" if near else "; --help lists what can be set")
        )
    return problems


def text(value: str) -> str:
    """Any text that is not empty."""
    if not value:
        raise ValueError("must not be empty")
    return value


def file_path(value: str) -> Path:
    """The literal path of a file: `~` and `$HOME`, which only a shell expands, would here be names of folders."""
    if re.search(r"[\x00-\x1f\x7f]|^~|/~/|\$[A-Za-z{(]|^[\s\"']|[\s\"']$", text(value)):
        raise ValueError(
            "must be a path as it is: without ~ and $NAME, control characters, and quotes or blanks at its ends"
        )
    return Path(value)


def optional_path(value: str) -> Path | None:
    """The literal path of a file or folder, or an empty text for None."""
    return file_path(value) if value else None


def state_file(name: str, before: str = "") -> Callable[[Mapping[str, str]], str]:
    """A default: a file in the user's state folder (XDG base directories), or in `data` if the environment names no folder.

    `before` is put before its path.
    """

    def default(environment: Mapping[str, str]) -> str:
        state, home = environment.get("XDG_STATE_HOME", ""), environment.get("HOME", "")
        if state.startswith("/"):  # XDG's rules ignore a relative path
            return f"{before}{state.rstrip('/')}/chargeonce/{name}"
        if home.startswith("/"):
            return f"{before}{home.rstrip('/')}/.local/state/chargeonce/{name}"
        return f"{before}data/{name}"

    return default


def address(value: str) -> Address:
    """host:port, such as 127.0.0.1:50051 or [::1]:0."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port with a port from 0 to 65535")
    return Address(host.strip("[]"), int(port))


def optional_address(value: str) -> Address | None:
    """host:port, or an empty text for None."""
    return address(value) if value else None


def optional_url(value: str) -> str:
    """An http or https URL with a host, perhaps a port and a path, or an empty text."""
    if value and not re.fullmatch(
        r"https?://(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:/[\w./-]*)?", value, re.ASCII
    ):
        raise ValueError("must be http://host:port or https://host, with a path if need be, and nothing else")
    return value


def addresses(value: str) -> tuple[Address, ...]:
    """One or more host:port to connect to, comma-separated."""
    found = tuple(address(part.strip()) for part in value.split(","))
    if not all(each.port for each in found):
        raise ValueError("must be host:port with a port from 1 to 65535, or several of them")
    return found


def address_lists(value: str) -> tuple[tuple[Address, ...], ...]:
    """One or more lists of host:port to connect to, separated by semicolons."""
    return tuple(addresses(part) for part in value.split(";"))


def number(at_least: float, at_most: float) -> Callable[[str], float]:
    """A parser of numbers within bounds."""

    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            raise ValueError("must be a number") from None
        if not at_least <= parsed <= at_most:
            raise ValueError(f"must be from {at_least:g} to {at_most:g}")
        return parsed

    return parse


def whole(at_least: int, at_most: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse(value: str) -> int:
        if not value.isdecimal() or not at_least <= int(value) <= at_most:
            raise ValueError(f"must be a whole number from {at_least} to {at_most}")
        return int(value)

    return parse


def yes_or_no(value: str) -> bool:
    """Yes or no."""
    if value not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return value == "yes"
