"""The kinds of fault: what may go wrong in a story, and how often at the most."""

from dataclasses import dataclass

from prove.simulation.wire import AFTER, BEFORE, LIES, OTHERWISE, WRONG_END

# Faults of single calls, commits and messages, each with the highest weight that still lets stories come to something.
CALL_FAULTS = {
    **dict.fromkeys(BEFORE, 0.5),
    **dict.fromkeys(AFTER, 0.5),
    **dict.fromkeys(OTHERWISE, 0.5),
    **dict.fromkeys(LIES, 0.2),
    "contradict": 0.6,  # only of an execute step that moved money, and with no other fault on its way: that is rare
    "mixed_up": 0.6,
    "refuse": 0.1,
    "forget_token": 0.1,
    "eio_kept": 0.1,
    "eio_lost": 0.1,
    "disk_full_once": 0.3,
    "slow_disk": 0.3,
    "view_not_written": 0.3,
    "rpc_lose_request": 0.3,
    "rpc_lose_answer": 0.3,
    "rpc_delay": 0.3,
    "feed_cut": 0.3,
    "feed_stall": 0.1,
    "feed_delay": 0.3,
    "kill_in_recovery": 0.6,
    "kill_anywhere": 0.7,
    "kill_before_commit": 0.1,
    "kill_after_commit": 0.1,
    "view_power_cut": 0.7,
    "view_lost": 0.3,
}
# What happens at some time, and for how long it lasts.
WEATHER = (
    "kill_command",
    "stop_command",
    "kill_query",
    "stop_query",
    "bank_down",
    "bank_restart",
    "unauthorized",
    "clock_jump",
    "disk_full",
)
# Of these each call or commit that meets one is counted: when nobody meets it, nothing has happened.
MET = frozenset({"bank_down", "bank_restart", "unauthorized", "disk_full"})
# What clients do that is no fault of ours, counted as well.
CLIENTS = ("client_cancel", "client_deadline", "other_body", "invalid_request", "card_number", "other_refusal")
# What came of it in the end, by the journal.
ENDS = (
    *("authorized", "captured", "voided", "refunded", "charge_called_off", "not_after_passed", "authorization_expired"),
    *("operation_declined", "operation_abandoned", "action_required"),
)


@dataclass(frozen=True, slots=True)
class Later:
    """A kind of fault that came when there were stories already: by a chance of its own, so that those stay what they are."""

    stream: str
    """Names the chance. Those of one name share it, and are drawn in the table's order."""
    stories: float
    """In which share of the stories it is."""
    most: float | None
    """The highest weight, as of the others; None for weather."""
    least: float = 0.3
    """The lowest weight, as a share of the highest."""


LATER = {
    "stray": Later("stray {seed}, its weight", 1 / 4, 0.3, 0.1),
    "journal_busy": Later("later {seed}", 1 / 8, 0.1),
    "clock_before_1970": Later("later {seed}", 1 / 8, None),
    "wrong_kind": Later("wrong kind {seed}", 1 / 8, 0.2),
    "wrong_on": Later("wrong on {seed}", 1 / 4, 0.2),
    "expire_hold": Later("lapsed {seed}", 1 / 3, 0.4),
    "late_execute": Later("late execute {seed}", 2 / 3, 0.9),
}
# What goes wrong between these servers and their database, and at its nodes, in the same terms as above.
DATABASE_FAULTS = {
    "pg_cut_before": 0.1,
    "pg_cut_during": 0.5,
    "pg_cut_after": 0.1,
    "pg_answer_lost": 0.05,
    "pg_undone": 0.1,
    "pg_slow": 0.1,
    "pg_warned": 0.3,
    "pg_killed_in_commit": 0.2,
    "pg_unreachable": 0.3,
    "pg_hint_lost": 0.9,
}
# What may follow from these and from the weather, half of the time.
DATABASE_SEQUELS = ("pg_warned_lost", "pg_old_primary")
DATABASE_WEATHER = (
    *("pg_failover", "pg_paused_failover", "pg_restart", "pg_pause", "pg_standby_gone", "pg_clock_jump"),
    "pause_command",
)
# What customers do, by whom a bank wants a step, and what befalls one bank of several.
CUSTOMERS = {"customer_never": 0.4, "customer_late": 0.7, "customer_refuses": 0.6}
# What befalls intents at Stripe.
STRIPES = {"saved_error": 0.2, "late_confirm": 0.9}
# The mistakes of operators: the highest weights, of which a story of operators has one kind or another.
PEOPLE = {
    "people_wrong_verdict": 0.8,
    "people_wrong_transaction": 0.6,
    "people_other_transaction": 0.6,
    "people_own_approval": 0.7,
    "people_old_proposal": 0.5,
    "people_insist": 0.9,
    "people_forget_hold": 0.7,
    "people_at_once": 0.7,
}
# What brings charges into review: more of it where operators are to have something to do.
FOR_REVIEWS = {
    **{"contradict": 0.6, "mixed_up": 0.6, "wrong_kind": 0.4, "wrong_amount": 0.4, "wrong_reference": 0.4},
    **{"wrong_token": 0.4, "wrong_card": 0.4, "wrong_currency": 0.4, "expire_token": 0.3},
}
WRONG_ENDS = 0.6, 0.95
"""The bounds of the weight of WRONG_END: it takes three in a row to bring a charge into review."""
# What operators did, by the journal.
OF_PEOPLE = (
    *("try_requested", "held_back", "let_go", "resolution_proposed", "resolution_rejected", "resolution_approved"),
    *("approved_against_bank", "approved_with_bank", "found_refunded", "settled_in_the_end"),
)
BANK_WEATHER = ("bank_down", "bank_silent", "bank_restart", "unauthorized")
OF_BANKS = (*CUSTOMERS, "customer_confirms", "bank_silent", "key_forgotten", "charge_lost", "away_after", *STRIPES)
OF_DATABASE = (*DATABASE_FAULTS, *DATABASE_SEQUELS, *DATABASE_WEATHER)
KINDS = (*CALL_FAULTS, *WEATHER, *LATER, *OF_DATABASE, *OF_BANKS, *CLIENTS, *ENDS, *PEOPLE, *OF_PEOPLE, WRONG_END)
