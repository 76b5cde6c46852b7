"""Named arguments for functions that take `**settings`: in `help()`, `inspect.signature` and tab completion."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

Function = TypeVar("Function", bound=Callable[..., Any])


def named_settings(
    settings: type, defaults: Mapping[str, object], heading: str = "Settings"
) -> Callable[[Function], Function]:
    """Show the fields of the TypedDict `settings` as keyword arguments of a function that takes them as `**settings`.

    Args:
        settings: its docstring describes each field in a section "Attributes", which is added to the function's.
        defaults: the default of each field.
        heading: of that section in the function's docstring.
    """

    def name_them(function: Function) -> Function:
        signature = inspect.signature(function)
        fixed = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint)
            for name, hint in get_type_hints(settings).items()
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*fixed, *named])
        function.__doc__ = _merged(inspect.getdoc(function) or "", _descriptions(settings), heading)
        return function

    return name_them


def _descriptions(settings: type) -> str:
    """Return the section "Attributes" of a docstring, without its heading."""
    return (inspect.getdoc(settings) or "").partition("Attributes:\n")[2].rstrip()


def _merged(doc: str, descriptions: str, heading: str) -> str:
    """Return a docstring with a section `heading` before "Raises", else at the end."""
    before, raises, after = doc.partition("\nRaises:")
    return f"{before.rstrip()}\n\n{heading}:\n{descriptions}\n{raises}{after}".rstrip() + "\n"
