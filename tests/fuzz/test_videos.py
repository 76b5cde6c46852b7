"""Hostile videos: frames or a one-line error, within bounds of time and memory."""

import io
import random
import struct
from collections.abc import Callable

import av
import numpy as np
import pytest
from tests.fuzz.bounded import assert_bounded

from vila_core.media import Image, Video, open_media

pytestmark = pytest.mark.slow

KINDS = {
    "mp4": ("libx264", "mp4"),
    "fragmented": ("libx264", "mp4"),
    "mkv": ("mpeg4", "matroska"),
    "webm": ("libvpx", "webm"),
    "avi": ("mpeg4", "avi"),
    "ts": ("mpeg2video", "mpegts"),
    "flv": ("flv", "flv"),
    "ogg": ("libtheora", "ogg"),
    "asf": ("wmv2", "asf"),
    "gif": ("gif", "gif"),
    "mxf": ("mpeg2video", "mxf"),
    "y4m": ("wrapped_avframe", "yuv4mpegpipe"),
    "ps": ("mpeg1video", "mpeg"),
}


def draw_video(
    codec: str, form: str, frames: int = 12, size: tuple[int, int] = (48, 32), options: dict[str, str] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form, options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), number * 255 // frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def attempt(data: bytes, **options: float) -> Callable[[], object]:
    """Load bytes as what they look like, and as a video in three ways."""

    def load() -> None:
        media = open_media(data)
        errors: list[Exception] = []
        for call in (
            lambda: media.load() if isinstance(media, Image) else media.load(2),
            lambda: Video(data, **options).load(8),  # type: ignore[arg-type]
            lambda: Video(data).load(1),
            lambda: Video(data).load(64, 2.0),
        ):
            try:
                call()
            except Exception as error:  # noqa: BLE001 (raised below)
                errors.append(error)
        for error in [error for error in errors if type(error).__name__ != "MediaError"] or errors[:1]:
            raise error

    return load


def test_sound_files_are_read() -> None:
    """So that the mutations below start from files that work. Decoded in the child: threads do not survive a fork."""
    cases: dict[str, Callable[[], object]] = {}
    for kind in KINDS:
        try:
            data = whole(kind)
        except (av.error.FFmpegError, ValueError):
            continue  # this build cannot write it
        cases[kind] = lambda data=data: _require(len(Video(data).load(4).frames) == 4)
    assert len(cases) > 7
    assert_bounded(cases)


def _require(condition: bool) -> None:
    if not condition:
        raise AssertionError


