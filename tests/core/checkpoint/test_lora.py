"""Merged adapters equal peft's merge, and adapters that do not fit are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vila_core as vila
from vila_core.checkpoint import Checkpoint, convert, load_weights, open_adapter, open_checkpoint
from vila_core.cli.info import describe_model
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


@pytest.fixture
def adapter(make_checkpoint: Make, tmp_path: Path) -> tuple[Checkpoint, Path]:
    checkpoint = open_checkpoint(make_checkpoint(dtype=torch.float32))
    wrapped = wrap(load(checkpoint), r=4, target_modules=["q_proj"])
    wrapped.save_pretrained(tmp_path / "adapter")
    return checkpoint, tmp_path / "adapter"


FACTORS = "adapter_model.safetensors"
CATASTROPHIC = r"(\w|\w\w|\W)+(\w|\w\w|\W)+\d"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "'r' is 0; expected at least 1"),
        ({"r": -4}, "'r' is -4; expected at least 1"),
        ({"r": 10**9}, "q_proj.lora_A.weight has rank 4, adapter_config.json states 1000000000"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 4, adapter_config.json states 3"),
        ({"rank_pattern": {"q_proj": "x"}}, "'q_proj' is 'x'; expected a whole number"),
        ({"lora_alpha": 1e308}, r"'lora_alpha' is 1e\+308; expected at most 1,000,000"),
        ({"lora_alpha": 10**200}, "expected at most 1,000,000"),
        ({"alpha_pattern": {"q_proj": -1e9}}, "'q_proj' is -1e.09; expected at most"),
        ({"alpha_pattern": {CATASTROPHIC: 3}}, "takes too long to match"),
        ({"rank_pattern": {r"(?:(.+)\1*)+\d": 3}}, "takes too long to match"),
        (
            {"rank_pattern": {f"x{number}": 3 for number in range(100_000)}},
            "100,000 regular expressions. takes too long",
        ),
        ({"rank_pattern": {"a{99999999}": 3}}, "repeats too often"),
        ({"rank_pattern": {"a{99999999,}": 3}}, "repeats too often"),
        ({"alpha_pattern": {"((a{1,99}){1,99}){ 1, 99 }": 3}}, "repeats too often"),
        ({"alpha_pattern": {"a" * 10**5: 3}}, "a pattern of 100,000 characters"),
        ({"alpha_pattern": [1]}, "expected an object"),
        ({"use_dora": True}, "has no magnitudes, but adapter_config.json states 'use_dora'"),
        ({"use_dora": "yes"}, "'use_dora' is 'yes'; expected true or false"),
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


@pytest.mark.parametrize(
    "value", ["(a+)+" * 30 + "$", "(" * 50, ["q_proj", None], 3, None, "all-linear", r"[\d\D]*" * 50]
)
def test_target_modules_only_guide_training(adapter: tuple[Checkpoint, Path], edit: Edit, value: object):
    """The tensors say which weights an adapter changes, so the expression is never matched."""
    checkpoint, folder = adapter
    edit(folder / "adapter_config.json", target_modules=value)
    assert len(open_adapter(folder, checkpoint).factors) == 5


def first_factor(tensors: dict[str, torch.Tensor], kind: str) -> str:
    return next(key for key in tensors if kind in key)


@pytest.mark.parametrize(
    ("kind", "tensor", "message"),
    [
        ("lora_A", torch.ones(0, 32), "has rank 0"),
        ("lora_A", torch.tensor(1.0), "has 0 dimensions"),
        ("lora_A", torch.ones(128), "has 1 dimensions"),
        ("lora_B", torch.tensor(1.0), "has 0 dimensions"),
        ("lora_B", torch.ones(32), "has 1 dimensions"),
        ("lora_A", torch.ones(4, 32, dtype=torch.int8), "expected a matrix of floats"),
        ("lora_A", torch.ones(4, 32, dtype=torch.complex64), "expected a matrix of floats"),
        ("lora_A", torch.ones(4, 8, 4), None),
        ("lora_A", torch.ones(5, 32), "has rank 5"),
        ("lora_B", torch.ones(32, 5), "expected weight"),
        ("lora_B", torch.ones(32, 4, 1, 2), "expected weight"),
    ],
)
def test_factors_of_wrong_shapes_and_types(
    adapter: tuple[Checkpoint, Path], kind: str, tensor: torch.Tensor, message: str | None
):
    checkpoint, folder = adapter
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {first_factor(tensors, kind): tensor}, path)
    if message is None:
        assert open_adapter(folder, checkpoint).factors
        return
    with pytest.raises(CheckpointError, match=message):
        open_adapter(folder, checkpoint)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_values_that_are_not_finite_are_refused(adapter: tuple[Checkpoint, Path], value: float):
    checkpoint, folder = adapter
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = first_factor(tensors, "lora_A")
    save_file(tensors | {key: torch.full_like(tensors[key], value)}, path)
    with pytest.raises(
        CheckpointError, match=r"infinite or NaN in float32. Check the adapter's tensors and lora_alpha"
    ):
        load(checkpoint, folder)


def test_long_lists_of_misfits_are_cut(adapter: tuple[Checkpoint, Path]):
    checkpoint, folder = adapter
    path = folder / "adapter_model.safetensors"
    save_file({f"base_model.model.other.{n}.lora_A.weight": torch.ones(4, 4) for n in range(217)}, path)
    with pytest.raises(CheckpointError, match=r"matches no weight and 214 more\. Give the adapter") as caught:
        open_adapter(folder, checkpoint)
    assert len(caught.value.details.splitlines()) == 217


def test_an_adapter_stands_for_its_base_with_it_merged(adapter: tuple[Checkpoint, Path], edit: Edit, tmp_path: Path):
    checkpoint, folder = adapter
    edit(folder / "adapter_config.json", base_model_name_or_path=str(checkpoint.path))
    expected = load(checkpoint, folder).state_dict()
    model = vila.load(folder, progress=False)
    assert torch.equal(
        model.network.llm.model.layers[0].self_attn.q_proj.weight,
        expected["llm.model.layers.0.self_attn.q_proj.weight"],
    )
    written = convert(folder, tmp_path / "whole", "vila")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.weights.shards())


def test_info_of_an_adapter_describes_its_base(
    adapter: tuple[Checkpoint, Path], edit: Edit, capsys: pytest.CaptureFixture[str]
):
    checkpoint, folder = adapter
    edit(folder / "adapter_config.json", base_model_name_or_path=str(checkpoint.path))
    describe_model(str(folder), as_json=True)
    described = json.loads(capsys.readouterr().out)
    assert described["adapter"] == str(folder)
    assert described["path"] == str(checkpoint.path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "does not name its base model"),
        ("", "does not name its base model"),
        ("no/such/base", "is a LoRA adapter of 'no/such/base'.*No folder 'no/such/base'.*pass it as MODEL"),
        ("a\x00b", "null character"),
        ("~no-such-user/x", "No folder '~no-such-user/x'"),
        (3, "'base_model_name_or_path' is 3; expected a string"),
    ],
)
def test_a_base_that_is_not_there(adapter: tuple[Checkpoint, Path], edit: Edit, base: object, message: str):
    _, folder = adapter
    edit(folder / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(CheckpointError, match=message):
        vila.load(folder, progress=False)


def test_an_adapter_that_does_not_fit_its_base_is_refused_at_the_first_tensor(
    adapter: tuple[Checkpoint, Path], edit: Edit, make_checkpoint: Make
):
    _, folder = adapter
    edit(folder / "adapter_config.json", base_model_name_or_path=str(make_checkpoint("clip_llama")))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key.replace("layers.0", "layers.9"): value for key, value in tensors.items()}, folder / FACTORS)
    with pytest.raises(CheckpointError, match="does not fit"):
        vila.load(folder, progress=False)


def test_a_missing_adapter_is_called_one(adapter: tuple[Checkpoint, Path]):
    with pytest.raises(CheckpointError, match="Give the folder of a LoRA adapter or a hub id"):
        open_adapter("no-such-adapter", adapter[0])


def test_adapter_of_another_model_lists_the_mismatches(adapter: tuple[Checkpoint, Path], make_checkpoint: Make):
    checkpoint, folder = adapter
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(key for key in tensors if "lora_A" in key)
    other = {key.replace("layers.1", "layers.9"): tensor for key, tensor in tensors.items()}
    other[first] = torch.ones(4, 33)
    save_file(other, path)
    with pytest.raises(CheckpointError, match=r"layers\.9.*matches no weight") as raised:
        open_adapter(folder, checkpoint)
    assert "[4, 33]" in raised.value.details
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
