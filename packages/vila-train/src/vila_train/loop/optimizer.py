"""Which weights are trained, at which rate, and how the rates change."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from vila_core.generation.heads import MODELS_THAT_DRAW
from vila_core.model import VilaModel
from vila_train.config import PARTS, OptimizerConfig, Part, TrainConfig
from vila_train.errors import TrainingError


def part_module(network: VilaModel, part: Part) -> nn.Module:
    """Return a part of the model. Raises `TrainingError` if it has no such part."""
    module = dict(network.named_children()).get(PARTS[part])
    if module is None:
        raise TrainingError(
            f"`tune` names {part}, but this model has none. It has: {', '.join(parts_of(network))}. "
            f"{MODELS_THAT_DRAW} have a generation head."
        )
    return module


def parts_of(network: VilaModel) -> list[Part]:
    """Return the parts that a model has."""
    present = dict(network.named_children())
    return [part for part, name in PARTS.items() if name in present]


def freeze(network: VilaModel, config: TrainConfig) -> None:
    """Freeze all parts but those that are tuned. Frozen ones compute as in inference: without dropout."""
    network.requires_grad_(False).eval()
    for part in config.tune:
        part_module(network, part).requires_grad_(True).train()


def require_trained(network: VilaModel) -> None:
    """Raise `TrainingError` if no weight requires a gradient."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise TrainingError(
            "No weights are trained. Name parts to train in `tune`: " + ", ".join(parts_of(network)) + "."
        )


def make_optimizer(network: VilaModel, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW over all weights that require gradients, with one group for each part and weight decay."""
    groups: list[dict[str, object]] = []
    for part in parts_of(network):
        trained = [p for p in part_module(network, part).parameters() if p.requires_grad]
        rate = config.part_learning_rates.get(part, config.learning_rate)
        for decay, members in (
            (config.weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": decay, "part": part, "peak": rate})
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=device.type == "cuda")


def rate_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate at `step` (from 0) of `total_steps`."""
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> Mapping[str, float]:
    """Set the rate of each group to `factor` times its peak. Return the rates by part."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["part"]: group["lr"] for group in optimizer.param_groups}
