"""Videos of every container, codec and orientation, from every source."""

import base64
import io
import struct

import av
import numpy as np
import PIL.Image
import pytest
from tests.core.video_files import draw_video, numbered, seen

from vila_core.errors import MediaError
from vila_core.media import Video, open_media

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


def with_matrix(data, a, b, c, d):
    """An MP4 file with the display matrix of its first track replaced (ISO/IEC 14496-12, 8.3.2)."""
    place = data.index(b"tkhd") + 4 + 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:place] + struct.pack(">9i", *values) + data[place + 36 :]


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
    (frame,) = Video(with_matrix(file.getvalue(), *matrix)).load(1).frames
    expected = np.rot90(picture, -degrees // 90)
    assert frame.size == (expected.shape[1], expected.shape[0])
    assert np.abs(np.asarray(frame).astype(int) - expected).mean() < 3


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
