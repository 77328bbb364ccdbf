"""Every kind of fault that the scenarios do, so that one that never fires is told."""

from prove.network.faultproxy import Kind
from prove.network.liars import IN_THE_LIST, LIES

# Counted, but not done by anybody.
OUTCOMES = frozenset({"stranger: a good call was shed", "client: retried over a restart"})
_KINDS = {
    "bank": (
        *("lose_request", "lose_answer", "hang_before", "hang_after", "reset", "delay", "error_before", "error_after"),
        *("garbage", "half_body", "slow_body", "huge_body", "throttled", "in_progress", "redirect", "refuse"),
        *("wrong_amount", "wrong_currency", "wrong_reference", "wrong_token", "contradict", "forget_token"),
        *("extra_answer", "odd_transaction_id", "expire_hold", "executed late"),
        *("expire_token", "down", "down for long", "breaker open", "slow, server full", "killed", "name unknown"),
        "wrong certificate",
    ),
    "link": (
        # The readers that do not read do the one by themselves, the mock bank does the other.
        *(kind for kind in Kind if kind not in (Kind.STALL, Kind.LOSE_ANSWER)),
        *("half-open, noticed by both ends", "half-open feed, found again"),
    ),
    "client": (
        *("deadline", "cancel", "hedged", "the same key at once", "key reused at once", "too large"),
        *("refunds at once", "called off", "time passed", "void against execution", "idle for a minute"),
    ),
    "feed": (
        *("a hundred come back at once", "a reader stopped reading", "a reader is lost", IN_THE_LIST),
        *LIES,
    ),
    "query": ("asked while written",),
    "query server": ("killed", "stopped"),
    "command server": ("killed", "stopped"),
    "stranger": ("connected and stayed", "nonsense", "continuations", "pings", "rapid_reset", "settings"),
}
KINDS = tuple(f"{who}: {what}" for who, whats in _KINDS.items() for what in whats)
