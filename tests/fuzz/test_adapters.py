"""Crafted LoRA adapters: settings, tensors and files that are hostile or unlucky."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.core.checkpoint.conftest import build_checkpoint
from tests.fuzz.bounded import assert_bounded
from tests.fuzz.test_checkpoints import HOSTILE, SPECIAL

import vila_core as vila

pytestmark = pytest.mark.slow

SEED = 12
TARGETS = ("llm.model.layers.0.self_attn.q_proj", "llm.model.layers.1.self_attn.q_proj")
CONFIG: dict[str, object] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", "use_rslora": False,
    "use_dora": False, "alpha_pattern": {}, "rank_pattern": {}, "modules_to_save": None, "init_lora_weights": True,
    "layer_replication": None, "revision": None, "fan_in_fan_out": False,
}  # fmt: skip
FACTORS, TRAINED = "adapter_model.safetensors", "non_lora_trainables.bin"


def key(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapter")
    base = build_checkpoint(root / "base", dtype=torch.float32)
    folder = root / "adapter"
    folder.mkdir()
    tensors = {key(module, "A"): torch.full((4, 32), 0.1) for module in TARGETS}
    tensors |= {key(module, "B"): torch.full((32, 4), 0.1) for module in TARGETS}
    save_file(tensors, folder / FACTORS)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": str(base)}))
    torch.save({"base_model.model.mm_projector.layers.1.bias": torch.zeros(216)}, folder / TRAINED)
    return folder


def changed(adapter: Path, target: Path, change: Callable[[Path], object]) -> Callable[[], object]:
    def run() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(adapter, target)
        change(target)
        vila.load(target, device="cpu", dtype="float32", progress=False)

    return run


def setting(name: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(content | {name: value}))

    return change


def test_every_setting_with_every_hostile_value(adapter: Path, tmp_path: Path) -> None:
    names = [*CONFIG, "base_model_name_or_path", "corda_config", "trainable_token_indices"]
    pairs = [(name, value) for name in names for value in [*HOSTILE, -4, math.pi, {"q_proj": -1}, {"(": 1}, {"": 1}]]
    pairs = random.Random(SEED).sample(pairs, 150)
    patterns = [
        r"(a|aa)+$", r"(\w|\w\w|\W)+(\w|\w\w|\W)+\d", r"(?:(.+)\1*)+\d", "(" * 500, "[a-z" * 50, r"(?P<x>a)(?P<x>b)",
        r"(?R)", r"a{99999999}", r"((a{1,99}){1,99}){1,99}", r"(?i)Q_PROJ", r"\p{L}+" * 20, "(?<=a*)b", "\0", "\ud800",
    ]  # fmt: skip
    pairs += [(name, {pattern: 3}) for name in ("alpha_pattern", "rank_pattern") for pattern in patterns]
    pairs += [("alpha_pattern", {f"x{n}.*.*.*": 1 for n in range(5000)})]
    assert_bounded(
        {
            f"{name} {index} = {str(value)[:30]!a}": changed(adapter, tmp_path / "copy", setting(name, value))
            for index, (name, value) in enumerate(pairs)
        }
    )


TENSORS = {
    "scalar": torch.tensor(1.0), "vector": torch.ones(32), "empty": torch.empty(0), "rank 0": torch.empty(0, 32),
    "no columns": torch.empty(4, 0), "three dimensions": torch.ones(4, 32, 1), "other width": torch.ones(4, 31),
    "large rank": torch.ones(5000, 32), "integers": torch.ones(4, 32, dtype=torch.int64),
    "booleans": torch.ones(4, 32, dtype=torch.bool), "complex": torch.ones(4, 32, dtype=torch.complex64),
    "NaN": torch.full((4, 32), math.nan), "infinite": torch.full((4, 32), math.inf),
    "huge": torch.full((4, 32), 3e38),
    "float8": torch.ones(4, 32).to(torch.float8_e4m3fn), "float64": torch.full((4, 32), 1e300, dtype=torch.float64),
    "ten dimensions": torch.ones([1] * 10), "transposed": torch.ones(32, 4),
}  # fmt: skip


def replace_tensor(name: str, kind: str, folder: Path) -> None:
    """By the name of the tensor, because not every type can be pickled."""
    save_file(load_file(folder / FACTORS) | {name: TENSORS[kind]}, folder / FACTORS)


def test_every_tensor_as_something_else(adapter: Path, tmp_path: Path) -> None:
    names = [
        key(TARGETS[0], "A"), key(TARGETS[0], "B"), f"base_model.model.{TARGETS[0]}.lora_magnitude_vector",
        f"base_model.model.{TARGETS[0]}.lora_B.bias", f"base_model.model.{TARGETS[0]}.bias", "", "x" * 10_000,
        "base_model.model.llm.model.embed_tokens.lora_embedding_A", "base_model.model.llm.model.norm.lora_A.weight",
        "base_model.model.mm_projector.modules_to_save.layers.1.bias",
    ]  # fmt: skip
    assert_bounded(
        {
            f"{name[-40:]} as {kind}": changed(adapter, tmp_path / "copy", partial(replace_tensor, name, kind))
            for name in names
            for kind in TENSORS
        }
    )


def test_every_file_as_something_else(adapter: Path, tmp_path: Path) -> None:
    def special(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return change

    trained = {
        "a list": [torch.ones(2)], "a tensor": torch.ones(2), "text": "x", "numbers": {"a": 3}, "no tensors": {},
        "other names": {"a": torch.ones(2)}, "integer keys": {1: torch.ones(2)},
        "expanded": {"mm_projector.layers.1.bias": torch.ones(1).expand(10**9)},
        "NaN": {"mm_projector.layers.1.bias": torch.full((216,), math.nan)},
        "integers": {"mm_projector.layers.1.bias": torch.ones(216, dtype=torch.int64)},
        "nested": {"state_dict": {"state_dict": {"mm_projector.layers.1.bias": torch.ones(216)}}},
    }  # fmt: skip
    cases = {
        f"{name} as {kind}": changed(adapter, tmp_path / "copy", special(name, make))
        for name in ("adapter_config.json", FACTORS, TRAINED)
        for kind, make in SPECIAL.items()
    } | {
        f"{TRAINED} with {kind}": changed(
            adapter, tmp_path / "copy", lambda folder, value=value: torch.save(value, folder / TRAINED)
        )
        for kind, value in trained.items()
    }
    cases["a link to itself as the folder"] = lambda: _load_loop(tmp_path / "loop")
    assert_bounded(cases)


def _load_loop(path: Path) -> None:
    if not os.path.lexists(path):
        path.symlink_to(path)
    vila.load("vila-tiny", lora=path, progress=False)
