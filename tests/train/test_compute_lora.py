"""Linears with LoRA adapters and blocks by hand compute what PEFT and autograd do."""

import copy

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from tests.train.compute_steps import difference, load, step
from torch import nn

from vila_core.config import DecoderConfig
from vila_core.language.decoder import MLP, Decoder
from vila_core.language.packed import PackedSequences
from vila_train import adapters, compute
from vila_train.compute import blocks
from vila_train.compute.fp8 import Fp8Linear
from vila_train.compute.layers import repeated_layers
from vila_train.compute.lora import add_in_place
from vila_train.config import AdapterConfig, ComputeConfig
from vila_train.packing import PackedRow

SMALL = {
    "architecture": "qwen2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8,
    "max_position_embeddings": 8, "max_length": 8,
}  # fmt: skip


@pytest.mark.parametrize(("dropout", "projector"), [(0.0, False), (0.0, True), (0.3, True)])
def test_sums_in_place_equal_those_of_peft(dropout: float, projector: bool, row: PackedRow):
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for in_place in (False, True):
        network = load()
        network.requires_grad_(False)
        network.mm_projector.requires_grad_(projector)
        torch.manual_seed(0)
        adapters.install(network, AdapterConfig(rank=4, dropout=dropout, parts=("language_model", "vision_tower")))
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.05)
        if in_place:
            add_in_place(network)
        network.train()
        torch.manual_seed(0)  # of dropout
        results.append(step(network, row))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-5)
    assert difference(results[1][1], results[0][1]) < 1e-5


@pytest.mark.parametrize("in_8_bits", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linears_of_one_input_equal_those_one_by_one(bias: bool, in_8_bits: bool):
    """In fp64 the sums in place differ from autograd's by rounding only; in 8 bits, a column has one scale for both."""
    torch.manual_seed(0)
    mlp = MLP(DecoderConfig(**SMALL, mlp_bias=bias)).double().requires_grad_(False)
    for name in ("gate_proj", "up_proj"):
        base = Fp8Linear.of(getattr(mlp, name)) if in_8_bits else getattr(mlp, name)
        adapted = LoraLinear(base, "default", LoraConfig(), r=3 if name == "up_proj" else 5, lora_alpha=4)
        for factors in (adapted.lora_A, adapted.lora_B):
            factors.requires_grad_(True).double()
            nn.init.normal_(factors["default"].weight)
        setattr(mlp, name, adapted)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    results: list[list[torch.Tensor]] = []
    for together in (False, True):
        if together:
            add_in_place(mlp)
            assert "gate_and_up" in vars(mlp)
        own = x.clone().requires_grad_()
        mlp.zero_grad()
        gate, up = mlp.gate_and_up(own)
        ((gate * 3).sin() + up * up).sum().backward()
        trained = [parameter for parameter in mlp.parameters() if parameter.requires_grad]
        assert own.grad is not None
        results.append([gate, up, own.grad, *(parameter.grad.clone() for parameter in trained)])
    assert len(results[0]) == 7
    for found, expected in zip(results[1], results[0], strict=True):
        assert (found - expected).norm() < (1e-2 if in_8_bits else 1e-12) * expected.norm()


@pytest.mark.parametrize("recomputed", ["none", "linears", "full"])
@pytest.mark.parametrize(("in_8_bits", "bias"), [(False, True), (True, False)])
def test_blocks_by_hand_equal_those_of_autograd(recomputed: str, in_8_bits: bool, bias: bool):
    """In fp64 the gradients of a stack of blocks differ by rounding only."""
    torch.manual_seed(0)
    config = DecoderConfig(**{**SMALL, "num_hidden_layers": 2}, attention_bias=bias)
    model = Decoder(config).double().requires_grad_(False)
    adapt_all(model, in_8_bits)
    packed = PackedSequences.of([3, 1, 5], torch.device("cpu"))
    x, target = torch.randn(2, 1, 9, 16, dtype=torch.float64)
    results: list[list[torch.Tensor]] = []
    for by_hand in (False, True):
        if by_hand:
            groups = add_in_place(model)
            blocks.prepare_layers(model, recomputed, compiled=True, groups=groups)  # pyright: ignore[reportArgumentType]
        for learns in (True, False):
            own = x.clone().requires_grad_(learns)
            model.zero_grad()
            y = model(own, packed=packed)
            (y * target).sum().backward()
            grad_factors = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
            results.append([y.detach(), *([own.grad] if own.grad is not None else []), *grad_factors])
    assert len(results[0]) == 2 + 2 * 2 * 7
    for before, after in zip(results[:2], results[2:], strict=True):
        for found, expected in zip(after, before, strict=True):
            assert (found - expected).norm() < (0.1 if in_8_bits else 1e-9) * expected.norm()


def adapt_all(model: nn.Module, in_8_bits: bool) -> None:
    """Put LoRA of random factors on all linears of the layers of `model`."""
    for name, linear in [*model.named_modules()]:
        if type(linear) is nn.Linear and "layers" in name:
            base = Fp8Linear.of(linear) if in_8_bits else linear
            adapted = LoraLinear(base, "default", LoraConfig(), r=3 if "up" in name else 5, lora_alpha=4)
            for factors in (adapted.lora_A, adapted.lora_B):
                factors.requires_grad_(True).double()
                nn.init.normal_(factors["default"].weight, std=0.1)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, adapted)


@pytest.mark.parametrize(("dropout", "by_hand"), [(0.0, True), (0.1, False)])
def test_blocks_are_computed_by_hand_where_they_fit(dropout: float, by_hand: bool):
    network = load()
    network.requires_grad_(False)
    adapters.install(network, AdapterConfig(rank=2, dropout=dropout))
    compute.prepare(network, ComputeConfig(activation_checkpointing="none", compile=True, precision="fp32"))
    forwards = [layer.forward for layer in repeated_layers(network.llm)]
    assert [forward.lora is not None for forward in forwards] == [by_hand] * len(forwards)


@pytest.mark.parametrize("change", ["a fused step", "a loaded state"])
def test_factors_in_16_bits_follow_those_in_fp32(change: str, row: PackedRow):
    """AdamW's fused step does not count its writes, so nothing but the next forward pass sees them."""
    network = load()
    network.requires_grad_(False).to(torch.bfloat16)
    torch.manual_seed(0)
    adapters.install(network, AdapterConfig(rank=4, dropout=0.0))
    untouched = copy.deepcopy(network)
    compute.prepare(network, ComputeConfig(activation_checkpointing="none"))
    step(network, row)
    if change == "a fused step":
        torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1, fused=True).step()
    else:
        state = network.state_dict()
        network.load_state_dict({n: t + 0.1 if ".lora_" in n else t for n, t in state.items()})
    untouched.load_state_dict(network.state_dict())
    compute.prepare(untouched, ComputeConfig(activation_checkpointing="none"))
    found, expected = step(network, row), step(untouched, row)
    assert found[0] == expected[0]
    assert difference(found[1], expected[1]) == 0


def test_adapters_in_fp32_work_on_weights_in_16_bits(row: PackedRow):
    network = load()
    network.requires_grad_(False).to(torch.bfloat16)
    adapters.install(network, AdapterConfig(rank=4, dropout=0.0))
    compute.prepare(network, ComputeConfig(activation_checkpointing="none"))
    _, gradients = step(network, row)
    assert gradients
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
