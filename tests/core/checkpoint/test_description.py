"""`vila info` needs no torch, and counts tokens as the network does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.description import FOLDED_PATCHES, count_tokens
from vila_core.model import tokens_per_tile

Make = Callable[..., Path]


@pytest.mark.parametrize("kind", ["nvila_lite", "nvila", "clip_llama", "intern_llama"])
@pytest.mark.parametrize("projector", sorted({*FOLDED_PATCHES, "mlp3x_gelu"} - {"identity"}))
def test_tokens_are_those_of_the_network(make_checkpoint: Make, kind: str, projector: str) -> None:
    config = open_checkpoint(make_checkpoint(kind)).config
    changed = config.model_copy(update={"projector": config.projector.model_copy(update={"name": projector})})
    assert count_tokens(changed).per_tile == tokens_per_tile(changed)


@pytest.mark.parametrize("stored", ["embedded", "safetensors", "pickle"])
def test_info_imports_no_torch(make_checkpoint: Make, stored: str) -> None:
    folder = "vila-tiny" if stored == "embedded" else str(make_checkpoint())
    if stored == "pickle":
        for part in ("llm", "vision_tower", "mm_projector"):
            path = Path(folder) / part / "model.safetensors"
            torch.save(load_file(path), path.with_name("pytorch_model.bin"))
            path.unlink()
    code = f"""
import sys
from vila_core.cli.info import describe_model
describe_model({folder!r})
describe_model({folder!r}, as_json=True)
heavy = [name for name in ("torch", "transformers", "numpy", "PIL", "av") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "NVILA" in done.stdout
