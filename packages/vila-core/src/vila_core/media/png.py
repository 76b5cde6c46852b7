"""Reading PNG files without the chunks that do not change pixels.

Source: PNG specification, third edition (W3C, 2025), section 5: a file is a signature and chunks of length, type, data
and checksum.
"""

import io
import struct
from typing import IO

SIGNATURE_BYTES = 8
KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
"""Chunks that decide the pixels."""
ORIENTATION = b"eXIf"
MAX_EXIF_BYTES = 65536
"""More than any EXIF block of a camera; larger ones are skipped."""


def without_metadata(file: IO[bytes]) -> IO[bytes]:
    """Return the file with the chunks of the still picture and its EXIF data only.

    Texts, color profiles and times of any size are skipped, and so are the frames of an animation. Pillow would refuse
    the whole file for a text or profile over its limits.
    """
    kept = [file.read(SIGNATURE_BYTES)]
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind in KEPT or (kind == ORIENTATION and length <= MAX_EXIF_BYTES):
            kept += [header, file.read(length + 4)]
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            break
    return io.BytesIO(b"".join(kept))
