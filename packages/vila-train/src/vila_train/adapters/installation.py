"""Put adapters into a network: LoRA (Hu et al. 2021), DoRA (Liu et al. 2024) and QLoRA (Dettmers et al. 2023) by peft,
or the normalization layers alone.
"""

from collections.abc import Sequence

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from vila_core.errors import listed, unknown_name
from vila_core.model import VilaModel
from vila_train.config import PARTS, AdapterConfig, Part
from vila_train.errors import TrainingError

ADAPTER_NAME = "default"
"""What peft calls an adapter; it is part of the names of the parameters, but not of those in files."""
HEAD = "lm_head"


class Parts(nn.Module):
    """The parts of a network under their own names, without its config, which peft would take for transformers'."""

    def __init__(self, network: VilaModel):
        super().__init__()
        for name, part in network.named_children():
            self.add_module(name, part)


def install(network: VilaModel, config: AdapterConfig) -> None:
    """Add adapters to `network` in place, and freeze everything else in the parts that have them.

    Other parts stay as they are: a projector can be trained in full beside.

    Args:
        network: on its device, or on meta; its parameters keep their dtypes. New ones are fp32.
        config: which adapters.

    Raises:
        TrainingError: a part has no layers of these names, the network has adapters already, or "norms" is to train
            only some layers.
        MissingDependencyError: "qlora" needs bitsandbytes.
    """
    if is_adapted(network):
        raise TrainingError("The model has adapters already. Load it again, or merge them first.")
    for part in config.parts:
        getattr(network, PARTS[part]).requires_grad_(False)
    if config.method == "norms":
        if config.targets:
            raise TrainingError("adapter.targets is for linear layers, and the method 'norms' has none. Leave it out.")
        for name in norm_names(network, config.parts):
            network.get_submodule(name).requires_grad_(True)
        return
    names = target_names(network, config)
    if config.method == "qlora":
        from vila_train.adapters.four_bits import quantize_linears

        quantize_linears(network, names)
    _inject(network, config, names)


def target_names(network: VilaModel, config: AdapterConfig) -> list[str]:
    """Return the names of the linears that get adapters. Raises `TrainingError` as above."""
    names = [name for part in config.parts for name in linear_names(network, part)]
    known = sorted({name.rpartition(".")[2] for name in names})
    unknown = [target for target in config.targets if not any(_ends_with(name, target) for name in names)]
    if unknown:
        raise TrainingError(unknown_name("linear layer for an adapter", unknown[0], known))
    if not names:
        raise TrainingError(f"There are no linear layers for an adapter in {listed(config.parts)}.")
    return [name for name in names if not config.targets or any(_ends_with(name, target) for target in config.targets)]


def linear_names(network: VilaModel, part: Part) -> list[str]:
    """Return the names of a part's linears, but not of the head."""
    root = PARTS[part]
    # Subclasses, such as the one in torch's MultiheadAttention, are not called, so an adapter there would do nothing.
    return [
        f"{root}.{name}"
        for name, module in getattr(network, root).named_modules()
        if type(module) is nn.Linear and name.rpartition(".")[2] != HEAD
    ]


def norm_names(network: VilaModel, parts: Sequence[Part]) -> list[str]:
    """Return the names of the normalization layers of `parts` that have weights. Raises `TrainingError` if none."""
    names = [
        f"{PARTS[part]}.{name}"
        for part in parts
        for name, module in getattr(network, PARTS[part]).named_modules()
        if type(module).__name__.endswith("Norm") and any(True for _ in module.parameters(recurse=False))
    ]
    if not names:
        raise TrainingError(f"There are no normalization layers in {listed(parts)}.")
    return names


def is_adapted(network: nn.Module) -> bool:
    """Return whether peft has put adapters into the network."""
    return any(isinstance(module, LoraLayer) for module in network.modules())


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _inject(network: VilaModel, config: AdapterConfig, names: Sequence[str]) -> None:
    frozen = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    peft.inject_adapter_in_model(lora_settings(config, names), Parts(network), ADAPTER_NAME)
    for name, parameter in network.named_parameters():
        # peft freezes all that is not an adapter, also in other parts.
        parameter.requires_grad_(frozen.get(name.replace(".base_layer.", "."), "lora_" in name))
    for module in network.modules():
        if isinstance(module, LoraLayer):
            # Under autocast or sharding, weights are cast to the dtype of the input, not the other way round.
            module.cast_input_dtype_enabled = False
            _to_float32(module)


def lora_settings(config: AdapterConfig, names: Sequence[str]) -> peft.LoraConfig:
    """Return peft's settings for adapters of the linears `names`."""
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        use_dora=config.method == "dora",
        target_modules=list(names),
    )


def _to_float32(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if "lora_" in name and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
