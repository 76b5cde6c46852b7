"""Residual quantization in training: codes, commitment, and codebooks that are running averages of features.

After `rqvae/models/rqvae/quantizations.py` of rq-vae-transformer (Lee et al. 2022), in our own words. At each depth the
residuals of a batch are assigned to their nearest codes, then the codebook moves towards them; with a shared codebook,
the next depth searches in the moved one.

P positions, C width, D codes of a position, K codes of a codebook
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.towers.rq_siglip.quantizer import Codebook, ResidualQuantizer, squared_distances
from vila_train.tower_training.config import CodebookSettings


@dataclass(frozen=True)
class Quantized:
    """A batch of features and what stands for them.

    Attributes:
        features: the sums of code embeddings, `[P, C]`; gradients pass straight through to the features.
        codes: int64 `[P, D]`.
        commitment: how far the features are from the sums of their first 1 … D embeddings, a scalar: the mean squared
            difference. Only the features have its gradient.
    """

    features: Tensor
    codes: Tensor
    commitment: Tensor


def quantize(
    quantizer: ResidualQuantizer,
    features: Tensor,
    settings: CodebookSettings,
    replacements: Tensor | None = None,
) -> Quantized:
    """Quantize features in fp32, and move the codebooks.

    Args:
        quantizer: keeps running averages (`keeps_ema`), which are updated in place.
        features: `[P, C]`.
        settings: of the codebooks.
        replacements: int64 `[D, K]`, for each depth and code the position whose residual an unused code becomes (see
            `draw_replacements`); None leaves the codebooks as they are, as in validation.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        residual, total = features.detach(), torch.zeros_like(features)
        codes: list[Tensor] = []
        commitment = features.new_zeros(())
        for depth in range(quantizer.depth):
            codebook = quantizer.codebook(depth)
            nearest = squared_distances(residual, codebook.embeddings).argmin(dim=-1)  # [P]
            embeddings = codebook.embeddings[nearest]  # [P, C], a copy: the codebook moves before it is used
            if replacements is not None:
                update_averages(codebook, residual, nearest, replacements[depth], settings)
            residual = residual - embeddings
            total = total + embeddings
            commitment = commitment + (features - total).square().mean()
            codes.append(nearest)
        straight_through = features + (total - features).detach()
    return Quantized(straight_through, torch.stack(codes, dim=-1), commitment / quantizer.depth)


@torch.no_grad()
def update_averages(
    codebook: Codebook, residuals: Tensor, codes: Tensor, replacements: Tensor, settings: CodebookSettings
) -> None:
    """Move a codebook towards the residuals that it stands for, in place and without waiting for the device.

    The sum and the number of the residuals of each code are averaged over steps; the embedding is their quotient, of
    which the number is smoothed (Laplace). A code whose average number is below 1 becomes a residual of the batch.

    Args:
        codebook: with running averages.
        residuals: fp32 `[P, C]`.
        codes: int64 `[P]`, the nearest code of each.
        replacements: int64 `[K]`, positions of the residuals that unused codes become.
        settings: of the averages.
    """
    sums, sizes = codebook.get_buffer("embed_ema"), codebook.get_buffer("cluster_size_ema")  # [K, C], [K]
    keep = 1 - settings.decay
    sizes.mul_(settings.decay).add_(
        torch.zeros_like(sizes).index_add_(0, codes, sizes.new_ones(len(codes))), alpha=keep
    )
    sums.mul_(settings.decay).add_(torch.zeros_like(sums).index_add_(0, codes, residuals.to(sums.dtype)), alpha=keep)
    if settings.restart_unused:
        is_unused = sizes < 1
        sums.copy_(torch.where(is_unused[:, None], residuals[replacements].to(sums.dtype), sums))
        sizes.copy_(torch.where(is_unused, 1.0, sizes))
    total = sizes.sum()
    smoothed = total * (sizes + settings.epsilon) / (total + codebook.size * settings.epsilon)
    codebook.embeddings.copy_(sums / smoothed[:, None])


def draw_replacements(quantizer: ResidualQuantizer, num_positions: int, generator: torch.Generator) -> Tensor:
    """Return random positions for `quantize`, int64 `[D, K]`: all different at a depth if there are enough positions.

    Args:
        quantizer: for D and K.
        num_positions: P of the batch.
        generator: on the device of the result.
    """
    size = quantizer.codebook(0).size
    rounds = -(-size // num_positions)
    drawn = [
        torch.cat([torch.randperm(num_positions, generator=generator, device=generator.device) for _ in range(rounds)])[
            :size
        ]
        for _ in range(quantizer.depth)
    ]
    return torch.stack(drawn)
