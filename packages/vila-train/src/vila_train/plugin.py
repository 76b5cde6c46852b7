"""What vila-train registers. Cheap to import: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl
from vila_core.plugins.lazy import lazy_object

if TYPE_CHECKING:
    from vila_core.plugins.datasets import Dataset

VILA_HOOK_API = 2


@hookimpl
def vila_datasets() -> Sequence[Dataset]:
    """The drawn world of vila-tiny."""
    from vila_train.tiny.dataset import DrawnWorld

    return (DrawnWorld(),)


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila train`."""
    help = "Train models: the embedded one from scratch, and the world it learns."
    return (Command("train", help, lazy_object("vila_train.cli:app")),)
