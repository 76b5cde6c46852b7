"""Path of the embedded demo model. Not in `loading.py`, which imports torch."""

from importlib.resources import files
from pathlib import Path


def embedded_model() -> Path:
    """Return the folder of the embedded demo model, `vila-tiny`."""
    return Path(str(files("vila_core") / "assets" / "vila-tiny"))