def whole(kind: str) -> bytes:
    options = {"movflags": "frag_keyframe+empty_moov"} if kind == "fragmented" else None
    return draw_video(*KINDS[kind], options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str) -> None:
    try:
        data = whole(kind)
    except (av.error.FFmpegError, ValueError):
        pytest.skip(f"this PyAV cannot write {kind}")
    rng = random.Random(kind)
    cases: dict[str, Callable[[], object]] = {}
    for number in range(60):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed = changed or bytearray(b"\0")
            place = rng.randrange(min(len(changed), rng.choice((64, 1000, len(changed)))))
            kind_of_change = rng.randrange(5)
            if kind_of_change == 0:
                changed[place] ^= 1 << rng.randrange(8)
            elif kind_of_change == 1:
                changed[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
            elif kind_of_change == 2:
                del changed[place : place + rng.randrange(1, 100)]
            elif kind_of_change == 3:
                changed[place:place] = changed[place : place + rng.randrange(1, 500)]
            else:
                changed = changed[: place + 1]
        cases[f"{kind} {number}"] = attempt(bytes(changed))
    assert_bounded(cases)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def boxes_of(data: bytes, *path: bytes) -> list[int]:
    """Offsets of the bodies of MP4 boxes by the name of the last box of `path`."""
    places, start = [], 0
    while (found := data.find(path[-1], start)) >= 0:
        places.append(found + 4)
        start = found + 4
    return places


def patched(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    (place, *_) = boxes_of(data, kind)
    return data[: place + offset] + value + data[place + offset + len(value) :]


def test_times_sizes_and_tables_of_mp4() -> None:
    data = draw_video("libx264", "mp4", frames=50)
    big, zero = b"\xff\xff\xff\xff", bytes(4)
    most = b"\x7f\xff\xff\xff"
    cases = {
        f"{kind.decode()} {offset} {value.hex()}": attempt(patched(data, kind, offset, value))
        for kind, offsets in {
            b"mvhd": (12, 16),
            b"mdhd": (12, 16),
            b"tkhd": (20, 40, 44, 48, 76, 80),
            b"elst": (4, 8, 12, 16),
            b"stts": (4, 8, 12),
            b"ctts": (4, 8, 12),
            b"stsz": (4, 8, 12),
            b"stsc": (4, 8, 12),
            b"stco": (4, 8),
            b"stss": (4, 8),
            b"stsd": (4, 8, 16),
            b"avc1": (24, 26, 28),
            b"avcC": (0, 4, 8),
        }.items()
        if kind in data
        for offset in offsets
        for value in (big, zero, most, b"\0\0\0\1", b"\x80\0\0\0")
    }
    assert_bounded(cases)


def test_bombs() -> None:
    picture = draw_video("mpeg4", "avi", frames=2, size=(4096, 4096))
    tiny = draw_video("mpeg4", "matroska", frames=5, size=(16, 16))
    ftyp = box(b"ftyp", b"isom\0\0\0\0isom")
    nested = b"".join(struct.pack(">I", 2**31 - 1) + b"moov" for _ in range(100_000))
    cases = {
        "20,000 small frames": draw_video("mpeg4", "matroska", frames=20_000, size=(16, 16)),
        "10,000 gif frames": gif(3000, 3000, 10_000),
        "100,000 gif frames": gif(1000, 1000, 100_000),
        "200 large gif frames": gif(9000, 9000, 200),
        "1,000,000 gif frames": gif(4, 4, 1_000_000),
        "gif without delay": gif(500, 500, 5_000, delay=0),
        "large frames": picture,
        "large frames at one a second": draw_video("libx264", "mp4", frames=300, size=(1920, 1080)),
        "y4m of 16,000x16,000": b"YUV4MPEG2 W16000 H16000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(10_000),
        "y4m of 10,000x9,999": b"YUV4MPEG2 W10000 H9999 F25:1\n" + b"FRAME\n" * 10_000,
        "y4m of 0x0": b"YUV4MPEG2 W0 H0 F0:0\n" + b"FRAME\n" * 100_000,
        "y4m of 1x1": b"YUV4MPEG2 W2 H2 F1000000:1\n" + b"FRAME\nabcdef" * 200_000,
        "nested boxes": ftyp + nested,
        "a moov of 4 GB": ftyp + struct.pack(">I", 2**32 - 1) + b"moov" + bytes(1000),
        "a box of 2^63": ftyp + struct.pack(">I", 1) + b"moov" + struct.pack(">Q", 2**63) + bytes(1000),
        "100,000 tracks": ftyp + box(b"moov", box(b"trak", box(b"tkhd", bytes(84))) * 100_000),
        "1,000,000 free boxes": ftyp + box(b"free") * 1_000_000,
        "mpeg-ts of noise": b"".join(b"G" + random.Random(n).randbytes(187) for n in range(50_000)),
        "mpeg-ts of zeros": (b"G\0\0\x10" + bytes(184)) * 300_000,
        "8,000 programs": b"".join(b"G" + struct.pack(">HB", 0x4000 | n, 0x10) + bytes(184) for n in range(8192)) * 10,
        "mpeg-ps of start codes": b"\0\0\1\xba" * 5_000_000,
        "mpeg-ps of streams": b"\0\0\1\xba"
        + bytes(10)
        + b"".join(b"\0\0\1" + bytes((0xC0 + n % 48,)) + b"\0\x08" + bytes(8) for n in range(200_000)),
        "flv of empty tags": b"FLV\1\5\0\0\0\x09\0\0\0\0" + b"\x09\0\0\0" + bytes(11) * 3_000_000,
        "ogg of pages": (b"OggS\0\2" + bytes(20) + b"\1\0") * 500_000,
        "asf of noise": b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel" + b"\xff" * 1_000_000,
        "avi of lists": b"RIFF\xff\xff\xff\xffAVI " + b"LIST\xff\xff\xff\x7fhdrl" * 500_000,
        "matroska of unknown sizes": b"\x1aE\xdf\xa3\x80\x18S\x80g"
        + b"\x01"
        + b"\xff" * 7
        + b"\x1fC\xb6u\xff" * 500_000,
        "matroska of void": tiny[:60] + b"\xec\x80" * 5_000_000,
        "matroska again and again": tiny * 2_000,
        "mjpeg of scans": draw_video("mjpeg", "avi", frames=30, size=(1024, 1024)),
        "subtitles only": b"1\n00:00:00,000 --> 00:00:01,000\nx\n\n" * 100_000,
        "a playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "a concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "ivf of 65,535": b"DKIF\0\0\x20\0VP80" + struct.pack("<HHIIII", 65_535, 65_535, 25, 1, 1, 0) + bytes(1000),
        "ivf without a time base": b"DKIF\0\0\x20\0VP90"
        + struct.pack("<HHIIII", 64, 64, 0, 0, 2**32 - 1, 0)
        + bytes(1000),
    }
    assert_bounded({name: lambda data=data: Video(data).load(8) for name, data in cases.items()})


def gif(width: int, height: int, frames: int, delay: int = 10) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"!\xf9\x04\0" + struct.pack("<H", delay) + b"\0\0," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return head + (frame + b"\x02\x02\x44\x01\x00") * frames + b";"


def test_options_and_lists() -> None:
    data = draw_video("mpeg4", "matroska")
    cases: dict[str, Callable[[], object]] = {}
    for value in (0, -1, 1e308, -1e308, 5e-324, float("nan"), float("inf"), None, "x", "2", True, [], 10**400, 1j):
        cases[f"fps={str(value)[:20]}"] = lambda value=value: Video(data, fps=value).load(8)
        cases[f"load fps={str(value)[:20]}"] = lambda value=value: Video(data).load(8, value)
        cases[f"frames={str(value)[:20]}"] = lambda value=value: Video(data, frames=value).load(8)
        cases[f"load {str(value)[:20]}"] = lambda value=value: Video(data).load(value)
    cases["no frames"] = lambda: Video([]).load(2)
    cases["a million frames"] = lambda: Video([b"x"] * 1_000_000).load(2)
    cases["frames that are no pictures"] = lambda: Video([None]).load(2)
    cases["a nested list"] = lambda: Video([[b"x"]]).load(2)
    cases["a long array"] = lambda: Video(np.broadcast_to(np.uint8(0), (10_000_000, 4, 4, 3))).load(8)
    cases["large frames of an array"] = lambda: Video(np.broadcast_to(np.uint8(0), (64, 9_000, 9_000, 3))).load(64)
    assert_bounded(cases)
