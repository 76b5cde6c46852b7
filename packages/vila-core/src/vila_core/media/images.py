"""Decodes a file, PIL image or array to an 8-bit RGB PIL image. The size is checked before decoding.

Dimensions: H, W height and width in pixels.
"""

import os
import re
import struct
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from vila_core.errors import MediaError, MediaLimitError
from vila_core.media import jpeg, png
from vila_core.media.limits import MediaLimits
from vila_core.media.orientation import ORIENTATION_TAG, orient
from vila_core.media.signatures import HEAD_BYTES, describe_content, is_avif, is_heif

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import PIL.ImageFile

FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF"
MAX_PLAIN_BYTES = 8_000_000
"""PBM, PGM and PPM files in text form: Pillow reads about 1 MB per second."""
PORTABLE_HEADER_BYTES = 4096
PORTABLE_HEADER = re.compile(rb"P[1-6](?:(?:\s|#[^\n]*\n)+\d{1,9}){2}")
"""The start of a PBM, PGM or PPM file: width and height, after spaces and comments."""
MAX_SIDE = 1_000_000
"""Pixels. Pillow keeps pointers to every row, which takes gigabytes for the tallest pictures."""
MAX_RUN_LENGTH_PIXELS = 20_000_000
# Exceptions that Pillow's decoders raise for damaged data. Their text may contain memory addresses, so it is not shown.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    struct.error,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)


def decode_image(file: IO[bytes], name: str, limits: MediaLimits) -> "PIL.Image.Image":
    """Decode an image file to RGB [H, W] and apply its EXIF orientation. Animations give their first frame.

    Raises:
        MediaError: the format is not one of `FORMATS`, the file is damaged or truncated, or the
            image has no pixels or too many.
    """
    from PIL.Image import DecompressionBombError

    head = file.read(HEAD_BYTES)
    file.seek(0)
    if is_heif(head):
        raise MediaError(
            f"{name} is an HEIC image, which Pillow does not read. Convert it to JPEG, or install pillow-heif and pass "
            "PIL.Image.open(…) of it."
        )
    try:
        _refuse_slow_files(head, file, name)
        image = _open_header(head, file, name)
    except (*_DAMAGED, DecompressionBombError):
        raise MediaError(f"{name}: the header is damaged. Check that the file is complete.") from None
    if image is None:
        raise MediaError(f"{name} is not a readable image. {describe_content(head, 'Image')}Expected one of {FORMATS}.")
    converted = convert_image(image, name, limits)
    orientation = _read_orientation(image)
    image.close()
    del image  # frees its pixels before more are made
    return orient(converted, orientation)


