"""Loading videos of every kind, valid and invalid.

Each drawn frame shows its index as 4x3 black and white blocks, one per bit.
"""

import base64
import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from vila_core.errors import MediaError, VilaError
from vila_core.media import Image, MediaLimits, Video, containers, open_media
from vila_core.media import video as reading
from vila_core.media.video import _Reader


def numbered(index, size=(64, 48)):
    bits = (index >> np.arange(12)) & 1
    return np.asarray(PIL.Image.fromarray((bits.reshape(3, 4) * 255).astype(np.uint8)).resize(size, 0).convert("RGB"))


def draw_video(total=30, *, codec="libx264", format="mp4", size=(64, 48), rate=10, times=None, **options):
    """Encode `total` frames; `times` are their timestamps in milliseconds (default: constant rate)."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8", "jpeg2000": "rgb24"}.get(codec, "yuv420p")
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(total):
            frame = av.VideoFrame.from_ndarray(numbered(index, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def draw_audio(format="mp4", codec="aac"):
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def seen(frames):
    """The index that each picture shows."""
    blocks = [np.asarray(frame.convert("L").resize((4, 3), PIL.Image.Resampling.BOX)) > 127 for frame in frames]
    return [int((block.reshape(-1) << np.arange(12)).sum()) for block in blocks]


def message(source, *load, limits=None, **options):
    with pytest.raises(MediaError) as error:
        Video(source, **options).load(*(load or (8,)), limits=limits or MediaLimits())
    text = str(error.value)
    assert isinstance(error.value, VilaError)
    assert " object at 0x" not in text, "an error text must not show memory addresses"
    assert len(text) < 500
    return text


CONTAINERS = [
    ("libx264", "mp4", {}),
    ("libx264", "mp4", {"g": 7, "bf": 3}),
    ("libx264", "matroska", {"g": 10, "x264-params": "open-gop=1"}),
    ("libx264", "mpegts", {"g": 6}),
    ("libx264", "avi", {"bf": 2}),
    ("mpeg4", "avi", {"bf": 2}),
    ("mpeg4", "mp4", {}),
    ("mjpeg", "avi", {}),
    ("libvpx", "webm", {"auto-alt-ref": 1, "lag-in-frames": 10}),
    ("libvpx-vp9", "webm", {"lag-in-frames": 10, "g": 9}),
    ("mpeg2video", "mpeg", {"g": 5}),
    ("flv", "flv", {}),
]


@pytest.mark.parametrize(
    ("codec", "format", "options"), CONTAINERS, ids=[f"{c}-{f}-{i}" for i, (c, f, _) in enumerate(CONTAINERS)]
)
@pytest.mark.parametrize("num_frames", [1, 3, 8, 30])
def test_sampled_frames(codec, format, options, num_frames):
    total = 30
    loaded = Video(draw_video(total, codec=codec, format=format, **options)).load(num_frames)
    expected = np.round(np.linspace(0, total - 1, num_frames)).astype(int).tolist()
    assert loaded.indices == expected
    assert seen(loaded.frames) == expected
    assert loaded.timestamps == pytest.approx([i / 10 for i in expected], abs=2e-3)
    assert loaded.duration == pytest.approx(3.0, abs=0.02)
    assert {frame.size for frame in loaded.frames} == {(64, 48)}
    assert {frame.mode for frame in loaded.frames} == {"RGB"}


def test_every_source(tmp_path):
    data = draw_video(12)
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), uri):
        assert seen(Video(source).load(4).frames) == [0, 4, 7, 11]


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


def test_gif():
    images = [PIL.Image.fromarray(numbered(i)) for i in range(6)]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=100)
    assert seen(Video(file.getvalue()).load(6).frames) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("format", ["avi", "matroska"])
def test_metadata_in_another_encoding(format):
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        container.metadata["title"] = "TITLETITLE"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(5), format="rgb24")))
        container.mux(stream.encode())
    data = file.getvalue()
    assert b"TITLETITLE" in data
    assert seen(Video(data.replace(b"TITLETITLE", b"caf\xe9 \xfc\xff\xfe x")).load(1).frames) == [5]


@pytest.mark.parametrize(("degrees", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_rotation_metadata(degrees, matrix):
    """Phones store frames in sensor orientation, and the header says how far to rotate them clockwise."""
    file = io.BytesIO()
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # the top left is white
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(file.getvalue())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (frame,) = Video(bytes(data)).load(1).frames
    expected = np.rot90(picture, -degrees // 90)
    assert frame.size == (expected.shape[1], expected.shape[0])
    assert np.abs(np.asarray(frame).astype(int) - expected).mean() < 3


# timestamps


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


def test_options_out_of_range():
    for frames in (0, -1, 1.5, "8"):
        with pytest.raises(MediaError, match="frames"):
            Video("a.mp4", frames=frames)
    for fps in (-1, float("nan"), float("inf"), "fast"):
        with pytest.raises(MediaError, match="fps"):
            Video("a.mp4", fps=fps)
    assert Video("a.mp4", frames=np.int64(4), fps=np.float32(2)).frames == 4


def test_construction_reads_nothing():
    assert repr(Video("no/such.mp4", frames=4, fps=2)) == "Video('no/such.mp4', frames=4, fps=2.0)"
    assert len(repr(Video(b"x" * 10_000_000))) < 60


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


def test_limits(tmp_path, folder):
    video = draw_video(30)
    path = tmp_path / "clip.mp4"
    path.write_bytes(video)
    assert "max_video_bytes" in message(path, limits=MediaLimits(max_video_bytes=1000))
    assert "max_video_bytes" in message(video, limits=MediaLimits(max_video_bytes=1000))
    assert "max_pixels" in message(video, limits=MediaLimits(max_pixels=64 * 48 - 1))
    assert "max_video_seconds" in message(video, limits=MediaLimits(max_video_seconds=2.5))
    assert "max_frames" in message(video, 9, limits=MediaLimits(max_frames=8))
    assert "max_video_pixels" in message(video, 9, limits=MediaLimits(max_video_pixels=8 * 64 * 48))
    assert "max_frames" in message(folder, 9, limits=MediaLimits(max_frames=8))
    assert "max_frames" in message([numbered(0)] * 9, limits=MediaLimits(max_frames=8))
    assert "max_video_pixels" in message(folder, 12, limits=MediaLimits(max_video_pixels=8 * 64 * 48))
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


MATRICES = {
    "as stored": (1, 0, 0, 1),
    "turned right": (0, 1, -1, 0),
    "turned around": (-1, 0, 0, -1),
    "turned left": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}
"""(a, b, c, d) of a display matrix: the stored pixel (x, y) is shown at (a x + c y, b x + d y)."""


def with_matrix(data, a, b, c, d):
    """An MP4 file with the display matrix of its first track replaced (ISO/IEC 14496-12, 8.3.2)."""
    place = data.index(b"tkhd") + 4 + 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:place] + struct.pack(">9i", *values) + data[place + 36 :]


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_all_eight_orientations_are_shown_as_players_show_them(matrix):
    a, b, c, d = matrix
    data = draw_video(8)
    stored = np.asarray(Video(data).load(8).frames[7].convert("L"))  # 7 is three white blocks in a row
    data = with_matrix(data, a, b, c, d)
    shown = np.asarray(Video(data).load(8).frames[7].convert("L"))
    y, x = np.mgrid[: stored.shape[0], : stored.shape[1]]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    expected = np.zeros((down.max() + 1, right.max() + 1), np.uint8)
    expected[down, right] = stored
    assert (shown == expected).all()


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


def two_streams(first, second, *, default):
    """An MP4 with two videos; `default` is the number of the default one, None for both."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = []
        for number, size in enumerate((first, second)):
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else 0
            streams.append(stream)
        for index in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(numbered(index, (stream.width, stream.height)), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("default", "expected"), [(None, (64, 48)), (0, (32, 24)), (1, (64, 48))], ids=["largest", "first", "second"]
)
def test_the_default_stream_is_read_or_else_the_largest(default, expected):
    assert Video(two_streams((32, 24), (64, 48), default=default)).load(2).frames[0].size == expected


