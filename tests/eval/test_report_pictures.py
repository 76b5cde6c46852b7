"""The choice of samples for the report, and their thumbnails."""

import io
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL.Image

from vila_core.media import Image, Video
from vila_eval.records.schema import SampleRecord
from vila_eval.report.pictures import choose_wrong, draw_thumbnail, picture_path, save_pictures
from vila_eval.task import Question


def sample(name: str, index: int, value: float | None, error: str | None = None) -> SampleRecord:
    return SampleRecord(
        id=name,
        index=index,
        row=index,
        key="k",
        prompt=(),
        error=error,
        values=None if value is None else {"accuracy": value},
    )


def samples(values: Mapping[str, float | None]) -> list[SampleRecord]:
    return [sample(name, index, value) for index, (name, value) in enumerate(values.items())]


def names(chosen: tuple[list[SampleRecord], int]) -> tuple[str, int]:
    return "".join(record.id for record in chosen[0]), chosen[1]


def test_worst_samples_come_first_then_data_order() -> None:
    values = {"a": 0.6, "b": 1.0, "c": 0.0, "d": 0.3, "e": 0.0, "f": None}
    assert names(choose_wrong(samples(values))) == ("ceda", 4)
    assert names(choose_wrong(samples(values), most=2)) == ("ce", 4)


def test_samples_below_the_best_are_wrong() -> None:
    assert names(choose_wrong(samples({"a": 5.0, "b": 3.0, "c": 4.0}))) == ("bc", 2)
    assert names(choose_wrong(samples({"a": 0.0, "b": 7.0, "c": 2.0}), higher_is_better=False)) == ("bc", 2)
    assert names(choose_wrong(samples({"a": 1.0, "b": 1.0}))) == ("", 0)
    assert names(choose_wrong([])) == ("", 0)


def test_failed_samples_are_always_wrong() -> None:
    assert names(choose_wrong([sample("a", 0, 1.0, "cannot be read"), sample("b", 1, 1.0)])) == ("a", 1)


def solid(color: tuple[int, int, int], width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), color, dtype=np.uint8)


def opened(content: bytes | None) -> PIL.Image.Image:
    assert content is not None
    return PIL.Image.open(io.BytesIO(content))


def test_a_thumbnail_is_at_most_224_pixels_and_keeps_its_aspect_ratio() -> None:
    thumbnail = opened(draw_thumbnail(Question("q", ["What?", Image(solid((200, 0, 0), 896, 448))])))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (224, 112))
    assert opened(draw_thumbnail(Question("q", [Image(solid((200, 0, 0), 40, 30))]))).size == (40, 30)
    assert opened(draw_thumbnail(Question("q", [Image(solid((200, 0, 0), 5000, 2))]))).size == (224, 1)
    assert draw_thumbnail(Question("q", ["only text"])) is None


def test_at_most_four_images_are_side_by_side_in_order() -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 0, 0)]
    thumbnail = opened(draw_thumbnail(Question("q", [Image(solid(color, 300, 300)) for color in colors])))
    assert thumbnail.size == (4 * 112 + 3 * 4, 112)
    for number, color in enumerate(colors[:4]):
        found = thumbnail.getpixel((116 * number + 56, 56))
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, color, strict=True)) < 12


def test_a_video_gives_up_to_four_frames() -> None:
    frames = [Image(solid((0, 0, 0), 100, 50)) for _ in range(20)]
    assert opened(draw_thumbnail(Question("q", [Video(frames), "What happens?"]))).size == (4 * 100 + 3 * 4, 50)
    assert opened(draw_thumbnail(Question("q", [Video(frames[:2])]))).size == (2 * 100 + 4, 50)
    assert opened(draw_thumbnail(Question("q", [Image(solid((0, 0, 0), 100, 50)), Video(frames)]))).size == (
        4 * 100 + 3 * 4,
        50,
    )


def test_photo_metadata_does_not_reach_the_report() -> None:
    photograph = PIL.Image.new("RGB", (64, 48), (9, 9, 9))
    exif = PIL.Image.Exif()
    exif[0x010F] = "A camera"
    file = io.BytesIO()
    photograph.save(file, "JPEG", exif=exif, comment=b"at home")
    thumbnail = opened(draw_thumbnail(Question("q", [Image(file.getvalue())])))
    assert not thumbnail.getexif()
    assert "comment" not in thumbnail.info


def test_thumbnails_are_written_only_for_wrong_samples(tmp_path: Path) -> None:
    media = [
        Image(solid((1, 2, 3), 32, 32)),
        Image(b"no picture"),
        Image(solid((1, 2, 3), 32, 32)),
        Image(tmp_path / "missing.png"),
    ]
    records = samples({"a": 0.0, "b": 0.0, "../c": 1.0, "d": 0.0})
    asked: list[int] = []

    def ask(index: int) -> Question:
        asked.append(index)
        return Question("q", [media[index], "What?"])

    save_pictures(records, ask, tmp_path)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["ca978112ca1bbdca.jpg"]  # sha256sum of "a"
    assert picture_path(tmp_path, "a").is_file()
    assert asked == [0, 1, 3]

    save_pictures(samples({"a": 1.0, "b": 1.0}), ask, tmp_path)
    assert list((tmp_path / "pictures").iterdir()) == []


def test_work_is_bounded(tmp_path: Path) -> None:
    counter = itertools.count()

    def ask(index: int) -> Question:
        next(counter)
        return Question("q", ["no media"])

    save_pictures([sample(str(index), index, 0.0) for index in range(500)], ask, tmp_path)
    assert next(counter) == 24
