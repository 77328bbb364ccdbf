"""A story's plan: everything that a seed decides before it begins.

A plan is a swarm: in each story some kinds of fault are off, most are rare, a few are wildly up. A `Mask` leaves something out
of it: clients, their calls, kinds of fault, and single firings.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from prove.simulation import ops, shapes
from prove.simulation.bank import Lost
from prove.simulation.faults import (
    BANK_WEATHER,
    CALL_FAULTS,
    CUSTOMERS,
    DATABASE_FAULTS,
    DATABASE_SEQUELS,
    DATABASE_WEATHER,
    FOR_REVIEWS,
    LATER,
    PEOPLE,
    STRIPES,
    WEATHER,
    WRONG_ENDS,
)
from prove.simulation.ops import Op
from prove.simulation.shapes import BankPlan
from prove.simulation.wire import WRONG_END

# In a few stories the bank is away for hours, beyond the age at which charges are given up, and late deliveries are as late.
LONG_STORIES, LONG_SECONDS, LONG_LATE_FACTOR = 1 / 80, (600.0, 3 * 3_600.0), 200.0
# In these stories clients want more than charges: by a chance of its own, so that all other stories stay what they were.
STORIES_WITH_SALES = 0.6
# From this seed on several command servers share a journal in a PostgreSQL of two nodes. All others stay what they were.
SHARED = 1_000_000
# From this seed on a story is of banks of every shape, alone or two together, and of customers who take their step or do not.
BANKS = 2_000_000
# From this seed on operators are at the desk too: at one server, at several, and with banks of every shape, in turn.
PEOPLE_FROM = 3_000_000
STORIES_OF_WRONG_ENDS = 0.6
# To believe a refusal takes an adapter up to six calls, in one of its own. A bank refuses what rests on an untrue resolution.
SIX_CALLS_SECONDS = 2.0
STORIES_WITHOUT_LEASES = 1 / 8
RESTORED_STORIES = 0.25
STORIES_OF_FORGOTTEN_KEYS = 0.3
# Clocks that differ by more than an adapter's room are another story.
CLOCK_JUMP_SECONDS = 5.0
# The customer's step is looked for every thirtieth of a charge's age, at the most every five minutes, and a clock that jumps
# makes a charge old. An error that a bank has saved under a key is replayed for the key's time.
REST_OF_CUSTOMERS_SECONDS = 400.0
# At rest after faults everything must be well within a minute.
DATABASE_WEATHER_SECONDS = 8.0


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
    operators: frozenset[int] = frozenset()


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
    is_restored: bool = False
    """The journal came from a backup."""
    lost: Sequence[Lost] = ()
    """What it has lost."""
    clock_jump_seconds: float = 3_600.0
    """The furthest that a clock jumps."""
    operators: int = 0
    """The people at the desk."""
    operators_pause_seconds: float = 1.0
    """How long one of them waits between two steps, on average."""
    settles: bool = False
    """In the end two careful people resolve what is in review."""
    rest_seconds: float = 60.0
    """What the product promises: how long after faults have stopped everything is at rest."""


def plan_of(seed: int) -> Plan:
    """Make the plan of a seed."""
    plan = _alone(seed)
    if seed >= PEOPLE_FROM:
        around: Sequence[Callable[[Plan], Plan]] = (lambda it: it, _shared, _of_banks)
        return _with_operators(around[seed // 4 % 3](plan))
    if seed < SHARED:
        return plan
    return _shared(plan) if seed < BANKS else _of_banks(plan)


def traits_of(plan: Plan) -> set[str]:
    """Of what kinds a story's banks are, which of them leaves for long and when, and what else is special about them."""
    found = {bank.kind for bank in plan.banks}
    found |= {f"{bank.kind} leaves" for bank in plan.banks if bank.away_seconds}
    found |= {f"{bank.kind} leaves late" for bank in plan.banks if bank.away_seconds and bank.spares_openings}
    return found | ({"several"} if len(plan.banks) > 1 else set()) | ({"restored"} if plan.lost else set())


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
    clients = [[shapes.wish(op, banks) for op in client] for client in clients]
    if any(bank.kind == shapes.STRIPE for bank in banks):
        weights |= {kind: most * chance.uniform(0.5, 1.0) for kind, most in STRIPES.items() if chance.random() < 0.7}
    is_restored = len(banks) == 1 and chance.random() < RESTORED_STORIES
    return replace(
        plan,
        banks=banks,
        is_restored=is_restored,
        lost=shapes.lost(chance, clients) if is_restored else (),
        horizon_seconds=horizon,
        clients=clients,
        clock_jump_seconds=CLOCK_JUMP_SECONDS if forgetful else plan.clock_jump_seconds,
        weights=weights,
        weather=weather,
        token_seconds=chance.choice(shapes.STEP_SECONDS),
        rest_seconds=REST_OF_CUSTOMERS_SECONDS + max((it.key_seconds for it in forgetful), default=0.0),
    )


def _with_operators(plan: Plan) -> Plan:
    """The same, with people at the desk, and with more that brings charges into review."""
    chance = random.Random(f"people {plan.seed}")
    weights = {**plan.weights}
    for kind, most in FOR_REVIEWS.items():
        if chance.random() < 0.5:
            weights[kind] = max(weights.get(kind, 0.0), most * chance.uniform(0.2, 1.0))
    if chance.random() < STORIES_OF_WRONG_ENDS:
        weights[WRONG_END] = chance.uniform(*WRONG_ENDS)
    for kind, most in PEOPLE.items():
        if chance.random() < 0.7:
            weights[kind] = most * chance.uniform(0.3, 1.0)
    return replace(
        plan,
        weights=weights,
        bank_timeout_seconds=max(plan.bank_timeout_seconds, SIX_CALLS_SECONDS),
        operators=chance.choice((2, 2, 3)),
        operators_pause_seconds=chance.choice((0.3, 0.6, 1.0, 2.0)),
        settles=chance.random() < 0.5,
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
