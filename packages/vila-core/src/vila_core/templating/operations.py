"""The operators, string methods, filters and tests of templates, each charged to the current budget."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from datetime import datetime
from functools import wraps
from types import GeneratorType
from typing import Any, cast

import jinja2.filters
import jinja2.tests
from jinja2 import Environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Context
from jinja2.utils import Cycler, Joiner, Namespace, pass_environment

from vila_core.templating.budget import TemplateLimitError, current_budget

MAX_BITS = 4096
"""Limit on whole numbers."""
MAX_COUNT = 10_000
"""Limit on arguments that say how much to repeat or to fill."""


def apply_operator(symbol: str, left: Any, right: Any) -> Any:
    """Return `left symbol right`."""
    budget = current_budget()
    if symbol in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if symbol == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS and abs(left) > 1:
            raise TemplateLimitError("it computes with numbers that are too large")
    elif symbol == "*":
        for items, count in ((left, right), (right, left)):
            if isinstance(items, Sized):
                budget.require_size(int(len(items) * count))
    elif symbol == "%" and isinstance(left, str):
        return format_percent(left, right)
    elif symbol == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        budget.require_size(len(left) + len(right))
    else:
        budget.charge()
    result = _OPERATORS[symbol](left, right)
    if isinstance(result, list | tuple):
        budget.measure(cast("object", result))
    return result


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def concatenate(*parts: object) -> str:
    """Return the texts of `parts` as one: the operator `~`."""
    current_budget().measure(*parts)
    return "".join(map(str, parts))


def format_percent(pattern: str, values: Any) -> str:
    """Return `pattern % values`."""
    if re.search(r"%[^a-zA-Z%]*\*", pattern):
        raise TemplateLimitError("it formats with a width that is not written out")
    _require_format(pattern, pattern.count("%"), values)
    return pattern % values


def _require_format(pattern: str, num_fields: int, values: object) -> None:
    """Check the size of a formatted text before it is made."""
    widths = [min(int(digits[:9]), 10**9) for digits in re.findall("[0-9]+", pattern)]
    budget = current_budget()
    budget.require_size(len(pattern) + num_fields * (budget.measure(values) + max(widths, default=0)))


class FormatMethod:
    """`pattern.format` or `pattern.format_map`; `call` is the method, in Jinja's sandbox."""

    def __init__(self, pattern: str, call: Callable[..., str]):
        self._pattern = pattern
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if re.search(r":[^{}]*\{", self._pattern):
            raise TemplateLimitError("it formats with a width that is not written out")
        _require_format(self._pattern, self._pattern.count("{"), (args, kwargs))
        return self._call(*args, **kwargs)


