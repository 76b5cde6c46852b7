"""Limits on what a template may do: steps, size of a value, length of the output.

Every operation of a template is charged here before or while it runs, so a template that loops or grows without end
stops after about a second, however it does so. The limits do not depend on the machine: a template that renders a
conversation does so everywhere.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Set, Sized, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

from jinja2.exceptions import TemplateRuntimeError
from jinja2.utils import Namespace

BASE_STEPS = 500_000
STEPS_PER_MESSAGE = 1_000
STEPS_PER_PAIR_OF_MESSAGES = 10
"""Templates may look at all messages for each of them."""
BASE_SIZE = 1_000_000
SIZE_PER_CHARACTER = 16
"""A value may hold each character of the conversation several times, and so may the output."""
CHARACTERS_PER_STEP = 256
"""Copying or comparing this many characters takes about as long as one other step."""


class TemplateLimitError(TemplateRuntimeError):
    """A template does more than its budget allows."""


class Budget:
    """What is left for one rendering of a template."""

    def __init__(self, num_messages: int, num_characters: int):
        self._steps = (
            BASE_STEPS + STEPS_PER_MESSAGE * num_messages + STEPS_PER_PAIR_OF_MESSAGES * num_messages * num_messages
        )
        self.max_size = BASE_SIZE + SIZE_PER_CHARACTER * num_characters
        self._output = self.max_size

    def charge(self, steps: int = 1) -> None:
        """Count steps. Raises `TemplateLimitError` once there are too many."""
        self._steps -= steps
        if self._steps < 0:
            raise TemplateLimitError("it takes too many steps, as if it looped without end")

    def require_size(self, size: int) -> None:
        """Charge for a value of `size` characters or items. Raises `TemplateLimitError` if it is too large."""
        if size > self.max_size:
            raise TemplateLimitError(f"it makes a value of more than {self.max_size:,} characters")
        self.charge(1 + max(size, 0) // CHARACTERS_PER_STEP)

    def touch(self, value: object) -> None:
        """Charge for an operation that reads `value` without looking into its items."""
        self.require_size(len(value) if isinstance(value, Sized) else 0)

    def measure(self, *values: object) -> int:
        """Charge for an operation that reads `values` with all that they contain; return their size in characters.

        A value that a list holds twice counts twice, as it would when printed.
        """
        size = 0
        pending: list[object] = list(values)
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                size += len(value) + 2
            elif isinstance(value, int):
                size += value.bit_length() // 3 + 2
            elif (items := _items(value)) is not None:
                size += 2 + len(items)
                self.charge(len(items))
                pending += items
            if size > self.max_size:
                break
        self.require_size(size)
        return size

    def emit(self, value: object) -> None:
        """Charge for printing `value`."""
        self._output -= self.measure(value)
        if self._output < 0:
            raise TemplateLimitError(f"its text has more than {self.max_size:,} characters")

    def count(self, items: Iterable[object]) -> Iterable[object]:
        """Return `items`, charging for each that is read."""
        if isinstance(items, Sized):
            self.charge(1 + len(items))
            return items
        return self._count(items)

    def _count(self, items: Iterable[object]) -> Generator[object]:
        for item in items:
            self.charge()
            yield item


def _items(value: object) -> list[object] | None:
    """Return what `value` contains; None for anything but a collection."""
    if isinstance(value, Namespace):
        value = cast("object", object.__getattribute__(value, "_Namespace__attrs"))
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return [*mapping, *mapping.values()]
    if isinstance(value, list | tuple | Set | ValuesView):
        return list(cast("Iterable[object]", value))
    return None


_current: ContextVar[Budget] = ContextVar("budget of the template that is being rendered")


def current_budget() -> Budget:
    """Return the budget of the template that this thread renders."""
    return _current.get()


@contextmanager
def spending(budget: Budget) -> Generator[None]:
    """Charge templates that are rendered in the `with` block to `budget`."""
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)
