"""Secrets that a server shows to others, each in a file of its own that may be replaced while the server runs."""

import re
from pathlib import Path
from typing import Final

from chassis.watched import Files, Unusable, Watched

# One word of printable ASCII. A blank or a line break inside would end a header early.
_WORD = re.compile(rb"[!-~]{1,4096}")


class Secret:
    """A word that no log, error or traceback shows: whoever needs it calls `reveal`, and keeps nothing of what it returns."""

    __slots__ = ("_word",)

    def __init__(self, word: str) -> None:
        self._word: Final = word

    def reveal(self) -> str:
        """Return the word."""
        return self._word

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not copied to anywhere")


def secret_in(file: Path) -> Watched[Secret]:
    """Read a secret; blanks and line breaks around it do not count. Raises Unusable if the file does not hold one."""

    def make(files: Files) -> Secret:
        word = files.read(file).strip()
        if not _WORD.fullmatch(word):
            raise Unusable(f"{file}: holds no secret, which is one word of printable ASCII characters")
        return Secret(word.decode("ascii"))

    return Watched(make, what=f"the secret in {file}")
