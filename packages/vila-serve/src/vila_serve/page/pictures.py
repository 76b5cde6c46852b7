"""Files of the page: what users upload, and the pictures of answers."""

import tempfile
from pathlib import Path

from vila_serve.page.question import PictureFile

MAX_STORED_BYTES = 2 << 30
"""What all files of the page together may take."""


def stored_bytes(folder: Path) -> int:
    """Return how many bytes the files below `folder` have."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def store_picture(folder: Path, picture: PictureFile) -> str:
    """Write a picture into a new folder below `folder`; return its path. Gradio deletes it as it does uploads."""
    path = Path(tempfile.mkdtemp(dir=folder)) / f"picture{picture.ending}"
    path.write_bytes(picture.data)
    return str(path)
