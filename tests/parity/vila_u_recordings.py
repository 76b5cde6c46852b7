"""Recordings of VILA-U's reference: those under `data/golden-vilau`, or the folders given with `--recordings`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.vila_u_checkpoint import RECORDED

Arrays = dict[str, torch.Tensor]
DECODED = ("reconstruction", "dec_mid", "dec_conv_in")


@dataclass(frozen=True)
class Recording:
    """One file of arrays. `home` holds the checkpoint and the inputs that it was made with."""

    name: str
    file: Path
    home: Path

    def arrays(self) -> Arrays:
        with np.load(self.file) as stored:
            return {name: torch.from_numpy(np.array(stored[name])) for name in stored.files}

    @property
    def info(self) -> dict[str, Any]:
        """What the manifest says of the run."""
        for folder in (self.file.parent, self.home):
            if (folder / "manifest.json").exists():
                found = json.loads((folder / "manifest.json").read_text())["info"].get(self.name)
                if found is not None:
                    return found
        return {}


def folders(config: pytest.Config) -> list[Path]:
    """Return the folders of recordings of VILA-U. Folders of other models do not count."""
    given = [Path(folder).resolve() for folder in config.getoption("--recordings") or []]
    return [folder for folder in given if _is_vila_u(folder)] or [RECORDED]


def _is_vila_u(folder: Path) -> bool:
    return any(
        next(folder.glob(pattern), None) is not None
        for pattern in ("tower_*.npz", "tower_*/golden.npz", "t2*.npz", "i2t*.npz", "loss_*.npz", "tf_*.npz")
    )


def find(config: pytest.Config, pattern: str) -> list[Recording]:
    """Return the recordings whose file matches `pattern`."""
    found: list[Recording] = []
    for folder in folders(config):
        homes = [folder, *folder.parents[:2], folder.parent / "golden-vilau", RECORDED]
        home = next(home for home in homes if (home / "checkpoint" / "vision_tower").exists())
        found += [Recording(file.stem, file, home) for file in sorted(folder.glob(pattern))]
    return found