@pytest.mark.parametrize(
    ("codec", "format", "name"),
    [
        ("libx264", "mpegts", "cam.MTS"),
        ("libx264", "mpegts", "cam.m2ts"),
        ("libx264", "mp4", "clip.png"),
        ("libx264", "matroska", "clip"),
        ("mpeg2video", "vob", "disc.VOB"),
        ("mpeg2video", "mxf", "take.mxf"),
        ("libx264", "3gp", "phone.3gp"),
        ("mpeg4", "avi", "clip.AVI.1"),
        ("flv", "flv", "stream.f4v"),
        ("wmv2", "asf", "clip.wmv"),
        ("libtheora", "ogg", "clip.ogv"),
        ("rawvideo", "yuv4mpegpipe", "raw.y4m"),
        ("libvpx", "ivf", "clip.ivf"),
    ],
)
def test_containers_are_known_by_their_content(codec, format, name, tmp_path):
    rate = 25 if format == "mxf" else 10
    try:
        data = draw_video(10, codec=codec, format=format, rate=rate)
    except (ValueError, av.error.FFmpegError):
        pytest.skip(f"this PyAV cannot write {codec} in {format}")
    (tmp_path / name).write_bytes(data)
    opened = open_media(tmp_path / name)
    assert isinstance(opened, Video)
    assert isinstance(open_media(data), Video)
    assert seen(opened.load(3).frames) == [0, 4, 9]


def test_a_blu_ray_stream_has_four_more_bytes_per_packet(tmp_path):
    plain = draw_video(10, codec="libx264", format="mpegts")
    packets = b"".join(b"\0\0\0\0" + plain[at : at + 188] for at in range(0, len(plain), 188))
    assert isinstance(open_media(packets), Video)
    assert seen(Video(packets).load(2).frames) == [0, 9]


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
