"""The server's door for media: what it takes, and how it refuses the rest without telling strangers anything."""

import asyncio
import base64
import gc
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
from tests.serve.media_files import encoded, gif_bomb, picture, png_bomb, sound, uri, video

import vila_core.media.inputs
from vila_core import Image, Video
from vila_core.engine.limits import QueueFullError
from vila_core.errors import ConfigError, MediaError
from vila_core.media.images import decode_image
from vila_core.media.video import decode_video
from vila_serve.media import DecodeLimits, MediaDoor, server_limits

MAX_PIXELS = 4_000_000
MAX_BYTES = 400_000


@pytest.fixture(scope="module")
def door() -> Iterator[MediaDoor]:
    limits = server_limits().model_copy(
        update={
            "max_pixels": MAX_PIXELS,
            "max_image_bytes": MAX_BYTES,
            "max_video_bytes": MAX_BYTES,
            "max_video_seconds": 60.0,
            "max_frames": 64,
            "max_video_pixels": 8_000_000,
        }
    )
    door = MediaDoor(limits, num_frames=8, tile_size=96, decoding=DecodeLimits(workers=1))
    yield door
    door.close()


@pytest.fixture(autouse=True)
def nothing_is_opened_in_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a request says, the server's own process opens no source and decodes nothing."""

    def fail(*_: object) -> None:
        raise AssertionError("the server's process opened a source")

    monkeypatch.setattr(vila_core.media.inputs, "open_source", fail)


def refusal(door: MediaDoor, url: str, kind: str = "image", **options: float) -> str:
    opened = door.open_image(url) if kind == "image" else door.open_video(url, **options)
    with pytest.raises(MediaError) as caught:
        asyncio.run(opened)
    return str(caught.value)


def pixels(image: Image) -> np.ndarray:
    return np.asarray(image.load())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_images_are_those_that_vila_core_decodes(door: MediaDoor, form: str) -> None:
    content = encoded(form)
    expected = np.asarray(decode_image(io.BytesIO(content), "x", door.limits))
    assert np.array_equal(pixels(asyncio.run(door.open_image(uri(content)))), expected)


@pytest.mark.parametrize("options", [{}, {"frames": 3}, {"frames": 5, "fps": 2.0}, {"frames": 40}, {"frames": 1}])
def test_videos_are_those_that_vila_core_decodes(door: MediaDoor, options: dict[str, float]) -> None:
    content = video(frames=30)
    found = asyncio.run(door.open_video(uri(content, "video/mp4"), **options)).load(99)
    expected = decode_video(
        io.BytesIO(content), "x", int(options.get("frames", 8)), options.get("fps", 0.0), door.limits
    )
    assert (found.indices, found.timestamps, found.duration) == (
        expected.indices,
        expected.timestamps,
        expected.duration,
    )
    for ours, theirs in zip(found.frames, expected.frames, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 2), (2, 1), (1, 3000), (3000, 1), (2, 2000), (3, 3), (7, 1999), (1999, 2000), (2000, 2000)],
)
def test_every_shape_is_an_image(door: MediaDoor, width: int, height: int) -> None:
    content = (
        encoded("PNG", width, height, compress_level=9) if width * height < 100_000 else encoded_flat(width, height)
    )
    image = asyncio.run(door.open_image(uri(content)))
    assert image.size == (width, height)


def encoded_flat(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_low_detail_is_one_tile(door: MediaDoor) -> None:
    assert asyncio.run(door.open_image(uri(encoded("PNG", 300, 100)), "low")).size == (96, 96)
    for detail in ("high", "auto", None):
        assert asyncio.run(door.open_image(uri(encoded("PNG", 300, 100)), detail)).size == (300, 100)


PNG = encoded()
TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"Data:image/png;base64,{TEXT}",
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"data:image/png;name=a.png;base64,{TEXT}",
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f"data:image/png;base64,{TEXT.replace('=', '%3d').replace('/', '%2f')}",
        "data:image/png;base64," + "\r\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76)),
        f"data:image/png;base64, {TEXT}\n",
        "data:image/png;base64,\t" + " ".join(TEXT),
        f"data:image/jpeg;base64,{TEXT}",  # as browsers do, the content decides
        f"data:image/jpg;base64,{TEXT}",
    ],
)
def test_spellings_of_data_uris(door: MediaDoor, text: str) -> None:
    assert np.array_equal(pixels(asyncio.run(door.open_image(text))), np.asarray(picture()))


