"""The plugin of vila-train: recipes, datasets, callbacks and the command `vila train`. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl
from vila_core.plugins.lazy import lazy_object

if TYPE_CHECKING:
    from vila_core.plugins.datasets import Dataset
    from vila_train.callbacks import CallbackFactory
    from vila_train.recipes import Recipe

VILA_HOOK_API = 2


@hookimpl
def vila_datasets() -> Sequence[Dataset]:
    """The drawn world of vila-tiny, and descriptions of it to draw."""
    from vila_train.tiny.dataset import DrawnWorld, DrawnWorldDrawings

    return (DrawnWorld(), DrawnWorldDrawings())


@hookimpl
def vila_recipes() -> Sequence[Recipe]:
    """The published stages of NVILA, NVILA-Lite, VILA-1.5 and VILA-U, vila-tiny and vila-tiny-u."""
    from vila_train.recipes import RECIPES

    return RECIPES


@hookimpl
def vila_callbacks() -> Sequence[CallbackFactory]:
    """Logs, plots and experiment trackers."""
    from vila_train.tracking import FACTORIES

    return FACTORIES


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila train`."""
    help = "Train and fine-tune models, from a recipe or on data of your own."
    return (Command("train", help, lazy_object("vila_train.cli:app")),)
