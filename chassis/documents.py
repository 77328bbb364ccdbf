"""TOML files of settings, read strictly: all problems are told together, and nothing is quoted that may be a secret."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from chassis.watched import Files, Unusable


def read_toml(path: Path, files: Files) -> dict[str, Any]:
    """Read a TOML file. Raises Unusable, whose text quotes nothing of it."""
    try:
        return tomllib.loads(files.read(path).decode())
    except UnicodeDecodeError:
        raise Unusable(f"{path}: is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        # Its text may quote the file, and ends with the place. A number that is too long for Python has none.
        place = "".join(re.findall(r" \(at [a-z0-9 ,]+\)$", str(error)))
        raise Unusable(f"{path}: is no TOML{place}") from None


class Reading:
    """Reads a document and collects its problems, so that all are told together."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def end(self, path: Path) -> None:
        """Raise Unusable if the file has a problem; its text lists them all."""
        if self.problems:
            raise Unusable(f"{path}: cannot be used:\n  " + "\n  ".join(self.problems))

    def only(self, where: str, entry: Mapping[str, Any], known: Collection[str]) -> None:
        """Take no other keys than the known ones."""
        self.problems += [
            f"{where}: nothing is meant by the key {shown(key, known)}" for key in entry if key not in known
        ]

    def number(self, where: str, entry: Mapping[str, Any], key: str, least: float, most: float) -> float | None:
        """Read a number within bounds; None if there is none."""
        value = entry.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            self.problems.append(f"{where}: {key} must be a number from {least:g} to {most:g}")
            return None
        return float(value)


def listed(words: Iterable[str]) -> str:
    """Name some words in a row."""
    return ", ".join(words)


def shown(word: str, known: Collection[str]) -> str:
    """Quote a word that is nearly the one that is meant, or a plain one. Another may be a secret, in the wrong place."""
    near = difflib.get_close_matches(word, list(known), n=1)
    if near:
        return f"{word!r}: is {near[0]!r} meant?"
    return repr(word) if re.fullmatch("[a-z_]{1,24}", word) else f"of {len(word)} characters"
