"""Paths of the embedded models. Not in `loading.py`, which imports torch."""

from importlib.resources import files
from pathlib import Path

EMBEDDED_MODEL = "vila-tiny"
"""The embedded model that is used where no model is named."""

EMBEDDED_MODELS = (EMBEDDED_MODEL, "vila-tiny-u")
"""The names that stand for embedded models wherever a model is named, unless a folder has that name."""


def embedded_model(name: str = EMBEDDED_MODEL) -> Path:
    """Return the folder of an embedded model. `name` is one of `EMBEDDED_MODELS`."""
    return Path(str(files("vila_core") / "assets" / name))
