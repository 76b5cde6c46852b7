"""From an open file, PIL image or array to one 8-bit RGB PIL image, with the size checked before anything is decoded.

Legend: H, W height and width in pixels.
"""

import struct
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from vila_core.errors import MediaError
from vila_core.media.limits import MediaLimits
from vila_core.media.sources import describe_content

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import PIL.ImageFile

FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM"
# What Pillow's decoders are known to raise on damaged data; none of their text is shown, since it may hold memory addresses.
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
    MemoryError,
)
_ORIENTATION_TAG = 0x0112


def decode_image(file: IO[bytes], name: str, limits: MediaLimits) -> "PIL.Image.Image":
    """Decode an image file to RGB [H, W], turned as its EXIF orientation says. Of an animation, the first frame.

    Formats: PNG, JPEG, WebP, GIF, BMP, TIFF, PPM. Raises MediaError: none of these, damaged or cut short, no pixels, too many.
    """
    from PIL.Image import DecompressionBombError

    head = file.read(64)
    file.seek(0)
    try:
        image = _open_header(head, file)
    except (*_DAMAGED, DecompressionBombError) as error:
        raise MediaError(f"{name}: the header is damaged. Check that the file is whole.") from error
    if image is None:
        raise MediaError(
            f"{name} is not an image that can be read. {describe_content(head, 'Image')}Expected one of {FORMATS}."
        )
    return _orient(convert_image(image, name, limits), _read_orientation(image))


def _open_header(head: bytes, file: IO[bytes]) -> "PIL.ImageFile.ImageFile | None":
    """Parse the header with the plugin that the first bytes call for.

    `PIL.Image.open` is not used: its own size limit is a global of the process, ours is a parameter.
    """
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.PpmImagePlugin import PpmImageFile
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    signatures: tuple[tuple[tuple[bytes, ...], Callable[[IO[bytes]], PIL.ImageFile.ImageFile]], ...] = (
        ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
        ((b"\xff\xd8\xff",), JpegImageFile),
        ((b"GIF87a", b"GIF89a"), GifImageFile),
        ((b"BM",), BmpImageFile),
        ((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), TiffImageFile),
        ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
    )
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile(file)
    return next((plugin(file) for starts, plugin in signatures if head.startswith(starts)), None)


def convert_image(image: "PIL.Image.Image", name: str, limits: MediaLimits) -> "PIL.Image.Image":
    """Decode a PIL image and convert it to 8-bit RGB [H, W].

    Alpha and palette transparency are dropped as `convert("RGB")` does. 16-bit greyscale is scaled (v / 257, rounded), not clipped.
    Raises MediaError: damaged, no pixels, too many, 32-bit integer or float pixels beyond 16 bits.
    """
    check_pixels(image.width, image.height, name, limits)
    try:
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            return _scale_deep(image, name)
        if image.mode == "La":  # premultiplied, has no direct way to RGB
            image = image.convert("LA")
        if (
            image.mode in ("P", "PA") and "transparency" in image.info
        ):  # else Pillow warns about what is dropped on purpose
            image = image.copy()
            del image.info["transparency"]
        return image.convert("RGB")
    except _DAMAGED as error:
        raise MediaError(
            f"{name} ({image.width}×{image.height}, {image.mode}) is damaged or cut short. Check that the file is whole."
        ) from error


def convert_array(array: "np.ndarray", name: str, limits: MediaLimits) -> "PIL.Image.Image":
    """Make an RGB image of a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha dropped). Raises MediaError for any other."""
    import PIL.Image

    if array.dtype != "uint8":
        raise MediaError(
            f"{name}: expected values 0 to 255 of type uint8. Scale and convert it: (x * 255).round().astype('uint8')."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        advice = (
            "Move the channels last: x.transpose(1, 2, 0)."
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else "Give one picture."
        )
        raise MediaError(f"{name}: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. {advice}")
    check_pixels(array.shape[1], array.shape[0], name, limits)
    return PIL.Image.fromarray(array).convert("RGB")


def check_pixels(width: int, height: int, name: str, limits: MediaLimits) -> None:
    """Raise MediaError when a picture has no pixels, or more than `limits.max_pixels`."""
    if width <= 0 or height <= 0:
        raise MediaError(f"{name} is {width}×{height}: it has no pixels. Give a picture of at least 1×1.")
    if width * height > limits.max_pixels:
        raise MediaError(
            f"{name} is {width:,}×{height:,} = {width * height:,} pixels, more than the limit of {limits.max_pixels:,}. "
            "Make it smaller, or raise the limit with MediaLimits(max_pixels=…)."
        )


def _scale_deep(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """16-bit grey levels to 8-bit ones. Mode "I" is how some formats (16-bit PGM) hold the same levels in 32 bits."""
    import numpy as np
    import PIL.Image

    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise MediaError(
            f"{name} has {'float' if image.mode == 'F' else '32-bit integer'} pixels, whose white is unknown. "
            "Scale them to 0…255 and give a uint8 array."
        )
    return PIL.Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def _read_orientation(image: "PIL.Image.Image") -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) when there is none or it can't be read, as image viewers do."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGED:
        return 1


def _orient(image: "PIL.Image.Image", orientation: int) -> "PIL.Image.Image":
    """Turn and mirror as EXIF 2.32 section 4.6.4 says."""
    from PIL.Image import Transpose

    moves = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(moves[orientation]) if orientation in moves else image
