"""Reading JPEG files without the segments that do not change pixels.

Source: ITU-T T.81, annex B: a file is a sequence of markers, and segments of marker, length and data.
"""

import io
import struct
from typing import IO

from vila_core.errors import MediaError

KEPT_APPLICATION_DATA = (0xE0, 0xEE)
"""JFIF and Adobe segments, which define the color space. EXIF (0xE1) is kept once."""
EXIF, COMMENT, START_OF_SCAN, END_OF_IMAGE = 0xE1, 0xFE, 0xDA, 0xD9
STANDALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a segment."""
START_OF_FRAME = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 2_000_000_000
"""Over all scans. Encoders of progressive files write about ten, each of which takes as long as the whole picture."""


def without_metadata(file: IO[bytes], name: str) -> IO[bytes]:
    """Return the file with the segments that decide its pixels and its first EXIF segment only.

    Pillow joins EXIF segments in quadratic time.

    Raises:
        MediaError: the file has more scans than `MAX_SCANS` or `MAX_SCANNED_PIXELS` allow.
    """
    data = file.read()
    scans = data.count(b"\xff\xda")  # and those of thumbnails
    kept, place, has_exif, pixels = [data[:2]], 2, False, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            break
        length = 0 if marker in STANDALONE else int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + length
        if marker in START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data.ljust(place + 9), place + 5)
            pixels = height * width
        is_exif = marker == EXIF and data.startswith(b"Exif\0", place + 4) and not has_exif
        if is_exif or marker in KEPT_APPLICATION_DATA or not (0xE0 <= marker <= 0xEF or marker == COMMENT):
            kept.append(data[place:end])
            has_exif = has_exif or is_exif
        place = end
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        raise MediaError(
            f"{name} has {scans:,} progressive scans, each of which takes as long as the whole picture. "
            "Save it again as a baseline JPEG."
        )
    kept.append(data[place:])
    return io.BytesIO(b"".join(kept))
