"""Which questions share a picture, where the data does not say."""

import hashlib

from vila_core.media import Image


def picture_cluster(image: Image) -> str:
    """Return a name for the picture: 16 hex digits of the SHA-256 of its file, or its path where it is not in memory."""
    return hashlib.sha256(image.source).hexdigest()[:16] if isinstance(image.source, bytes) else str(image.source)
