"""A story's plan: everything that a seed decides before it begins.

A plan is a swarm: in each story some kinds of fault are off, most are rare, a few are wildly up. A `Mask` leaves something out
of it: clients, their calls, kinds of fault, and single firings.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prove.simulation import ops, shapes
from prove.simulation.ops import Op
from prove.simulation.shapes import BankPlan
from prove.simulation.wire import AFTER, BEFORE, LIES, OTHERWISE

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
# In a few stories the bank is away for hours, beyond the age at which charges are given up, and late deliveries are as late.
LONG_STORIES, LONG_SECONDS, LONG_LATE_FACTOR = 1 / 80, (600.0, 3 * 3_600.0), 200.0
# In these stories clients want more than charges: by a chance of its own, so that all other stories stay what they were.
STORIES_WITH_SALES = 0.6
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
# From this seed on several command servers share a journal in a PostgreSQL of two nodes. All others stay what they were.
SHARED = 1_000_000
# From this seed on a story is of banks of every shape, alone or two together, and of customers who take their step or do not.
BANKS = 2_000_000
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
STORIES_WITHOUT_LEASES = 1 / 8
# What customers do, by whom a bank wants a step, and what befalls one bank of several.
CUSTOMERS = {"customer_never": 0.4, "customer_late": 0.3, "customer_refuses": 0.5}
# What befalls intents at Stripe.
STRIPES = {"saved_error": 0.2, "late_confirm": 0.9}
BANK_WEATHER = ("bank_down", "bank_silent", "bank_restart", "unauthorized")
STORIES_OF_FORGOTTEN_KEYS = 0.3
# Clocks that differ by more than an adapter's room are another story.
CLOCK_JUMP_SECONDS = 5.0
# The customer's step is looked for every thirtieth of a charge's age, at the most every five minutes, and a clock that jumps
# makes a charge old. An error that a bank has saved under a key is replayed for the key's time.
REST_OF_CUSTOMERS_SECONDS = 400.0
# At rest after faults everything must be well within a minute.
DATABASE_WEATHER_SECONDS = 8.0
KINDS = (
    *CALL_FAULTS,
    *WEATHER,
    *LATER,
    *DATABASE_FAULTS,
    *DATABASE_SEQUELS,
    *DATABASE_WEATHER,
    *CUSTOMERS,
    "customer_confirms",
    "bank_silent",
    "key_forgotten",
    "away_after",
    *STRIPES,
    *CLIENTS,
    *ENDS,
)


@dataclass(frozen=True, slots=True)
class Weather:
    """Something that happens at a time."""

    at: float
    kind: str
    seconds: float
    bank: str | None = None
    """The bank that it comes over, if it is such a weather; None: over all."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What of a plan is left out."""

    kinds: frozenset[str] = frozenset()
    clients: frozenset[int] = frozenset()
    ops: frozenset[tuple[int, int]] = frozenset()
    weather: frozenset[int] = frozenset()
    firings: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides beforehand."""

    seed: int
    horizon_seconds: float
    clients: Sequence[Sequence[Op]]
    weather: Sequence[Weather]
    weights: dict[str, float] = field(hash=False)
    bank_calls: int
    max_unfinished: int
    max_calls: int
    abandon_after_seconds: float
    bank_timeout_seconds: float
    token_seconds: float
    heartbeat_seconds: float
    views: int
    shuffles: bool
    grid_seconds: float
    hold_seconds: float = 604_800.0
    late_factor: float = 1.0
    """How much later than usual what is late comes."""
    servers: int = 0
    """The command servers that share a database; 0: there is one server, with a file."""
    ignores_leases: bool = False
    """Each of them drives every charge."""
    banks: Sequence[BankPlan] = (BankPlan(),)
    clock_jump_seconds: float = 3_600.0
    """The furthest that a clock jumps."""
    rest_seconds: float = 60.0
    """What the product promises: how long after faults have stopped everything is at rest."""


def plan_of(seed: int) -> Plan:
    """Make the plan of a seed."""
    plan = _alone(seed)
    if seed < SHARED:
        return plan
    return _shared(plan) if seed < BANKS else _of_banks(plan)


def _shared(plan: Plan) -> Plan:
    """The same, for servers that share a database."""
    chance = random.Random(f"shared {plan.seed}")
    weights = {**plan.weights, **dict.fromkeys(DATABASE_SEQUELS, 0.5)}
    for kind, most in DATABASE_FAULTS.items():
        roll = chance.random()
        if roll < 0.15:
            weights[kind] = most * chance.uniform(0.3, 1.0)
        elif roll < 0.5:
            weights[kind] = most * 10 ** chance.uniform(-2.0, -0.7)
    weather = list(plan.weather)
    begun = min(plan.horizon_seconds, 30.0)
    for kind in DATABASE_WEATHER:
        for _ in range(chance.choice((0, 0, 1, 2))):
            seconds = chance.uniform(0.1, DATABASE_WEATHER_SECONDS)
            weather.append(Weather(chance.uniform(0.0, begun), kind, seconds))
    weather.sort(key=lambda event: event.at)
    # A statement is some steps of the grid, and a commit four statements.
    grid_seconds = chance.choice((0.0, 0.0, 0.001, 0.005))
    servers = chance.choice((2, 2, 3))
    ignores_leases = chance.random() < STORIES_WITHOUT_LEASES
    return replace(
        plan,
        weights=weights,
        weather=weather,
        grid_seconds=grid_seconds,
        servers=servers,
        ignores_leases=ignores_leases,
    )


def _of_banks(plan: Plan) -> Plan:
    """The same, at banks of other shapes, or at several."""
    chance = random.Random(f"banks {plan.seed}")
    banks = shapes.banks(chance)
    weights = {**plan.weights}
    for kind, most in CUSTOMERS.items():
        if chance.random() < 0.6:
            weights[kind] = most * chance.uniform(0.1, 1.0)
    # Each bank has a weather of its own.
    weather = [
        replace(event, bank=chance.choice(banks).name) if event.kind in BANK_WEATHER else event
        for event in plan.weather
    ]
    for _ in range(chance.choice((0, 0, 1))):
        seconds = chance.choice((2.0, 8.0, 25.0)) * chance.uniform(0.5, 1.5)
        weather.append(
            Weather(chance.uniform(0.0, plan.horizon_seconds), "bank_silent", seconds, chance.choice(banks).name)
        )
    horizon, forgetful = plan.horizon_seconds, [bank for bank in banks if bank.key_seconds < math.inf]
    if forgetful and chance.random() < STORIES_OF_FORGOTTEN_KEYS:
        # It begins with an answer that is lost, of an order that was done; or at some time.
        bank = chance.choice(forgetful)
        away_seconds = bank.key_seconds * chance.uniform(0.8, 1.4)
        if chance.random() < 0.7:
            weights["away_after"] = chance.choice((1.0, 0.5))
            leaving = replace(bank, away_seconds=away_seconds, spares_openings=chance.random() < 0.5)
            banks = [leaving if it is bank else it for it in banks]
        else:
            weather.append(Weather(chance.uniform(0.0, horizon), "bank_down", away_seconds, bank.name))
        horizon += away_seconds + chance.uniform(0.0, 60.0)
    weather.sort(key=lambda event: event.at)
    clients = list(plan.clients)
    if not any(op.method != "charge" for client in clients for op in client):
        clients += ops.sales(chance, plan.seed, plan.horizon_seconds)
    if any(bank.spares_openings for bank in banks):
        clients = [[shapes.of_good_cards(op) for op in client] for client in clients]
    elif any(bank.kind != shapes.ONE_STEP for bank in banks):
        clients = [[shapes.with_customer(op) for op in client] for client in clients]
    if any(bank.kind == shapes.STRIPE for bank in banks):
        clients = [[shapes.of_whole_holds(op) for op in client] for client in clients]
        weights |= {kind: most * chance.uniform(0.5, 1.0) for kind, most in STRIPES.items() if chance.random() < 0.7}
    return replace(
        plan,
        banks=banks,
        horizon_seconds=horizon,
        clients=clients,
        clock_jump_seconds=CLOCK_JUMP_SECONDS if forgetful else plan.clock_jump_seconds,
        weights=weights,
        weather=weather,
        token_seconds=chance.choice(shapes.STEP_SECONDS),
        rest_seconds=REST_OF_CUSTOMERS_SECONDS + max((it.key_seconds for it in forgetful), default=0.0),
    )


def _alone(seed: int) -> Plan:
    chance = random.Random(f"plan {seed}")
    weights = {}
    for kind, most in CALL_FAULTS.items():
        roll = chance.random()
        if roll < 0.12:
            weights[kind] = most * chance.uniform(0.3, 1.0)
        elif roll < 0.5:
            weights[kind] = most * 10 ** chance.uniform(-2.0, -0.7)
    horizon = chance.uniform(4.0, 30.0)
    weather = []
    for kind in WEATHER:
        for _ in range(chance.choice((0, 0, 0, 1, 1, 3))):
            lasts = chance.choice((0.3, 2.0, 8.0, 25.0)) * chance.uniform(0.5, 1.5)
            weather.append(Weather(chance.uniform(0.0, horizon), kind, lasts))
    # By a chance of its own, so that all other stories stay what they were.
    long = random.Random(f"long {seed}")
    is_long = long.random() < LONG_STORIES and seed < SHARED  # servers that share a database look at it all the time
    begun = horizon
    if is_long:
        away = long.uniform(*LONG_SECONDS)
        weather.append(Weather(long.uniform(0.0, horizon), "bank_down", away))
        horizon += away + long.uniform(0.0, 600.0)
    chances: dict[str, random.Random] = {}
    for kind, later in LATER.items():
        own = chances.setdefault(later.stream, random.Random(later.stream.format(seed=seed)))
        if own.random() >= later.stories:
            continue
        if later.most is None:
            weather.append(Weather(own.uniform(0.0, begun), kind, own.uniform(0.3, 8.0)))
        else:
            weights[kind] = later.most * own.uniform(later.least, 1.0)
    weather.sort(key=lambda event: event.at)
    keys = [f"order-{seed}-{number}" for number in range(chance.choice((1, 2, 4, 8)))]
    clients = [
        [ops.charge(chance, keys, begun) for _ in range(chance.randint(1, 5))]
        for _ in range(chance.choice((1, 2, 3, 4, 6, 8)))
    ]
    sales = random.Random(f"what follows {seed}")
    hold_seconds = 604_800.0
    if sales.random() < STORIES_WITH_SALES:
        clients += ops.sales(sales, seed, begun)
        hold_seconds = sales.choice((604_800.0, 604_800.0, 604_800.0, 10.0, 1.0))
    return Plan(
        seed,
        horizon,
        clients,
        weather,
        weights,
        bank_calls=chance.choice((1, 2, 8, 128)),
        max_unfinished=chance.choice((2, 20_000, 20_000, 20_000)),
        max_calls=chance.choice((2, 2_000, 2_000, 2_000)),
        abandon_after_seconds=chance.choice((3_600.0, 3_600.0, 3.0, 12.0)),
        bank_timeout_seconds=chance.choice((0.5, 2.0, 10.0)),
        token_seconds=chance.choice((900.0, 900.0, 900.0, 3.0, 0.2)),
        heartbeat_seconds=chance.choice((5.0, 15.0)),
        views=chance.choice((1, 1, 1, 2)),
        shuffles=chance.random() < 0.8,
        grid_seconds=chance.choice((0.0, 0.01, 0.05)),
        hold_seconds=hold_seconds,
        late_factor=LONG_LATE_FACTOR if is_long else 1.0,
    )
