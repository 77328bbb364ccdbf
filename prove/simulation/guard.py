"""The guard of a story: while it is on, real clocks, chance and threads raise, so that nothing but the seed decides.

It holds at run time, for whatever is called by then, by the libraries too. What it cannot see, such as a clock that a module
took into a name of its own, `tests/simulation/test_guard.py` finds in the source of every module that is simulated.
"""

import _thread
import datetime
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

from prove.simulation.loop import patched

_PRODUCT = ("command_service", "query_service", "chassis")
# What is refused, by module: those of these names that this Python has.
_CLOCKS = (
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "clock_gettime"),
    *("clock_gettime_ns", "process_time", "process_time_ns", "thread_time", "thread_time_ns", "localtime", "gmtime"),
    *("ctime", "asctime", "strftime"),
)
_REFUSED: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (time, _CLOCKS),
    # Every function of the module is a method of one hidden generator, and of that nobody knows the seed.
    (random, tuple(name for name, it in vars(random).items() if getattr(it, "__self__", None) is random._inst)),
    (random, ("_urandom",)),  # what SystemRandom and with it `secrets` are made of
    (os, ("urandom", "getrandom", "fork")),
    (uuid, ("uuid1", "uuid4")),
    (threading, ("_start_new_thread", "_start_joinable_thread")),
    (_thread, ("start_new_thread", "start_new", "start_joinable_thread")),
    (threading.Thread, ("start",)),
)


class Reached(BaseException):
    """Simulated code reached the real world. It is no Exception, so that nobody takes it for a fault of the bank's."""


class Guard:
    """While it is on, real clocks, chance and threads raise `Reached`, and what was reached is kept in `reached`.

    `now` is what `datetime.now` of the product's modules tells instead, in microseconds since 1970.
    """

    def __init__(self) -> None:
        self.reached: list[str] = []

    @contextmanager
    def on(self, now: Callable[[], int]) -> Iterator[None]:
        """Guard for as long as the context lasts."""
        self.reached.clear()
        refused = {(id(owner), name): self._refusing(_name_of(owner, name)) for owner, name in _things()}
        places: list[tuple[Any, str, Any]] = [(owner, name, refused[id(owner), name]) for owner, name in _things()]
        places += [(module, own, refused[id(owner), name]) for module, own, owner, name in _taken(len(sys.modules))]
        places += self._dates(now)
        places.append((random.Random, "seed", self._seed_if_given(random.Random.seed)))
        with patched(places):
            yield

    def _dates(self, now: Callable[[], int]) -> list[tuple[Any, str, Any]]:
        """The date and the time of day, which are methods of classes that cannot be changed."""
        refuse = self._refusing

        class Datetime(datetime.datetime):
            now = refuse("datetime.now")
            utcnow = refuse("datetime.utcnow")
            today = refuse("datetime.today")

        class Date(datetime.date):
            today = refuse("date.today")

        class Virtual(Datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> "Virtual":
                return cls.fromtimestamp(now() / 1_000_000, tz)

        dates = [(module, name, Date) for module, name in _holding(datetime.date, len(sys.modules))]
        times = [(module, name, Virtual) for module, name in _holding(datetime.datetime, len(sys.modules))]
        return [(datetime, "datetime", Datetime), (datetime, "date", Date), *dates, *times]

    def _seed_if_given(self, seed: Any) -> Callable[..., None]:
        def seed_if_given(chance: random.Random, a: Any = None, version: int = 2) -> None:
            if a is None:
                self._refuse("random.Random without a seed")
            seed(chance, a, version)

        return seed_if_given

    def _refusing(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            self._refuse(name)

        return refuse

    def _refuse(self, name: str) -> NoReturn:
        self.reached.append(name)
        raise Reached(f"simulated code reached {name}")


def _name_of(owner: Any, name: str) -> str:
    return f"threading.Thread.{name}" if owner is threading.Thread else f"{owner.__name__}.{name}"


@lru_cache(maxsize=1)
def _things() -> list[tuple[Any, str]]:
    return [(owner, name) for owner, names in _REFUSED for name in names if name in vars(owner)]


# Sought again only when there are more modules than before.
@lru_cache(maxsize=1)
def _taken(_modules: int) -> list[tuple[Any, str, Any, str]]:
    """What the product's modules took into names of their own, as `from time import monotonic` does."""
    originals = {id(vars(owner)[name]): (owner, name) for owner, name in _things()}
    return [(module, own, *originals[id(it)]) for module, own, it in _globals() if id(it) in originals]


@lru_cache(maxsize=2)
def _holding(thing: Any, _modules: int) -> list[tuple[Any, str]]:
    return [(module, own) for module, own, it in _globals() if it is thing]


def _globals() -> Iterator[tuple[Any, str, Any]]:
    """All that the product's modules have names for."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_PRODUCT):
            yield from ((module, own, it) for own, it in list(vars(module).items()))
