"""Stands around a part of a server: what planted bugs and counters are made of."""

from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Around(Generic[T]):
    """Does whatever the part inside does, except for what a subclass does otherwise."""

    def __init__(self, inner: T) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def as_one(self) -> T:
        """Itself, as one of what it stands around."""
        return cast("T", self)
