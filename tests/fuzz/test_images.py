"""Hostile pictures: a picture or a one-line error, within bounds of time and memory."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import PIL.features
import PIL.Image
import pytest
from tests.fuzz.bounded import assert_bounded

from vila_core.media import Image, Video, open_media

pytestmark = pytest.mark.slow

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(["AVIF"] if PIL.features.check("avif") else []))
HUGE = 65_000


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> PIL.Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values).convert(mode)


def encode(image: PIL.Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """That many zero bytes, compressed."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*pieces, packer.flush()])


def bmp(width: int, height: int, bits: int, compression: int, data: bytes = b"", offset: int = 54) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, offset) + head + data


def gif(width: int, height: int, frames: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"!\xf9\x04\0\x0a\0\0\0," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b";"


def tiff(**tags: tuple[int, int, bytes]) -> bytes:
    """A little-endian TIFF of the given tags, `t256=(type, count, value in 4 bytes)`."""
    entries = b"".join(
        struct.pack("<HHI", int(name[1:]), kind, count) + value for name, (kind, count, value) in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def long(value: int) -> tuple[int, int, bytes]:
    return (4, 1, struct.pack("<I", value))


def jpeg_parts(progressive: bool = False) -> tuple[bytes, bytes, bytes]:
    """A JPEG before its last scan, that scan, and the end marker."""
    data = encode(picture(1000, 1000).convert("L"), "JPEG", progressive=progressive)
    scan = data.rindex(b"\xff\xda")
    return data[:scan], data[scan:-2], data[-2:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def try_as_everything(data: bytes) -> Callable[[], object]:
    """Load bytes as what they look like, then as an image and as a video whatever they look like."""

    def load() -> None:
        errors: list[Exception] = []
        media = open_media(data)
        for attempt in (
            media.load if isinstance(media, Image) else lambda: media.load(4),
            Image(data).load,
            lambda: Video(data).load(4),
        ):
            try:
                attempt()
            except Exception as error:  # noqa: BLE001 (raised below)
                errors.append(error)
        unexpected = [error for error in errors if type(error).__name__ != "MediaError"]
        for error in unexpected or errors[:1]:
            raise error

    return load


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files(form: str) -> None:
    """Flipped, cut, repeated and extreme bytes."""
    rng = random.Random(form)
    options = {"save_all": True, "append_images": [picture(40, 30)]} if form in ("GIF", "WEBP", "TIFF") else {}
    whole = encode(picture(), form, **options)
    cases: dict[str, Callable[[], object]] = {}
    for number in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            place = rng.randrange(min(len(data), rng.choice((40, 200, len(data)))))
            kind = rng.randrange(5)
            if kind == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[place : place + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                )
            elif kind == 2:
                del data[place : place + rng.randrange(1, 50)]
            elif kind == 3:
                data[place:place] = data[place : place + rng.randrange(1, 200)]
            else:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
            data = data or bytearray(b"\0")
        cases[f"{form} {number}"] = try_as_everything(bytes(data))
    assert_bounded(cases)


def test_headers_that_claim_much() -> None:
    cases = {
        "png of 30,000x1": png(30_000, 1, png_chunk(b"IDAT", zlib.compress(bytes(90_001)))),
        "png of 10,000x9,900": png(10_000, 9_900, png_chunk(b"IDAT", zeros(1 << 22))),
        "interlaced png": png(9_000, 9_000, png_chunk(b"IDAT", zeros(1 << 22)), interlace=1),
        "png of 16 bits": png(9_000, 9_000, png_chunk(b"IDAT", zeros(1 << 22)), depth=16, color=6),
        "png with a deflate bomb": png(10, 10, png_chunk(b"IDAT", zeros(1 << 30))),
        "png with a text bomb": png(10, 10, png_chunk(b"zTXt", b"a\0\0" + zeros(1 << 30))),
        "png with a profile bomb": png(10, 10, png_chunk(b"iCCP", b"a\0\0" + zeros(1 << 30))),
        "png with an international text bomb": png(10, 10, png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(1 << 30))),
        "png of 100,000 chunks": png(10, 10, png_chunk(b"IDAT", b"") * 100_000),
        "png of 1,000,000 texts": png(10, 10, png_chunk(b"tEXt", b"a\0b") * 1_000_000),
        "png of length 2^32": png(2**32 - 1, 2**32 - 1),
        "png that claims 4 GB": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**32 - 1) + b"IDAT",
        "png of 65,000 frames": png(
            5_000, 5_000, png_chunk(b"acTL", struct.pack(">II", 65_000, 0)), png_chunk(b"IDAT", zeros(1 << 20))
        ),
        **{
            f"bmp of {width}x{height}, {bits} bits, compression {compression}": bmp(width, height, bits, compression)
            for width, height in ((30_000, 3_000), (1, 99_999_999), (10_000, -9_999), (-1, 5), (2**31 - 1, 2**31 - 1))
            for bits, compression in ((1, 0), (8, 1), (4, 2), (32, 3), (24, 0), (0, 4), (0, 5))
        },
        "bmp with skips": bmp(9_000, 2_000, 8, 1, b"\0\2\xff\xff" * 100_000, offset=1078),
        "bmp that starts at 4 GB": bmp(10, 10, 24, 0, offset=2**32 - 1),
        "gif of 9,000x9,000": gif(9_000, 9_000, 200),
        "gif of 65,000x65,000": gif(HUGE, HUGE, 3),
        "gif of 100,000 frames": gif(1_000, 1_000, 100_000),
        "gif of 1,000,000 small frames": gif(1, 1, 1_000_000),
        "gif of comments": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!\xfe" + b"\xffx" * 5_000_000,
    }
    assert_bounded({name: try_as_everything(data) for name, data in cases.items()})


def test_text_formats() -> None:
    cases = {
        "ppm of white space": b"P3" + b" " * 100_000_000,
        "ppm with a body of white space": b"P3 10 10 255" + b" " * 100_000_000,
        "ppm with a header of digits": b"P5 " + b"1" * 10_000_000 + b" 3 255 ",
        "ppm with a comment of 100 MB": b"P6 #" + b"x" * 100_000_000,
        "ppm with 10,000,000 comments": b"P6 " + b"#\n" * 10_000_000 + b"1 1 255 abc",
        "ppm in text, 9,000x9,000": b"P3 9000 9000 255 " + b"1 " * 1_000_000,
        "pbm in text": b"P1 9000 9000 " + b"1" * 7_000_000,
        "pbm in text without end": b"P1 9000 9000 " + b"#" * 7_000_000,
        "pgm in text": b"P2 3000 3000 65535 " + b"65535 " * 1_000_000,
        "pgm with a long number": b"P2 2 2 255 " + b"1" * 7_000_000,
        "ppm without pixels": b"P6 9000 9000 255 ",
        "ppm of deep colors": b"P6 5000 5000 65535 " + bytes(1000),
        "pam": b"P7\nWIDTH 9000\nHEIGHT 9000\nDEPTH 4\nMAXVAL 255\nENDHDR\n",
        "pfm": b"PF\n9000 9000\n-1.0\n",
        "pfm of nan": b"Pf\n2 2\nnan\n" + bytes(16),
        "xbm": b"#define a_width 30000\n#define a_height 30000\nstatic char a[] = {\n0x00};",
        "svg of entities": b'<!DOCTYPE svg [<!ENTITY a "&b;&b;">]><svg>&a;</svg>' * 1000,
    }
    assert_bounded({name: try_as_everything(data) for name, data in cases.items()})


def test_jpeg() -> None:
    start, scan, end = jpeg_parts()
    progressive, last, _ = jpeg_parts(progressive=True)
    frame = start.index(b"\xff\xc0")
    cases = {
        "10,000 progressive scans": progressive + last * 10_000 + end,
        "100,000 empty scans": progressive + last[:10] * 100_000 + end,
        "20,000 restarts": start + scan + b"\xff\xd0" * 20_000 + end,
        "padding of 50 MB": start[:2] + b"\xff" * 50_000_000 + start[2:] + scan + end,
        "frame of 65,000x65,000": start[: frame + 5] + b"\xfd\xe8\xfd\xe8" + start[frame + 9 :] + scan + end,
        "frame of 10,000x9,999": start[: frame + 5] + b"\x27\x10\x27\x0f" + start[frame + 9 :] + scan + end,
        "frame without height": start[: frame + 5] + bytes(4) + start[frame + 9 :] + scan + end,
        **{
            f"100 MB of {name}": start[:2]
            + segment(marker, (prefix + bytes(65_533))[:65_533]) * 1_500
            + start[2:]
            + scan
            for name, marker, prefix in (
                ("exif", 0xE1, b"Exif\0\0"),
                ("xmp", 0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
                ("profile", 0xE2, b"ICC_PROFILE\0\1\1"),
                ("mpo", 0xE2, b"MPF\0"),
                ("photoshop", 0xED, b"Photoshop 3.0\0008BIM"),
                ("comment", 0xFE, b""),
                ("tables", 0xDB, b""),
            )
        },
        "1,000,000 small segments": start[:2] + segment(0xFE, b"") * 1_000_000 + start[2:] + scan + end,
        "1,000,000 Huffman tables": start[:2] + segment(0xC4, bytes(17)) * 1_000_000 + start[2:] + scan + end,
    }
    assert_bounded({name: try_as_everything(data) for name, data in cases.items()})


def test_containers() -> None:
    whole = encode(picture(), "WEBP", lossless=True)
    lossless = riff((b"VP8L", b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(30)))
    size = struct.pack("<I", 0x10) + b"\xff\x3f\0\xff\x3f\0"
    still = whole[12:]
    animated = riff((b"VP8X", b"\2\0\0\0" + size[4:]), (b"ANIM", bytes(6)), *[(b"ANMF", bytes(16) + still)] * 20_000)
    pages = encode(picture(), "TIFF", save_all=True, append_images=[picture(4, 4)] * 2_000)
    shape = {"t256": long(9_000), "t257": long(9_000), "t258": long(8), "t262": long(1), "t277": long(1)}
    loop = bytearray(encode(picture(), "TIFF"))
    loop[-4:] = struct.pack("<I", 8)
    ftyp = struct.pack(">I", 24) + b"ftypavif\0\0\0\0avifmif1"
    cases = {
        "lossless webp of 16,384x16,384": lossless,
        "webp canvas of 16,384x16,384": riff(
            (b"VP8X", b"\x10\0\0\0" + size[4:]), (b"ALPH", bytes(10)), (b"VP8L", bytes(9))
        ),
        "webp animation of 20,000 frames": animated,
        "webp of 100 MB of metadata": riff(
            (b"VP8X", b"\x2c\0\0\0\x27\0\0\x1d\0\0"), (b"VP8L", whole[20:]), (b"EXIF", bytes(100_000_000))
        ),
        "webp of 1,000,000 chunks": riff((b"VP8X", b"\0" * 10), *[(b"XXXX", b"")] * 1_000_000),
        "tiff of 2,000 pages": pages,
        "tiff pages in a loop": bytes(loop),
        "tiff of one strip": tiff(**shape, t259=long(1), t273=long(8), t278=long(9_000), t279=long(81_000_000)),
        "tiff of 2^32 strips": tiff(**shape, t273=(4, 2**32 - 1, struct.pack("<I", 8)), t279=(4, 2**32 - 1, bytes(4))),
        "tiff of packed bits": tiff(**shape, t259=long(32_773), t273=long(8), t278=long(9_000), t279=long(100)),
        "tiff of lzw": tiff(**shape, t259=long(5), t273=long(8), t278=long(9_000), t279=long(100)),
        "tiff of deflate": tiff(**shape, t259=long(8), t273=long(8), t278=long(9_000), t279=long(100)),
        "tiff of fax": tiff(**shape, t259=long(4), t273=long(8), t278=long(9_000), t279=long(100)),
        "tiff of 9,999 samples": tiff(**{**shape, "t277": long(9_999)}, t273=long(8)),
        "tiff of 65,535 bits": tiff(**{**shape, "t258": long(65_535)}, t273=long(8)),
        "tiff tiles of 1x1": tiff(**shape, t322=long(1), t323=long(1), t324=long(8), t325=long(1)),
        "tiff of 65,535 tags": b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(65_535 * 12),
        "big tiff": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(1000),
        "avif without a picture": ftyp + struct.pack(">I", 2**31 - 1) + b"meta",
        "avif box of size 0": ftyp + bytes(4) + b"meta" + bytes(100_000),
        "avif of nested boxes": ftyp + b"".join(struct.pack(">I", 2**30) + b"meta" + bytes(4) for _ in range(100_000)),
        "heic": ftyp.replace(b"avif", b"heic") + bytes(1000),
    }
    assert_bounded({name: try_as_everything(data) for name, data in cases.items()})


def test_formats_that_are_not_read() -> None:
    heads = {
        "ico": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0",
        "icns": b"icns\x7f\xff\xff\xffic10\x7f\xff\xff\xff",
        "psd": b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\x75\x30\0\0\x75\x30\0\x08\0\3",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30000 30000\n{loop}",
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 ",
        "dds": b"DDS \x7c\0\0\0" + struct.pack("<IIII", 0x1007, 30_000, 30_000, 0) + bytes(100),
        "qoi": b"qoif" + struct.pack(">II", 30_000, 30_000) + b"\4\0",
        "pcx": b"\x0a\x05\x01\x08" + struct.pack("<HHHH", 0, 0, 65_535, 65_535),
        "fits": b"SIMPLE  =                    T" + b" " * 5000,
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='1e9' height='1e9'/>",
        "exr": b"v/1\x01" + bytes(100),
        "jpeg xl": b"\xff\x0a" + bytes(100),
        "nothing but zeros": bytes(1_000_000),
        "one byte": b"\xff",
    }
    assert_bounded({name: try_as_everything(data + bytes(1000)) for name, data in heads.items()})


def test_arrays_and_pictures_in_memory() -> None:
    shapes = (
        (0, 0),
        (0, 5, 3),
        (5, 0, 3),
        (5, 5, 0),
        (3, 5, 5),
        (5, 5, 2),
        (5, 5, 5),
        (5,),
        (),
        (1, 5, 5, 3),
        (5, 5, 3, 1),
    )
    values = (np.nan, np.inf, -np.inf, -1, 256, 1e308, 2**63 - 1, 0.5)
    kinds = ("u1", "i1", ">u2", "<i4", ">i8", "u8", "f2", ">f4", "f8", "g", "?", "c8", "O", "S3", "U3", "M8[s]", "V3")
    cases: dict[str, Callable[[], object]] = {}
    for kind in kinds:
        for shape in shapes:
            cases[f"{kind} {shape}"] = lambda kind=kind, shape=shape: Image(np.zeros(shape, kind)).load()
        cases[f"{kind} video"] = lambda kind=kind: Video(np.zeros((3, 5, 5, 3), kind)).load(2)
    for value in values:
        cases[f"values of {value}"] = lambda value=value: Image(np.full((5, 5, 3), value)).load()
    cases["expanded"] = lambda: Image(np.broadcast_to(np.uint8(0), (2**20, 2**20, 3))).load()
    cases["expanded int64"] = lambda: Image(np.broadcast_to(np.int64(0), (30_000, 30_000))).load()
    cases["masked"] = lambda: Image(np.ma.masked_all((5, 5, 3))).load()
    cases["record"] = lambda: Image(np.zeros((5, 5), [("r", "u1"), ("g", "u1")])).load()
    for mode in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "I;16",
    ):
        cases[f"mode {mode}"] = lambda mode=mode: Image(PIL.Image.new(mode, (5, 5))).load()
    cases["closed"] = lambda: _closed().load()
    assert_bounded(cases)


def _closed() -> Image:
    image = PIL.Image.open(io.BytesIO(encode(picture(), "PNG")))
    image.close()
    return Image(image)
