"""Contact sheets: one picture that shows samples of the drawn world with their questions and answers."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vila_core.errors import ConfigError
from vila_core.new_file import write_file
from vila_train.tiny.world.drawing import draw
from vila_train.tiny.world.scenes import Sample

CELL_WIDTH, CELL_HEIGHT, MARGIN, PICTURE = 420, 216, 10, 132
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
INK, RIGHT, WRONG, FAINT = (30, 30, 30), (20, 130, 60), (200, 40, 40), (120, 120, 120)


@dataclass(frozen=True)
class Entry:
    """A sample, and the reply of a model if there is one."""

    sample: Sample
    reply: str | None = None


def contact_sheet(entries: Sequence[Entry], columns: int = 3) -> Image.Image:
    """Draw `entries` row by row. Replies of a model are marked right (green) or wrong (red)."""
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (columns * CELL_WIDTH, rows * CELL_HEIGHT), "white")
    for index, entry in enumerate(entries):
        _draw_cell(sheet, (index % columns) * CELL_WIDTH, (index // columns) * CELL_HEIGHT, entry)
    return sheet


def require_picture_path(path: Path) -> None:
    """Raise `ConfigError` if the suffix of `path` is not of a picture format. Call it before a long computation."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"'{path}' is not the name of a picture. Use a suffix of {', '.join(FORMATS)}.")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the suffix. Raises `ConfigError` or `OutputError`."""
    require_picture_path(path)
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[path.suffix.lower()])
    write_file(path, buffer.getvalue())


def _draw_cell(sheet: Image.Image, left: int, top: int, entry: Entry) -> None:
    pen, sample = ImageDraw.Draw(sheet), entry.sample
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    pictures = sample.scenes
    side = min(PICTURE, (CELL_WIDTH - 2 * MARGIN - 4 * len(pictures)) // min(4, len(pictures)))
    side = side if len(pictures) <= 4 else PICTURE // 2 - 2
    for index, scene in enumerate(pictures):
        x, y = left + MARGIN + index % 4 * (side + 4), top + MARGIN + index // 4 * (side + 4)
        sheet.paste(draw(scene, side * 2).resize((side, side)), (x, y))
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline=FAINT)
    pen.text(
        (left + CELL_WIDTH - MARGIN, top + CELL_HEIGHT - 8),
        f"{sample.task}: {sample.kind}",
        font=small,
        fill=FAINT,
        anchor="rb",
    )
    y = top + MARGIN + PICTURE + 8
    for line in textwrap.wrap(sample.question, 54)[:2]:
        pen.text((left + MARGIN, y), line, font=font, fill=INK)
        y += 18
    if entry.reply is None:
        pen.text((left + MARGIN, y), sample.answer, font=font, fill=RIGHT)
    elif entry.reply == sample.answer:
        pen.text((left + MARGIN, y), f"{entry.reply}   (right)", font=font, fill=RIGHT)
    else:
        pen.text((left + MARGIN, y), f"{entry.reply}   (wrong: {sample.answer})", font=font, fill=WRONG)
