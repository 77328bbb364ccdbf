"""`python -m prove.storage SECONDS` runs it alone."""

import asyncio
import sys

from prove.storage import run

if __name__ == "__main__":
    print(asyncio.run(run(float(sys.argv[1]), lambda _: None)).as_json())
