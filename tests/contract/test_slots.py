"""The slots for calls to the bank: fair among tenants, never idle while a call waits, and safe from cancels."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.slots import Slots


class Calls:
    """Calls that hold slots until they are told to end."""

    def __init__(self, count: int) -> None:
        self.slots = Slots(count)
        self.order: list[str] = []
        """The calls in the order in which they got their slots, each named by its tenant and a number."""
        self.under_way: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._call(name))
            await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self.under_way[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def _call(self, name: str) -> None:
        await self.slots.take(name[0])
        try:
            self.order.append(name)
            self.under_way[name] = asyncio.Event()
            await self.under_way[name].wait()
        finally:
            self.under_way.pop(name, None)
            self.slots.give_back(name[0])


async def test_a_free_slot_goes_to_the_tenant_that_has_the_fewest() -> None:
    """Another tenant's calls need not wait behind a flood; within a tenant it is first come, first served."""
    calls = Calls(3)
    await calls.begin("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1")
    assert calls.order == ["a1", "a2", "a3"]
    assert calls.slots.are_taken
    await calls.end("a1")
    await calls.end("a2")
    assert set(calls.order[3:]) == {"b1", "c1"}
    await calls.end("b1")
    assert calls.order[5] == "b2"
    await calls.end("c1")
    assert calls.order[6] == "a4"
    await calls.end("a3")
    await calls.end("a4")
    await calls.end("b2")
    await calls.end("a5")
    assert not calls.slots.are_taken


async def test_tenants_with_as_many_slots_take_turns() -> None:
    """Over one slot: each tenant's next call in turn."""
    calls = Calls(1)
    await calls.begin("x0", "a1", "a2", "a3", "b1", "b2", "c1")
    for _ in range(7):
        await calls.end(calls.order[-1])
    assert calls.order == ["x0", "a1", "b1", "c1", "a2", "b2", "a3"]


async def test_one_tenant_alone_has_all_slots_and_is_served_in_order() -> None:
    calls = Calls(4)
    names = [f"a{number}" for number in range(9)]
    await calls.begin(*names)
    assert calls.order == names[:4]
    for name in names:
        await calls.end(name)
    assert calls.order == names


async def test_a_cancelled_call_takes_no_slot_with_it() -> None:
    """Neither while it waits, nor in the moment after it was given one."""
    calls = Calls(1)
    await calls.begin("a1", "b1", "b2", "c1")
    calls.tasks["b1"].cancel()
    calls.under_way["a1"].set()
    await asyncio.sleep(0)  # the slot is given to b2 or c1, which has not run yet
    await calls.tasks["a1"]
    for name in ("b2", "c1"):
        calls.tasks[name].cancel()
    await asyncio.gather(*calls.tasks.values(), return_exceptions=True)
    assert not calls.slots.are_taken
    await calls.begin("a9")
    assert calls.order[-1] == "a9"


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("begin", "end", "cancel"))), max_size=60),
)
def test_no_slot_is_lost_or_idle_whatever_comes_and_goes(count: int, course: list[tuple[str, str]]) -> None:
    """At every moment as many calls are under way as there are slots, if so many are there."""

    async def main() -> None:
        calls = Calls(count)
        for number, (tenant, what) in enumerate(course):
            live = [name for name, task in calls.tasks.items() if not task.done()]
            match what:
                case "begin":
                    await calls.begin(f"{tenant}{number}")
                case "end" if calls.under_way:
                    calls.under_way[sorted(calls.under_way)[number % len(calls.under_way)]].set()
                case "cancel" if live:
                    calls.tasks[live[number % len(live)]].cancel()
            if number % 3:
                continue  # several things between two moments
            for _ in range(5):
                await asyncio.sleep(0)
            live = [name for name, task in calls.tasks.items() if not task.done()]
            assert len(calls.under_way) == min(count, len(live))
            assert calls.slots.are_taken == (len(live) >= count)
        for task in calls.tasks.values():
            task.cancel()
        await asyncio.gather(*calls.tasks.values(), return_exceptions=True)
        for _ in range(count):
            await calls.slots.take("z")
        assert calls.slots.are_taken

    asyncio.run(main())


async def test_a_flood_leaves_others_their_even_part() -> None:
    """A tenant with a few calls at a time gets on as if it were alone, whatever waits for another."""
    calls = Calls(4)
    await calls.begin(*(f"a{number}" for number in range(100)))
    await calls.begin("b0")
    served: Counter[str] = Counter()
    for number in range(40):
        await calls.end(next(name for name in calls.order if name in calls.under_way))
        served[calls.order[-1][0]] += 1
        if "b" not in {name[0] for name, task in calls.tasks.items() if not task.done()}:
            await calls.begin(f"b{number + 1}")
    assert served["b"] >= 8
    for task in calls.tasks.values():
        task.cancel()
    await asyncio.gather(*calls.tasks.values(), return_exceptions=True)
