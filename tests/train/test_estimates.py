"""The memory estimate follows what autograd really keeps, and what settings save."""

import PIL.Image
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from vila_core.chat import Message
from vila_core.media import Image, MediaLimits
from vila_core.model import VilaModel
from vila_train.adapters import install
from vila_train.compute import prepare
from vila_train.config import AdapterConfig, ComputeConfig, ModelConfig
from vila_train.estimates.activations import attend_heads
from vila_train.estimates.memory import RowLoad, activation_bytes, estimate_memory, suggest
from vila_train.labels import IGNORE_INDEX
from vila_train.models import open_model
from vila_train.packing import PackedRow, packed_loss
from vila_train.samples import Encoder
from vila_train.settings import build_recipe


def kept_bytes(network: VilaModel, row: PackedRow) -> int:
    """Return the bytes of everything but weights that is alive because the backward pass needs it."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = packed_loss(network, row)
    del loss
    return sum(storage.nbytes() for storage in saved.values())


@pytest.fixture
def row() -> PackedRow:
    opened = open_model(ModelConfig(path="vila-tiny"), 0)
    encoder = Encoder(opened.network, opened.tokenizer, opened.template, MediaLimits())
    image = Image(PIL.Image.new("RGB", (96, 96), "red"))
    samples = [
        encoder.encode(f"s{n}", [Message("user", [image] * (n % 3) + ["What is it? " * 5]), Message("assistant", "It")])
        for n in range(12)
    ]
    return PackedRow.of(samples, torch.device("cpu"))


@pytest.mark.parametrize("recomputed", ["none", "full", "linears"])
@pytest.mark.parametrize("tuned", [("llm",), ("llm", "vision_tower", "mm_projector"), ("mm_projector",)])
def test_kept_activations_are_those_of_a_real_pass(row: PackedRow, recomputed: str, tuned: tuple[str, ...]):
    network = open_model(ModelConfig(path="vila-tiny"), 0).network
    network.requires_grad_(False)
    for part in tuned:
        network.get_submodule(part).requires_grad_(True)
    compute = ComputeConfig.model_validate({"activation_checkpointing": recomputed, "precision": "fp32"})
    tiles = sum(len(medium.tiles) for medium in row.batch.media)
    load = RowLoad(len(row.labels), tiles, int((row.labels != IGNORE_INDEX).sum()))
    expected, _ = activation_bytes(network, compute, load, torch.float32)
    prepare(network, compute)
    network.llm.model.attention = attend_heads  # on a CPU, attention copies each sample's heads
    assert expected == pytest.approx(kept_bytes(network, row), rel=0.1)


def tiny(**compute: object) -> tuple[VilaModel, ComputeConfig]:
    return open_model(ModelConfig(path="vila-tiny"), 0, weights=False).network, ComputeConfig.model_validate(compute)


LOAD = RowLoad(tokens=2048, tiles=20, labels=500)


def test_weights_optimizer_and_gradients_are_counted():
    network, compute = tiny()
    count = sum(p.numel() for p in network.parameters())
    alone = estimate_memory(network, compute, LOAD)
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * count, 4 * count, 8 * count)
    two = estimate_memory(network, compute, LOAD, world_size=2)
    assert (two.weights, two.gradients, two.optimizer) == (2 * count, 2 * count, 4 * count)
    assert alone.peak < sum(alone.parts.values())
    network.requires_grad_(False)
    network.mm_projector.requires_grad_(True)
    some = estimate_memory(network, compute, LOAD)
    trained = sum(p.numel() for p in network.mm_projector.parameters())
    assert (some.weights, some.gradients) == (4 * trained + 2 * (count - trained), 4 * trained)


def test_frozen_weights_in_8_bits_take_two_bytes_and_scales():
    network, compute = tiny(precision="fp32")
    network.requires_grad_(False)
    network.mm_projector.requires_grad_(True)
    exact, in_8_bits = (
        estimate_memory(network, compute.model_copy(update={"fp8": fp8}), LOAD).weights for fp8 in (False, True)
    )
    weights = [module.weight for module in network.llm.model.layers.modules() if isinstance(module, nn.Linear)]
    assert exact - in_8_bits == sum(2 * weight.numel() - 4 * sum(weight.shape) for weight in weights)


def test_recomputation_and_shorter_rows_need_less():
    network, none = tiny(activation_checkpointing="none")
    needs = [
        estimate_memory(network, none.model_copy(update={"activation_checkpointing": name}), LOAD).peak
        for name in ("none", "linears", "full")
    ]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > 1.5 * needs[2]
    assert estimate_memory(network, none, RowLoad(1024, 10, 250)).peak < needs[0]
    assert estimate_memory(network, none, RowLoad(2048, 20, 500, rows=4)).peak > needs[0]
    assert estimate_memory(network, none.model_copy(update={"compile": True}), LOAD).peak < needs[0]


def test_adapters_need_neither_optimizer_nor_gradients_of_the_model():
    network, compute = tiny()
    full = estimate_memory(network, compute, LOAD)
    network.requires_grad_(False)
    network.llm.requires_grad_(True)
    install(network, AdapterConfig(rank=4))
    lora = estimate_memory(network, compute, LOAD)
    packed = estimate_memory(network, compute, LOAD, adapter=AdapterConfig(method="qlora", rank=4))
    assert lora.optimizer < full.optimizer / 5
    assert packed.weights < 0.7 * lora.weights


def test_settings_that_need_less_are_suggested_in_order():
    network, compute = tiny(activation_checkpointing="none", precision="fp32")
    config = build_recipe("nvila-sft").model_copy(update={"compute": compute})
    found = suggest(network, config, LOAD)
    assert [one.settings for one in found][:2] == [
        "compute.activation_checkpointing=linears",
        "compute.activation_checkpointing=full",
    ]
    needs = [one.gpu_bytes for one in found]
    assert needs == sorted(needs, reverse=True)
    assert any(one.settings.endswith(" GPUs") for one in found)
    assert str(found[0]).startswith("compute.activation_checkpointing=linears: about ")
