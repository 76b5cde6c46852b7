"""Adapters: what they train, the files they become, and merging."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import vila_core as vila
from vila_core.checkpoint import convert, open_checkpoint, save_checkpoint
from vila_core.errors import MissingDependencyError
from vila_core.model import VilaModel
from vila_train import adapters
from vila_train.adapters.installation import Parts
from vila_train.config import AdapterConfig
from vila_train.errors import TrainingError
from vila_train.packing import PackedRow, packed_loss

METHODS = {
    "lora": AdapterConfig(rank=4, alpha=8, dropout=0.0),
    "lora of both": AdapterConfig(rank=3, alpha=6, dropout=0.0, parts=("language_model", "vision_tower")),
    "some linears": AdapterConfig(rank=2, alpha=2, dropout=0.0, targets=("q_proj", "mlp.down_proj")),
    "dora": AdapterConfig(method="dora", rank=4, alpha=8, dropout=0.0),
    "norms": AdapterConfig(method="norms"),
    "norms of both": AdapterConfig(method="norms", parts=("vision_tower", "language_model")),
}


def load(path: str | Path = "vila-tiny") -> vila.Vila:
    return vila.load(path, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in fp32: merged weights are rounded to the dtype of the checkpoint."""
    folder = tmp_path_factory.mktemp("base") / "model"
    model, tiny = load(), open_checkpoint("vila-tiny")
    save_checkpoint(model.network.state_dict(), tiny.config, tiny.tokenizer_path, folder, dtype=torch.float32)
    return folder


def randomise(network: nn.Module) -> None:
    """Change what is trained, since adapters start as no change."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def adapted(config: AdapterConfig, *, projector: bool = False) -> VilaModel:
    network = load().network
    network.requires_grad_(False)
    network.mm_projector.requires_grad_(projector)
    adapters.install(network, config)
    randomise(network)
    return network


@torch.no_grad()
def hidden_of(network: VilaModel, row: PackedRow) -> torch.Tensor:
    return network.llm(network.embed(row.batch)[None])


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", METHODS)
def test_only_adapters_get_gradients(name: str, row: PackedRow):
    config = METHODS[name]
    network = load().network
    network.requires_grad_(False)
    before = hidden_of(network, row)
    adapters.install(network, config)
    assert close(hidden_of(network, row), before)  # a new adapter changes nothing
    packed_loss(network, row).backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained
    kind = "norm" if config.method == "norms" else "lora_"
    assert all(kind in name for name in trained)
    assert {name.split(".")[0] for name in trained} == {
        {"vision_tower": "vision_tower", "language_model": "llm"}[part] for part in config.parts
    }
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if name not in trained)
    # The tower's last layer is not run.
    reached = [parameter.grad is not None for name, parameter in network.named_parameters() if name in trained]
    assert sum(reached) > 0.75 * len(reached)


@pytest.mark.parametrize("projector", [False, True])
def test_other_parts_stay_as_they_are(projector: bool):
    network = adapted(METHODS["lora"], projector=projector)
    assert all(parameter.requires_grad is projector for parameter in network.mm_projector.parameters())
    assert not any(parameter.requires_grad for parameter in network.vision_tower.parameters())


def test_adapters_are_fp32_beside_16_bit_weights():
    network = load().network.to(torch.bfloat16)
    adapters.install(network, METHODS["dora"])
    for name, parameter in network.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


def test_the_head_has_no_adapter(new_micro_network: Callable[[], VilaModel]):
    network = new_micro_network()
    network.llm.lm_head = nn.Linear(32, network.config.language_model.vocab_size, bias=False)
    adapters.install(network, AdapterConfig(rank=2))
    names = [name for name, module in network.named_modules() if hasattr(module, "lora_A")]
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)


def test_an_unknown_layer_is_named_with_the_known_ones():
    with pytest.raises(TrainingError, match=r"'q_prj'.*Known: .*q_proj.*Did you mean 'q_proj'"):
        adapters.install(load().network, AdapterConfig(targets=("k_proj", "q_prj")))


def test_a_second_adapter_is_refused():
    network = adapted(METHODS["lora"])
    with pytest.raises(TrainingError, match="has adapters already"):
        adapters.install(network, METHODS["lora"])


def test_qlora_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match="QLoRA needs 'bitsandbytes'"):
        adapters.install(load().network, AdapterConfig(method="qlora"))


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_files_open_as_the_trained_model(name: str, projector: bool, base: Path, tmp_path: Path, row: PackedRow):
    network = adapted(METHODS[name], projector=projector)
    expected = hidden_of(network, row)
    adapters.save_adapter(network, METHODS[name], base, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "non_lora_trainables.bin").exists() is projector
    opened = load(tmp_path / "adapter")
    assert close(hidden_of(opened.network, row), expected)
    on_base = vila.load(base, lora=tmp_path / "adapter", dtype="float32", device="cpu")
    assert close(hidden_of(on_base.network, row), expected)


@pytest.mark.parametrize("name", METHODS)
def test_merged_weights_equal_the_adapter(name: str, row: PackedRow):
    network = adapted(METHODS[name], projector=True)
    plain = load().network
    plain.load_state_dict(adapters.merged_tensors(network))
    assert close(hidden_of(plain, row), hidden_of(network, row))


def test_the_merged_checkpoint_equals_the_adapter(tmp_path: Path, row: PackedRow):
    """What `vila convert` and `vila-train export --merge` write."""
    network = adapted(METHODS["lora of both"], projector=True)
    adapters.save_adapter(network, METHODS["lora of both"], "vila-tiny", tmp_path / "adapter")
    convert(tmp_path / "adapter", tmp_path / "merged", "vila")
    merged = load(tmp_path / "merged").network
    # The embedded weights are bfloat16, and so are those of the merged checkpoint.
    tensors = adapters.merged_tensors(network)
    dtype = next(iter(open_checkpoint("vila-tiny").weights.entries.values())).dtype
    assert dtype == "BF16"
    for key, tensor in merged.state_dict().items():
        assert torch.equal(tensor, tensors[key].to(torch.bfloat16).float()), key


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_peft_opens_the_files(name: str, tmp_path: Path, row: PackedRow):
    network = adapted(METHODS[name])
    adapters.save_adapter(network, METHODS[name], "vila-tiny", tmp_path)
    fresh = load().network
    peft.PeftModel.from_pretrained(Parts(fresh), str(tmp_path))
    assert close(hidden_of(fresh, row), hidden_of(network, row))


def test_the_files_say_what_was_trained(tmp_path: Path):
    network = adapted(METHODS["dora"])
    adapters.save_adapter(network, METHODS["dora"], "vila-tiny", tmp_path)
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == "vila-tiny"
    assert (stated["r"], stated["lora_alpha"], stated["use_dora"], stated["peft_type"]) == (4, 8, True, "LORA")
