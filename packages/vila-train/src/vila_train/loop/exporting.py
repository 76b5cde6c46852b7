"""Writes the trained model in a format that everything else reads."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vila_core.checkpoint import save_checkpoint
from vila_core.loading import DTYPES
from vila_train.checkpoints import parameter_name
from vila_train.models import OpenedModel
from vila_train.parallel.world import World


def export_model(
    opened: OpenedModel, out: Path, world: World, *, format: str = "vila", dtype: str | None = None
) -> None:
    """Write the model to the new folder `out`, completely or not at all. All ranks call this.

    Args:
        opened: with the trained network.
        out: a folder that does not exist yet.
        world: rank 0 writes; the others give it their shards.
        format: a registered format that can be written, such as "vila" or "nvila".
        dtype: "bfloat16", "float32" or "float16"; None: as in the checkpoint that training started from.

    Raises:
        CheckpointError: it cannot be written.
    """
    stored = DTYPES[dtype or opened.network.config.dtype]
    tensors = gather_weights(opened.network, stored, world)
    if world.is_first:
        save_checkpoint(
            tensors,
            opened.network.config,
            opened.tokenizer_path,
            out,
            format=format,
            base=opened.base,
            dtype=stored,
        )
    world.gather(None)


def gather_weights(network: nn.Module, dtype: torch.dtype, world: World) -> dict[str, Tensor]:
    """Return all weights in main memory on rank 0, one gathered at a time; nothing on other ranks."""
    weights: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.is_first:
            weights[parameter_name(name)] = whole.to(device="cpu", dtype=dtype if whole.is_floating_point() else None)
    return weights