def call_method(owner: object, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a method of a built-in value. Raises `SecurityError` unless it is known to be harmless."""
    budget = current_budget()
    if isinstance(owner, str) and name in _LINEAR_STRING_METHODS:
        budget.touch(owner)
        budget.measure(args)
    elif isinstance(owner, str) and name in ("center", "ljust", "rjust", "zfill"):
        budget.require_size(max(len(owner), int(args[0])))
    elif isinstance(owner, str) and name == "replace":
        budget.require_size(_replaced_size(owner, *args))
    elif isinstance(owner, str) and name == "join":
        args = (_list(args[0]),)
        budget.require_size(budget.measure(args) + len(owner) * len(args[0]))
    elif isinstance(owner, dict | list | tuple) and name in _COLLECTION_METHODS:
        budget.touch(cast("object", owner))
        budget.measure(args)
    else:
        raise SecurityError(f"it calls the method {name} of a {type(owner).__name__}")
    return method(*args, **kwargs)


_LINEAR_STRING_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
    ]
)
"""Methods of strings whose result is not longer than the string."""
_COLLECTION_METHODS = frozenset(["copy", "count", "get", "index", "items", "keys", "values"])


def _replaced_size(text: str, old: str, new: str, count: int = -1) -> int:
    occurrences = text.count(old)
    return len(text) + (occurrences if count < 0 else min(count, occurrences)) * len(new)


def _list(items: Iterable[Any]) -> list[Any]:
    return list(current_budget().count(items))


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | str | None = None, separators: Any = None, **options: bool
) -> str:
    """As in transformers: Jinja's own filter escapes `<` and `>`."""
    sort_keys = options.pop("sort_keys", False)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _attributes(environment: Environment, items: Iterable[Any], attribute: str | int | None) -> list[Any]:
    if attribute is None:
        return _list(items)
    return [*map(jinja2.filters.make_attrgetter(environment, attribute), _list(items))]


@pass_environment
def _join(environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = _attributes(environment, value, attribute)
    budget = current_budget()
    budget.require_size(budget.measure(items) + len(items) * len(d))
    return d.join(map(str, items))


def _replace(s: str, old: str, new: str, count: int | None = None) -> str:
    current_budget().require_size(_replaced_size(str(s), str(old), str(new), -1 if count is None else count))
    return str(s).replace(str(old), str(new), -1 if count is None else count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    current_budget().require_size(len(s) + (len(s.splitlines()) + 1) * size)
    return jinja2.filters.do_indent(s, width, first, blank)


@pass_environment
def _sum(environment: Environment, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    items = _attributes(environment, iterable, attribute)
    if not all(isinstance(item, int | float) for item in (start, *items)):
        raise TemplateLimitError("its filter 'sum' adds something other than numbers")
    return sum(items, start)


def _format(value: object, *args: Any, **kwargs: Any) -> str:
    return format_percent(str(value), kwargs or args)


def _plain(value: object) -> str:
    return str(value)


def _escape(value: object) -> str:
    return str(jinja2.filters.do_forceescape(str(value)))


_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "sum": _sum,
    "format": _format,
    "string": _plain,
    "safe": _plain,
    **dict.fromkeys(("e", "escape", "forceescape"), _escape),
}
_FILTERS = [
    "abs",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "round",
    "select",
    "selectattr",
    "slice",
    "sort",
    "striptags",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
]
_REPEATING_FILTERS = frozenset(["batch", "center", "indent", "round", "slice", "tojson", "truncate"])
_DEEP_FILTERS = frozenset(["dictsort", "format", "groupby", "max", "min", "sort", "string", "tojson", "unique"])
_DEEP_TESTS = frozenset(
    [
        "eq",
        "equalto",
        "==",
        "ne",
        "!=",
        "lt",
        "lessthan",
        "<",
        "le",
        "<=",
        "gt",
        "greaterthan",
        ">",
        "ge",
        ">=",
        "in",
        "string",
    ]
)


def bounded_filters() -> dict[str, Callable[..., Any]]:
    """Return Jinja's filters that a chat template may need."""
    filters = {name: cast("Callable[..., Any]", jinja2.filters.FILTERS[name]) for name in _FILTERS} | _OWN_FILTERS
    return {name: _bounded(name, function, _DEEP_FILTERS) for name, function in filters.items()}


def bounded_tests() -> dict[str, Callable[..., Any]]:
    """Return Jinja's tests."""
    tests = cast("Mapping[str, Callable[..., Any]]", jinja2.tests.TESTS)
    return {name: _bounded(name, function, _DEEP_TESTS) for name, function in tests.items()}


def _bounded(name: str, function: Callable[..., Any], deep: frozenset[str]) -> Callable[..., Any]:
    @wraps(function)  # keeps Jinja's mark of functions that take the context or the environment
    def call(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        values = [value for value in (*args, *kwargs.values()) if not isinstance(value, Context | Environment)]
        for position, value in enumerate(values):
            if name in _REPEATING_FILTERS and position and isinstance(value, int) and value > MAX_COUNT:
                raise TemplateLimitError(f"its filter '{name}' is given the number {value}")
            budget.touch(value)
        if name in deep:
            budget.measure(*values)
        result = function(*args, **kwargs)
        if isinstance(result, GeneratorType):
            return budget.count(cast("Iterable[object]", result))
        budget.touch(result)
        return result

    return call


def _raise_exception(message: object = "") -> None:
    raise TemplateError(str(message))


def _range(*args: int) -> range:
    numbers = range(*args)
    current_budget().require_size(len(numbers))
    return numbers


def _strftime_now(pattern: str) -> str:
    """Return the time as in transformers."""
    if len(pattern) > 100 or re.search(r"%[^a-zA-Z%]*[0-9]", pattern):
        raise TemplateLimitError("it formats the time with a width")
    return datetime.now().strftime(pattern)


def global_functions() -> dict[str, Callable[..., Any]]:
    """Return the functions that a template may call."""
    return {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "range": _range,
        "dict": dict,
        "namespace": Namespace,
        "cycler": Cycler,
        "joiner": Joiner,
    }
