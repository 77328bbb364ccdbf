"""An event loop on virtual time, on which the product's own code runs as in a story: one seed, one order of events.

* Time stands still while anything can run, and then jumps to the next timer. Nothing ever waits for real.
* What is ready at the same time runs in an order that the seed decides, one callback after the other.
* What the product hands to a thread is done here, inline, each thread's work in its order and after a delay of its own.
* Every callback belongs to a simulated process, or to the world around them. A process that was killed never runs again,
  not even its `finally` blocks: that is what `kill -9` does.
* `prove.simulation.guard` makes real clocks, chance and threads raise, so that nothing that is not the seed's can creep in.
"""

import asyncio
import contextvars
import heapq
import itertools
import math
import random
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# A story has some ten thousand callbacks. One that has a million runs in circles.
MOST_CALLBACKS = 1_000_000


class Life(Protocol):
    """A simulated process, as far as the loop must know it."""

    alive: bool
    resumes_at: float
    """It stands still until this time, as after SIGSTOP: its callbacks wait."""

    def tick(self) -> bool:
        """Called before each of its callbacks; it may end the process there, and says whether it lives."""
        ...


PROCESS: contextvars.ContextVar[Life | None] = contextvars.ContextVar("process", default=None)
"""The process that a callback or task belongs to; tasks hand it on to the tasks that they start. None: the world."""


class Deadlock(Exception):
    """Somebody waits, and nothing is scheduled that could ever end it."""


class Runaway(Exception):
    """The story goes on and on."""


class _Lane:
    """A simulated thread: what was handed to an executor, in order."""

    def __init__(self) -> None:
        self.work: deque[tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]]] = deque()


