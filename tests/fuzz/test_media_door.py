"""Hostile URLs and files at the server's door: media, or an error that may be shown to strangers, within bounds."""

import asyncio
import base64
import random
import re
from collections.abc import Callable
from functools import partial

import pytest
from tests.fuzz.bounded import assert_bounded
from tests.fuzz.test_images import FORMATS, encode, gif, picture, png, png_chunk, zeros
from tests.fuzz.test_videos import draw_video

from vila_core.errors import MediaError
from vila_core.media.limits import MIB
from vila_serve.media import DecodeLimits, MediaDoor, server_limits

pytestmark = pytest.mark.slow

OUTWARD = re.compile(
    r"The (?:image|video) [^/\\]*[.]|The URL of the (?:image|video) is refused: .*|Video (?:frames|fps)=.*"
    r"|The (?:image|video) must be given as a URI of the form 'data:(?:image/png|video/mp4);base64,…'.*"
)
"""What a refusal may look like: no path, no address, nothing of the input but a number."""


class DoorOfTheChild:
    """A door that is opened once in the process that runs the cases."""

    door: MediaDoor | None = None


def ask(url: str, *, frames: int | None = None, fps: float | None = None) -> None:
    """Open as an image and as a video. Only errors for strangers may come out."""
    if DoorOfTheChild.door is None:
        limits = server_limits(["allowed.example"])
        decoding = DecodeLimits(workers=2, image_seconds=10, video_seconds=20, memory_bytes=1024 * MIB)
        DoorOfTheChild.door = MediaDoor(limits, 8, decoding=decoding)
    door = DoorOfTheChild.door

    async def both() -> list[object]:
        opened = door.open_image(url), door.open_video(url, frames, fps)
        return await asyncio.gather(*opened, return_exceptions=True)

    for result in asyncio.run(both()):
        if isinstance(result, MediaError):
            if not OUTWARD.fullmatch(str(result)) or len(str(result)) > 400:
                raise AssertionError(f"an outward message: {result}")
        elif isinstance(result, BaseException):
            raise result


def uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 30))):
        place = rng.randrange(len(data) or 1)
        change = rng.randrange(4)
        if change == 0 and data:
            data[place] = rng.randrange(256)
        elif change == 1:
            del data[place : place + rng.randrange(1, 60)]
        elif change == 2:
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
        else:
            data[place:place] = data[place : place + rng.randrange(1, 200)]
    return bytes(data)


def test_damaged_files() -> None:
    rng = random.Random(14)
    files = {form: (encode(picture(), form), "image/png") for form in FORMATS}
    for kind in (("libx264", "mp4"), ("mpeg4", "matroska"), ("libvpx", "webm"), ("mpeg2video", "mpegts")):
        files[kind[1]] = (draw_video(*kind), "video/mp4")
    cases: dict[str, Callable[[], object]] = {}
    for name, (content, media_type) in files.items():
        for number in range(20):
            cases[f"{name} {number}"] = partial(ask, uri(damaged(content, rng), media_type))
    assert_bounded(cases, seconds=60)


def test_bombs() -> None:
    contents = {
        "PNG of 60,000x60,000": png(60_000, 60_000, png_chunk(b"IDAT", zeros(1 << 28))),
        "PNG of 7,999x8,000": png(7_999, 8_000, png_chunk(b"IDAT", zeros(1 << 27))),
        "PNG of 1x1,000,000": png(1, 1_000_000, png_chunk(b"IDAT", zeros(1 << 22))),
        "GIF of 8,000x8,000, 100 frames": gif(8_000, 8_000, 100),
        "GIF of 100,000 frames": gif(100, 100, 100_000),
        "video of 20,000 frames": draw_video("mpeg4", "mp4", frames=20_000, size=(16, 16)),
        "video of 4,096x2,160": draw_video("mpeg4", "mp4", frames=3, size=(4096, 2160)),
        "Y4M of 16,000x16,000": b"YUV4MPEG2 W16000 H16000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(10_000),
    }
    cases: dict[str, Callable[[], object]] = {}
    for name, content in contents.items():
        cases[name] = partial(ask, uri(content, "image/png"))
        for frames, fps in ((1, None), (256, None), (256, 1000.0), (10**12, 0.0)):
            cases[f"{name}, {frames} frames at {fps}"] = partial(ask, uri(content, "video/mp4"), frames=frames, fps=fps)
    assert_bounded(cases, seconds=120, megabytes=2048)


def test_urls() -> None:
    rng = random.Random(6)
    schemes = ("https://", "http://", "HTTPS://", "file://", "data:", "data:image/png;base64,", "//")
    hosts = ("allowed.example", "evil.example", "127.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "0x7f.1", "2130706433")
    marks = ("\\", "@", ":", "#", "?", "user:pass@", ":443", ":99999", "%2e%2e", "/../", "%00", ";base64", ",", "=====")
    oddities = ("\x00", "\n", "\t", "\ud800", "\u202e", "。", " ", "AAAA", "/etc/passwd", "image/png", "a" * 300)
    parts = (*schemes, *hosts, *marks, *oddities)
    cases: dict[str, Callable[[], object]] = {}
    for number in range(400):
        url = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 8)))
        cases[f"{number} {url[:60]!r}"] = partial(without_network, url)
    for name, url in {
        "10 MB of a host": "https://" + "a" * 10_000_000,
        "10 MB of semicolons": "data:" + ";" * 10_000_000,
        "100 MB of base64": "data:image/png;base64," + "A" * 100_000_000,
        "10 MB of white space": " " * 10_000_000 + "data:",
        "10 MB of escapes": "data:image/png;base64," + "%41" * 3_000_000,
    }.items():
        cases[name] = partial(without_network, url)
    assert_bounded(cases)


def without_network(url: str) -> None:
    from unittest import mock

    with mock.patch("socket.getaddrinfo", side_effect=OSError("no network in this test")):
        ask(url)
