"""Rotating and flipping pictures to how they are meant to be seen: EXIF orientations and display matrices."""

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av
    import PIL.Image

ORIENTATION_TAG = 0x0112


def orient(image: "PIL.Image.Image", orientation: int) -> "PIL.Image.Image":
    """Rotate and flip a picture by its EXIF orientation, 1 to 8 (EXIF 2.32, section 4.6.4); others change nothing."""
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


def as_displayed(image: "PIL.Image.Image", frame: "av.VideoFrame") -> "PIL.Image.Image":
    """Rotate and flip a decoded frame by its display matrix, as ffmpeg and players do.

    Source: FFmpeg, `fftools/ffmpeg_filter.c` (autorotate) and `libavutil/display.c` (av_display_rotation_get).
    """
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if data is None:
        return image
    # [[a, b, u], [c, d, v], [x, y, w]] in fixed point: the pixel (p, q) is shown at (a p + c q + x, b p + d q + y).
    a, _, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    turn = round(-frame.rotation) % 360  # clockwise
    if turn == 90:
        return orient(image, 5 if c > 0 else 6)
    if turn == 270:
        return orient(image, 7 if c < 0 else 8)
    if turn == 180:
        return orient(image, {(True, True): 3, (True, False): 2, (False, True): 4}.get((a < 0, d < 0), 1))
    if turn == 0:
        return orient(image, 4 if d < 0 else 1)
    return image.rotate(-turn)
