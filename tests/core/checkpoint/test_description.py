"""`vila info` needs no torch, and counts tokens as the network does."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.programs import run_program

import vila_core
from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.description import count_tokens
from vila_core.config import FOLDED_PATCHES
from vila_core.model import measure_tokens_per_tile

Make = Callable[..., Path]


@pytest.mark.parametrize("kind", ["nvila_lite", "nvila", "clip_llama", "intern_llama"])
@pytest.mark.parametrize("projector", sorted({*FOLDED_PATCHES, "mlp3x_gelu"} - {"identity"}))
def test_tokens_are_those_of_the_network(make_checkpoint: Make, kind: str, projector: str) -> None:
    config = open_checkpoint(make_checkpoint(kind)).config
    changed = config.model_copy(update={"projector": config.projector.model_copy(update={"name": projector})})
    assert count_tokens(changed).per_tile == measure_tokens_per_tile(changed)


@pytest.mark.parametrize("kind", ["nvila_lite", "nvila", "clip_llama", "intern_llama"])
@pytest.mark.parametrize("projector", sorted({*FOLDED_PATCHES} - {"identity"}))
@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
def test_tokens_by_arithmetic_are_those_of_the_network(
    make_checkpoint: Make, kind: str, projector: str, select_feature: str
) -> None:
    config = open_checkpoint(make_checkpoint(kind)).config
    changed = config.model_copy(
        update={
            "projector": config.projector.model_copy(update={"name": projector}),
            "vision_tower": config.vision_tower.model_copy(update={"select_feature": select_feature}),
        }
    )
    is_square = select_feature == ("cls_patch" if kind.startswith("nvila") else "patch")
    assert changed.tokens_per_tile == (measure_tokens_per_tile(changed) if is_square else None)


def test_the_embedded_model_counts_tokens_without_running_on_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would import PyTorch's compiler."""
    monkeypatch.setattr("vila_core.model.measure_tokens_per_tile", lambda _: pytest.fail("measured"))
    assert vila_core.load("vila-tiny").network.tokens_per_tile == 36


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
    done = run_program([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert "NVILA" in done.stdout
