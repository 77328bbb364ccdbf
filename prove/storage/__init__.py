"""What disks do: errors at the n-th operation, a full disk, flipped bits, files cut short, swapped, lost, old or taken away.

Errors are enumerated. Beside them goes round after round of all else, one of each kind, until each was tried often enough.
"""

import asyncio
import shutil
import time

from prove.report import RARE, Harness, Say
from prove.storage import disks, errors, files, gone, restores
from prove.storage.disks import small_disk
from prove.storage.errors import fail_all
from prove.storage.files import DAMAGES, damages, flips
from prove.storage.gone import GONE, take_away
from prove.storage.restores import restored

# In one round: 5,000 in all, of which every record byte has its share.
FLIPS = 100
KINDS = (
    *(
        "EIO",
        "ENOSPC",
        "EDQUOT",
        "disk full",
        "disk with room again",
        "write lock held by another program",
        "bit flipped",
        "flipped bits met at a start",
        *DAMAGES,
        *GONE,
    ),
    *("flipped bits whose position was named", "backups under load", "restored backups", "second server on one file"),
    "steps over a restored journal",
)
# How much longer than the longest so far a round may take; what does not fit is not begun.
SLACK = 1.3


async def run(seconds: float, say: Say, *, seed: int = 0) -> Harness:
    """Try all of it until the time is up: one round however little time there is."""
    harness = Harness("storage", "faults")
    harness.knows(KINDS)
    until = time.monotonic() + seconds
    if shutil.which("strace") is not None:
        # By itself, before all else: its bug is in this process.
        harness.controls[
            "a start that does not look at the anchor takes an older backup"
        ] = await files.is_control_found()
    # Most of all three is the work of other processes, and their waiting.
    await asyncio.gather(
        fail_all(until, say, harness, seed=seed), rounds(until, say, harness, seed=seed), _controls(harness)
    )
    outcomes = ("bits flipped that changed nothing", "damaged files refused", "damaged files found whole")
    harness.complete |= dict.fromkeys(outcomes, "an outcome, not a fault")
    return harness


async def _controls(harness: Harness) -> None:
    """Sabotaged runs that must fail, each by the name of what it breaks."""
    if shutil.which("strace") is not None:
        harness.controls["a full disk that is taken for stored loses records"] = await errors.is_control_found()
        harness.controls["a writer that a used up quota ends is noticed"] = await errors.is_quota_control_found()
    if (is_found := await disks.is_control_found()) is not None:
        harness.controls["a server that a full disk ends is noticed"] = is_found
        harness.controls["a server that a busy journal ends is noticed"] = bool(await disks.is_busy_control_found())
    harness.controls["a writer that does not watch its files goes on without them"] = await gone.is_control_found()
    harness.controls["a restored journal that is taken for any other is noticed"] = await restores.is_control_found()


async def rounds(until: float, say: Say, harness: Harness, *, seed: int = 0, most: int = RARE) -> None:
    """One of each in a round: a disk that is full and then not, every damage, some flips, a backup and its restore."""
    longest_seconds = 0.0
    async with small_disk(harness, seed) as disk, restored(harness, seed) as one:
        for number in range(most):
            began = time.monotonic()
            if number and began + longest_seconds * SLACK > until:
                break

            async def harm_files(own: int = seed + number) -> None:
                await damages(until, say, harness, seed=own)
                await flips(until, say, harness, seed=own, most=FLIPS)
                await take_away(until, say, harness, seed=own)

            await asyncio.gather(one.back_up_and_restore(), harm_files(), *([disk.harm()] if disk else []))
            longest_seconds = max(longest_seconds, time.monotonic() - began)
            say(f"storage: {number + 1} of {most} rounds, {len(harness.violations)} violations")
