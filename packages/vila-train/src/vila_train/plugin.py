"""What vila-train adds to VILA Kit. Cheap to import: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl

if TYPE_CHECKING:
    import typer

    from vila_train.recipes import Recipe
    from vila_train.world.combinations import Split
    from vila_train.world.scenes import Sample

VILA_HOOK_API = 1


@dataclass(frozen=True)
class SampleSource:
    """A dataset that makes its samples: `sample(split, source, index)`, for any index, always the same one.

    `sources()` are the names of its parts. Neither imports anything before it is called.
    """

    name: str
    sources: Callable[[], Sequence[str]]
    sample: Callable[[Split, str, int], Sample]


@hookimpl
def vila_recipes() -> Sequence[Recipe]:
    """vila-tiny's stages."""
    from vila_train.recipes import RECIPES

    return RECIPES


@hookimpl
def vila_datasets() -> Sequence[SampleSource]:
    """The drawn world."""
    return (SampleSource("drawn-world", _drawn_sources, _drawn_sample),)


def _drawn_sources() -> Sequence[str]:
    from vila_train.world import CAPTIONS, TASKS

    return tuple(TASKS | CAPTIONS)


def _drawn_sample(split: Split, source: str, index: int) -> Sample:
    from vila_train.world import make_sample

    return make_sample(split, source, index)


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila train`."""
    return (Command("train", "Train models: the embedded one from nothing, and the world it learns.", _command),)


def _command() -> typer.Typer:
    from vila_train.cli import app

    return app
