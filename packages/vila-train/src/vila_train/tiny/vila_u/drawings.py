"""Generates images of the drawn world from descriptions, and counts in the pixels what follows the description."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vila_core.cli.progress import NoProgress, Progress
from vila_core.runtime import Vila
from vila_train.tiny.evaluate import Score
from vila_train.tiny.world import make_sample
from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.reading import Agreement, Seen, compare, read_things
from vila_train.tiny.world.scenes import Sample
from vila_train.tiny.world.sheet import FAINT, INK, RIGHT, WRONG

SOURCE = "draw_things"
PICTURE, TEXT_HEIGHT, MARGIN = 192, 96, 8


@dataclass(frozen=True)
class Drawing:
    """A description that a model has drawn, and what was found in its pixels."""

    sample: Sample
    picture: Image.Image
    seen: Sequence[Seen]
    agreement: Agreement


def draw_samples(
    model: Vila,
    count: int,
    split: Split = "test",
    *,
    batch_size: int = 64,
    guidance: float = 3.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Drawing]:
    """Draw the first `count` descriptions of a split, in batches.

    Raises:
        ConfigError: the model does not draw.
    """
    progress = progress or NoProgress()
    progress.start("drawing", count)
    drawings: list[Drawing] = []
    for start in range(0, count, batch_size):
        samples = [make_sample(split, SOURCE, index) for index in range(start, min(start + batch_size, count))]
        pictures = model.generate_image_batch([one.question for one in samples], guidance=guidance, seed=seed)
        drawings += [_read(sample, picture) for sample, picture in zip(samples, pictures, strict=True)]
        progress.advance(len(samples))
    return drawings


def _read(sample: Sample, picture: Image.Image) -> Drawing:
    assert sample.drawn is not None
    seen = read_things(picture)
    return Drawing(sample, picture, seen, compare(sample.drawn.things, seen))


def drawing_scores(drawings: Sequence[Drawing]) -> dict[str, Score]:
    """Return how many colors, shapes and positions are right, and in how many pictures the number of things is."""
    things = sum(one.agreement.things for one in drawings)
    return {
        **{
            f"drawing: {name}": Score(sum(getattr(one.agreement, name) for one in drawings), things)
            for name in ("color", "shape", "position")
        },
        "drawing: count": Score(sum(one.agreement.has_right_count for one in drawings), len(drawings)),
    }


def drawing_sheet(drawings: Sequence[Drawing], columns: int = 6) -> Image.Image:
    """Return a contact sheet of drawings, with their descriptions: green where all is right, red where not."""
    rows = -(-len(drawings) // columns)
    width, height = PICTURE + 2 * MARGIN, PICTURE + TEXT_HEIGHT + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(11)
    for index, one in enumerate(drawings):
        x, y = index % columns * width + MARGIN, index // columns * height + MARGIN
        sheet.paste(one.picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS), (x, y))
        pen.rectangle((x, y, x + PICTURE - 1, y + PICTURE - 1), outline=FAINT)
        y += PICTURE + 4
        for line in textwrap.wrap(one.sample.question, 30)[:5]:
            pen.text((x, y), line, font=font, fill=INK)
            y += 15
        is_right = one.agreement.right == one.agreement.attributes
        verdict = f"{one.agreement.right} of {one.agreement.attributes} attributes"
        pen.text((x, y), verdict, font=small, fill=RIGHT if is_right else WRONG)
    return sheet
