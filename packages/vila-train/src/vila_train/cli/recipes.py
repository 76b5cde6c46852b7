"""`vila-train list` and `vila-train show`."""

import json
from typing import Annotated

import typer

from vila_core.cli.options import AsJson, Plugin, load_plugin_files
from vila_core.plugins.loader import load_plugins
from vila_train.cli.flags import Set


def list_recipes(plugin: Plugin = None, as_json: AsJson = False) -> None:
    """List the recipes that `vila-train run` takes."""
    load_plugin_files(plugin)
    recipes = load_plugins().recipes
    if as_json:
        typer.echo(json.dumps([{"name": recipe.name, "summary": recipe.summary} for recipe in recipes], indent=2))
        return
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        typer.echo(f"{recipe.name:<{width}}  {recipe.summary}")


def show(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    changes: Set = None,
    plugin: Plugin = None,
) -> None:
    """Print all settings of a recipe as YAML.

    vila-train show nvila-sft > my.yaml [dim]# edit it, then: vila-train run my.yaml[/dim]
    """
    from vila_train.cli.running import read_target
    from vila_train.settings import change, write_config

    load_plugin_files(plugin)
    typer.echo(write_config(change(read_target(recipe), changes or ())), nl=False)
