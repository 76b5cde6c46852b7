"""Recorded outputs of the reference: the subset committed under `data/golden-awq`, or the folders given with `--recordings`."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

COMMITTED = Path(__file__).parent / "data" / "golden-awq"


@dataclass(frozen=True)
class Recording:
    """One folder of recordings."""

    folder: Path

    def path(self, pattern: str) -> Path:
        """Return the one file or folder that matches; a test of something that was not recorded is skipped."""
        found = sorted(self.folder.glob(pattern))
        if not found:
            pytest.skip(f"{self.folder.name} has no {pattern}")
        assert len(found) == 1, found
        return found[0]

    def tensors(self, pattern: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file."""
        return load_file(self.path(pattern))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" in metafunc.fixturenames:
        given = [Path(folder) for folder in metafunc.config.getoption("recordings") or ()]
        folders = [folder for folder in given if (folder / "a_fake_quant.safetensors").exists()] or [COMMITTED]
        metafunc.parametrize("recording", [Recording(folder) for folder in folders], ids=[folder.name for folder in folders])
