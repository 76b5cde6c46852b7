"""Merged adapters equal peft's merge, and adapters that do not fit are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vila_core.checkpoint import Checkpoint, convert, load_weights, open_adapter, open_checkpoint
from vila_core.errors import CheckpointError
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer

Make = Callable[..., Path]
Edit = Callable[..., None]


def load(checkpoint: Checkpoint, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> VilaModel:
    with torch.device("meta"):
        network = VilaModel(checkpoint.config, Tokenizer.from_folder(checkpoint.tokenizer_path))
    opened = open_adapter(adapter, checkpoint) if adapter else None
    load_weights(network, checkpoint, device="cpu", dtype=dtype, adapter=opened)
    return network


class Plain(nn.Module):
    """The parts of a network without its config, which peft would mistake for one of transformers'."""

    def __init__(self, network: nn.Module):
        super().__init__()
        for name, part in network.named_children():
            self.add_module(name, part)


def wrap(network: nn.Module, **settings: object) -> peft.PeftModel:
    """Return the network with an adapter of random values."""
    wrapped = peft.get_peft_model(Plain(network), peft.LoraConfig(**settings))
    randomise(wrapped)
    return wrapped


def randomise(model: nn.Module, seed: int = 5) -> None:
    """Fill all trainable tensors, since some are initialized to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


SETTINGS = {
    "plain": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 12},
    "every linear": {"target_modules": r"llm\..*(_proj)", "r": 3, "lora_alpha": 3},
    "rank-stabilised": {"target_modules": ["down_proj"], "r": 9, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "fc1"], "r": 4, "lora_alpha": 8,
        "rank_pattern": {"k_proj": 2, "fc1": 6}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32, "fc1": 5},
    },
    "dora": {"target_modules": ["q_proj", "o_proj", "up_proj"], "r": 4, "lora_alpha": 16, "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "r": 4, "lora_alpha": 8},
    "bias": {"target_modules": ["q_proj"], "r": 4, "bias": "lora_only"},
    "lora bias": {"target_modules": ["q_proj", "fc1"], "r": 4, "lora_bias": True},
    "whole modules": {"target_modules": ["q_proj"], "r": 4, "modules_to_save": ["mm_projector"]},
    "patch embedding": {"target_modules": ["patch_embedding"], "r": 4, "lora_alpha": 8},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    ("name", "safetensors"), [*((name, True) for name in SETTINGS), ("plain", False), ("dora", False)]
)
def test_merge_equals_pefts(make_checkpoint: Make, tmp_path: Path, name: str, safetensors: bool):
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.float32))
    wrapped = wrap(load(checkpoint), **SETTINGS[name])
    wrapped.save_pretrained(tmp_path / "adapter", safe_serialization=safetensors)
    expected = wrapped.merge_and_unload().state_dict()
    plain = load(checkpoint).state_dict()
    ours = load(checkpoint, tmp_path / "adapter").state_dict()
    assert ours.keys() == expected.keys()
    changed = [key for key in ours if not torch.equal(ours[key], plain[key])]
    assert changed
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-6, rtol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_an_adapter_of_the_language_model_alone_finds_its_weights(make_checkpoint: Make, tmp_path: Path):
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.float32))
    wrapped = wrap(load(checkpoint).llm, r=4, target_modules=["q_proj", "gate_proj"])
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    ours = load(checkpoint, tmp_path / "adapter").llm.state_dict()
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-6, rtol=1e-6)


def test_low_precision_is_merged_in_float32(make_checkpoint: Make, tmp_path: Path):
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.bfloat16))
    wrapped = wrap(load(checkpoint), r=4, target_modules=["q_proj"])
    wrapped.save_pretrained(tmp_path / "adapter")
    exact = wrapped.merge_and_unload().state_dict()
    ours = load(checkpoint, tmp_path / "adapter", torch.bfloat16).state_dict()
    for key, tensor in exact.items():
        assert torch.equal(ours[key], tensor.to(torch.bfloat16)), key


# ------------------------------------------------------------------------------------ files of the reference


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.", "", "model."])
def test_non_lora_trainables_replace_their_weights(make_checkpoint: Make, tmp_path: Path, prefix: str):
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.float32))
    projector = {
        name: entry.shape for name, entry in checkpoint.weights.entries.items() if name.startswith("mm_projector")
    }
    tower = "vision_tower.vision_model.post_layernorm.weight"
    trained = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(2)) for name, shape in projector.items()
    }
    stored = {f"{prefix}{name}": tensor for name, tensor in trained.items()} | {
        f"{prefix}vision_tower.{tower}": torch.full((24,), 7.0)
    }
    (tmp_path / "adapter").mkdir()
    torch.save(stored, tmp_path / "adapter" / "non_lora_trainables.bin")
    state = load(checkpoint, tmp_path / "adapter").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())
    assert state[tower].unique().tolist() == [7.0]


def test_adapter_with_non_lora_trainables(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint(dtype=torch.float32)
    checkpoint = open_checkpoint(folder)
    wrapped = wrap(load(checkpoint), r=4, target_modules=["v_proj"])
    wrapped.save_pretrained(tmp_path / "adapter")
    torch.save(
        {"base_model.model.mm_projector.layers.1.bias": torch.full((216,), 3.0)},
        tmp_path / "adapter" / "non_lora_trainables.bin",
    )
    merged = load(checkpoint, tmp_path / "adapter").state_dict()
    written = convert(folder, tmp_path / "whole", "vila", lora=tmp_path / "adapter")
    assert all(torch.equal(tensor, merged[name]) for name, tensor in written.weights.shards())
    assert merged["mm_projector.layers.1.bias"].unique().tolist() == [3.0]
    assert (
        load_file(tmp_path / "whole" / "llm" / "model.safetensors").keys()
        == load_file(folder / "llm" / "model.safetensors").keys()
    )


# ------------------------------------------------------------------------------------------------ what does not fit


@pytest.fixture
def adapter(make_checkpoint: Make, tmp_path: Path) -> tuple[Checkpoint, Path]:
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.float32))
    wrapped = wrap(load(checkpoint), r=4, target_modules=["q_proj"])
    wrapped.save_pretrained(tmp_path / "adapter")
    return checkpoint, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3'; only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication' is set"),
        ({"lora_alpha": "big"}, r"lora_alpha.*finite number"),
        ({"alpha_pattern": {"(": 3}}, "not a valid regular expression"),
    ],
)
def test_unsupported_adapters(adapter: tuple[Checkpoint, Path], edit: Edit, changes: dict[str, object], message: str):
    checkpoint, folder = adapter
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder, checkpoint)


def test_adapter_of_another_model_lists_the_mismatches(adapter: tuple[Checkpoint, Path], make_checkpoint: Make):
    checkpoint, folder = adapter
    from safetensors.torch import save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(key for key in tensors if "lora_A" in key)
    other = {key.replace("layers.1", "layers.9"): tensor for key, tensor in tensors.items()}
    other[first] = torch.ones(4, 33)
    save_file(other, path)
    with pytest.raises(CheckpointError, match=r"layers\.9.*matches no weight") as raised:
        open_adapter(folder, checkpoint)
    assert "[4, 33]" in str(raised.value)
    del tensors[first]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="only one of the two LoRA factors"):
        open_adapter(folder, checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match="neither"):
        open_adapter(folder, checkpoint)


def test_a_folder_without_adapter(make_checkpoint: Make):
    folder = make_checkpoint()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        open_adapter(folder, open_checkpoint(folder))


def test_alpha_is_read_as_peft_defines_it(adapter: tuple[Checkpoint, Path], edit: Edit):
    checkpoint, folder = adapter
    plain = open_adapter(folder, checkpoint)
    name = next(iter(plain.factors))
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    assert plain.factors[name].scale == alpha / 4
    edit(folder / "adapter_config.json", use_rslora=True, lora_alpha=3)
    assert math.isclose(open_adapter(folder, checkpoint).factors[name].scale, 3 / 2)
