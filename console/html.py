"""HTML that cannot be broken by what it shows: every text is escaped, unless it was made here.

    tag.p("Reason: ", tag.b(reason), class_="note")

A child is an element made here, a text, a number, a sequence of children, or None for nothing. An attribute is a text, a
number, True for an attribute without a value, or None or False for none. A trailing underscore is left out of its name, and
each other one is a hyphen.
"""

from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = frozenset({"br", "hr", "input", "link", "meta"})
# Where a browser goes by itself or by a click: only to places of the console's own.
_PLACES = frozenset({"href", "src", "action", "formaction"})


class Html(str):
    """A text that is HTML already. Nothing but this module and the templates in `console` may make one."""

    __slots__ = ()


Child = Any
"""An Html, a text, a number, an iterable of children, or None."""


class _Tags:
    """Makes elements: `tag.div(...)`."""

    def __getattr__(self, name: str) -> "_Tag":
        return _Tag(name)


class _Tag:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *children: Child, **attributes: str | int | float | bool | None) -> Html:
        """Make the element."""
        given = "".join(_attribute(name, value) for name, value in attributes.items())
        if self._name in _VOID:
            return Html(f"<{self._name}{given}>")
        return Html(f"<{self._name}{given}>{text_of(children)}</{self._name}>")


tag = _Tags()
"""Makes elements."""


def text_of(child: Child) -> Html:
    """Return the HTML of a child."""
    match child:
        case Html():
            return child
        case None | False:
            return Html()
        case str():
            return Html(escape(child))
        case int() | float():
            return Html(child)
        case Iterable():
            return Html("".join(map(text_of, child)))
    raise TypeError(f"{type(child).__name__} cannot be shown")


def document(*, language: str, head: Child, body: Html) -> str:
    """Return a whole document."""
    return f'<!doctype html><html lang="{escape(language)}"><head>{text_of(head)}</head>{body}</html>'


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    if name == "style" or name.startswith("on"):
        raise ValueError(f"{name}: the content security policy forbids it")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if name in _PLACES and not (str(value).startswith(("/", "#", "?")) and not str(value).startswith("//")):
        raise ValueError(f"{name}: a place of another host")
    return f' {name}="{escape(str(value))}"'
