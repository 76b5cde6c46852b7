"""Layers that are recomputed, compiled or frozen compute the same."""

from collections.abc import Callable

import pytest
import torch
from tests.train.compute_steps import difference, load, step

from vila_core.model import VilaModel
from vila_train import adapters, compute
from vila_train.compute.fp8 import use_fp8
from vila_train.compute.layers import repeated_layers
from vila_train.config import AdapterConfig, ComputeConfig
from vila_train.packing import PackedRow, packed_loss


@pytest.mark.parametrize(
    ("recomputed", "adapter"),
    [
        ("full", None),
        ("linears", None),
        ("linears", AdapterConfig(rank=4, dropout=0.3)),
        ("full", AdapterConfig(method="dora", rank=4)),
    ],
)
def test_recomputation_changes_nothing(recomputed: str, adapter: AdapterConfig | None, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for setting in ("none", recomputed):
        network = load()
        network.requires_grad_(True)
        torch.manual_seed(0)
        if adapter is not None:
            adapters.install(network, adapter)
        compute.prepare(network, ComputeConfig(activation_checkpointing=setting))  # pyright: ignore[reportArgumentType]
        network.train()
        torch.manual_seed(0)  # of dropout
        results.append(step(network, row))
    assert results[1][0] == results[0][0]
    assert difference(results[1][1], results[0][1]) < 1e-6


def kept_bytes(network: VilaModel, row: PackedRow) -> int:
    """Return the size of what is kept for the backward pass."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        packed_loss(network, row)
    return sum(kept.values())


def test_recomputation_keeps_less(row: PackedRow):
    sizes: dict[str, int] = {}
    for setting in ("none", "linears", "full"):
        network = load()
        network.requires_grad_(True)
        compute.prepare(network, ComputeConfig(activation_checkpointing=setting))  # pyright: ignore[reportArgumentType]
        sizes[setting] = kept_bytes(network, row)
    assert sizes["full"] < sizes["linears"] < 0.7 * sizes["none"]


class CountAttention(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts forward passes of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "scaled_dot_product" in func.name() and "backward" not in func.name()
        return func(*args, **(kwargs or {}))


def test_attention_is_computed_once(row: PackedRow):
    counts: dict[str, int] = {}
    for setting in ("none", "linears", "full"):
        network = load()
        network.requires_grad_(False)
        network.llm.requires_grad_(True)
        compute.prepare(network, ComputeConfig(activation_checkpointing=setting))  # pyright: ignore[reportArgumentType]
        with CountAttention() as counter:
            step(network, row)
        counts[setting] = counter.count
    assert counts["linears"] == counts["none"]
    assert counts["full"] > counts["none"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recomputed", "adapter"),
    [("none", None), ("linears", None), ("linears", AdapterConfig(rank=4, dropout=0.0))],
)
def test_compiled_layers_agree(recomputed: str, adapter: AdapterConfig | None, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for config in (
        ComputeConfig(activation_checkpointing="none"),
        ComputeConfig(activation_checkpointing=recomputed, compile=True),  # pyright: ignore[reportArgumentType]
    ):
        network = load()
        network.requires_grad_(True)
        torch.manual_seed(0)
        if adapter is not None:
            adapters.install(network, adapter)
        compute.prepare(network, config)
        results.append(step(network, row))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-5)
    assert difference(results[1][1], results[0][1]) < 1e-4


def test_names_and_values_stay(row: PackedRow):
    network = load()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compute.prepare(network, ComputeConfig(activation_checkpointing="linears"))
    use_fp8(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name, _ in network.named_parameters()} == {name for name, _ in load().named_parameters()}


def test_layers_are_those_of_tower_and_language_model(new_micro_network: Callable[[], VilaModel]):
    network = new_micro_network()
    layers = repeated_layers(network)
    assert [type(layer).__name__ for layer in layers] == ["EncoderLayer"] * 2 + ["Block"] * 2
    adapters.install(network, AdapterConfig(rank=2))
    assert repeated_layers(network) == layers


@pytest.mark.parametrize("trained", [False, True])
def test_only_a_frozen_tower_computes_without_gradients(trained: bool, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for prepared in (False, True):
        network = load()
        network.requires_grad_(False)
        network.mm_projector.requires_grad_(True)
        network.vision_tower.requires_grad_(trained)
        if prepared:
            compute.prepare(network, ComputeConfig(activation_checkpointing="none", precision="fp32"))
        results.append(step(network, row))
        features = network.features(torch.zeros(1, 3, network.config.pixels.size, network.config.pixels.size))
        assert features.requires_grad is trained
    assert results[1][0] == results[0][0]
    assert difference(results[1][1], results[0][1]) == 0
