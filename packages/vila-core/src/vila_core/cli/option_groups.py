"""Command-line options in groups: one dataclass per group, with a typer option per field."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with one parameter per option, as typer needs, where it takes dataclasses of options.

    Every field of such a dataclass needs a plain default, and a name that no other group uses.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters = [
        parameter
        for original in inspect.signature(command).parameters.values()
        for parameter in (
            _parameters(groups[original.name])
            if original.name in groups
            else [original.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[original.name])]
        )
    ]

    @functools.wraps(command)
    def flat_command(**values: Any) -> None:
        grouped = {name: _take(group, values) for name, group in groups.items()}
        command(**values, **grouped)

    flat_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(flat_command)["__signature__"] = inspect.Signature(parameters)
    return flat_command


def options_given(context: typer.Context, group: type[Any]) -> dict[str, str]:
    """Return the options of a group that are on the command line: the field's name -> the option, such as --top-p."""
    spelled = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    sources = {field.name: context.get_parameter_source(field.name) for field in fields(group)}
    return {name: spelled[name] for name, source in sources.items() if source and source.name != "DEFAULT"}


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    types: Mapping[str, Any] = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
        )
        for field in fields(group)
    ]


def _take(group: type[Any], values: dict[str, Any]) -> object:
    """Build a group from its fields, and remove them from `values`."""
    return group(**{field.name: values.pop(field.name) for field in fields(group)})
