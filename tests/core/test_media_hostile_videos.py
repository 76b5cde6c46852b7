"""Damaged and hostile videos: every one is frames within the limits, or an error that says what is wrong."""

import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
from tests.core.video_files import draw_audio, draw_video, message, numbered, seen

from vila_core.errors import MediaError
from vila_core.media import MediaLimits, Video, containers
from vila_core.media import video as reading


def test_broken_and_empty(tmp_path):
    path = tmp_path / "clip.mp4"
    path.touch()
    assert "empty" in message(path)
    assert "empty" in message(b"")
    path.write_bytes(bytes(range(256)) * 40)
    assert "ffmpeg" in message(path)
    assert "does not exist" in message(tmp_path / "none.mp4")
    assert "device" in message("/dev/zero")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!doctype html><p>404</p>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "use Image"),
        (b"ID3" + bytes(200), "audio"),
    ],
)
def test_not_a_video(content, words):
    assert words in message(content)


@pytest.mark.parametrize("format", ["avi", "matroska", "flv"])
def test_no_frames_at_all(format):
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream("mpeg4" if format != "flv" else "flv", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    text = message(file.getvalue())
    assert "no readable frame" in text or "no frames" in text


def test_audio_only():
    assert "only audio" in message(draw_audio())
    assert "only audio" in message(draw_audio("matroska"))
    message(draw_audio("mp3", "libmp3lame"))


@pytest.mark.parametrize("format", ["matroska", "mpegts", "avi"])
def test_truncated_file_ends_at_its_last_readable_frame(format):
    """The end is missing: frames are sampled from the rest."""
    data = draw_video(30, format=format, codec="mpeg4", g=5)
    with av.open(io.BytesIO(data)) as container:
        position = next(itertools.islice(container.demux(video=0), 21, None)).pos
    loaded = Video(data[: position + 3]).load(5)
    last = loaded.indices[-1]
    assert last in (19, 20), "whether the packet before the cut is read depends on libav's version"
    assert loaded.indices == np.round(np.linspace(0, last, 5)).astype(int).tolist()
    assert seen(loaded.frames) == loaded.indices


def test_truncated_mp4_has_no_index():
    data = draw_video(30)
    assert "ffmpeg" in message(data[: len(data) // 2])


def test_unreadable_frames_do_not_count():
    """The last packets contain zeros, so the video ends before them."""
    file = io.BytesIO(draw_video(20, codec="mjpeg", format="avi"))
    data = bytearray(file.getvalue())
    with av.open(file) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets[-3:]:
            data[packet.pos + 8 : packet.pos + 8 + packet.size] = bytes(packet.size)
    loaded = Video(bytes(data)).load(5)
    assert loaded.indices == [0, 4, 8, 12, 16]
    assert seen(loaded.frames) == loaded.indices
    assert loaded.duration == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("codec", "format"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mjpeg", "avi"), ("mpeg4", "mpegts")]
)
def test_any_damage_is_a_media_error_or_frames(codec, format):
    data = draw_video(10, codec=codec, format=format)
    generator = np.random.default_rng(3)
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[generator.integers(len(data))] = generator.integers(256)
        try:
            assert 0 < len(Video(bytes(damaged)).load(4, limits=MediaLimits(max_pixels=100_000)).frames) <= 4
        except MediaError:
            continue


def test_limits(tmp_path):
    video = draw_video(30)
    path = tmp_path / "clip.mp4"
    path.write_bytes(video)
    assert "max_video_bytes" in message(path, limits=MediaLimits(max_video_bytes=1000))
    assert "max_video_bytes" in message(video, limits=MediaLimits(max_video_bytes=1000))
    assert "max_pixels" in message(video, limits=MediaLimits(max_pixels=64 * 48 - 1))
    assert "max_video_seconds" in message(video, limits=MediaLimits(max_video_seconds=2.5))
    assert "max_frames" in message(video, 9, limits=MediaLimits(max_frames=8))
    assert "max_video_pixels" in message(video, 9, limits=MediaLimits(max_video_pixels=8 * 64 * 48))
    limits = MediaLimits(max_frames=8, max_video_pixels=8 * 64 * 48, max_pixels=64 * 48, max_video_seconds=3)
    assert len(Video(video).load(8, limits=limits).frames) == 8


def test_a_video_has_at_most_a_thousand_frames_a_second():
    """Timestamps may be missing, or say that hours of frames are shown at once."""
    video = draw_video(30, rate=100_000)
    assert "max_video_seconds" in message(video, limits=MediaLimits(max_video_seconds=0.028))
    assert len(Video(video).load(8, limits=MediaLimits(max_video_seconds=0.031)).frames) == 8


def test_a_huge_number_of_frames_is_refused_quickly():
    assert "max_frames" in message(draw_video(3), 10**9)
    assert "max_frames" in message([numbered(0)], frames=10**9)


def test_frame_larger_than_the_header_is_not_decoded():
    """The header says 64x48; a later packet has a much larger frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        large = av.CodecContext.create("mjpeg", "w")
        large.width, large.height, large.pix_fmt, large.time_base = 1024, 1024, "yuvj420p", Fraction(1, 10)
        for index in range(6):
            encoder, size = (stream, (64, 48)) if index < 3 else (large, (1024, 1024))
            for packet in encoder.encode(av.VideoFrame.from_ndarray(numbered(index, size), format="rgb24")):
                packet.stream = stream
                packet.pts = packet.dts = index
                packet.time_base = Fraction(1, 10)
                container.mux(packet)
    assert {frame.size for frame in Video(file.getvalue()).load(6).frames} == {(64, 48), (1024, 1024)}
    loaded = Video(file.getvalue()).load(6, limits=MediaLimits(max_pixels=100_000))
    assert {frame.size for frame in loaded.frames} == {(64, 48)}
    assert max(loaded.indices) == 2


def test_a_later_frame_with_an_endless_side_is_not_shown():
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for index, size in enumerate([(64, 48), (1_000_001, 1)]):
            picture = io.BytesIO()
            PIL.Image.new("RGB", size).save(picture, "PNG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux(packet)
    assert "no side may be longer" in message(file.getvalue(), 2)
    assert Video(file.getvalue()).load(1).frames[0].size == (64, 48)


@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{path}'\n"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt"])
def test_playlists_do_not_open_other_files(playlist, suffix, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(draw_video(5))
    path = tmp_path / f"list{suffix}"
    for target in (tmp_path / "secret.mp4", "secret.mp4", "http://127.0.0.1:9/x.mp4"):
        path.write_text(playlist.format(path=target))
        assert "playlist" in message(path)
        assert "playlist" in message(path.read_bytes())


def test_no_format_can_open_other_files(tmp_path, monkeypatch):
    """Even one that was allowed by mistake."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.mp4").write_bytes(draw_video(5))
    playlist = io.BytesIO(b"ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(playlist, "r", format="concat") as container:
        assert container.streams.video  # libav would
    monkeypatch.setattr(containers, "CONTAINERS", (*containers.CONTAINERS, "concat"))
    assert "not a readable video" in message(playlist.getvalue())


def test_uncommon_codecs_are_refused():
    video = draw_video(2, codec="jpeg2000", format="mov")
    text = message(video)
    assert "jpeg2000" in text or "ffmpeg" in text
    with av.open(io.BytesIO(video)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "rgb24"  # libav has decoded a frame
    with containers.open_container(io.BytesIO(video)) as container:
        assert container.streams.video[0].codec_context.pix_fmt is None  # and now it has not


def test_bad_data_uri():
    assert "media type" in message("data:image/png;base64,aGVsbG8=")
    assert "base64" in message("data:video/mp4;base64,***")


def empty_gif(width, height, frames):
    """A GIF of identical frames in 23 bytes each."""
    start = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"!\xf9\4\0\n\0\0\0," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x44\1\0"
    return start + frame * frames + b";"


@pytest.mark.parametrize(("size", "frames"), [((7000, 7000), 200), ((1000, 1000), 5000)])
def test_small_files_that_decode_to_gigabytes_are_refused(size, frames):
    assert "max_pixels_per_byte" in message(empty_gif(*size, frames))
    allowed = MediaLimits(max_pixels_per_byte=10**9)
    assert Video(empty_gif(100, 100, 300)).load(2, limits=allowed).frames[0].size == (100, 100)


def test_sampled_frames_of_a_small_file_may_not_take_gigabytes(monkeypatch):
    """Their number of pixels is limited by the size of the file, beyond what any file may have."""
    video = draw_video(30)
    limits = MediaLimits(max_pixels_per_byte=1)
    assert len(video) < 8 * 64 * 48
    assert len(Video(video).load(8, limits=limits).frames) == 8
    monkeypatch.setattr(reading, "SMALL_VIDEO_PIXELS", 7 * 64 * 48)
    assert "the sampled frames have" in message(video, 8, limits=limits)
    assert len(Video(video).load(7, limits=limits).frames) == 7


def test_frames_of_a_few_pixels_take_time_too():
    """Each counts as 10,000 pixels."""
    video = draw_video(30)
    limits = MediaLimits(max_pixels_per_byte=1, max_video_pixels=150_000)
    assert 30 * 64 * 48 < 150_000
    assert "decodes to more pixels" in message(video, 2, limits=limits)
    assert len(Video(video).load(1, limits=limits).frames) == 1


def test_a_still_screen_is_no_bomb():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        frame = av.VideoFrame.from_image(PIL.Image.new("RGB", (1920, 1080), "white"))
        for _ in range(90):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(Video(file.getvalue()).load(8).frames) == 8


def test_frames_that_take_gigabytes_are_refused() -> None:
    """100 million pixels take 1.6 GB to decode and convert."""
    assert "frames of 9,900×9,900 = 98,010,000 pixels; the limit is 50,000,000" in message(empty_gif(9900, 9900, 1))