@pytest.mark.parametrize(
    "spelling",
    [
        "{path}",
        "file://{path}",
        "file:{path}",
        "FILE://{path}",
        "file://localhost{path}",
        "file://127.0.0.1{path}",
        "file:////{path}",
        "file:///{path}?x",
        " {path}",
        "./../../../../../../../../../..{path}",
        "~/a.png",
        "{path}\0.png",
        "\\\\host\\share\\a.png",
        "C:\\a.png",
        "/proc/self/environ",
        "/dev/zero",
        "/dev/stdin",
        "data:{path}",
        "data:image/png,{path}",
        "data:image/png;base64,{path}",
        "data:,{path}",
        "data:file://{path}",
        "data://{path}",
        "data:image/png;base64,file://{path}",
        "data:text/plain,file://{path}",
        "data:image/png;base64;,{path}",
        "%2e%2e{path}",
        "blob:https://example.org/1",
        "javascript:alert(1)",
        "s3://bucket/a.png",
        "gs://bucket/a.png",
        "ftp://example.org/a.png",
        "concat:{path}|{path}",
        "subfile,,start,0,end,0,,:{path}",
        "image/png;base64,{text}",
        "{text}",
        "",
        " ",
        "\n",
        "\0",
        "<image>",
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_local_files_are_never_opened(door: MediaDoor, spelling: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    message = refusal(door, spelling.replace("{path}", str(path)).replace("{text}", TEXT), kind)
    assert "secret" not in message
    assert f"The {kind} must be given as a URI" in message or "cannot be read" in message


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    "text",
    [
        "data:",
        "data:,",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png;base64,%%%",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,-_-_",
        "data:image/png;base64,ÄÖÜ",
        "data:image/png;base64,=AAA",
        "data:image/png;base64,\ud800",
        "data:image/png;base64," + "=" * 100,
        "data:image/png;utf8,<svg/>",
        "data:;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:application/pdf;base64,AAAA",
        "data:audio/mpeg;base64,AAAA",
        "data:image/png" + ";a=b" * 1000 + ";base64,AAAA",
        "data:\nimage/png;base64,AAAA",
        "data:image/png;base64,",
    ],
)
def test_data_uris_that_are_none(door: MediaDoor, text: str, kind: str) -> None:
    message = refusal(door, text, kind)
    assert re.fullmatch(rf"The {kind} (must be given as a URI of the form '[^']+'\..*|cannot be read: .*)", message)


def test_urls_are_refused_unless_hosts_are_allowed(door: MediaDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    for url in ("https://example.org/a.png", "HTTPS://EXAMPLE.org", "http://127.0.0.1/", "https://"):
        assert "does not fetch URLs" in refusal(door, url)


@pytest.mark.parametrize(
    "domain", ["https://example.org", "example.org/", "example.org:443", "*.example.org", "*", "", "bücher.example",
               "a b", "..", ".", "example..org", "user@example.org", "example.org\\", "%65xample.org"],
)  # fmt: skip
def test_allowed_domains_are_hosts(domain: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        server_limits([domain])


def test_allowed_domains_in_other_cases() -> None:
    policy = server_limits(["Example.ORG.", ".CDN.example"]).fetch
    assert policy is not None
    assert policy.allowed_hosts == ("example.org", ".cdn.example")


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"hello, this is text",
        b"<!doctype html><script>alert(1)</script>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
        b"%PDF-1.7\n" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n",
        b"PK\x03\x04" + bytes(100),
        b"\x1f\x8b\x08" + bytes(100),
        b"ID3\x04" + bytes(100),
        b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100),
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"\x7fELF" + bytes(100),
        b"\x80\x04\x95" + bytes(100),
        b"\x89PNG\r\n\x1a\n",
        PNG[:40],
        b"\xff\xd8\xff\xe0" + bytes(100),
        encoded("JPEG", 400, 400)[:5000],
        b"\0\0\0\x18ftypisom\0\0\0\0isom",
        b"\0\0\0\x18ftypheic\0\0\0\0heic" + bytes(100),
    ],
    ids=lambda content: repr(content[:12]),
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_content_that_is_no_medium(door: MediaDoor, content: bytes, kind: str) -> None:
    media_type = "image/png" if kind == "image" else "video/mp4"
    message = refusal(door, uri(content, media_type), kind)
    assert message.startswith(f"The {kind} cannot be read: it is damaged, incomplete or not in a supported format (")


@pytest.mark.parametrize("form", ["BLP", "DDS", "ICO", "JPEG2000", "PCX", "SGI", "TGA"])
def test_formats_that_pillow_knows_but_the_server_does_not_take(door: MediaDoor, form: str) -> None:
    """Every further decoder is one more way in."""
    buffer = io.BytesIO()
    picture(64, 64).convert("P" if form == "BLP" else "RGB").save(buffer, form)
    PIL.Image.open(buffer).load()
    assert "cannot be read: it is damaged, incomplete or not in a supported format" in refusal(
        door, uri(buffer.getvalue())
    )


def test_images_and_videos_are_not_taken_for_each_other(door: MediaDoor) -> None:
    assert "cannot be read" in refusal(door, uri(video(), "image/png"))
    assert "must be given" in refusal(door, uri(video(), "video/mp4"))
    assert "cannot be read" in refusal(door, uri(PNG, "video/mp4"), "video")
    assert "cannot be read" in refusal(door, uri(sound(), "video/mp4"), "video")


@pytest.mark.parametrize(
    "content",
    [
        png_bomb(60_000, 60_000),
        png_bomb(2_000_001, 2),
        png_bomb(2**31 - 1, 2**31 - 1),
        png_bomb(2001, 2000),
        gif_bomb(60_000, 60_000, 1),
        gif_bomb(3000, 3000, 1000),
        b"P6 60000 60000 255\n" + bytes(100),
        b"BM" + b"\0" * 12 + b"\x36\0\0\0\x28\0\0\0" + (60_000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(200),
    ],
    ids=["png", "wide png", "png of 2^62", "one row too many", "gif", "animated gif", "ppm", "bmp"],
)
def test_image_bombs(door: MediaDoor, content: bytes) -> None:
    message = refusal(door, uri(content))
    assert (
        "too many pixels: this server takes at most 4,000,000" in message
        or "shape or an encoding" in message
        or ("cannot be read" in message)
    )


@pytest.mark.parametrize(("width", "height"), [(1_000_001, 1), (1, 1_000_001)])
def test_sides_are_limited_too(door: MediaDoor, width: int, height: int) -> None:
    """A picture of a million rows takes gigabytes for pointers to them."""
    assert "shape or an encoding that this server does not take" in refusal(door, uri(png_bomb(width, height)))


def test_pixels_are_counted_before_decoding(door: MediaDoor) -> None:
    for content in (png_bomb(2001, 2000), png_bomb(2001, 2000)[:50]):  # the second has no pixels that could be decoded
        assert "at most 4,000,000 (width times height)" in refusal(door, uri(content))
    assert asyncio.run(door.open_image(uri(encoded_flat(2000, 2000)))).size == (2000, 2000)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_too_many_bytes(door: MediaDoor, kind: str) -> None:
    media_type = {"image": "image/png", "video": "video/mp4"}[kind]
    for size in (MAX_BYTES + 1, 20 * MAX_BYTES):
        assert "too large: this server takes at most" in refusal(door, uri(bytes(size), media_type), kind)
    assert "cannot be read" in refusal(door, uri(bytes(MAX_BYTES), media_type), kind)


def test_video_bombs(door: MediaDoor) -> None:
    long = video(frames=62, width=16, height=16, rate=1)
    assert "too long: this server takes at most 60 s" in refusal(door, uri(long, "video/mp4"), "video")
    wide = video(frames=9, width=1280, height=800)
    assert "too many pixels in its frames" in refusal(door, uri(wide, "video/mp4"), "video", frames=9)
    assert "at most 64" in refusal(door, uri(video(), "video/mp4"), "video", frames=65)
    assert "at most 64" in refusal(door, uri(video(), "video/mp4"), "video", frames=10**30)
    huge = video(frames=1, width=4096, height=2160)
    assert "too many pixels" in refusal(door, uri(huge, "video/mp4"), "video", frames=1)


@pytest.mark.parametrize(
    "options",
    [{"frames": 0}, {"frames": -1}, {"fps": -1.0}, {"fps": float("nan")}, {"fps": float("inf")}, {"fps": 1e30}],
)
def test_impossible_samples(door: MediaDoor, options: dict[str, float]) -> None:
    assert "expected" in refusal(door, uri(video(), "video/mp4"), "video", **options)


def test_decoded_media_of_all_requests_are_limited() -> None:
    limits = DecodeLimits(workers=1, max_decoded_bytes=8 * 6 * 3 + 1)
    door = MediaDoor(server_limits(), 8, decoding=limits)
    try:
        kept = [asyncio.run(door.open_image(uri(PNG))) for _ in range(2)]
        with pytest.raises(QueueFullError):
            asyncio.run(door.open_image(uri(PNG)))
        kept.pop()
        gc.collect()
        asyncio.run(door.open_image(uri(PNG)))
        kept.clear()
        held = asyncio.run(door.open_video(uri(video(), "video/mp4")))
        with pytest.raises(QueueFullError):
            asyncio.run(door.open_image(uri(PNG)))
        assert isinstance(held, Video)
    finally:
        door.close()


def test_details_are_in_the_log_only(door: MediaDoor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        message = refusal(door, uri(b"%PDF-1.7 secret"))
    assert "PDF" not in message
    assert "It looks like a PDF document" in caplog.text


def test_the_log_has_one_line_per_refusal(door: MediaDoor, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("a\nERROR forged", "data:image/png\r\nforged;base64,AAAA", "\x1b[31mred", "https://a\nforged/"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            message = refusal(door, text)
        assert message.isprintable()
        (record,) = caplog.records
        assert record.getMessage().isprintable(), record.getMessage()


def test_far_too_long_uris_are_not_even_copied(door: MediaDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(door._pool), "decode", lambda *_: pytest.fail("the text went to a process"))
    assert "too large" in refusal(door, "data:image/png;base64," + "A" * (5 * MAX_BYTES))
