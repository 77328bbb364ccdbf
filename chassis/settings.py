"""Settings come from the environment, once, into a frozen dataclass; all problems are reported together.

A settings class is a frozen dataclass whose fields are made by `setting`, each with its variable, its default and the
reason why it exists. What a variable may hold is said by the field's parser.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class SettingsError(Exception):
    """The environment does not make valid settings; the text lists every problem and the way out."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, or to connect to: host and port. Who listens on port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def setting(variable: str, parse: Callable[[str], T], default: str | None, why: str) -> T:
    """Declare a field read from `variable`; a default of None makes it required. `why` is shown with a problem."""
    metadata = {"variable": variable, "parse": parse, "default": default, "why": why}
    # The type checker sees the field's own type; the dataclass sees its description.
    return dataclasses.field(metadata=metadata)  # type: ignore[no-any-return]  # dataclasses.field is typed as its value


def read(settings: type[T], environment: Mapping[str, str]) -> T:
    """Make a settings object from the environment. Raises SettingsError naming every variable that is unusable."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]  # T is a dataclass by this module's rule
        variable, why = field.metadata["variable"], field.metadata["why"]
        text = environment.get(variable, field.metadata["default"])
        if text is None:
            problems.append(f"{variable} is not set ({why})")
            continue
        try:
            values[field.name] = field.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{variable}: {error} ({why})")
    if problems:
        raise SettingsError("settings cannot be used:\n  " + "\n  ".join(problems))
    return settings(**values)


def text(value: str) -> str:
    """Any text but none."""
    if not value:
        raise ValueError("must not be empty")
    return value


def address(value: str) -> Address:
    """host:port, as 127.0.0.1:50051 or [::1]:0."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port with a port from 0 to 65535")
    return Address(host.strip("[]"), int(port))


def optional_address(value: str) -> Address | None:
    """host:port, or nothing for none."""
    return address(value) if value else None


def addresses(value: str) -> tuple[Address, ...]:
    """One or more host:port to connect to, comma-separated."""
    found = tuple(address(part.strip()) for part in value.split(","))
    if not all(each.port for each in found):
        raise ValueError("must be host:port with a port from 1 to 65535, or several of them")
    return found


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
