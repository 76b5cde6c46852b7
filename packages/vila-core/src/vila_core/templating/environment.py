"""A Jinja environment for templates that come with a checkpoint.

Jinja's sandbox keeps a template away from Python's objects, but not from looping or growing without end. Here the
parsed template is rewritten, so that loops, literals, comparisons and everything that is printed pass through the
environment, as operators, filters and calls already do; all of them are charged to a `Budget`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, pass_context
from jinja2.visitor import NodeTransformer

from vila_core.templating.budget import current_budget
from vila_core.templating.operations import (
    FormatMethod,
    apply_operator,
    bounded_filters,
    bounded_tests,
    call_method,
    concatenate,
    global_functions,
)

Value = TypeVar("Value")
STEPS_PER_CALL = 10
"""A call takes about as long as this many other steps."""


@pass_context  # which also keeps Jinja from computing what is printed while it compiles
def _printed(context: Context, value: object) -> object:
    current_budget().emit(value)
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates as transformers does, and renders them within the budget of the calling thread."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, GenerationBlocks],
            optimized=False,  # the optimizer computes constants while it compiles
            finalize=_printed,
        )
        functions = global_functions()
        self.globals = cast("Any", dict(functions))
        self._functions = list(functions.values())
        self.filters = cast("Any", bounded_filters())
        self.tests = cast("Any", bounded_tests())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _ChargeEverything().generic_visit(tree)
        tree.set_environment(self)
        return tree

    # What rewritten templates call:

    def counted(self, items: Iterable[object]) -> Iterable[object]:
        """The items of a loop."""
        return current_budget().count(items)

    def built(self, value: Value) -> Value:
        """A list, tuple or dict that the template writes, and what it compares."""
        current_budget().measure(value)
        return value

    def touched(self, value: Value) -> Value:
        """What the template takes a slice of."""
        current_budget().touch(value)
        return value

    def concatenated(self, *parts: object) -> str:
        """The operator `~`."""
        return concatenate(*parts)

    # What Jinja's sandbox calls:

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return apply_operator(operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        method = super().wrap_str_format(value)
        return None if method is None else FormatMethod(value.__self__, method)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        owner = getattr(function, "__self__", None)
        if owner is self:
            return function(*args)
        scope = {key: kwargs.pop(key) for key in ("_loop_vars", "_block_vars") if key in kwargs}  # Jinja's own
        if isinstance(function, types.BuiltinMethodType) and isinstance(owner, str | dict | list | tuple):
            return call_method(cast("object", owner), function.__name__, function, args, kwargs)
        if not self._may_call(function, owner):
            raise SecurityError(f"it calls {type(function).__name__} '{getattr(function, '__name__', '')}'")
        budget = current_budget()
        budget.charge(STEPS_PER_CALL)
        budget.measure(args, kwargs)
        if isinstance(function, LoopContext):  # a recursive loop
            args = (budget.count(args[0]), *args[1:]) if args else args
        result = context.call(function, *args, **kwargs, **scope)
        budget.touch(result)
        return result

    def _may_call(self, function: object, owner: object) -> bool:
        return (
            isinstance(function, Macro | BlockReference | LoopContext | FormatMethod | Joiner | Undefined)
            or (isinstance(function, types.MethodType) and isinstance(owner, LoopContext | Cycler))
            or any(function is known for known in self._functions)
        )


class GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks answers for training and prints its content."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _ChargeEverything(NodeTransformer):
    """Rewrites a parsed template, so that everything that costs time or memory passes through the environment."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, _REFUSED):
            name = type(node).__name__.lower()
            raise TemplateAssertionError(f"a chat template cannot use '{name}'", node.lineno)
        self.generic_visit(node)
        match node:
            case nodes.Output():
                # Text between tags is printed like an expression: inside a loop it adds up.
                node.nodes = [_as_expression(part) for part in node.nodes]
            case nodes.For():
                node.iter = _through("counted", cast("nodes.Expr", node.iter))
            case nodes.Compare():
                for operand in (node, *node.ops):
                    operand.expr = _through("built", operand.expr)
            case nodes.Getitem(arg=nodes.Slice()):
                node.node = _through("touched", node.node)
            case nodes.Concat():
                return _through("concatenated", *node.nodes)
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _through("built", node)
            case _:
                pass
        return node


_REFUSED = (
    *(nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends),
    *(nodes.EvalContextModifier, nodes.ScopedEvalContextModifier),
)
"""Other templates, and escaping for HTML."""


def _through(method: str, *values: nodes.Expr) -> nodes.Call:
    """Return a call of a method of the environment."""
    function = nodes.EnvironmentAttribute(method)
    return nodes.Call(function, list(values), [], None, None, lineno=values[0].lineno)


def _as_expression(part: nodes.Expr) -> nodes.Expr:
    return nodes.Const(part.data, lineno=part.lineno) if isinstance(part, nodes.TemplateData) else part
