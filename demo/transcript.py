"""Show in the README what `make run` prints: python -m demo.transcript

The tour runs on free ports, in a folder that is gone afterwards. Only the text between the two marks is replaced.
`comparable` makes two runs equal that differ in nothing but the bank's ids and the time.
"""

import asyncio
import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

from chassis import process
from demo import tour
from rig.processes import DidNotStart, Town

README = Path("README.md")
BEGIN, END = "<!-- tour: python -m demo.transcript -->", "<!-- end of tour -->"
FREE_PORTS = dict.fromkeys(tour.LISTEN, "127.0.0.1:0")


async def transcript() -> str:
    """Tell the tour's story and return what it prints, with the folder that `make run` uses. Raises DidNotStart."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        town = Town(Path(folder))
        try:
            with contextlib.redirect_stdout(printed):
                await tour.told(town, FREE_PORTS)
        finally:
            await town.__aexit__()
    return printed.getvalue().replace(folder, tour.FOLDER).rstrip("\n")


def comparable(text: str) -> str:
    """Replace the bank's random ids and every time by fixed ones of the same length."""
    text = re.sub(r"\b(txn|ttok)_[0-9a-f]{32}\b", rf"\1_{'0' * 32}", text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "2000-01-01T00:00:00.000Z", text)


def shown(page: str) -> str:
    """Return the transcript that a page shows. Raises ValueError if the page lacks the marks."""
    begin, end = page.index(BEGIN), page.index(END)
    return page[begin + len(BEGIN) : end].strip("\n").removeprefix("```text\n").removesuffix("\n```")


def replaced(page: str, text: str) -> str:
    """Return a page with another transcript between its marks. Raises ValueError if the page lacks the marks."""
    begin, end = page.index(BEGIN), page.index(END)
    return f"{page[:begin]}{BEGIN}\n\n```text\n{text}\n```\n\n{page[end:]}"


def main() -> None:
    """Write the page."""
    process.parser("python -m demo.transcript", __doc__ or "").parse_args()
    try:
        text = asyncio.run(transcript())
    except DidNotStart as error:
        sys.exit(f"error: {error}")
    README.write_text(replaced(README.read_text(), text))
    print(README)


if __name__ == "__main__":
    main()