class _Call(asyncio.TimerHandle):
    """A callback that is ready, or will be at a time. It spares what asyncio's own keep to debug asyncio."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, context: contextvars.Context | None) -> None:
        self._callback = callback
        self._args = args
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = False

    def cancel(self) -> None:
        """Forget it, and let go of what it holds."""
        self._cancelled = True
        self._callback, self._args = _nothing, ()


def _nothing() -> None:
    """What is left of a cancelled call."""


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run: it hangs on its number, not on where it lies in memory."""

    def __init__(
        self,
        number: int,
        work: Any,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: contextvars.Context | None,
    ) -> None:
        self._number = number
        self.life = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(work, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one story. `delay_seconds` says how long the disk takes for the next work of a thread.

    `chance` says which of those that are ready runs next; without it that is the first of them, as in asyncio.

    Without a grid hardly ever two things happen at the same time, since their delays differ by a little; with one, many do,
    and races that take two callbacks in one order and not the other are met often.
    """

    def __init__(
        self, chance: random.Random | None, delay_seconds: Callable[[], float] = lambda: 0.0, grid_seconds: float = 0.0
    ) -> None:
        super().__init__()
        self._chance = chance
        self._grid_seconds = grid_seconds
        self._delay_seconds = delay_seconds
        self._now = 0.0
        self._lanes: dict[Any, _Lane] = {}
        self._ready: list[_Call] = []
        self._scheduled: list[tuple[float, int, _Call]] = []
        self._timers = itertools.count()
        self._tasks: list[_Task] = []
        self._generators: list[AsyncGenerator[Any, Any]] = []
        self.callbacks = 0
        self.escaped: list[str] = []
        """What nobody caught: exceptions of callbacks."""
        self.set_exception_handler(self._note_escaped)

    # ------------------------------------------------------------ what BaseEventLoop leaves open
    def time(self) -> float:
        """Virtual seconds since the story began."""
        return self._now

    def call_soon(  # type: ignore[override]  # as narrow as it is used
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call as soon as it is this callback's turn."""
        call = _Call(callback, args, context)
        self._ready.append(call)
        return call

    def call_later(  # type: ignore[override]  # as narrow as it is used
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call after a while; see `call_at`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # as narrow as it is used
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a time: on a grid, if there is one, so that much happens at the same time."""
        if self._grid_seconds:
            when = math.ceil(when / self._grid_seconds - 1e-9) * self._grid_seconds
        call = _Call(callback, args, context)
        heapq.heappush(self._scheduled, (when, next(self._timers), call))
        return call

    def create_task(  # type: ignore[override]  # as narrow as it is used
        self, coro: Coroutine[Any, Any, T], *, name: str = "", context: contextvars.Context | None = None
    ) -> "asyncio.Task[T]":
        """Start a task."""
        task = _Task(len(self._tasks), coro, self, name, context)
        self._tasks.append(task)  # so that a killed process's tasks lie still until the story ends
        return task

    def __del__(self) -> None:
        """It holds nothing that must be closed, and left open it bears with what dead code does while it is freed."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread: there is none."""

    def _process_events(self, event_list: Any) -> None:
        """There are no sockets."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]  # as narrow as it is used
        """Do the work of a thread inline, each executor's in order."""
        done: asyncio.Future[Any] = self.create_future()
        lane = self._lanes.get(executor)
        if lane is None:
            lane = self._lanes[executor] = _Lane()
        lane.work.append((func, args, done))
        if len(lane.work) == 1:
            self._begin(lane)
        return done

    def _begin(self, lane: _Lane) -> None:
        if delay := self._delay_seconds():
            self.call_later(delay, self._work, lane)
        else:
            self.call_soon(self._work, lane)

    def _work(self, lane: _Lane) -> None:
        func, args, done = lane.work[0]
        life = PROCESS.get()
        try:
            outcome, error = func(*args), None
        except BaseException as raised:
            if life is not None and not life.alive:
                return  # killed in the middle of it
            if not isinstance(raised, Exception):
                raise
            outcome, error = None, raised
        self.call_soon(_hand_over, done, outcome, error)
        lane.work.popleft()
        # As a real executor does: what nobody waits for any more is done only if it had begun.
        while lane.work and lane.work[0][2].cancelled():
            lane.work.popleft()
        if lane.work:
            self._begin(lane)

    # ------------------------------------------------------------ running
    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run to the end of `main`. Raises what it raises, Deadlock or Runaway. A loop runs once."""
        events._set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.append)
        try:
            task = self.create_task(main)
            self._run_until(task)
            return task.result()
        finally:
            with patched([(sys, "unraisablehook", lambda _: None)]):
                self._abandon()
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)

    def _run_until(self, task: "asyncio.Task[Any]") -> None:
        """Run callbacks, one of those that are ready after the other, until a task is done."""
        ready, roll = self._ready, None if self._chance is None else self._chance.random
        while not task.done():
            if not ready:
                self._wake()
            if roll is not None and (last := len(ready) - 1) > 0:
                chosen = int(roll() * (last + 1))
                ready[chosen], ready[last] = ready[last], ready[chosen]
                call = ready.pop()
            else:
                call = ready.pop(0)
            if call._cancelled:
                continue
            self.callbacks += 1
            if self.callbacks > MOST_CALLBACKS:
                raise Runaway(f"{MOST_CALLBACKS} callbacks")
            context = call._context
            life = context.get(PROCESS)
            if life is not None:
                if life.resumes_at > self._now and life.alive:
                    heapq.heappush(self._scheduled, (life.resumes_at, next(self._timers), call))
                    continue
                if not (life.alive and life.tick()):
                    continue
            try:
                context.run(call._callback, *call._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.escaped.append(f"{call._callback!r} raised {error!r}")

    def _wake(self) -> None:
        """Let time jump to the next timer, and make ready what is due then."""
        scheduled = self._scheduled
        while scheduled and scheduled[0][2]._cancelled:
            heapq.heappop(scheduled)
        if not scheduled:
            raise Deadlock("nothing is scheduled, and the story has not ended")
        self._now = max(self._now, scheduled[0][0])
        while scheduled and scheduled[0][0] <= self._now:
            self._ready.append(heapq.heappop(scheduled)[2])

    def unfinished_tasks(self) -> Iterator[tuple[Life | None, str]]:
        """Whose tasks are not done, and what they do."""
        yield from ((task.life, task.get_coro().__qualname__) for task in self._tasks if not task.done())  # type: ignore[union-attr]  # all are coroutines

    # ------------------------------------------------------------ keeping order
    def _note_escaped(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.escaped.append(f"{context.get('message')}: {error!r}")

    def _abandon(self) -> None:
        """Close what lies unfinished. What its `finally` blocks do concerns nobody any more."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # to be destroyed is its fate
                _close(task.get_coro())
            elif not task.cancelled() and task._log_traceback:
                error = task.exception()
                was_dead = task.life is not None and not task.life.alive  # so that nobody could have looked
                if isinstance(error, Exception) and not was_dead:
                    self.escaped.append(f"a task ended with {error!r}")
        for generator in self._generators:
            closing = generator.aclose()
            with suppress(BaseException):
                closing.send(None)
            _close(closing)
        self._generators.clear()
        self._tasks.clear()
        self._ready.clear()
        self._scheduled.clear()


def _close(work: Any) -> None:
    with suppress(BaseException):  # dead code may protest
        work.close()


def _hand_over(done: "asyncio.Future[Any]", outcome: Any, error: Exception | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(outcome)


@contextmanager
def patched(places: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Put other things in the places of (owner, name, thing) for as long as the context lasts."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    try:
        for owner, name, thing in places:
            setattr(owner, name, thing)
        yield
    finally:
        for owner, name, thing in reversed(before):
            setattr(owner, name, thing)
