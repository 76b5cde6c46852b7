"""Clusters of questions about the same image, for datasets that do not name the image."""

import hashlib

from vila_core.media import Image


def image_cluster(image: Image) -> str:
    """Return an identifier of the image: 16 hex digits of its file's SHA-256, or its path if it is not in memory."""
    return hashlib.sha256(image.source).hexdigest()[:16] if isinstance(image.source, bytes) else str(image.source)
