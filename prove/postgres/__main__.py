"""`python -m prove.postgres --failovers 50`: fail over so often, find the planted bugs, and say what it came to."""

import asyncio
import sys

from chassis import process
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
    for kind, times in sorted(harness.faults.items()):
        print(f"{times:6}  {kind}")
    for what, figure in harness.figures.items():
        print(f"{what}: {figure}")
    print(f"{harness.canaries_found} of {harness.canaries_planted} planted bugs found")
    print("\n".join(harness.violations) or f"nothing broke in {harness.tried} failovers, {harness.seconds:.0f} s")
    return not harness.is_sound


if __name__ == "__main__":
    sys.exit(main())
