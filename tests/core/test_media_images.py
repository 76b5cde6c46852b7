"""Loading images of every kind, valid and invalid."""

import base64
import io
import os
import socket
import struct
import tracemalloc
import urllib.parse
import warnings
from functools import partial

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from tests.image_files import encode, message, picture, png_header, saved

from vila_core.errors import ConfigError, MediaError
from vila_core.media import FetchPolicy, Image, MediaLimits, Video, open_media

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]


def test_the_same_picture_from_every_source(tmp_path):
    pixels = picture()
    image = PIL.Image.fromarray(pixels)
    data = encode(image)
    path = tmp_path / "a cat.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), memoryview(data), uri, pixels, image):
        loaded = Image(source).load()
        assert loaded.mode == "RGB"
        assert (np.asarray(loaded) == pixels).all(), type(source)


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format):
    smooth = PIL.Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    loaded = Image(encode(smooth, format)).load()
    assert loaded.size == (40, 30)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(smooth)).max() < 12


def test_construction_reads_nothing():
    assert Image("no/such/file.png").source == "no/such/file.png"
    assert "no/such" in repr(Image("no/such/file.png"))
    assert len(repr(Image(b"x" * 10_000_000))) < 60


def test_in_memory_picture_is_not_changed():
    image = PIL.Image.new("P", (2, 2))
    image.info["transparency"] = b"\x00\x80"
    Image(image).load()
    assert image.mode == "P"
    assert image.info["transparency"] == b"\x00\x80"


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4), (1, 1), (3, 3, 3)])
def test_arrays(shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = (
        array
        if array.ndim == 3 and shape[2] == 3
        else array[..., :3]
        if array.ndim == 3 and shape[2] == 4
        else array.reshape(*shape[:2], 1)
    )
    assert (np.asarray(Image(array).load()) == expected).all()


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", ">u2", ">i8", "uint64"])
def test_integers_from_0_to_255_of_any_type_are_pixels(dtype):
    array = picture() % 128
    assert (np.asarray(Image(array.astype(dtype)).load()) == array).all()


def test_booleans_are_black_and_white():
    mask = picture()[..., 0] > 127
    assert (np.asarray(Image(mask).load()) == mask[..., None] * 255).all()


def test_read_only_arrays_are_read():
    array = picture()
    array.setflags(write=False)
    assert (np.asarray(Image(array[:, ::2]).load()) == array[:, ::2]).all()


def test_non_contiguous_array():
    array = picture()[::2, ::-1]
    assert (np.asarray(Image(array).load()) == array).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.full((4, 4), 300, np.uint16), r"uint16 from 300 to 300\. Convert it: \(x / 257\)\.round"),
        (np.full((4, 4), 70_000), r"\(x / x\.max\(\) \* 255\)"),
        (np.full((4, 4), -1), r"\(x - x\.min\(\)\)"),
        (np.full((4, 4), 0.5), r"\(x \* 255\)\.round\(\)"),
        (np.full((4, 4), 200.0), r"Convert it: x\.round\(\)\.astype"),
        (np.full((4, 4), -0.5), r"\(\(x \+ 1\) \* 127\.5\)"),
        (np.full((4, 4), np.nan), "NaN or infinite"),
        (np.full((4, 4), "red"), "not <U3"),
        (np.full((4, 4), None), "not object"),
        (np.zeros((4, 4), complex), "complex"),
        (np.zeros((3, 4, 5), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\[2, 4, 4, 3\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_wrong_arrays(array, words):
    with pytest.raises(MediaError, match=words):
        Image(array).load()


@pytest.mark.parametrize("source", [None, 3, 2.5, {"a": 1}, ["a.png"], object()])
def test_wrong_types(source):
    with pytest.raises(MediaError, match="Expected a path, https URL"):
        Image(source)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_convert_as_pillow_does(mode):
    image = PIL.Image.fromarray(picture(8, 5)).convert(mode)
    assert (np.asarray(Image(image).load()) == np.asarray(image.convert("RGB"))).all()


def test_alpha_is_dropped_not_blended():
    array = np.zeros((2, 2, 4), np.uint8)
    array[..., 0] = 200  # red, fully transparent
    assert Image(encode(PIL.Image.fromarray(array, "RGBA"))).load().getpixel((0, 0)) == (200, 0, 0)


def test_transparent_palette_converts_without_a_warning():
    image = PIL.Image.new("P", (3, 2))
    image.putpalette([10, 20, 30] + [0] * 765)
    data = encode(image, transparency=b"\x00\x80\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Image(data).load().getpixel((1, 1)) == (10, 20, 30)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    loaded = Image(encode(PIL.Image.fromarray(levels), format)).load()
    assert [loaded.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 1, 1, 128, 255]


def test_sixteen_bit_pgm():
    data = b"P5 3 1 65535 " + struct.pack(">3H", 0, 32768, 65535)
    loaded = Image(data).load()
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_pixels_of_unknown_range_are_refused():
    assert "float" in message(PIL.Image.fromarray(np.full((2, 2), 0.5, np.float32)))
    assert "32-bit" in message(PIL.Image.fromarray(np.full((2, 2), 70000, np.int32)))


def test_cmyk_jpeg():
    image = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    red, green, blue = Image(encode(image, "JPEG", quality=95)).load().getpixel((8, 8))
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(format):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    data = encode(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert Image(data).load().getpixel((4, 4))[:2] == (250, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_files(format, orientation, tmp_path):
    """The stored picture is transposed so that its orientation makes it upright: white top left, gray top right."""
    upright = PIL.Image.new("L", (64, 32))
    upright.paste(255, (0, 0, 32, 16))
    upright.paste(128, (32, 0, 64, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the PIL transpose that stores it
    stored = upright.transpose(PIL.Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    path.write_bytes(encode(stored.convert("RGB"), format, exif=exif))
    for source in (path, path.read_bytes()):
        loaded = Image(source).load()
        assert loaded.size == (64, 32)
        corners = [loaded.getpixel(at)[0] for at in ((4, 4), (60, 4), (4, 28), (60, 28))]
        assert np.abs(np.array(corners) - (255, 128, 0, 0)).max() < 10


def test_exif_orientation_of_pil_images_is_not_applied():
    image = PIL.Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert Image(image).load().size == (4, 2)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_broken_exif_is_ignored(exif):
    assert Image(encode(PIL.Image.fromarray(picture()), "JPEG", exif=exif)).load().size == (13, 7)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_extreme_shapes_load(size, format):
    assert Image(encode(PIL.Image.new("RGB", size, (9, 9, 9)), format)).load().size == size


def test_huge_picture_is_refused_before_decoding():
    text = message(png_header(20000, 20000))
    assert "20,000×20,000" in text
    assert "100,000,000" in text
    assert "max_pixels" in text


def test_the_limit_does_not_depend_on_pillow(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)  # far below our limit
    data = encode(PIL.Image.new("RGB", (40, 30), (1, 2, 3)))
    assert Image(data).load().size == (40, 30)
    assert "max_pixels" in message(data, MediaLimits(max_pixels=1199))
    assert Image(data).load(MediaLimits(max_pixels=1200)).size == (40, 30)
    assert PIL.Image.MAX_IMAGE_PIXELS == 50


def test_the_limit_holds_for_pictures_in_memory():
    limits = MediaLimits(max_pixels=10)
    assert "max_pixels" in message(PIL.Image.new("L", (4, 3)), limits)
    assert "max_pixels" in message(np.zeros((4, 3), np.uint8), limits)


def test_zero_sized():
    for data in (
        png_header(0, 5),
        b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 0, 0, 1, 24) + bytes(24),
        b"P6 0 0 255 ",
    ):
        message(data)
    assert "no pixels" in message(PIL.Image.new("RGB", (0, 3)))


def test_byte_limit(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PIL.Image.fromarray(picture(50, 50))))
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, path.read_bytes(), uri):
        assert "max_image_bytes" in message(source, MediaLimits(max_image_bytes=1000))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_truncated(format, kept):
    data = encode(PIL.Image.fromarray(picture(64, 64)), format)
    text = message(data[: int(len(data) * kept)])
    assert "damaged" in text or "truncated" in text or "not an image" in text


@pytest.mark.parametrize("format", FORMATS)
def test_any_damage_is_a_media_error_or_a_picture(format):
    """Changed bytes never raise another exception."""
    data = encode(PIL.Image.fromarray(picture(32, 32)), format)
    generator = np.random.default_rng(7)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.integers(len(data))] = generator.integers(256)
        try:
            Image(bytes(damaged)).load(MediaLimits(max_pixels=100_000))
        except MediaError:
            continue


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, this is not a picture", "text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7 and so on", "PDF"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "use Video"),
        (b"\x00\x00\x00\x20ftypheic\x00\x00\x00\x00", "install pillow-heif"),
        (b"\x00\x01\x02\x03", "Expected one of PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "Expected one of PNG"),
    ],
)
def test_not_a_picture(content, words, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    assert words in message(path)


def test_empty(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert "empty" in message(path)
    assert "empty" in message(b"")
    assert "empty" in message("data:image/png;base64,")


def test_missing_and_unreadable(tmp_path):
    assert "does not exist" in message(tmp_path / "none.png")
    assert "does not exist" in message("")
    assert "base64" in message(base64.b64encode(b"x" * 3000).decode())  # base64 without data: is too long for a path
    message("nul\x00byte.png")
    if os.geteuid() != 0:
        path = tmp_path / "secret.png"
        path.write_bytes(b"x")
        path.chmod(0)
        assert "permission" in message(path)


def test_folders_devices_and_pipes_are_refused(tmp_path):
    assert "Use Video" in message(tmp_path)
    assert "device" in message("/dev/zero")
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert "pipe" in message(pipe)  # and opening it does not block
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "socket" in message(tmp_path / "s")


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png,rawtext",
        "data:image/png;base64",
        "data:text/html;base64,aGVsbG8=",
        "data:image/svg+xml;base64,aGVsbG8=",
        "data:;base64,aGVsbG8=",
        "data:image/png;base64,not base64!",
        "data:image/png;base64,aGVsbG8",
    ],
)
def test_bad_data_uris(uri):
    text = message(uri)
    assert "aGVsbG8" not in text
    assert "data:" in text


def test_data_uri_with_line_breaks_and_parameters():
    text = base64.encodebytes(encode(PIL.Image.fromarray(picture(20, 20)))).decode()
    assert Image(f"DATA:image/png;name=a.png;base64,{text}").load().size == (20, 20)


def test_data_uri_with_escaped_base64():
    data = encode(PIL.Image.fromarray(picture(20, 20)))
    text = base64.b64encode(data).decode()
    assert "+" in text
    assert "/" in text
    for escaped in (urllib.parse.quote(text, safe=""), text.replace("+", "%2b").replace("/", "%2f") + "%0d%0A"):
        assert Image(f"data:image/png;base64,{escaped}").load().size == (20, 20)


@pytest.mark.parametrize(
    "uri",
    [
        "data:" + ";" * 50_000_000,
        "data:image/png;" + "a=b;" * 10_000_000 + "base64,aGVsbG8=",
        "data:image/png;base64," + "a " * 40_000_000,
        "data:image/png;base64," + "%41" * 20_000_000,
        "data:image/png;base64," + "\u2028" * 1000,
        "data:image/png;base64," + "\ud800" * 10,
        "data:image/png;base64,%",
        "data:image/png;base64,   ",
    ],
    ids=lambda uri: repr(uri[:30]),
)
def test_hostile_data_uris_take_little_memory(uri):
    tracemalloc.start()
    try:
        assert "data:" in message(uri)
        assert tracemalloc.get_traced_memory()[1] < 400_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "a" * 5000, "x/" * 3000, "\x1b[31m.png", " "])
def test_impossible_paths(name, tmp_path):
    for source in (name, os.path.join(tmp_path, name)):
        for load in (Image(source).load, open_media(source).load, partial(Video(source).load, 2)):
            with pytest.raises(MediaError) as error:
                load()
            assert str(error.value).isprintable()


def test_a_path_of_bytes_is_a_path(tmp_path):
    class Path:
        def __fspath__(self):
            return os.fsencode(tmp_path / "a.png")

    (tmp_path / "a.png").write_bytes(encode(PIL.Image.fromarray(picture(20, 20))))
    assert Image(Path()).load().size == (20, 20)
    assert open_media(Path()).load().size == (20, 20)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    status = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda name, **more: status if str(name) == str(path) else real(name, **more))
    assert "pipe" in message(path)
    open_media(path)


def test_a_sparse_terabyte_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    assert "more than the limit" in message(tmp_path / "a.png")
    with pytest.raises(MediaError, match="more than the limit"):
        Video(tmp_path / "a.png").load(2)


def test_urls_can_be_disabled():
    assert "URLs are disabled" in message("https://example.org/a.png", MediaLimits(fetch=None))
    for url in ("http://example.org/a.png", "ftp://example.org/a.png", "file:///etc/passwd"):
        assert "https" in message(url)


def test_open_media(tmp_path):
    (tmp_path / "frames").mkdir()
    for source in (
        "a.png",
        tmp_path / "b.JPG",
        "https://x.org/a.jpeg?size=1",
        "data:image/png;base64,x",
        "https://x.org/random",
    ):
        assert isinstance(open_media(source), Image)
    for source in ("a.mp4", "A.MKV", "https://x.org/a.webm?x=y.png#z", "data:video/mp4;base64,x", tmp_path / "frames"):
        assert isinstance(open_media(source), Video)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MediaLimits, {"max_pixels": 0}), (MediaLimits, {"max_pixel": 5}), (MediaLimits, {"fetch": {"timeout_s": "x"}}),
        (FetchPolicy, {"timeout_s": 1e300}), (FetchPolicy, {"timeout_s": float("inf")}),
        (FetchPolicy, {"allowed_hosts": iter(int, 1)}), (FetchPolicy, {"allowed_hosts": ["a"] * 20_000}),
        (FetchPolicy, {"allowed_hosts": [1]}),
    ],
    ids=lambda value: str(value).partition(" object at ")[0][:60],
)  # fmt: skip
def test_limits_that_make_no_sense_are_config_errors(kind: type, settings: dict[str, object]) -> None:
    name = list(settings)[-1]
    with pytest.raises(ConfigError, match=f"{name}|timeout_s"):
        kind(**settings)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WebP", "TIFF", "AVIF"])
def test_exif_orientation_in_every_format(format, orientation):
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32], stored[:24, 32:], stored[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format in ("JPEG", "AVIF") else {"lossless": True} if format == "WebP" else {}
    if format == "JPEG":
        options["subsampling"] = 0
    data = saved(stored, format, exif=exif, **options)
    shown = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    loaded = Image(data).load()
    assert loaded.size == ((64, 48) if orientation < 5 else (48, 64))
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(shown.convert("RGB"))).max() == 0


def test_the_kind_of_bytes_is_that_of_their_content():
    for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP", "PPM", "AVIF"):
        assert isinstance(open_media(saved(picture(), format)), Image), format
