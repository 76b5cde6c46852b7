"""The samples that a report shows, and their thumbnails."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import MediaError
from vila_core.input_files import open_regular_file
from vila_core.media import Image, Video
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import PICTURES, write_whole
from vila_eval.task import Question

if TYPE_CHECKING:
    import PIL.Image

GALLERY = 24
"""Number of samples of a task that a report shows."""

PANELS = 4
"""Largest number of panels of one thumbnail: images of the prompt, or frames of a video."""

PANEL_SIZES = {1: 224, 2: 160, 3: 128, 4: 112}
"""Longer side of a panel in pixels, by the number of panels."""

GAP = 4

MOST_THUMBNAIL_BYTES = 2**20
"""Bytes that are read of a thumbnail."""


def choose_wrong(
    samples: Iterable[SampleRecord], *, higher_is_better: bool = True, most: int = GALLERY
) -> tuple[list[SampleRecord], int]:
    """Return up to `most` samples that are not fully right, the worst first, then in the data's order.

    And their total number.

    A sample is judged by its first value: it is wrong if that is below the best one (1, or the highest in the data if
    scores exceed 1). Failed samples are always wrong. Samples without a score (not scored yet, or not judged) are left
    out.
    """
    sign = 1.0 if higher_is_better else -1.0
    marks: list[tuple[float, bool]] = []  # for each scored sample: its value, and whether it failed

    def scored() -> Iterator[tuple[float, SampleRecord]]:
        for sample in samples:
            if sample.values:
                worth = sign * next(iter(sample.values.values()))
                marks.append((worth, sample.error is not None))
                yield worth, sample

    # One pass that holds only `most` samples: a dataset may have hundreds of thousands. Equal ones keep their order.
    worst = heapq.nsmallest(most, scored(), key=lambda item: item[0])
    best = max((worth for worth, _ in marks), default=0.0)
    best = max(best, 1.0 if higher_is_better else 0.0)
    wrong = [sample for worth, sample in worst if worth < best or sample.error is not None]
    return wrong, sum(worth < best or failed for worth, failed in marks)


def picture_path(folder: Path, sample_id: str) -> Path:
    """Return the path of a sample's thumbnail in a task's results folder."""
    return folder / PICTURES / f"{hashlib.sha256(sample_id.encode()).hexdigest()[:16]}.jpg"


def picture_uri(folder: Path, sample_id: str) -> str | None:
    """Return a sample's thumbnail as a data URI, or None if the folder has none."""
    try:
        with open_regular_file(picture_path(folder, sample_id))[0] as file:
            content = file.read(MOST_THUMBNAIL_BYTES)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def save_pictures(
    samples: Sequence[SampleRecord], ask: Callable[[int], Question], folder: Path, *, higher_is_better: bool = True
) -> None:
    """Write a thumbnail of each sample that the report will show, and remove those of earlier runs.

    A sample whose image or video cannot be read gets no thumbnail.

    Args:
        samples: scored samples of a task.
        ask: returns the question of a sample's index, with its media.
        folder: results folder of the task.
        higher_is_better: direction of the samples' first value.
    """
    chosen, _ = choose_wrong(samples, higher_is_better=higher_is_better)
    kept: set[Path] = set()
    for sample in chosen:
        try:
            picture = draw_thumbnail(ask(sample.index))
        except MediaError:
            continue
        if picture is not None:
            path = picture_path(folder, sample.id)
            write_whole(path, picture)
            kept.add(path)
    for path in (folder / PICTURES).glob("*.jpg"):
        if path not in kept:
            path.unlink()


def draw_thumbnail(question: Question) -> bytes | None:
    """Return a JPEG of a question's media side by side, at most `PANELS` panels, or None without media.

    Raises `MediaError`.
    """
    media = [part for part in question.prompt if isinstance(part, Image | Video)]
    if not media:
        return None
    import PIL.Image

    panels: list[PIL.Image.Image] = []
    for medium in media:
        if room := PANELS - len(panels):
            panels += [_shrink(picture, PANEL_SIZES[1]) for picture in _load(medium, room)]
    panels = [_shrink(panel, PANEL_SIZES[len(panels)]) for panel in panels]
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    sheet = PIL.Image.new("RGB", (width, max(panel.height for panel in panels)), (255, 255, 255))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (sheet.height - panel.height) // 2))
        left += panel.width + GAP
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=82)
    return file.getvalue()


def _load(medium: Image | Video, room: int) -> list[PIL.Image.Image]:
    if isinstance(medium, Image):
        return [medium.load()]
    loaded = Video(medium.source, frames=room).load(room)
    # A video with fewer frames returns some of them twice.
    return list(dict(zip(loaded.indices, loaded.frames, strict=True)).values())[:room]


def _shrink(picture: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """Return a copy whose longer side is at most `size` pixels, without metadata."""
    scale = min(1.0, size / max(picture.size))
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), reducing_gap=3.0
    )
