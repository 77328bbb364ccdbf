"""Gathers what each side of a world at rest has, and hands it to the one history checker."""

from collections import Counter

import grpc.aio

from charging.v1.query_pb2 import GetViewStatusRequest
from judge import checker, history
from judge.files import read_anchor, read_journal, read_view
from prove.network.reader import Reader
from prove.network.world import REST_SECONDS, Asked, World, within
from rig.referee import bank_call

# Far more than the faults of any scenario explain: beyond it somebody retries in a storm.
CALLS_PER_CHARGE = 100


async def check(world: World) -> list[str]:
    """Compare clients' histories, the journal, the feed, the bank and the view; each text names what broke and where."""
    reader = Reader(world.servers.feed, keep=True)
    async with within(REST_SECONDS, "L3: the feed brings a new reader to the journal's head"):
        async for message in reader.messages():
            if message.HasField("caught_up"):
                break
    broken = await _view_is_behind(world, reader.position) if world.has_view else []
    records = read_journal(world.folder / "journal.db")
    calls = await world.referee.calls()
    found = checker.check(
        history.Observed(
            records,
            calls=[_call(asked) for asked in world.history],
            movements=await world.referee.movements(),
            bank_calls=[bank_call(call) for call in calls],
            view=read_view(world.folder / "view.db") if world.has_view else None,
            sessions=[history.Session(0, [(record.position, record.chain) for record in reader.records])],
            anchor=read_anchor(world.folder / "journal.db"),
            is_at_rest=True,
        )
    )
    broken += map(str, found)
    if len(reader.records) != len(records):
        broken.append(f"I9: the feed brought {len(reader.records)} of {len(records)} records")
    if world.is_bank_true_in_the_end:
        broken += [
            f"L1: {asked.request.idempotency_key} is in review, and nothing that the bank did for good explains it"
            for asked in world.history
            if asked.is_in_review
        ]
    times = Counter(str(call["reference"]) for call in calls)
    broken += [
        f"I16: {name} was asked about {count} times" for name, count in times.items() if count > CALLS_PER_CHARGE
    ]
    return broken


def _call(asked: Asked) -> history.Call:
    if asked.answer is not None:
        return history.Call.answered(asked.request, asked.answer)
    return history.Call.failed(asked.request, asked.reason, asked.advice)


async def _view_is_behind(world: World, head: int) -> list[str]:
    """Wait until the view shows the head: longer than a silent feed takes to be given up and found again."""
    async with world.queries() as queries:
        for _ in range(12):
            try:
                request = GetViewStatusRequest(min_position=head)
                await queries.GetViewStatus(request, timeout=6.0, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                continue
            return []
        status = await queries.GetViewStatus(GetViewStatusRequest(), timeout=6.0)
    return [f"L3: the view shows {status.as_of_position} of {head}"]
