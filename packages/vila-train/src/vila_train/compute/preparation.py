"""Apply a `ComputeConfig` to a network."""

import torch

from vila_core.model import VilaModel
from vila_core.towers.captured import use_fused_tower
from vila_train.compute.blocks import prepare_layers
from vila_train.compute.fp8 import quantize_frozen, require_fp8, use_fp8
from vila_train.compute.lora import add_in_place
from vila_train.config import ComputeConfig


def prepare(
    network: VilaModel, config: ComputeConfig, device: torch.device | None = None, *, is_sharded: bool = False
) -> None:
    """Prepare `network` in place to compute as `config` says. Names and values of its parameters stay.

    Call it after adapters are installed and before parameters are sharded.

    Args:
        network: the model; if it will not be sharded, on the device where it computes.
        config: how it computes.
        device: where it will compute; None: where its parameters are.
        is_sharded: its parameters will be sharded.

    Raises:
        TrainingError: the device has no 8-bit products, or a layer's size does not suit them.
    """
    if config.fp8:
        require_fp8(device or next(network.parameters()).device)
        use_fp8(network)
        if not is_sharded:
            quantize_frozen(network)
    groups = add_in_place(network)
    prepare_layers(network, config.activation_checkpointing, compiled=config.compile, groups=groups)
    if not is_sharded:
        _run_frozen_tower(network, config)


def _run_frozen_tower(network: VilaModel, config: ComputeConfig) -> None:
    """Let a tower that is not trained keep nothing for a backward pass and, in bf16, run as in inference."""
    tower = network.vision_tower
    if any(parameter.requires_grad for parameter in tower.parameters()):
        return
    tower.forward = torch.no_grad()(tower.forward)
    if config.precision == "bf16":
        use_fused_tower(tower, torch.bfloat16, captures=False)
