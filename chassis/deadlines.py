"""The time that a call may wait for its result, so that its answer arrives before the client's deadline."""

# Enough for an answer to travel. Of a short deadline only a share is reserved: a call of 100 ms can succeed too.
MOST_RESERVED_SECONDS, RESERVED_SHARE = 0.2, 0.25


def wait_seconds(remaining_seconds: float | None, longest_seconds: float) -> float:
    """Return the seconds to wait, 0 or less after the deadline. `remaining_seconds` is None for a call without a deadline."""
    if remaining_seconds is None:
        return longest_seconds
    reserved = min(MOST_RESERVED_SECONDS, RESERVED_SHARE * remaining_seconds)
    return min(longest_seconds, remaining_seconds - reserved)
