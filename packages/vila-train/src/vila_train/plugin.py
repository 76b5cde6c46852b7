"""What vila-train adds to VILA Kit. Cheap to import: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vila_core import Command, hookimpl

if TYPE_CHECKING:
    import typer

    from vila_train.tiny.recipes import Recipe
    from vila_train.tiny.world.combinations import Split

VILA_HOOK_API = 1


@dataclass(frozen=True)
class SampleSource:
    """A dataset that makes its rows: `row(split, source, index)`, for any index, always the same one.

    A row has a prompt (text, `vila_core.Image`s and `vila_core.Video`s in order), its answer, and the kind of question.
    `sources()` are the names of its parts. Neither imports anything before it is called.
    """

    name: str
    sources: Callable[[], Sequence[str]]
    row: Callable[[Split, str, int], Mapping[str, Any]]


@hookimpl
def vila_recipes() -> Sequence[Recipe]:
    """vila-tiny's stages."""
    from vila_train.tiny.recipes import RECIPES

    return RECIPES


@hookimpl
def vila_datasets() -> Sequence[SampleSource]:
    """The drawn world."""
    return (SampleSource("drawn-world", _drawn_sources, _drawn_row),)


def _drawn_sources() -> Sequence[str]:
    from vila_train.tiny.world import CAPTIONS, TESTS

    return (*TESTS, *CAPTIONS)


def _drawn_row(split: Split, source: str, index: int) -> Mapping[str, Any]:
    from vila_train.tiny.report import as_prompt
    from vila_train.tiny.world import make_sample

    sample = make_sample(split, source, index)
    return {"prompt": as_prompt(sample), "answer": sample.answer, "kind": sample.kind}


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila train`."""
    return (Command("train", "Train models: the embedded one from nothing, and the world it learns.", _command),)


def _command() -> typer.Typer:
    from vila_train.cli import app

    return app
