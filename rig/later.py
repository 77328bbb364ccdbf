"""A server whose clock is ahead: LATER_SECONDS=n LATER_MODULE=query_service python -m rig.later

What clears by the passing of a day is seen to clear so, in a real process. Only the time of day is moved: pauses and deadlines
go by another clock.
"""

import os
import runpy
import time


def main() -> None:
    """Move the clock, and run the module as `python -m` does."""
    real, ahead = time.time_ns, int(os.environ["LATER_SECONDS"]) * 1_000_000_000
    time.time_ns = lambda: real() + ahead
    time.time = lambda: time.time_ns() / 1e9
    runpy.run_module(os.environ["LATER_MODULE"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
