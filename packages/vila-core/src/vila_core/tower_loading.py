"""Load only what turns pictures into codes and back: a fifth of a VILA-U checkpoint, without the language model."""

from dataclasses import replace
from pathlib import Path

import torch

from vila_core.checkpoint import Checkpoint
from vila_core.checkpoint.load import load_weights
from vila_core.checkpoint.lora import open_checkpoint
from vila_core.checkpoint.tensors.index import WeightIndex
from vila_core.device_choice import choose_device, choose_dtype
from vila_core.errors import CheckpointError, ConfigError
from vila_core.generation.image_tokenizer import ImageTokenizer, require_codes
from vila_core.towers.rq_siglip.tower import RQSiglipTower

_PREFIX = "vision_tower."


def load_image_tokenizer(
    path: str | Path | Checkpoint,
    *,
    device: str | torch.device | None = "auto",
    dtype: str | torch.dtype | None = "float32",
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> ImageTokenizer:
    """Load the tower of a model that makes codes of pictures. The language model is not read.

    Args:
        path: folder or hub id of a VILA-U model, or an opened checkpoint.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: of the weights. In 16 bits, other kernels may find other codes for the same picture.
        revision: branch, tag or commit; only for a hub id.
        token: access token for gated and private repositories.
        offline: use only files in the cache.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError: the model's tower makes no codes, or the device or dtype is unknown.
    """
    checkpoint = (
        path if isinstance(path, Checkpoint) else open_checkpoint(path, revision=revision, token=token, offline=offline)
    )
    config = require_codes(checkpoint.config.vision_tower)
    weights = checkpoint.weights
    if not isinstance(weights, WeightIndex):
        raise ConfigError(
            "The weights of this checkpoint are computed while they are read. Load the whole model instead."
        )
    target = choose_device(device)
    chosen = choose_dtype(dtype, checkpoint.config, 0, target)
    with torch.device("meta"):
        try:
            tower = RQSiglipTower(config)
        except ConfigError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
    part = replace(checkpoint, weights=WeightIndex(weights.with_prefix(_PREFIX)))
    load_weights(tower, part, device=target, dtype=chosen)
    tower.eval().requires_grad_(False)
    return ImageTokenizer(tower, checkpoint.config.pixels, checkpoint.config.preprocess)
