"""Small image files, and the message with which one is refused, for tests of reading images."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from vila_core.errors import MediaError, VilaError
from vila_core.media import Image, MediaLimits


def picture(width=13, height=7, seed=0):
    """Noise, [H, W, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, bit_depth=8, colour=2):
    """A PNG whose header declares a size, with almost no data."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\x00"))
        + png_chunk(b"IEND", b"")
    )


def message(source, limits=None):
    with pytest.raises(MediaError) as error:
        Image(source).load(limits or MediaLimits())
    text = str(error.value)
    assert isinstance(error.value, VilaError)
    assert " object at 0x" not in text, "an error text must not show memory addresses"
    assert len(text) < 500
    return text


def saved(array, format, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, format, **options)
    return file.getvalue()
