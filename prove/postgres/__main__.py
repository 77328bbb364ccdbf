"""`python -m prove.postgres --failovers 50`: fail over so often, find the planted bugs, and say what it came to."""

import asyncio
import sys

from chassis import process
from prove.__main__ import passes, table
from prove.postgres import run
from prove.workers import be_silent


def main() -> int:
    """Run it. Exit status 1 if something broke, or a bug was not found."""
    parser = process.parser("python -m prove.postgres", "Lose the primary of a journal on PostgreSQL time after time.")
    parser.add_argument("--failovers", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    be_silent()
    harness = asyncio.run(
        run(0, lambda text: print(text, file=sys.stderr, flush=True), failovers=chosen.failovers, seed=chosen.seed)
    )
    print(table([harness]))
    return not passes([harness], is_full=False)


if __name__ == "__main__":
    sys.exit(main())
