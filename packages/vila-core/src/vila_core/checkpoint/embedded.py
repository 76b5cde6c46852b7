"""Path of the embedded demo model. Not in `loading.py`, which imports torch."""

from importlib.resources import files
from pathlib import Path

EMBEDDED_MODEL = "vila-tiny"
"""The name that stands for the embedded demo model wherever a model is named, unless a folder has that name."""


def embedded_model() -> Path:
    """Return the folder of the embedded demo model, `vila-tiny`."""
    return Path(str(files("vila_core") / "assets" / EMBEDDED_MODEL))
