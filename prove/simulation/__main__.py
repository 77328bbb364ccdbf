"""Runs simulated stories, many of them: one seed is one story, and repeats exactly.

From seed 1000000 on the stories are of several command servers on one database, from 2000000 on of banks of every shape, and
from 3000000 on operators are at the desk. A run takes every fourth seed from each.

    python -m prove.simulation 5000               the seeds 0 to 4999
    python -m prove.simulation 100 --first 7000   the seeds 7000 to 7099
    python -m prove.simulation 200 --canaries     each planted bug must be found within so many seeds
    python -m prove.simulation --tell 183         tell one story, shrunk to what matters if it fails

Exit status 0: nothing broke, and every canary was found.
"""

import sys
from collections.abc import Callable

from chassis import process
from prove.simulation.faults import KINDS
from prove.simulation.plan import plan_of
from prove.simulation.stories import as_story, run, shrink


def main() -> int:
    """Run what was asked for, with a progress line."""
    parser = process.parser("python -m prove.simulation", __doc__ or "")
    parser.add_argument("seeds", type=int, nargs="?", default=1_000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--canaries", action="store_true", help="plant every canary before")
    parser.add_argument("--tell", type=int, metavar="SEED", help="tell the story of one seed")
    chosen = parser.parse_args()
    if chosen.tell is not None:
        _, told = shrink(plan_of(chosen.tell))
        print("\n".join(as_story(told)))
        return 1 if told.violations else 0
    harness = run(float("inf"), _progress(chosen.seeds), first=chosen.first, seeds=chosen.seeds, plants=chosen.canaries)
    print(file=sys.stderr)
    for violation in harness.violations:
        print(violation)
    print(f"faults fired: {', '.join(f'{kind} {times:,}' for kind, times in sorted(harness.faults.items()))}")
    never = [kind for kind in KINDS if not harness.faults[kind]]
    print(f"never fired: {', '.join(never) or 'none'}")
    if chosen.canaries:
        print(f"canaries: {harness.canaries_found} of {harness.canaries_planted} found; controls: {harness.controls}")
    print(f"{harness.tried:,} seeds in {harness.seconds:.0f} s: {len(harness.violations) or 'none'} failed")
    return 0 if harness.is_sound else 1


def _progress(seeds: int) -> Callable[[str], None]:
    """A bar on a terminal, a line a canary anywhere."""

    def say(text: str) -> None:
        if not sys.stderr.isatty():
            if not text[0].isdigit():
                print(text, file=sys.stderr)
            return
        done = int(text.split(maxsplit=1)[0].replace(",", "")) if text[0].isdigit() else 0
        bar = "#" * (30 * done // max(1, seeds))
        print(f"\r[{bar:30}] {text}\x1b[K", end="" if text[0].isdigit() else "\n", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
