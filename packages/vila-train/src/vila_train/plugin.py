"""What vila-train registers. Cheap to import: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl

if TYPE_CHECKING:
    import typer

    from vila_core.plugins.datasets import Dataset

VILA_HOOK_API = 1


@hookimpl
def vila_datasets() -> Sequence[Dataset]:
    """The drawn world of vila-tiny."""
    from vila_train.tiny.dataset import DrawnWorld

    return (DrawnWorld(),)


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila train`."""
    return (Command("train", "Train models: the embedded one from scratch, and the world it learns.", _command),)


def _command() -> typer.Typer:
    from vila_train.cli import app

    return app
