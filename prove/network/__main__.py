"""`python -m prove.network SCENARIO SEED` plays one scenario again; without arguments it lists them."""

import asyncio
import sys

from prove.network import SCENARIOS, play


def main() -> int:
    """Play it. Exit status 1 if something broke."""
    if len(sys.argv) != 3:
        print("\n".join(scenario.name for scenario in SCENARIOS))
        return 2
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == sys.argv[1])
    harness = asyncio.run(play(scenario, int(sys.argv[2])))
    for kind, times in sorted(harness.faults.items()):
        print(f"{times:6}  {kind}")
    print("\n".join(harness.violations) or "nothing broke")
    return 1 if harness.violations else 0


if __name__ == "__main__":
    sys.exit(main())
