"""The drawn world as a dataset that other packages read through the hook `vila_datasets`.

Plugins load at every start, so the world itself, which needs Pillow, is imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError, unknown_name
from vila_core.plugins.datasets import Sample

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from vila_core.conversation import Part
    from vila_train.tiny.world.combinations import Split
    from vila_train.tiny.world.scenes import Sample as DrawnSample
    from vila_train.tiny.world.scenes import Thing


class DrawnWorld:
    """Endless questions about pictures and videos, drawn on request. The subsets are the tests and the captions."""

    name = "drawn-world"
    splits: Sequence[str] = ("train", "validation", "test")

    def subsets(self) -> Sequence[str]:
        from vila_train.tiny.world import CAPTIONS, TESTS

        return (*TESTS, *CAPTIONS)

    def size(self, split: str, subset: str) -> None:
        self._valid_split(split, subset)

    def sample(self, split: str, subset: str, index: int) -> Sample:
        drawn = self._described(split, subset, index)
        return Sample(as_prompt(drawn), drawn.answer, drawn.kind)

    def _described(self, split: str, subset: str, index: int) -> DrawnSample:
        """Return the sample as it is drawn. Raises `ConfigError` or `IndexError`."""
        from vila_train.tiny.world import make_sample

        valid_split = self._valid_split(split, subset)
        if index < 0:
            raise IndexError(index)
        return make_sample(valid_split, subset, index)

    def _valid_split(self, split: str, subset: str) -> Split:
        """Return `split` as its type. Raises `ConfigError` for an unknown split or subset."""
        from vila_train.tiny.world.combinations import as_split

        if subset not in self.subsets():
            raise ConfigError(unknown_name("subset of the drawn world", subset, self.subsets()))
        return as_split(split)


class DrawnWorldDrawings(DrawnWorld):
    """Endless descriptions to draw. A sample's `compare` counts in the pixels what is as described."""

    name = "drawn-world-drawings"

    def subsets(self) -> Sequence[str]:
        return ("draw_things",)

    def sample(self, split: str, subset: str, index: int) -> Sample:
        from vila_train.tiny.world.scenes import POSITIONS

        drawn = self._described(split, subset, index)
        assert drawn.drawn is not None, "all subsets are to be drawn"
        things = drawn.drawn.things
        answer = ", ".join(f"{thing.name} ({POSITIONS[thing.cell]})" for thing in things)
        return Sample([drawn.question], answer, drawn.kind, partial(_compare, things))


def _compare(wanted: Sequence[Thing], picture: Picture) -> Mapping[str, tuple[int, int]]:
    """Return how many things have the right color, shape and position, and whether their number is right."""
    from vila_train.tiny.world.reading import compare, read_things

    found = compare(wanted, read_things(picture.convert("RGB")))
    by_attribute = {name: (getattr(found, name), found.things) for name in ("color", "shape", "position")}
    return {**by_attribute, "count": (int(found.has_right_count), 1)}


def as_prompt(sample: DrawnSample) -> list[Part]:
    """Return the prompt of `sample` with its pictures and videos drawn."""
    from vila_core.media import Image, Video
    from vila_train.tiny.world.drawing import draw
    from vila_train.tiny.world.scenes import Scene

    return [
        part
        if isinstance(part, str)
        else Image(draw(part))
        if isinstance(part, Scene)
        else Video([draw(frame) for frame in part.frames])
        for part in sample.prompt
    ]
