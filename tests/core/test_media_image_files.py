"""Image files below their pixels: chunks, segments and headers, also those made to cost time or memory."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from tests.image_files import encode, message, picture, png_chunk, png_header, saved

from vila_core.errors import MediaError, MediaLimitError
from vila_core.media import Image, MediaLimits, jpeg
from vila_core.media.images import decode_image


def png_with(*chunks, after=()):
    """A PNG of `picture()` with chunks after its header, and others before its end."""
    plain = saved(picture(), "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:-12] + b"".join(after) + plain[-12:]


BOMB = zlib.compress(bytes(64_000_000), 9)
METADATA = {
    "tEXt": png_chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
    "zTXt": png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "iTXt": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + BOMB),
    "eXIf": png_chunk(b"eXIf", b"II*\0" + b"\xff" * 3_000_000),
    "many": png_chunk(b"tEXt", b"Comment\0" + b"x" * 1000) * 100_000,
    "damaged": png_chunk(b"zTXt", b"Comment\0\0not compressed"),
    "unknown": png_chunk(b"vpAg", b"x" * 3_000_000),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_of_any_size_changes_nothing(name, place):
    data = png_with(METADATA[name]) if place == "before" else png_with(after=[METADATA[name]])
    assert (np.asarray(Image(data).load()) == picture()).all()


@pytest.mark.parametrize(("size", "is_kept"), [(60_000, True), (70_000, False)])
def test_exif_data_larger_than_any_camera_writes_are_left_out(size, is_kept):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    turned = Image(png_with(png_chunk(b"eXIf", data + bytes(size - len(data))))).load()
    assert turned.size == ((7, 13) if is_kept else (13, 7))


def progressive(scans):
    plain = saved(np.zeros((1000, 1000, 3), np.uint8), "JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + last * scans + plain[-2:]


def jpeg_with(segment, count):
    plain = saved(picture(), "JPEG", quality=95)
    return plain[:2] + segment * count + plain[2:]


SEGMENTS = {
    "EXIF": b"\xff\xe1\xff\xffExif\0\0" + b"x" * 65527,
    "profile": b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + b"x" * 65519,
    "Photoshop": b"\xff\xed\xff\xffPhotoshop 3.0\0" + b"x" * 65519,
    "comment": b"\xff\xfe\xff\xff" + b"x" * 65533,
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_of_any_size_change_nothing(name):
    expected = np.asarray(Image(saved(picture(), "JPEG", quality=95)).load())
    assert (np.asarray(Image(jpeg_with(SEGMENTS[name], 300)).load()) == expected).all()


def test_segments_that_do_not_change_pixels_never_reach_the_decoder():
    """Pillow joins EXIF segments in quadratic time, and keeps what programs append."""
    plain = saved(picture(), "JPEG", quality=95)
    for name, segment in SEGMENTS.items():
        kept = jpeg.without_metadata(io.BytesIO(jpeg_with(segment, 3)), "x").read()
        assert kept == (plain[:2] + segment + plain[2:] if name == "EXIF" else plain), name


def start_of_frame(width, height):
    return b"\xff\xd8\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" + bytes(9)


@pytest.mark.parametrize(
    ("data", "is_refused"),
    [
        (b"\xff\xd8" + b"\xff\xdb\x00\x02" * 100_002, True),  # many segments
        (b"\xff\xd8" + b"\xff\xdb\x00\x02" * 99_000, False),
        (start_of_frame(8, 8) + b"\xff\xda\x00\x02\x11" * 101, True),  # many scans
        (start_of_frame(8, 8) + b"\xff\xda\x00\x02\x11" * 100, False),
        (start_of_frame(10_000, 10_000) + b"\xff\xda\x00\x02\x11" * 21, True),  # many pixels in all scans
        (start_of_frame(10_000, 10_000) + b"\xff\xda\x00\x02\x11" * 20, False),
    ],
    ids=["segments", "fewer segments", "scans", "fewer scans", "scanned pixels", "fewer scanned pixels"],
)
def test_the_work_that_a_jpeg_asks_for_is_limited(data, is_refused):
    if is_refused:
        with pytest.raises(MediaLimitError, match="Save it again"):
            jpeg.without_metadata(io.BytesIO(data), "x")
    else:
        assert jpeg.without_metadata(io.BytesIO(data), "x").read() == data


def test_what_surrounds_a_jpeg_is_no_scan():
    """A phone appends a motion video; other programs pad segments, or write metadata that holds any bytes."""
    array = picture(40, 30)
    whole = encode(PIL.Image.fromarray(array), "JPEG")
    expected = np.asarray(Image(whole).load())
    scans = b"\xff\xda\x00\x0c" * 1000
    appended = struct.pack(">I", 5_000_000) + b"ftypmp42" + scans * 1000
    segment = b"\xff\xe2" + struct.pack(">H", len(scans) + 2) + scans
    for data in (whole + appended, whole[:2] + segment * 100 + whole[2:], whole[:2] + b"\xff" * 50_000_000 + whole[2:]):
        np.testing.assert_array_equal(np.asarray(Image(data).load()), expected)


def test_a_side_of_millions_of_pixels_is_refused():
    for size in ((1, 99_999_999), (99_999_999, 1)):
        assert "no side may be longer" in message(png_header(*size))


def test_progressive_pictures_are_read_and_thousands_of_scans_refused():
    assert Image(progressive(0)).load().size == (1000, 1000)
    assert "progressive scans" in message(progressive(3000))


def run_length_bmp(width, height, data):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 0, 0)
    palette = bytes(1024)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + palette + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"P5" + b" " * 10_000_000, "header is damaged"),
        (b"P6 1" + b" " * 10_000_000, "header is damaged"),
        (b"P6 #" + b"c" * 10_000_000, "header is damaged"),
        (b"P5 " + b"1" * 10_000_000 + b" 3 255 ", "header is damaged"),
        (b"P3 5000 5000 255 " + b"1 " * 5_000_000, "pixels written as text"),
        (run_length_bmp(30_000, 3_000, b"\0\2\xff\xff" * 10), "run-length encoded"),
        (run_length_bmp(30_000, -3_000, b"\0\0" * 100), "run-length encoded"),
    ],
)
def test_files_that_take_minutes_are_refused(data, words):
    assert words in message(data)


class CountedFile(io.BytesIO):
    """A file that counts how often it is read."""

    reads = 0

    def read(self, size=-1):
        self.reads += 1
        return super().read(size)


def test_a_portable_header_without_an_end_is_not_searched_byte_by_byte():
    file = CountedFile(b"P6 #" + b"c" * 1_000_000)
    with pytest.raises(MediaError, match="header is damaged"):
        decode_image(file, "x", MediaLimits())
    assert file.reads < 10


def test_comments_in_a_portable_header_are_skipped():
    assert Image(b"P2 # a comment\n# another\n 2 1\n255\n10 20").load().getpixel((1, 0)) == (20, 20, 20)
