"""The license of a checkpoint, as stated by its model card or license file."""

import re
from pathlib import Path

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_FIELD = re.compile(r"^(license(?:_name|_link)?):\s*(.*?)\s*$", re.MULTILINE)
_LICENSE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "MODEL_LICENSE", "MODEL_LICENSE.md", "LICENSE-MODEL")
_MAX_BYTES = 1_000_000


def license_files(folder: Path) -> list[Path]:
    """Return the model card and license files in `folder`, which are copied with the weights."""
    return [
        folder / name for name in ("README.md", *_LICENSE_FILES, "NOTICE", "NOTICE.txt") if (folder / name).is_file()
    ]


def read_license(folder: Path) -> str | None:
    """Return the `license` of the model card (with its `license_name`), else the first line of the license file.

    None if there is neither.
    """
    fields = dict(_FIELD.findall(_front_matter(folder / "README.md")))
    stated = fields.get("license", "").strip("'\"[] ")
    if stated:
        name = fields.get("license_name", "").strip("'\" ")
        return f"{stated} ({name})" if name else stated
    for path in license_files(folder):
        if path.name != "README.md":
            first = next(
                (line.strip("# ").strip() for line in _text(path).splitlines() if line.strip("# ").strip()), ""
            )
            return f"{first[:100]} ({path.name})" if first else path.name
    return None


def _front_matter(path: Path) -> str:
    found = _FRONT_MATTER.match(_text(path).replace("\r\n", "\n"))
    return found.group(1) if found else ""


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", errors="replace")
    except OSError:  # an unreadable license is no reason to fail
        return ""