def _refuse_slow_files(head: bytes, file: IO[bytes], name: str) -> None:
    """Raise `MediaError` for large files of the formats that Pillow decodes byte by byte in Python."""
    if re.match(rb"P[1-6]", head):
        start = file.read(PORTABLE_HEADER_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not PORTABLE_HEADER.match(start):
            raise MediaError(f"{name}: the header is damaged. Check that the file is complete.")
        if head[:2] in (b"P1", b"P2", b"P3") and size > MAX_PLAIN_BYTES:
            raise MediaLimitError(
                f"{name} has pixels written as text, {size:,} bytes of them; the limit is {MAX_PLAIN_BYTES:,}. "
                "Save it as PNG.",
                "MAX_PLAIN_BYTES",
            )
    if head[:2] == b"BM" and len(head) >= 34:
        width, height = struct.unpack_from("<ii", head, 18)
        compression = int.from_bytes(head[30:34], "little")
        if compression in (1, 2) and abs(width * height) > MAX_RUN_LENGTH_PIXELS:
            raise MediaLimitError(
                f"{name} is a run-length encoded BMP with {abs(width * height):,} pixels; the limit is "
                f"{MAX_RUN_LENGTH_PIXELS:,}. Save it as PNG.",
                "MAX_RUN_LENGTH_PIXELS",
            )


def _open_header(head: bytes, file: IO[bytes], name: str) -> "PIL.ImageFile.ImageFile | None":
    """Parse the header with the Pillow plugin that matches the first bytes.

    `PIL.Image.open` is not used because its size limit is global, and ours is a parameter.
    """
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.PpmImagePlugin import PpmImageFile
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    signatures: tuple[tuple[tuple[bytes, ...], Callable[[IO[bytes]], PIL.ImageFile.ImageFile]], ...] = (
        ((b"\x89PNG\r\n\x1a\n",), lambda file: PngImageFile(png.without_metadata(file))),
        ((b"\xff\xd8\xff",), lambda file: JpegImageFile(jpeg.without_metadata(file, name))),
        ((b"GIF87a", b"GIF89a"), GifImageFile),
        ((b"BM",), BmpImageFile),
        ((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), TiffImageFile),
        ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
    )
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile(file)
    if is_avif(head):
        from PIL import AvifImagePlugin  # since Pillow 11.3

        return AvifImagePlugin.AvifImageFile(file)
    return next((plugin(file) for starts, plugin in signatures if head.startswith(starts)), None)


def convert_image(image: "PIL.Image.Image", name: str, limits: MediaLimits) -> "PIL.Image.Image":
    """Decode a PIL image and convert it to 8-bit RGB [H, W].

    Alpha and palette transparency are dropped, as `convert("RGB")` does. 16-bit grayscale is scaled (v / 257,
    rounded), not clipped.

    Raises:
        MediaError: the image is damaged, has no pixels or too many, or has float or 32-bit integer pixels beyond 16
            bits.
    """
    check_pixels(image.width, image.height, name, limits)
    try:
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            return _scale_deep(image, name)
        if image.mode == "La":  # premultiplied alpha has no direct conversion to RGB
            image = image.convert("LA")
        if image.mode in ("P", "PA") and "transparency" in image.info:
            # Transparency is dropped on purpose, so Pillow should not warn about it.
            image = image.copy()
            del image.info["transparency"]
        return image.convert("RGB")
    except _DAMAGED:
        raise MediaError(
            f"{name} ({image.width}×{image.height}, {image.mode}) is damaged or truncated. "
            "Check that the file is complete."
        ) from None


def convert_array(array: "np.ndarray", name: str, limits: MediaLimits) -> "PIL.Image.Image":
    """Convert an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha is dropped) to an RGB image.

    Values are integers from 0 to 255, of any integer type, or booleans (True is white).

    Raises:
        MediaError: the array has another shape, type or range, no pixels or too many.
    """
    import numpy as np
    import PIL.Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        advice = (
            "Move the channels last: x.transpose(1, 2, 0)."
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else "Use one picture."
        )
        raise MediaError(f"{name}: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. {advice}")
    check_pixels(array.shape[1], array.shape[0], name, limits)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        _require_bytes(array, name)
        array = array.astype(np.uint8)
    image = PIL.Image.fromarray(np.ascontiguousarray(array))
    return image if image.mode == "RGB" else image.convert("RGB")  # converting RGB to RGB copies it


def _require_bytes(array: "np.ndarray", name: str) -> None:
    """Raise `MediaError` unless the values are integers from 0 to 255; the advice fits the range found."""
    import numpy as np

    if array.dtype.kind not in "iuf":
        raise MediaError(f"{name}: expected integers from 0 to 255, not {array.dtype}.")
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise MediaError(f"{name} has values that are NaN or infinite. Replace them first, such as np.nan_to_num(x).")
    low, high = array.min().item(), array.max().item()
    if array.dtype.kind != "f" and low >= 0 and high <= 255:
        return
    if low < 0:
        is_centered = array.dtype.kind == "f" and low >= -1 and high <= 1
        advice = "((x + 1) * 127.5).round()" if is_centered else "((x - x.min()) / np.ptp(x) * 255).round()"
    elif array.dtype.kind == "f":
        advice = "(x * 255).round()" if high <= 1 else "x.round()" if high <= 255 else "(x / x.max() * 255).round()"
    else:
        advice = "(x / 257).round()" if high <= 65535 else "(x / x.max() * 255).round()"
    raise MediaError(
        f"{name}: expected integers from 0 to 255, got {array.dtype} from {low:g} to {high:g}. Convert it: "
        f"{advice}.astype('uint8')."
    )


def check_pixels(width: int, height: int, name: str, limits: MediaLimits) -> None:
    """Raise `MediaError` if a picture has no pixels, or more than `limits.max_pixels`."""
    if width <= 0 or height <= 0:
        raise MediaError(f"{name} is {width}×{height}: it has no pixels. Use a picture of at least 1×1.")
    if max(width, height) > MAX_SIDE:
        raise MediaLimitError(
            f"{name} is {width:,}×{height:,}; no side may be longer than {MAX_SIDE:,} pixels. Crop it.", "MAX_SIDE"
        )
    if width * height > limits.max_pixels:
        raise MediaLimitError(
            f"{name} is {width:,}×{height:,} = {width * height:,} pixels, "
            f"more than the limit of {limits.max_pixels:,}. "
            "Make it smaller, or raise the limit with MediaLimits(max_pixels=…).",
            "max_pixels",
        )


def _scale_deep(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """Scale 16-bit grayscale to 8 bits. Some formats (such as 16-bit PGM) store it as 32 bits, in mode "I"."""
    import numpy as np
    import PIL.Image

    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise MediaError(
            f"{name} has {'float' if image.mode == 'F' else '32-bit integer'} pixels of unknown range. "
            "Scale them to 0…255 and use a uint8 array."
        )
    return PIL.Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def _read_orientation(image: "PIL.Image.Image") -> int:
    """Return the EXIF orientation, 1 to 8. A missing or unreadable one is 1 (as stored), as in image viewers."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except _DAMAGED:
        return 1
