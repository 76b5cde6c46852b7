"""Reading JPEG files without the segments that do not change pixels.

Source: ITU-T T.81, annex B: a file is a sequence of markers, and segments of marker, length and data.
"""

import io
import itertools
import re
import struct
from typing import IO

from vila_core.errors import MediaLimitError

KEPT_APPLICATION_DATA = (0xE0, 0xEE)
"""JFIF and Adobe segments, which define the color space. EXIF (0xE1) is kept once."""
EXIF, COMMENT, START_OF_SCAN, END_OF_IMAGE = 0xE1, 0xFE, 0xDA, 0xD9
STANDALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a segment."""
START_OF_FRAME = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
MAX_SEGMENTS = 100_000
"""Segments have up to 64 KB, so that metadata of 100 MB takes 1,600."""
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 2_000_000_000
"""Over all scans. Encoders of progressive files write about ten, each of which takes as long as the whole picture."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""Not a zero byte (an 0xFF of the coded picture), padding, or a restart marker within a scan."""


def without_metadata(file: IO[bytes], name: str) -> IO[bytes]:
    """Return the file with the segments that decide its pixels and its first EXIF segment only.

    Pillow joins EXIF segments in quadratic time. What follows the picture (a phone's motion video) is left out too.

    Raises:
        MediaLimitError: the file has more scans than `MAX_SCANS` or `MAX_SCANNED_PIXELS` allow, or too many segments.
    """
    data = file.read()
    kept, place, has_exif, pixels, scans = [data[:2]], 2, False, 0, 0
    for count in itertools.count():
        found = _MARKER.search(data, place)
        if found is None:
            kept.append(data[place:])
            break
        marker, start = found[1][0], found.start()
        if count > MAX_SEGMENTS:
            raise MediaLimitError(f"{name} has over {MAX_SEGMENTS:,} segments. Save it again.", "MAX_SEGMENTS")
        if marker == END_OF_IMAGE:
            kept.append(data[start : start + 2])
            break
        place = start + 2 + (0 if marker in STANDALONE else int.from_bytes(data[start + 2 : start + 4], "big"))
        if marker == START_OF_SCAN:
            scans += 1
            following = _MARKER.search(data, place)
            place = len(data) if following is None else following.start()
        if marker in START_OF_FRAME and len(data) >= start + 9:
            height, width = struct.unpack_from(">HH", data, start + 5)
            pixels = max(pixels, height * width)
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
            raise MediaLimitError(
                f"{name} has {scans:,} progressive scans or more, each of which takes as long as the whole picture. "
                "Save it again as a baseline JPEG.",
                "MAX_SCANS",
            )
        is_exif = marker == EXIF and data.startswith(b"Exif\0", start + 4) and not has_exif
        if is_exif or marker in KEPT_APPLICATION_DATA or not (0xE0 <= marker <= 0xEF or marker == COMMENT):
            kept.append(data[start:place])
            has_exif = has_exif or is_exif
    return io.BytesIO(b"".join(kept))
