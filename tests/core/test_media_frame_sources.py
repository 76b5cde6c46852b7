"""Videos that are no files: folders, lists and arrays of frames."""

import numpy as np
import PIL.Image
import pytest
from tests.core.video_files import draw_video, message, numbered, seen

from vila_core.errors import MediaError
from vila_core.media import Image, MediaLimits, Video


@pytest.fixture
def folder(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(12):
        PIL.Image.fromarray(numbered(index)).save(frames / f"{index}.png")  # 10.png sorts before 2.png as text
    (frames / ".hidden.png").write_bytes(b"no picture")
    (frames / "notes.txt").write_text("no picture")
    return frames


def test_folder_of_frames(folder):
    loaded = Video(folder).load(4)
    assert loaded.indices == [0, 4, 7, 11]
    assert seen(loaded.frames) == loaded.indices
    assert loaded.timestamps is None
    assert loaded.duration is None
    assert Video(str(folder), frames=3).load(8).indices == [0, 6, 11]
    assert len(Video(folder).load(20).frames) == 20


def test_folder_with_fps(folder):
    loaded = Video(folder, fps=4).load(4)
    assert loaded.indices == [0, 4, 7, 11]
    assert loaded.timestamps == [0.0, 1.0, 1.75, 2.75]
    assert loaded.duration == 3.0
    assert Video(folder).load(4, fps=4).duration is None, "the model's sampling rate says nothing about a folder"


def test_list_of_frames_is_not_sampled(folder):
    mixed = [
        str(folder / "0.png"),
        folder / "1.png",
        numbered(2),
        PIL.Image.fromarray(numbered(3)),
        Image(folder / "4.png"),
        (folder / "5.png").read_bytes(),
    ]
    loaded = Video(mixed).load(2, fps=1.0)
    assert loaded.indices == [0, 1, 2, 3, 4, 5]
    assert seen(loaded.frames) == loaded.indices
    assert seen(Video(mixed, frames=2).load(8).frames) == [0, 5]
    assert Video(tuple(mixed), fps=2).load(8).timestamps == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_sampled_frames_are_a_video():
    sampled = Video(draw_video()).load(4, 0.0)
    again = Video(sampled)
    assert again.load(99, 5.0) is sampled
    assert again.size == (64, 48)
    assert not again.is_remote
    assert again.content_key() is None
    assert "4 sampled frames" in repr(again)
    assert "more than the limit of 3" in message(sampled, 4, limits=MediaLimits(max_frames=3))
    assert "pixels in total" in message(sampled, 4, limits=MediaLimits(max_video_pixels=4 * 64 * 48 - 1))
    with pytest.raises(MediaError, match="sampled frames"):
        Video(sampled, frames=2)


def test_array_and_picture():
    array = np.stack([numbered(i) for i in range(10)])
    assert seen(Video(array).load(4).frames) == [0, 3, 6, 9]
    assert seen(Video(array, frames=10).load(4).frames) == list(range(10))
    assert seen(Video(PIL.Image.fromarray(numbered(3))).load(8).frames) == [3]
    for wrong in (array[0], array.astype(np.float32), array[:0], array[None]):
        message(wrong)


def test_invalid_frame_sources(tmp_path, folder):
    assert "no frames" in message([])
    (tmp_path / "nothing").mkdir()
    assert "without image files" in message(tmp_path / "nothing")
    (folder / "3.png").write_bytes(b"damaged")
    assert "3.png" in message(folder, 12)
    for wrong in (None, 5, [None], [Video("a.mp4")]):
        with pytest.raises(MediaError, match="Expected a path"):
            Video(wrong)


def test_limits(folder):
    assert "max_frames" in message(folder, 9, limits=MediaLimits(max_frames=8))
    assert "max_frames" in message([numbered(0)] * 9, limits=MediaLimits(max_frames=8))
    assert "max_video_pixels" in message(folder, 12, limits=MediaLimits(max_video_pixels=8 * 64 * 48))
