"""The losses of vila-tiny-u: of the tower's stage on pixels, and of the other stages on codes.

B samples, M pictures per sample, P positions of a picture, D codes of a position, T tokens with media, H width, K codes
of a codebook
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vila_core.generation.depth_transformer import DepthTransformerHead
from vila_core.generation.reconstruction import code_usage, measure_pictures
from vila_core.model import VilaModel
from vila_core.tiles import normalize
from vila_core.towers.rq_siglip.decoder import to_bytes
from vila_train.labels import IGNORE_INDEX
from vila_train.loss import cross_entropy_sum
from vila_train.tiny.forward import Batch, token_loss
from vila_train.tiny.pools import Pool
from vila_train.tower_training.module import TowerTraining

PICTURES_AT_ONCE = 256


def tower_loss(training: TowerTraining, network: VilaModel, batches: Sequence[Batch]) -> Tensor:
    """Return the loss of the tower's stage. The answers are the descriptions of the pictures."""
    (batch,) = batches
    pixels = normalize(batch.pixels[:, 0], network.config.pixels)
    return training(pixels, batch.ids, batch.labels != IGNORE_INDEX).total


def hidden_states(network: VilaModel, batch: Batch) -> Tensor:
    """Return the last hidden states of samples whose pictures are codes, `[B, T, H]`."""
    embeds = network.llm.embed(batch.ids)  # [B, T, H]
    pictures = _head(network).embed(batch.pixels.long()).flatten(1, 2).to(embeds.dtype)  # [B, M·P, H]
    return network.llm(embeds.scatter(1, batch.places[..., None].expand_as(pictures), pictures))


def language_loss(network: VilaModel, drawn: Sequence[bool], batches: Sequence[Batch]) -> Tensor:
    """Return the mean loss of all answer tokens, plus that of all codes of pictures to be drawn.

    Args:
        network: the model.
        drawn: for each batch, whether its pictures are answers.
        batches: pictures are codes.
    """
    states = [hidden_states(network, batch) for batch in batches]
    of_codes, num_codes = torch.zeros((), device=states[0].device), 0
    for batch, hidden, is_drawn in zip(batches, states, drawn, strict=True):
        if is_drawn:
            of_codes = of_codes + codes_loss_sum(network, batch, hidden)
            num_codes += batch.pixels.numel()
    return token_loss(network, batches, states) + of_codes / max(num_codes, 1)


def codes_loss_sum(network: VilaModel, batch: Batch, hidden: Tensor) -> Tensor:
    """Return the summed cross-entropy of the codes of pictures that are answers.

    Position p is chosen from the hidden state before it. The sum is that of `vila_train.loss.code_loss` times D, in one
    piece, so that a CUDA graph can capture it.
    """
    before = (batch.places - 1)[..., None].expand(-1, -1, hidden.shape[-1])
    states = hidden.gather(1, before).flatten(0, 1)  # [B·M·P, H]
    codes = batch.pixels.flatten(0, 2).long()  # [B·M·P, D]
    logits = _head(network).logits(states, codes)  # [B·M·P, D, K]
    return cross_entropy_sum(logits.flatten(0, 1), codes.flatten())


def _head(network: VilaModel) -> DepthTransformerHead:
    return cast("DepthTransformerHead", network.generation_head)


@torch.no_grad()
def encode_pool(network: VilaModel, pool: Pool) -> None:
    """Replace the pixels of a pool `[n, M, 3, S, S]` by codes, int16 `[n, M, P, D]`, once the tower is trained.

    In fp32: in 16 bits, distances to codes tie.
    """
    count, per_sample = pool.pixels.shape[:2]
    codes = [
        _head(network).codes(normalize(part, network.config.pixels)).to(torch.int16)
        for part in pool.pixels.flatten(0, 1).split(PICTURES_AT_ONCE)
    ]
    pool.pixels = torch.cat(codes).unflatten(0, (count, per_sample))


@torch.no_grad()
def tower_quality(training: TowerTraining, network: VilaModel, pool: Pool) -> dict[str, float]:
    """Return PSNR and SSIM of the pictures of a pool, and the share and perplexity of the codes at each depth."""
    tower = training.tower
    decoded: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    for pixels in pool.pixels[:, 0].split(PICTURES_AT_ONCE):
        found = tower.encode(normalize(pixels, network.config.pixels))
        codes.append(found.cpu().numpy())
        decoded.append(to_bytes(tower.decode(found)).cpu().numpy())
    originals = pool.pixels[:, 0].permute(0, 2, 3, 1).cpu().numpy()
    quality = measure_pictures(np.concatenate(decoded), originals)
    usage = code_usage(np.concatenate(codes), tower.codebook_size)
    return {
        "psnr": quality.psnr,
        "ssim": quality.ssim,
        **{f"codes_used_{depth}": one.share for depth, one in enumerate(usage)},
        **{f"perplexity_{depth}": one.perplexity for depth, one in enumerate(usage)},
    }
