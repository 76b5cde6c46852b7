"""Which frames of a video are sampled: by number, by time, with gaps, and without decoding the others."""

import itertools

import pytest
from tests.core.video_files import draw_video, message, seen

from vila_core.media import Video
from vila_core.media.video import _Reader


def test_fps_samples_by_time_up_to_the_number_of_frames():
    video = draw_video(30)
    assert Video(video).load(8, 2.0).indices == [0, 5, 10, 15, 20, 25]
    assert Video(video).load(4, 2.0).indices == [0, 5, 10, 15]
    assert Video(video, frames=3).load(8, 2.0).indices == [0, 5, 10]
    assert Video(video, fps=1).load(8).indices == [0, 10, 20]
    assert Video(video, fps=0, frames=2).load(8, 2.0).indices == [0, 29]


def test_frames_repeat_in_short_videos():
    loaded = Video(draw_video(2)).load(6)
    assert loaded.indices == [0, 0, 0, 1, 1, 1]
    assert seen(loaded.frames) == loaded.indices


def test_one_frame():
    loaded = Video(draw_video(1)).load(4)
    assert loaded.indices == [0, 0, 0, 0]
    assert loaded.duration == pytest.approx(0.1)
    assert Video(draw_video(1)).load(4, fps=2.0).indices == [0]


@pytest.mark.parametrize("format", ["matroska", "mp4"])
def test_variable_rate_timestamps(format):
    times = [0, 40, 80, 120, 2000, 2040, 5000, 5040, 5080, 9000]
    loaded = Video(draw_video(10, format=format, times=times, rate=1000)).load(10)
    assert seen(loaded.frames) == list(range(10))
    assert loaded.timestamps == pytest.approx([t / 1000 for t in times], abs=2e-3)
    assert loaded.duration == pytest.approx(10.0, rel=0.02)  # ten frames at the mean rate of 1/s


def test_sampling_a_long_video_decodes_few_frames(monkeypatch):
    """Sampling 4 of 2000 frames, in groups of 10, decodes only a few groups."""
    data = draw_video(2000, codec="mpeg4", g=10)
    decoded = itertools.count()
    original = _Reader.frames_from

    def counted(self, start):
        for frame in original(self, start):
            next(decoded)
            yield frame

    monkeypatch.setattr(_Reader, "frames_from", counted)
    assert seen(Video(data).load(4).frames) == [0, 666, 1333, 1999]
    assert next(decoded) < 60


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_fps_goes_by_time_in_a_video_with_a_variable_rate(format):
    times = [*range(0, 2000, 40), *range(2000, 12_000, 1000)]  # 50 frames in two seconds, then one a second
    loaded = Video(draw_video(60, format=format, rate=25, times=times)).load(16, fps=1.0)
    assert loaded.timestamps == pytest.approx(range(12), abs=0.002)
    assert loaded.indices == [0, 25, *range(50, 60)]
    assert seen(loaded.frames) == loaded.indices


def test_a_jump_in_time_shows_the_frame_before_it():
    times = [*range(0, 1200, 40), *range(9_000_000, 9_001_200, 40)]
    loaded = Video(draw_video(60, format="matroska", rate=25, times=times)).load(6, fps=1.0)
    assert loaded.indices == [0, 25, 29, 29, 29, 29]
    assert Video(draw_video(60, format="matroska", rate=25, times=times)).load(6).indices == [0, 12, 24, 35, 47, 59]


def test_a_late_start_is_no_gap():
    loaded = Video(draw_video(30, format="matroska", times=range(5000, 8000, 100))).load(8, fps=1.0)
    assert loaded.indices == [0, 10, 20]


@pytest.mark.parametrize("fps", [1e308, 1e-308, 5e-324, 1e300])
def test_extreme_rates_are_refused(fps):
    assert "expected frames per second from" in message(draw_video(3), 8, fps)


def test_no_list_is_made_for_more_frames_than_the_limit():
    assert "frames are more than the limit" in message(draw_video(300), 10**12, 1e6)
    assert Video(draw_video(30)).load(8, 1e-6).indices == [0]
