"""Scenes, which describe what a picture shows before it is drawn, and samples (prompt and answer) made of them.

Lengths are in canvas units: a picture is `CANVAS` units wide and high, and y points down.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vila_train.tiny.world.combinations import Rgb

CANVAS = 192

POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""The cells of a 3 x 3 grid, row by row."""


@dataclass(frozen=True)
class Thing:
    """A colored shape. `rgb` is the drawn color, a shade of `color`."""

    color: str
    shape: str
    rgb: Rgb
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def cell(self) -> int:
        """Index into `POSITIONS` of the cell that contains the center."""
        return int(3 * self.y / CANVAS) * 3 + int(3 * self.x / CANVAS)


@dataclass(frozen=True)
class Text:
    """A word or number. x and y are its center, `size` is the font size."""

    text: str
    rgb: Rgb
    x: float
    y: float
    size: int


@dataclass(frozen=True)
class Bar:
    """A bar of a bar chart."""

    color: str
    rgb: Rgb
    value: int


@dataclass(frozen=True)
class Scene:
    """A picture of things, a text or a bar chart."""

    background: Rgb
    things: tuple[Thing, ...] = ()
    text: Text | None = None
    bars: tuple[Bar, ...] = ()

    @property
    def combinations(self) -> Iterator[str]:
        """The combinations in this picture that belong to one split (see `combinations`)."""
        yield from (thing.name for thing in self.things)
        yield from (f"bar {bar.color} {bar.value}" for bar in self.bars)
        if self.text is not None:
            yield f"text {self.text.text}"


@dataclass(frozen=True)
class Clip:
    """A video: one scene per frame."""

    frames: tuple[Scene, ...]


@dataclass(frozen=True)
class Sample:
    """A question about pictures or a video, and its answer.

    Attributes:
        task: name of the task.
        kind: type of question within the task.
        prompt: text and media in order.
        answer: the one right answer.
        subject: the combination that the question is about; outside training it is held out (see `combinations`).
        drawn: the picture that answers a request to draw, whose `answer` is empty; None for questions.
    """

    task: str
    kind: str
    prompt: tuple[str | Scene | Clip, ...]
    answer: str
    subject: str
    drawn: Scene | None = None

    @property
    def scenes(self) -> list[Scene]:
        """All pictures and frames, in order; one to be drawn is the last."""
        found: list[Scene] = []
        for part in self.prompt:
            if isinstance(part, Scene):
                found.append(part)
            elif isinstance(part, Clip):
                found.extend(part.frames)
        return found if self.drawn is None else [*found, self.drawn]

    @property
    def question(self) -> str:
        """The text of the prompt."""
        return " ".join(part.strip() for part in self.prompt if isinstance(part, str))

    @property
    def combinations(self) -> set[str]:
        """All combinations that the pictures show."""
        return {combination for scene in self.scenes for combination in scene.combinations}
