"""The public data sets that have names: how each is published, and the registry entry of a downloaded copy."""

import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import Field, PositiveInt

from vila_core.config import Config
from vila_core.errors import listed, unknown_name
from vila_train.data.entries import DatasetEntry
from vila_train.errors import DatasetError
from vila_train.yaml_files import parse_yaml


class PublicSet(Config):
    """How a data set is published.

    Attributes:
        summary: what is in it.
        source: where it comes from.
        license: its license.
        download: commands that download it into FOLDER.
        files: patterns below the folder, of which the first that matches is taken.
        media: folders that media may be relative to, of which the first that exists is taken; empty: beside each file.
        entry: more of its registry entry.
        samples: how many were published; None if that is not known, or depends on the download.
        evenly: keep this many samples, evenly spread, as the reference does.
    """

    summary: str
    source: str
    license: str
    download: str
    files: tuple[str, ...]
    media: tuple[str, ...] = ()
    entry: dict[str, object] = Field(default_factory=dict)
    samples: PositiveInt | None = None
    evenly: PositiveInt | None = None

    def locate(self, name: str, folder: Path) -> DatasetEntry:
        """Return the entry for a copy in `folder`, with paths relative to it.

        Raises:
            DatasetError: the folder is missing, or has no such files.
        """
        if not os.path.isdir(folder):
            raise DatasetError(f"'{folder}' is no folder. {name} is downloaded with: {self.download}")
        for pattern in self.files:
            if found := sorted(path for path in folder.glob(pattern) if not _is_hidden(path.relative_to(folder))):
                break
        else:
            shown = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
            inside = listed(shown, 5) or "nothing"
            raise DatasetError(
                f"'{folder}' has no file {' or '.join(self.files)}, only {inside}. "
                f"{name} is downloaded with: {self.download}"
            )
        first = found[0].relative_to(folder)
        places = [base / place for base in (first.parent, Path()) for place in self.media]
        media = next((place.as_posix() for place in places if (folder / place).is_dir()), None)
        fields = {
            "path": [pattern] if len(found) > 1 else [first.as_posix()],
            "media": None if first.suffix == ".tar" else media,
            "samples": self.samples,
            "source": self.source,
            "license": self.license,
        }
        return DatasetEntry.model_validate(fields | self.entry)


@cache
def public_sets() -> dict[str, PublicSet]:
    """Return the public data sets by name."""
    text = (files("vila_train.data") / "public_sets.yaml").read_text(encoding="utf-8")
    return {name: PublicSet.model_validate(values) for name, values in parse_yaml(text, "public_sets.yaml").items()}


def find_public_set(name: str) -> PublicSet:
    """Return the public data set called `name`. Raises `DatasetError` if there is none."""
    if name not in public_sets():
        raise DatasetError(unknown_name("public data set", name, public_sets()))
    return public_sets()[name]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
