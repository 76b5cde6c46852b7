"""The license of a checkpoint, as stated by its model card or license file."""

import os
import re
from pathlib import Path

from vila_core.errors import CheckpointError
from vila_core.input_files import Content, copy_input, read_input

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_FIELD = re.compile(r"^(license(?:_name|_link)?):\s*(.*?)\s*$", re.MULTILINE)
_LICENSE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "MODEL_LICENSE", "MODEL_LICENSE.md", "LICENSE-MODEL")
_CARRIED_FILES = ("README.md", *_LICENSE_FILES, "NOTICE", "NOTICE.txt")
_MAX_BYTES = 10_000_000


def copy_license_files(source: Path, target: Path) -> None:
    """Copy the model card and license files of a checkpoint to the folder `target`.

    Raises:
        CheckpointError: one of them cannot be read or is not an ordinary text file.
    """
    for name in _CARRIED_FILES:
        if os.path.lexists(source / name) and not (source / name).is_dir():
            copy_input(source / name, target / name, max_bytes=_MAX_BYTES)


def read_license(folder: Path) -> str | None:
    """Return the `license` of the model card (with its `license_name`), else the first line of the license file.

    None if there is neither.
    """
    fields = dict(_FIELD.findall(_front_matter(folder / "README.md")))
    stated = fields.get("license", "").strip("'\"[] ")
    if stated:
        name = fields.get("license_name", "").strip("'\" ")
        return f"{stated} ({name})" if name else stated
    for name in _CARRIED_FILES[1:]:
        text = _text(folder / name)
        if text is not None:
            first = next((line.strip("# ").strip() for line in text.splitlines() if line.strip("# ").strip()), "")
            return f"{first[:100]} ({name})" if first else name
    return None


def _front_matter(path: Path) -> str:
    found = _FRONT_MATTER.match((_text(path) or "").replace("\r\n", "\n"))
    return found.group(1) if found else ""


def _text(path: Path) -> str | None:
    try:
        return read_input(path, max_bytes=_MAX_BYTES, content=Content.ANY).decode("utf-8", errors="replace")
    except CheckpointError:  # a license that is missing or unreadable is no reason to fail
        return None
