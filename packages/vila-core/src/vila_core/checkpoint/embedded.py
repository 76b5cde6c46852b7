"""Where the embedded demo model lies. Apart from `loading.py`, since what only reads headers needs no torch."""

from importlib.resources import files
from pathlib import Path


def embedded_model() -> Path:
    """Return the folder of the embedded demo model, `vila-tiny`."""
    return Path(str(files("vila_core") / "assets" / "vila-tiny"))
