"""Fingerprints of a model's files: what changes them, although only a part of a large file is read."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vila_core.checkpoint import open_checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.checkpoint.fingerprints import SMALL_FILE, checkpoint_files, file_fingerprint
from vila_core.errors import CheckpointError


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A large matrix and 40 small ones: together larger than what is read completely."""
    draw = torch.Generator().manual_seed(0)
    tensors = {f"small.{number}": torch.randn(64, 65, generator=draw).bfloat16() for number in range(40)}
    return {"large": torch.randn(2100, 2100, generator=draw).bfloat16(), **tensors}


def fingerprint(tensors: dict[str, torch.Tensor], path: Path) -> str:
    save_file(tensors, path)
    assert path.stat().st_size > SMALL_FILE
    return file_fingerprint(path)


@pytest.mark.parametrize("name", ["large", "small.0", "small.23", "small.39"])
def test_one_trained_tensor_of_a_large_file_is_noticed(weights: dict[str, torch.Tensor], tmp_path: Path, name: str):
    before = fingerprint(weights, tmp_path / "before.safetensors")
    assert before == fingerprint(weights, tmp_path / "again.safetensors")
    draw = torch.Generator().manual_seed(1)
    step = 1e-4 * torch.randn(weights[name].shape, generator=draw)  # rounds to no change for most weights
    changed = (weights[name].float() + step).bfloat16()
    assert (changed != weights[name]).float().mean() < 0.1
    assert before != fingerprint({**weights, name: changed}, tmp_path / "changed.safetensors")


def test_renamed_tensors_are_noticed(weights: dict[str, torch.Tensor], tmp_path: Path):
    swapped = {**weights, "small.0": weights["small.1"], "small.1": weights["small.0"]}
    renamed = {name.replace("small.7", "small.x"): tensor for name, tensor in weights.items()}
    of_all = [fingerprint(one, tmp_path / f"{n}.safetensors") for n, one in enumerate((weights, swapped, renamed))]
    assert len(set(of_all)) == 3


def test_a_small_change_of_a_large_pickle_is_noticed(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save(weights, tmp_path / "before.bin")
    torch.save({**weights, "small.23": weights["small.23"] + 0.01}, tmp_path / "changed.bin")
    assert file_fingerprint(tmp_path / "before.bin") != file_fingerprint(tmp_path / "changed.bin")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="named pipe"):
        file_fingerprint(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        file_fingerprint(tmp_path / "missing")


def test_the_files_of_a_checkpoint_are_its_weights_configs_and_tokenizer(tmp_path: Path):
    model = tmp_path / "model"
    model.symlink_to(embedded_model())
    found = {path.relative_to(model).as_posix() for path in checkpoint_files(open_checkpoint(model))}
    assert found == {
        path.relative_to(embedded_model()).as_posix()
        for path in embedded_model().rglob("*")
        if path.is_file() and path.name != "README.md"
    }
